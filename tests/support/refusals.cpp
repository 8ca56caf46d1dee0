#include "refusals.h"

#include <cmath>
#include <cstring>

namespace rmsnorm_test {
namespace {

constexpr int64_t kRows = 4, kGroups = 3, kCols = 40;

std::vector<Name> tensors_of(Direction direction) {
  std::vector<Name> names;
  for (int i = 0; i < kNameCount; ++i)
    if (takes(direction, static_cast<Name>(i))) names.push_back(static_cast<Name>(i));
  return names;
}

bool is_required(Direction direction, Name name) {
  return takes(direction, name) &&
         (name == kX || name == kY || name == kDy || name == kGate || name == kUp);
}

// The pairs that may be one and the same view.
bool may_share(Name output, Name input) {
  return (output == kY && (input == kX || input == kGate || input == kUp)) ||
         (output == kResidualOut && (input == kResidual || input == kX)) ||
         (output == kDx && (input == kDy || input == kX || input == kDresidualOut)) ||
         (output == kDgate && (input == kGate || input == kDy)) ||
         (output == kDup && (input == kUp || input == kDy));
}

// Whose dtype tells whether all is fp64.
Name lead_of(Direction direction) { return is_glu(direction) ? kGate : kX; }

char *address(Params *params, Name name) { return static_cast<char *>(params->tensor(name).data); }

class Table {
 public:
  explicit Table(Direction direction) : direction_(direction) {}

  void add(std::string rule, rmsnorm_status_t status, std::vector<std::string> texts,
           std::function<void(Params *)> break_rule) {
    rows_.push_back({std::move(rule), std::move(break_rule), status, std::move(texts), false});
  }
  void add_of_memory(std::string rule, rmsnorm_status_t status, std::vector<std::string> texts,
                     std::function<void(Params *)> break_rule) {
    add(std::move(rule), status, std::move(texts), std::move(break_rule));
    rows_.back().of_memory = true;
  }
  // A rule about a field of the head.
  template <class Edit>
  void head(std::string rule, rmsnorm_status_t status, std::string text, Edit edit) {
    add(std::move(rule), status, {std::move(text)},
        [edit](Params *params) { params->edit_head(edit); });
  }
  template <class Edit>
  void norm(std::string rule, rmsnorm_status_t status, std::string text, Edit edit) {
    add(std::move(rule), status, {std::move(text)},
        [edit](Params *params) { params->edit_norm(edit); });
  }

  void shapes();
  void scalars();
  void norm_scalars();
  void activations();
  void one_tensor(Name name);
  void strides(Name name);
  void pairs(Name output);
  void presence();
  void group_sums();
  std::vector<Refusal> take() { return std::move(rows_); }

