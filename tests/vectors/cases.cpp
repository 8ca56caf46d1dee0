#include "cases.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "recipes.h"

namespace rmsnorm_test {
namespace {

constexpr rmsnorm_dtype_t kF32 = RMSNORM_DTYPE_F32, kF16 = RMSNORM_DTYPE_F16,
                          kBf16 = RMSNORM_DTYPE_BF16, kF64 = RMSNORM_DTYPE_F64;
constexpr Direction kForward = Direction::kForward, kBackward = Direction::kBackward;
constexpr Name kElementTensors[] = {kX,  kResidual,  kY,    kResidualOut, kDy,    kDresidualOut,
                                    kDx, kDresidual, kGate, kUp,          kDgate, kDup};

std::string text(rmsnorm_dtype_t dtype) { return rmsnorm::dtype_name(dtype); }

void share(Case *c, Name tensor, Name memory, int64_t elements = 0) {
  Spec &spec = (*c)[tensor];
  spec.share = memory;
  spec.shift = elements * rmsnorm::element_size(spec.dtype);
}

class Samples {
 public:
  void add(const std::string &name, const Case &c) { samples_.push_back({name, c}); }
  void add(const std::string &name, const Case &c, std::function<void(Execution *)> cook) {
    samples_.push_back({name, c, std::move(cook)});
  }

  void dtypes();
  void mixes();
  void options();
  void groups();
  void strides();
  void memory();
  void extremes();
  void gradients();
  void sizes();
  void gated();
  void gated_memory();
  void gated_extremes();
  std::vector<Sample> take() {
    uint64_t seed = 0;
    for (Sample &each : samples_) each.c.seed = ++seed;
    return std::move(samples_);
  }

 private:
  std::vector<Sample> samples_;
};

// Every optional tensor, and none, in each dtype.
void Samples::dtypes() {
  for (const rmsnorm_dtype_t dtype : kDtypes) {
    Case c = forward_case(5, 67, dtype);
    c[kWeight] = c[kRstd] = {};
    add("forward_bare_" + text(dtype), c);
    add("forward_weight_" + text(dtype), forward_case(5, 67, dtype));
    add("forward_add_" + text(dtype), add_case(4, 65, dtype));
    add("forward_full_" + text(dtype), full_case(kForward, 3, 64, dtype));
    c = add_case(4, 100, dtype);
    c.rounding = RMSNORM_ROUNDING_LLAMA;
    add("forward_llama_" + text(dtype), c);
    c = forward_case(4, 48, dtype);
    c.weight_offset = 1;
    c[kWeight].pattern = Pattern::kNormal;
    add("forward_offset_" + text(dtype), c);
    c = backward_case(5, 67, dtype);
    c[kWeight] = {};
    add("backward_bare_" + text(dtype), c);
    add("backward_weight_" + text(dtype), backward_case(5, 67, dtype));
    add("backward_full_" + text(dtype), full_case(kBackward, 4, 65, dtype));
    c = full_case(kBackward, 6, 33, dtype);
    c.flags = RMSNORM_FLAG_ACCUMULATE;
    c.weight_offset = 1;
    add("backward_accumulate_" + text(dtype), c);
  }
}

void Samples::mixes() {
  for (const rmsnorm_dtype_t x : kMixable)
    for (const rmsnorm_dtype_t y : kMixable) {
      if (x == y) continue;
      Case c = add_case(3, 40, x);
      c[kY].dtype = y;
      c[kWeight].dtype = kF32;
      add("forward_mix_" + text(x) + "_to_" + text(y), c);
      c = full_case(kBackward, 3, 40, x);
      c[kDy].dtype = c[kDx].dtype = y;
      c[kWeight].dtype = c[kDweight].dtype = kF32;
      add("backward_mix_" + text(x) + "_dy_" + text(y), c);
    }
  Case c = full_case(kForward, 4, 40, kBf16);
  c[kResidual].dtype = c[kResidualOut].dtype = kF32;
  c[kWeight].dtype = kF16;
  add("forward_mix_residual_fp32", c);
  c[kResidualOut] = {};  // h is rounded to fp32
  add("forward_mix_h_fp32", c);
  c[kResidual].dtype = kBf16;  // h is rounded to bf16
  add("forward_mix_h_bf16", c);
  c = add_case(4, 40, kF32);
  c[kResidualOut].dtype = kF16;  // h is rounded to fp16
  c.rounding = RMSNORM_ROUNDING_LLAMA;
  add("forward_mix_llama_h_fp16", c);
  c = full_case(kBackward, 5, 40, kBf16);
  c[kDweight].dtype = c[kDbias].dtype = kF32;  // main gradients
  c[kDresidual].dtype = kF16;
  c.flags = RMSNORM_FLAG_ACCUMULATE;
  add("backward_mix_main_gradients", c);
}

void Samples::options() {
  for (const double eps : {0.0, 1e-5, 0.1, 1e30}) {
    Case c = forward_case(2, 32, kF32);
    c.eps = eps;
    add("forward_eps_" + std::to_string(samples_.size()), c);
    c = backward_case(2, 32, kF32);
    c.eps = eps;
    add("backward_eps_" + std::to_string(samples_.size()), c);
  }
  Case c = forward_case(3, 32, kBf16);
  c.weight_offset = -2.5;
  c.flags = RMSNORM_FLAG_OVERLAP;  // a hint that the CPU takes no notice of
  add("forward_flag_overlap", c);
  c = full_case(kForward, 4, 24, kF16);
  c[kWeight] = {};
  c.weight_offset = 0.25;
  c.rounding = RMSNORM_ROUNDING_LLAMA;
  add("forward_llama_bias_no_weight", c);
  // What forward wants of its outputs, one at a time; what backward does.
  c = add_case(3, 24, kF32);
  c[kRstd] = {};
  add("forward_no_rstd", c);
  for (const Name wanted : {kDx, kDresidual, kDweight, kDbias}) {
    Case one = full_case(kBackward, 7, 24, kF32);
    for (const Name other : {kDx, kDresidual, kDweight, kDbias})
      if (other != wanted) one[other] = {};
    add(std::string("backward_only_") + info(wanted).text, one);
  }
}

// Heads inside a packed row [q | k | v]; vectors for all groups and one per group.
void Samples::groups() {
  const int64_t rows = 3, groups = 4, cols = 16, packed = 3 * groups * cols;
  for (const rmsnorm_dtype_t dtype : {kF32, kBf16}) {
    Case c = forward_case(rows, cols, dtype);
    c.groups = groups;
    add("forward_groups_" + text(dtype), c);
    c[kX].row_stride = c[kY].row_stride = packed;
    share(&c, kY, kX);
    add("forward_groups_packed_in_place_" + text(dtype), c);
    c = full_case(kForward, rows, cols, dtype);
    c.groups = groups;
    c[kWeight].group_stride = cols;
    c[kBias].group_stride = cols + 3;
    c[kX].group_stride = c[kResidualOut].group_stride = 2 * cols;
    c[kX].row_stride = c[kResidualOut].row_stride = 2 * cols * groups;
    c[kRstd].row_stride = 1, c[kRstd].group_stride = rows;  // as columns
    add("forward_groups_own_weights_" + text(dtype), c);
    c = full_case(kBackward, rows, cols, dtype);
    c.groups = groups;
    c[kDy].row_stride = c[kX].row_stride = packed;
    add("backward_groups_shared_" + text(dtype), c);
    c[kWeight].group_stride = c[kDweight].group_stride = c[kDbias].group_stride = cols;
    add("backward_groups_own_weights_" + text(dtype), c);
    c[kDy].group_stride = c[kDx].group_stride = -cols;
    add("backward_groups_reversed_" + text(dtype), c);
  }
  Case c = forward_case(3, 20, kF32);
  c.groups = 0;  // read as 1
  add("forward_groups_0", c);
}

void Samples::strides() {
  const struct {
    const char *name;
    int64_t row_stride;
  } outputs_too[] = {{"gap", 37}, {"reversed", -41}};
  for (const auto &[name, row_stride] : outputs_too)
    for (const rmsnorm_dtype_t dtype : {kF64, kF16})
      for (const Direction direction : {kForward, kBackward}) {
        Case c = full_case(direction, 4, 33, dtype);
        for (const Name each : kElementTensors) c[each].row_stride = row_stride;
        add((direction == kForward ? "forward_" : "backward_") + std::string(name) + "_" +
                text(dtype),
            c);
      }
  for (const int64_t row_stride : {0, 1, -5}) {  // inputs alone
    Case c = full_case(kForward, 4, 33, kF32);
    c[kX].row_stride = c[kResidual].row_stride = row_stride;
    c[kRstd].row_stride = 3;
    add("forward_rows_overlap_" + std::to_string(samples_.size()), c);
    c = full_case(kBackward, 4, 33, kBf16);
    c[kX].row_stride = c[kDy].row_stride = c[kDresidualOut].row_stride = row_stride;
    c[kRstd].row_stride = 0;
    add("backward_rows_overlap_" + std::to_string(samples_.size()), c);
  }
  Case c = full_case(kForward, 1, 33, kF32);  // one row, one group: strides are not read
  for (const Name each : kElementTensors) c[each].row_stride = INT64_MAX;
  for (int i = 0; i < kNameCount; ++i) c.tensors[i].group_stride = INT64_MIN + 1;
  add("forward_strides_not_read", c);
}

// In place, interleaved, and off every boundary but the element's own.
void Samples::memory() {
  for (const rmsnorm_dtype_t dtype : {kF32, kBf16}) {
    Case c = full_case(kForward, 3, 50, dtype);
    share(&c, kY, kX);
    share(&c, kResidualOut, kResidual);
    add("forward_in_place_" + text(dtype), c);
    c = full_case(kForward, 3, 50, dtype);
    share(&c, kResidualOut, kX);
    add("forward_sum_in_x_" + text(dtype), c);
    for (const Name input : {kDy, kX, kDresidualOut}) {
      c = full_case(kBackward, 3, 50, dtype);
      share(&c, kDx, input);
      add(std::string("backward_in_") + info(input).text + "_" + text(dtype), c);
    }
    c = full_case(kForward, 3, 50, dtype);
    for (int i = 0; i < kNameCount; ++i)
      if (c.has(static_cast<Name>(i)))
        c.tensors[i].misalign = rmsnorm::element_size(c.tensors[i].dtype);
    add("forward_misaligned_" + text(dtype), c);
  }
  Case c = full_case(kForward, 3, 20, kF32);
  c[kY].row_stride = c[kResidualOut].row_stride = 40;
  share(&c, kResidualOut, kY, 20);
  add("forward_interleaved", c);
  c = full_case(kForward, 3, 20, kF32);
  share(&c, kResidual, kX, 7);  // inputs may overlap as they like
  add("forward_inputs_overlap", c);
}

void Samples::extremes() {
  const int64_t cols = 33;
  for (const rmsnorm_dtype_t dtype : kDtypes)
    for (const Direction direction : {kForward, kBackward}) {
      std::vector<Recipe> recipes;
      for (const Recipe &each : finite_recipes(dtype, cols))
        // exp2 and log2 need not give the same bits on every machine.
        if (std::strcmp(each.name, "every magnitude") != 0) recipes.push_back(each);
      const int64_t rows = static_cast<int64_t>(recipes.size());
      Case c = direction == kForward ? forward_case(rows, cols, dtype)
                                     : backward_case(rows, cols, dtype);
      c.eps = 0;
      add((direction == kForward ? "forward_extremes_" : "backward_extremes_") + text(dtype), c,
          [=](Execution *execution) {
            for (int64_t row = 0; row < rows; ++row)
              cook(execution, kX, row, recipes[static_cast<size_t>(row)]);
          });
    }
  for (const rmsnorm_dtype_t dtype : kDtypes) {
    Case c = forward_case(6, 20, dtype);
    c.eps = 0;
    add("forward_not_finite_" + text(dtype), c, [](Execution *execution) {
      execution->set(kX, 0, 0, 7, NAN);
      execution->set(kX, 1, 0, 3, HUGE_VAL);
      execution->set(kX, 2, 0, 19, -HUGE_VAL);
      execution->set_row(kX, 3, 0, 0);  // mean(h^2) + eps = 0
    });
    c = full_case(kBackward, 7, 20, dtype);  // an rstd that is no use is computed anew
    add("backward_useless_rstd_" + text(dtype), c, [=](Execution *execution) {
      const Limits limits = limits_of(rstd_dtype(dtype));
      const double useless[] = {0.0, -0.0, HUGE_VAL, limits.smallest,
                                limits.smallest_normal - limits.smallest};
      for (int64_t row = 0; row < 5; ++row)
        execution->set(kRstd, row, 0, 0, useless[static_cast<size_t>(row)]);
    });
  }
}

// Sums of many rows, of every magnitude, that cancel.
void Samples::gradients() {
  for (const rmsnorm_dtype_t dtype : kDtypes) {
    Case c = full_case(kBackward, 150, 9, dtype);
    c[kX].pattern = Pattern::kRows;
    c[kDy].pattern = Pattern::kWide;
    c[kDresidualOut] = c[kDresidual] = {};
    add("backward_many_rows_" + text(dtype), c);
  }
}

void Samples::sizes() {
  for (const int64_t cols : {1, 2, 7, 16, 31, 257, 1027}) {
    add("forward_cols_" + std::to_string(cols), full_case(kForward, 2, cols, kBf16));
    add("backward_cols_" + std::to_string(cols), full_case(kBackward, 2, cols, kF16));
  }
  add("forward_cols_4096", forward_case(1, 4096, kBf16));
  add("backward_cols_4096", backward_case(2, 4096, kBf16));
  add("forward_rows_0", full_case(kForward, 0, 16, kF32));
  Case c = full_case(kBackward, 0, 16, kF32);
  add("backward_rows_0", c);  // dweight and dbias become 0
  c.flags = RMSNORM_FLAG_ACCUMULATE;
  add("backward_rows_0_accumulate", c);
}

// ---- Gated activations -------------------------------------------------------------------------

constexpr const char *kActivationNames[] = {"silu", "gelu_tanh", "gelu_erf"};

std::string glu_name(Direction direction, const std::string &rest) {
  return std::string(rmsnorm_test::text(direction)) + "_" + rest;
}

void Samples::gated() {
  for (const Direction direction : kGluDirections) {
    for (const rmsnorm_activation_t activation : kActivations)
      for (const rmsnorm_dtype_t dtype : kDtypes)
        add(glu_name(direction, kActivationNames[activation]) + "_" + text(dtype),
            glu_case(direction, activation, 5, 67, dtype));
    for (const rmsnorm_dtype_t gate : kMixable)
      for (const rmsnorm_dtype_t other : kMixable) {
        if (gate == other) continue;
        Case c = glu_case(direction, kActivations[samples_.size() % 3], 3, 40, gate);
        c[direction == Direction::kGluForward ? kUp : kDgate].dtype = other;
        add(glu_name(direction, "mix_" + text(gate) + "_" + text(other)), c);
      }
    for (const int64_t cols : {1, 2, 7, 16, 31, 257, 1027})
      add(glu_name(direction, "cols_" + std::to_string(cols)),
          full_case(direction, 2, cols, direction == Direction::kGluForward ? kBf16 : kF16));
    add(glu_name(direction, "rows_0"), full_case(direction, 0, 16, kF32));
    for (const rmsnorm_dtype_t dtype : {kF64, kF16})
      for (const auto &[name, row_stride] :
           {std::pair<const char *, int64_t>{"gap", 37}, {"reversed", -41}}) {
        Case c = full_case(direction, 4, 33, dtype);
        for (const Name each : kElementTensors) c[each].row_stride = row_stride;
        add(glu_name(direction, name) + "_" + text(dtype), c);
      }
    for (const int64_t row_stride : {0, 1, -5}) {  // inputs alone
      Case c = full_case(direction, 4, 33, kF32);
      c[kGate].row_stride = c[kUp].row_stride = row_stride;
      add(glu_name(direction, "rows_overlap_" + std::to_string(row_stride + 5)), c);
    }
    Case c = full_case(direction, 3, 16, kBf16);
    c.groups = 4;
    add(glu_name(direction, "groups"), c);
    for (const Name each : kElementTensors) c[each].group_stride = 20, c[each].row_stride = 80;
    add(glu_name(direction, "groups_gap"), c);
    c[kUp].row_stride = 16, c[kUp].group_stride = 3 * 16;
    add(glu_name(direction, "groups_turned"), c);
    c = full_case(direction, 3, 20, kF32);
    c.groups = 0;  // read as 1
    c.flags = RMSNORM_FLAG_OVERLAP;
    add(glu_name(direction, "groups_0"), c);
    c = full_case(direction, 1, 33, kF32);
    for (const Name each : kElementTensors)
      c[each].row_stride = INT64_MAX, c[each].group_stride = INT64_MIN + 1;
    add(glu_name(direction, "strides_not_read"), c);
  }
  for (const Name absent : {kDgate, kDup}) {
    Case c = full_case(Direction::kGluBackward, 4, 24, kF32);
    c[absent] = {};
    add(std::string("glu_backward_no_") + info(absent).text, c);
  }
}

// Packed halves, in place, and off every boundary but the element's own.
void Samples::gated_memory() {
  constexpr Direction kGluForward = Direction::kGluForward, kGluBackward = Direction::kGluBackward;
  const int64_t cols = 40;
  for (const rmsnorm_dtype_t dtype : {kF32, kBf16}) {
    for (const Direction direction : kGluDirections) {
      Case c = full_case(direction, 3, cols, dtype);
      for (int i = 0; i < kNameCount; ++i)
        if (c.has(static_cast<Name>(i))) c.tensors[i].misalign = rmsnorm::element_size(dtype);
      add(glu_name(direction, "misaligned_" + text(dtype)), c);
      c = full_case(direction, 3, cols, dtype);
      c[kGate].row_stride = c[kUp].row_stride = 2 * cols;
      share(&c, kUp, kGate, cols);
      add(glu_name(direction, "packed_" + text(dtype)), c);
      if (direction == kGluForward) continue;
      for (const Name each : {kDgate, kDup}) c[each].row_stride = 2 * cols;
      share(&c, kDup, kDgate, cols);
      add("glu_backward_packed_gradients_" + text(dtype), c);
      share(&c, kDgate, kGate);
      share(&c, kDup, kGate, cols);
      add("glu_backward_packed_in_place_" + text(dtype), c);
    }
    const struct {
      Direction direction;
      Name first, first_in, second, second_in;
    } in_place[] = {
        {kGluForward, kY, kGate, kNone, kNone},      {kGluForward, kY, kUp, kNone, kNone},
        {kGluBackward, kDgate, kGate, kNone, kNone}, {kGluBackward, kDgate, kDy, kNone, kNone},
        {kGluBackward, kDup, kUp, kNone, kNone},     {kGluBackward, kDup, kDy, kNone, kNone},
        {kGluBackward, kDgate, kGate, kDup, kUp},    {kGluBackward, kDgate, kDy, kDup, kUp},
        {kGluBackward, kDgate, kGate, kDup, kDy}};
    for (const auto &each : in_place) {
      Case c = full_case(each.direction, 3, cols, dtype);
      std::string name = glu_name(each.direction, std::string(info(each.first).text) + "_in_" +
                                                      info(each.first_in).text);
      share(&c, each.first, each.first_in);
      if (each.second != kNone) {
        share(&c, each.second, each.second_in);
        name += std::string("_") + info(each.second).text + "_in_" + info(each.second_in).text;
      }
      add(name + "_" + text(dtype), c);
    }
  }
}

// As large and as small as the dtype has them, in every operand; gates far into the tails; what is
// not finite, but at the end.
void Samples::gated_extremes() {
  const int64_t cols = 33;
  for (const rmsnorm_dtype_t dtype : kDtypes)
    for (const Direction direction : kGluDirections)
      for (const rmsnorm_activation_t activation : kActivations) {
        std::vector<Recipe> recipes;
        for (const Recipe &each : finite_recipes(dtype, cols))
          if (std::strcmp(each.name, "every magnitude") != 0) recipes.push_back(each);
        const int64_t count = static_cast<int64_t>(recipes.size());
        const std::string end = std::string(kActivationNames[activation]) + "_" + text(dtype);
        add(glu_name(direction, "extremes_") + end,
            glu_case(direction, activation, count, cols, dtype), [=](Execution *execution) {
              for (int64_t row = 0; row < count; ++row) {
                const auto recipe = [&](int64_t turn) {
                  return recipes[static_cast<size_t>(turn % count)];
                };
                cook(execution, kGate, row, recipe(row));
                cook(execution, kUp, row, recipe(row * 7 + 3));
                if (takes(direction, kDy)) cook(execution, kDy, row, recipe(row * 4 + 1));
              }
            });
        add(glu_name(direction, "tails_") + end, glu_case(direction, activation, 4, cols, dtype),
            [=](Execution *execution) {
              const double ends[] = {3, 20, 110, 760};  // exact steps
              for (int64_t row = 0; row < 4; ++row)
                for (int64_t col = 0; col < cols; ++col)
                  execution->set(kGate, row, 0, col,
                                 ends[row] * (static_cast<double>(col) / 16 - 1.5));
            });
        add(glu_name(direction, "not_finite_") + end,
            glu_case(direction, activation, 4, cols, dtype), [=](Execution *execution) {
              const double values[] = {NAN, HUGE_VAL, -HUGE_VAL, 0.0, -0.0};
              for (int64_t i = 0; i < 5; ++i) {
                const double value = values[static_cast<size_t>(i)];
                execution->set(kGate, 0, 0, 3 * i, value);
                execution->set(kUp, 1, 0, 3 * i, value);
                if (takes(direction, kDy)) execution->set(kDy, 2, 0, 3 * i, value);
              }
            });
      }
}

// ---- Refusals ----------------------------------------------------------------------------------

class BrokenSamples {
 public:
  void add(const std::string &name, rmsnorm_status_t status, const std::string &error,
           const std::function<void(Vector *)> &break_rule) {
    Case c = full_case(direction_, 3, 8, kF32);
    c.groups = 2;
    samples_.push_back({std::string(rmsnorm_test::text(direction_)) + "_error_" + name, c, status,
                        error, break_rule});
  }
  void of(Direction direction);
  void of_gated(Direction direction);
  std::vector<BrokenSample> take() { return std::move(samples_); }