 private:
  Direction direction_;
  std::vector<Refusal> rows_;
};

void Table::shapes() {
  head("rows is negative", RMSNORM_ERROR_SHAPE, "rows = -1", [](auto *p) { p->rows = -1; });
  head("groups is negative", RMSNORM_ERROR_SHAPE, "groups = -2", [](auto *p) { p->groups = -2; });
  head("no columns", RMSNORM_ERROR_SHAPE, "cols = 0", [](auto *p) { p->cols = 0; });
  head("no columns, no rows", RMSNORM_ERROR_SHAPE, "cols = 0",
       [](auto *p) { p->rows = p->cols = 0; });
  head("cols is negative", RMSNORM_ERROR_SHAPE, "cols = -40", [](auto *p) { p->cols = -40; });
  head("too many elements", RMSNORM_ERROR_SHAPE, "rows = 4294967296", [](auto *p) {
    p->rows = int64_t{1} << 32;
    p->cols = int64_t{1} << 31;
  });
  head("too many groups", RMSNORM_ERROR_SHAPE, "groups = 4611686018427387904",
       [](auto *p) { p->groups = int64_t{1} << 62; });
}

void Table::scalars() {
  head("struct_size is 0", RMSNORM_ERROR_STRUCT_SIZE, "struct_size = 0",
       [](auto *p) { p->struct_size = 0; });
  head("struct_size is none that was published", RMSNORM_ERROR_STRUCT_SIZE,
       "struct_size = ", [](auto *p) { p->struct_size -= 8; });
  head("struct_size is beyond every limit", RMSNORM_ERROR_STRUCT_SIZE, "struct_size = 4097",
       [](auto *p) { p->struct_size = 4097; });
  head("a flag is unknown", RMSNORM_ERROR_NEWER_LIBRARY, "0x80000000",
       [](auto *p) { p->flags = 0x80000001u; });
  head("a flag is unknown", RMSNORM_ERROR_NEWER_LIBRARY, "flags", [](auto *p) { p->flags = 4; });
  if (direction_ != Direction::kBackward)
    head("nothing is accumulated", RMSNORM_ERROR_NEWER_LIBRARY, "0x2",
         [](auto *p) { p->flags = RMSNORM_FLAG_ACCUMULATE; });
}

void Table::norm_scalars() {
  for (const double eps : {-1.0, -1e-300, static_cast<double>(NAN), HUGE_VAL, -HUGE_VAL})
    norm("eps", RMSNORM_ERROR_VALUE, "eps = ", [eps](auto *p) { p->eps = eps; });
  for (const double offset :
       {static_cast<double>(NAN), HUGE_VAL, -HUGE_VAL, 1e39, -1e39, 1e-39, 5e-324})
    norm("weight_offset", RMSNORM_ERROR_VALUE,
         "weight_offset = ", [offset](auto *p) { p->weight_offset = offset; });
  for (const int32_t rounding : {2, -1, 1 << 30})
    norm("rounding is unknown", RMSNORM_ERROR_NEWER_LIBRARY,
         "rounding = " + std::to_string(rounding), [rounding](auto *p) { p->rounding = rounding; });
}

void Table::activations() {
  for (const int32_t activation : {3, -1, 1 << 30})
    add("activation is unknown", RMSNORM_ERROR_NEWER_LIBRARY,
        {"activation = " + std::to_string(activation)},
        [=](Params *params) { params->edit_glu([=](auto *p) { p->activation = activation; }); });
}

void Table::one_tensor(Name name) {
  const std::string text = info(name).text;
  add(text + ".reserved", RMSNORM_ERROR_NEWER_LIBRARY, {text + ".reserved = 7"},
      [=](Params *p) { p->tensor(name).reserved = 7; });
  for (const int32_t dtype : {0x0108, 0x0410 + 1, -1})
    add(text + ".dtype is unknown", RMSNORM_ERROR_NEWER_LIBRARY, {text + ".dtype = 0x"},
        [=](Params *p) { p->tensor(name).dtype = dtype; });
  const std::string lead = info(lead_of(direction_)).text;
  if (text != lead)
    add(text + " is fp64 among fp32", RMSNORM_ERROR_DTYPE,
        {text + ".dtype is fp64", lead + ".dtype fp32"},
        [=](Params *p) { p->tensor(name).dtype = RMSNORM_DTYPE_F64; });
  else
    add(text + " is fp64 among fp32", RMSNORM_ERROR_DTYPE, {".dtype is fp32", lead + ".dtype fp64"},
        [=](Params *p) { p->tensor(name).dtype = RMSNORM_DTYPE_F64; });
  if (name == kRstd)
    for (const rmsnorm_dtype_t dtype : kHalf)
      add("rstd is a half", RMSNORM_ERROR_DTYPE, {"rstd.dtype is ", rmsnorm::dtype_name(dtype)},
          [=](Params *p) { p->tensor(kRstd).dtype = dtype; });
  add_of_memory(text + ".data is NULL", RMSNORM_ERROR_NULL, {text + ".data is NULL"},
                [=](Params *p) { p->tensor(name).data = nullptr; });
  for (const int bytes : {1, 2, 3})
    add_of_memory(text + ".data is misaligned", RMSNORM_ERROR_ALIGNMENT, {text + ".data = 0x"},
                  [=](Params *p) { p->tensor(name).data = address(p, name) + bytes; });
  if (info(name).extent == Extent::kVector)
    add(text + " has a row stride", RMSNORM_ERROR_NOT_SUPPORTED, {text + ".row_stride = 40"},
        [=](Params *p) { p->tensor(name).row_stride = kCols; });
  if (is_required(direction_, name)) {
    add(text + " is absent", RMSNORM_ERROR_NULL, {text + " is required"},
        [=](Params *p) { p->tensor(name) = RMSNORM_TENSOR_INIT; });
    return;
  }
  add(text + " is absent but has strides", RMSNORM_ERROR_DTYPE, {text + ".dtype is 0"},
      [=](Params *p) {
        p->tensor(name) = RMSNORM_TENSOR_INIT;
        p->tensor(name).group_stride = 1;
      });
  add_of_memory(text + " is absent but has data", RMSNORM_ERROR_DTYPE, {text + ".dtype is 0"},
                [=](Params *p) {
                  p->tensor(name).dtype = RMSNORM_DTYPE_NONE;
                  p->tensor(name).row_stride = p->tensor(name).group_stride = 0;
                  if (name == kResidual) p->tensor(kResidualOut) = RMSNORM_TENSOR_INIT;
                });
}

void Table::strides(Name name) {
  const std::string text = info(name).text;
  const bool vector = info(name).extent == Extent::kVector;
  for (const int64_t stride : {INT64_MAX, INT64_MIN, int64_t{1} << 61}) {
    if (!vector)
      add(text + "'s rows leave the address space", RMSNORM_ERROR_STRIDE,
          {text, "row_stride = " + std::to_string(stride)},
          [=](Params *p) { p->tensor(name).row_stride = stride; });
    add(text + "'s groups leave the address space", RMSNORM_ERROR_STRIDE,
        {text, "group_stride = " + std::to_string(stride)},
        [=](Params *p) { p->tensor(name).group_stride = stride; });
  }
  if (!is_output(direction_, name)) return;
  const int64_t cols = info(name).extent == Extent::kRows ? 1 : kCols;
  if (!vector)
    for (const int64_t stride : {int64_t{0}, cols - 1, 1 - cols})
      add(text + "'s rows coincide", RMSNORM_ERROR_STRIDE,
          {text + ".row_stride = " + std::to_string(stride)}, [=](Params *p) {
            p->tensor(name).row_stride = stride;
            p->tensor(name).group_stride = 1000;
          });
  for (const int64_t stride : {int64_t{0}, cols - 1, 1 - cols})
    if (!vector || stride != 0)
      add(text + "'s groups coincide", RMSNORM_ERROR_STRIDE,
          {text + ".group_stride = " + std::to_string(stride)},
          [=](Params *p) { p->tensor(name).group_stride = stride; });
  if (vector) return;
  add(text + "'s rows and groups coincide", RMSNORM_ERROR_STRIDE, {text + ".group_stride = "},
      [=](Params *p) {
        p->tensor(name).row_stride = 2 * cols;  // row 1 is group 2
        p->tensor(name).group_stride = cols;
      });
}

void Table::pairs(Name output) {
  const std::string text = info(output).text;
  for (const Name other : tensors_of(direction_)) {
    if (other == output) continue;
    const std::string beside = info(other).text;
    const bool shareable = may_share(output, other);
    if (!shareable)
      add_of_memory(text + " is " + beside, RMSNORM_ERROR_ALIAS, {text + ".data", beside + ".data"},
                    [=](Params *p) { p->tensor(output).data = p->tensor(other).data; });
    add_of_memory(text + " begins inside " + beside, RMSNORM_ERROR_ALIAS,
                  {text + ".data", beside + ".data"},
                  [=](Params *p) { p->tensor(output).data = address(p, other) + 4; });
    if (!shareable) continue;
    add_of_memory(text + " is " + beside + " with other strides", RMSNORM_ERROR_ALIAS,
                  {text + ".data", beside + ".data", "same view"}, [=](Params *p) {
                    p->tensor(output).data = p->tensor(other).data;
                    p->tensor(output).row_stride += 1;
                  });
    add_of_memory(text + " is " + beside + " with another dtype", RMSNORM_ERROR_ALIAS,
                  {text + ".data", beside + ".data", "same view"}, [=](Params *p) {
                    p->tensor(output).data = p->tensor(other).data;
                    p->tensor(output).dtype = RMSNORM_DTYPE_BF16;
                  });
    add_of_memory(text + " is " + beside + " a row further", RMSNORM_ERROR_ALIAS,
                  {text + ".data", beside + ".data", "same view"}, [=](Params *p) {
                    p->tensor(output).data = address(p, other) + 4 * kGroups * kCols;
                  });
  }
}

void Table::presence() {
  if (direction_ == Direction::kForward) {
    add("residual_out without residual", RMSNORM_ERROR_NULL, {"residual_out", "residual is absent"},
        [](Params *p) { p->forward.residual = RMSNORM_INPUT_INIT; });
  }
  if (direction_ == Direction::kBackward)
    add("no output", RMSNORM_ERROR_NULL, {"dx, dresidual, dweight and dbias"}, [](Params *p) {
      for (const Name name : {kDx, kDresidual, kDweight, kDbias})
        p->tensor(name) = RMSNORM_TENSOR_INIT;
    });
  if (direction_ == Direction::kGluBackward)
    add("no output", RMSNORM_ERROR_NULL, {"dgate and dup"}, [](Params *p) {
      for (const Name name : {kDgate, kDup}) p->tensor(name) = RMSNORM_TENSOR_INIT;
    });
}

void Table::group_sums() {
  if (direction_ != Direction::kBackward) return;
  add("weight shared, gradients per group", RMSNORM_ERROR_NOT_SUPPORTED,
      {"weight.group_stride = 0", "dweight.group_stride = 40"},
      [](Params *p) { p->backward.dweight.group_stride = p->backward.dbias.group_stride = kCols; });
  add("weight per group, gradients shared", RMSNORM_ERROR_NOT_SUPPORTED,
      {"weight.group_stride = 40", "dweight.group_stride = 0"},
      [](Params *p) { p->backward.weight.group_stride = kCols; });
  add("dweight per group, dbias shared", RMSNORM_ERROR_NOT_SUPPORTED,
      {"dbias.group_stride = 0", "dweight.group_stride = 40"}, [](Params *p) {
        p->backward.weight.group_stride = p->backward.dweight.group_stride = kCols;
      });
  add("weight per group, dbias alone and shared", RMSNORM_ERROR_NOT_SUPPORTED,
      {"weight.group_stride = 41", "dbias.group_stride = 0"}, [](Params *p) {
        p->backward.weight.group_stride = 41;
        p->backward.dweight = RMSNORM_TENSOR_INIT;
      });
}

}  // namespace

Case unbroken_case(Direction direction) {
  Case c = full_case(direction, kRows, kCols, RMSNORM_DTYPE_F32);
  c.groups = kGroups;
  c.guard = 8192;  // a tensor moved onto another one reaches no third
  return c;
}

std::vector<Refusal> refusals(Direction direction) {
  Table table(direction);
  table.shapes();
  table.scalars();
  if (is_glu(direction)) table.activations();
  else table.norm_scalars();
  for (const Name name : tensors_of(direction)) {
    table.one_tensor(name);
    table.strides(name);
    if (is_output(direction, name)) table.pairs(name);
  }
  table.presence();
  table.group_sums();
  return table.take();
}

}  // namespace rmsnorm_test