 private:
  void of_all();
  void of_tensors();

  Direction direction_ = kForward;
  std::vector<BrokenSample> samples_;
};

// Makes a tensor absent.
std::function<void(Vector *)> without(std::vector<Name> names) {
  return [=](Vector *v) {
    std::vector<VectorTensor> kept;
    for (const VectorTensor &each : v->tensors)
      if (std::find(names.begin(), names.end(), each.name) == names.end()) kept.push_back(each);
    v->tensors = kept;
  };
}

// Puts a tensor into another's memory.
void move(Vector *v, Name tensor, Name memory, int64_t offset) {
  VectorTensor *moved = v->find(tensor);
  moved->memory = memory;
  moved->offset = offset;
  moved->elements = 0;
}

// Shape and flags.
void BrokenSamples::of_all() {
  add("rows_negative", RMSNORM_ERROR_SHAPE, "rows = ", [](Vector *v) { v->rows = -1; });
  add("groups_negative", RMSNORM_ERROR_SHAPE, "groups = ", [](Vector *v) { v->groups = -2; });
  add("cols_0", RMSNORM_ERROR_SHAPE, "cols = ", [](Vector *v) { v->cols = 0; });
  add("too_many_elements", RMSNORM_ERROR_SHAPE,
      "rows = ", [](Vector *v) { v->rows = v->cols = int64_t{1} << 32; });
  add("flag_unknown", RMSNORM_ERROR_NEWER_LIBRARY, "flags",
      [](Vector *v) { v->flags = 0x40000000; });
}

void BrokenSamples::of(Direction direction) {
  direction_ = direction;
  of_all();
  add("eps_negative", RMSNORM_ERROR_VALUE, "eps = ", [](Vector *v) { v->eps = -1e-6; });
  add("weight_offset_too_large", RMSNORM_ERROR_VALUE, "weight_offset",
      [](Vector *v) { v->weight_offset = 1e39; });
  add("rounding_unknown", RMSNORM_ERROR_NEWER_LIBRARY, "rounding",
      [](Vector *v) { v->rounding = 7; });
  of_tensors();
}

void BrokenSamples::of_tensors() {
  const bool forward = direction_ == kForward;
  const Name output = forward ? kY : kDx;
  const std::string text = info(output).text;
  add("x_absent", RMSNORM_ERROR_NULL, "x is required", without({kX}));
  add("x_null", RMSNORM_ERROR_NULL, "x.data",
      [](Vector *v) { v->find(kX)->elements = v->find(kX)->offset = 0; });
  if (forward) {
    add("y_absent", RMSNORM_ERROR_NULL, "y is required", without({kY}));
    add("residual_out_alone", RMSNORM_ERROR_NULL, "residual_out", without({kResidual}));
    add("accumulate", RMSNORM_ERROR_NEWER_LIBRARY, "flags",
        [](Vector *v) { v->flags = RMSNORM_FLAG_ACCUMULATE; });
  } else {
    add("dy_absent", RMSNORM_ERROR_NULL, "dy is required", without({kDy}));
    add("no_output", RMSNORM_ERROR_NULL, "dx, dresidual, dweight and dbias",
        without({kDx, kDresidual, kDweight, kDbias}));
    add("own_weights_shared_gradient", RMSNORM_ERROR_NOT_SUPPORTED, "weight.group_stride",
        [](Vector *v) {
          v->find(kWeight)->group_stride = 8;
          v->find(kWeight)->elements = 16;
        });
    add("shared_weight_own_gradients", RMSNORM_ERROR_NOT_SUPPORTED, "weight.group_stride",
        [](Vector *v) {
          for (const Name name : {kDweight, kDbias}) {
            v->find(name)->group_stride = 8;
            v->find(name)->elements = 16;
          }
        });
  }
  add("rows_coincide", RMSNORM_ERROR_STRIDE, text + ".row_stride",
      [=](Vector *v) { v->find(output)->row_stride = 0; });
  add("rows_overlap", RMSNORM_ERROR_STRIDE, text + ".row_stride", [=](Vector *v) {
    v->groups = 1;
    v->find(output)->row_stride = 7;
  });
  add("groups_overlap", RMSNORM_ERROR_STRIDE, text + ".group_stride",
      [=](Vector *v) { v->find(output)->group_stride = 5; });
  add("x_beyond_memory", RMSNORM_ERROR_STRIDE, "x with row_stride",
      [](Vector *v) { v->find(kX)->row_stride = INT64_MAX; });
  add("weight_row_stride", RMSNORM_ERROR_NOT_SUPPORTED, "weight.row_stride",
      [](Vector *v) { v->find(kWeight)->row_stride = 8; });
  add(text + "_fp64", RMSNORM_ERROR_DTYPE, text + ".dtype",
      [=](Vector *v) { v->find(output)->dtype = kF64; });
  add("rstd_fp16", RMSNORM_ERROR_DTYPE, "rstd.dtype",
      [](Vector *v) { v->find(kRstd)->dtype = kF16; });
  add(text + "_is_weight", RMSNORM_ERROR_ALIAS, text + ".data",
      [=](Vector *v) { move(v, output, kWeight, 0); });
  add(text + "_shifted_in_x", RMSNORM_ERROR_ALIAS, text + ".data",
      [=](Vector *v) { move(v, output, kX, 3); });
  add(text + "_in_x_with_other_strides", RMSNORM_ERROR_ALIAS, text + ".data", [=](Vector *v) {
    move(v, output, kX, 0);
    v->find(output)->row_stride = 24;
  });
  const Name second = forward ? kResidualOut : kDresidual;
  add("outputs_share", RMSNORM_ERROR_ALIAS, text + ".data",
      [=](Vector *v) { move(v, second, output, 0); });
}

void BrokenSamples::of_gated(Direction direction) {
  direction_ = direction;
  const bool forward = direction == Direction::kGluForward;
  const Name output = forward ? kY : kDgate;
  const std::string text = info(output).text;
  of_all();
  add("activation_unknown", RMSNORM_ERROR_NEWER_LIBRARY, "activation",
      [](Vector *v) { v->activation = 3; });
  add("accumulate", RMSNORM_ERROR_NEWER_LIBRARY, "flags",
      [](Vector *v) { v->flags = RMSNORM_FLAG_ACCUMULATE; });
  for (const Name required : {kGate, kUp, forward ? kY : kDy})
    add(std::string(info(required).text) + "_absent", RMSNORM_ERROR_NULL,
        std::string(info(required).text) + " is required", without({required}));
  if (!forward) add("no_output", RMSNORM_ERROR_NULL, "dgate and dup", without({kDgate, kDup}));
  add("gate_null", RMSNORM_ERROR_NULL, "gate.data",
      [](Vector *v) { v->find(kGate)->elements = v->find(kGate)->offset = 0; });
  add("rows_coincide", RMSNORM_ERROR_STRIDE, text + ".row_stride",
      [=](Vector *v) { v->find(output)->row_stride = 0; });
  add("groups_overlap", RMSNORM_ERROR_STRIDE, text + ".group_stride",
      [=](Vector *v) { v->find(output)->group_stride = 5; });
  add("gate_beyond_memory", RMSNORM_ERROR_STRIDE, "gate with row_stride",
      [](Vector *v) { v->find(kGate)->row_stride = INT64_MAX; });
  add(text + "_fp64", RMSNORM_ERROR_DTYPE, text + ".dtype",
      [=](Vector *v) { v->find(output)->dtype = kF64; });
  add(text + "_shifted_in_gate", RMSNORM_ERROR_ALIAS, text + ".data",
      [=](Vector *v) { move(v, output, kGate, 3); });
  if (forward) return;
  add("dgate_is_up", RMSNORM_ERROR_ALIAS, "dgate.data", [](Vector *v) { move(v, kDgate, kUp, 0); });
  add("outputs_share", RMSNORM_ERROR_ALIAS, "dgate.data",
      [](Vector *v) { move(v, kDup, kDgate, 0); });
}

}  // namespace

std::vector<Sample> samples() {
  Samples all;
  all.dtypes();
  all.mixes();
  all.options();
  all.groups();
  all.strides();
  all.memory();
  all.extremes();
  all.gradients();
  all.sizes();
  all.gated();
  all.gated_memory();
  all.gated_extremes();
  return all.take();
}

std::vector<BrokenSample> broken_samples() {
  BrokenSamples all;
  all.of(kForward);
  all.of(kBackward);
  for (const Direction direction : kGluDirections) all.of_gated(direction);
  return all.take();
}

}  // namespace rmsnorm_test
