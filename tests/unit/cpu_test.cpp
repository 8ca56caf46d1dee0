// The CPU backend against the reference, and against itself: the same bits from every instruction
// set's table, for every split of the work over threads, every layout of the tensors and every
// floating-point mode of the caller.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cfenv>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "core/status.h"
#include "cpu/dispatch.h"
#include "cpu/operations.h"
#include "cpu/tasks.h"
#include "reference/reference.h"

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace rmsnorm {
namespace {

using cpu::RowTable;
using cpu::State;
using reference::Exact;

constexpr double kInf = HUGE_VAL;
constexpr rmsnorm_dtype_t kF16 = RMSNORM_DTYPE_F16, kBf16 = RMSNORM_DTYPE_BF16,
                          kF32 = RMSNORM_DTYPE_F32, kF64 = RMSNORM_DTYPE_F64,
                          kNone = RMSNORM_DTYPE_NONE;
constexpr rmsnorm_dtype_t kDtypes[] = {kF32, kF16, kBf16, kF64};
constexpr int64_t kCols[] = {1, 3, 7, 8, 16, 17, 33, 64, 111, 128, 500, 1027, 4096, 5125, 65536};

std::vector<const RowTable *> tables_here() {
  std::vector<const RowTable *> tables;
  for (const RowTable *table : cpu::kTables)
    if (cpu::runs_here(*table)) tables.push_back(table);
  return tables;
}

// ---- Tensors ------------------------------------------------------------------------------------

// How a tensor lies in memory, in elements.
struct Layout {
  int64_t lead = 0, row_gap = 0, group_gap = 0;
};

// A tensor that owns its elements; what lies between them is checked for writes.
class Array {
 public:
  Array() = default;
  Array(rmsnorm_dtype_t dtype, int64_t rows, int64_t groups, int64_t cols, const Layout &layout)
      : dtype_(dtype), rows_(rows), groups_(groups), cols_(cols) {
    if (dtype == kNone) return;
    group_stride_ = cols + layout.group_gap;
    row_stride_ = groups * group_stride_ + layout.row_gap;
    lead_ = layout.lead;
    const int64_t elements = lead_ + std::max<int64_t>(rows, 1) * row_stride_ + 64;
    memory_.resize(static_cast<size_t>(elements * element_size(dtype)), kFill);
  }

  View view() {
    if (dtype_ == kNone) return {};
    char *data = memory_.data() + lead_ * element_size(dtype_);
    return {data, rows_ > 1 ? row_stride_ : 0, groups_ > 1 ? group_stride_ : 0, dtype_};
  }
  char *at(int64_t row, int64_t group, int64_t col) {
    return memory_.data() +
           (lead_ + row * row_stride_ + group * group_stride_ + col) * element_size(dtype_);
  }
  double get(int64_t row, int64_t group, int64_t col) {
    return reference::load(at(row, group, col), dtype_);
  }
  // All elements' bits, every NaN alike.
  std::vector<uint64_t> bits() {
    std::vector<uint64_t> all;
    for (int64_t r = 0; r < rows_; ++r)
      for (int64_t g = 0; g < groups_; ++g)
        for (int64_t c = 0; c < cols_; ++c) {
          uint64_t element = 0;
          std::memcpy(&element, at(r, g, c), static_cast<size_t>(element_size(dtype_)));
          all.push_back(std::isnan(get(r, g, c)) ? ~uint64_t{0} : element);
        }
    return all;
  }
  bool outside_intact() {
    std::vector<char> copy = memory_;
    copy.swap(memory_);
    for (int64_t r = 0; r < rows_; ++r)
      for (int64_t g = 0; g < groups_; ++g)
        if (cols_ > 0)
          std::memset(at(r, g, 0), kFill, static_cast<size_t>(cols_ * element_size(dtype_)));
    const bool intact =
        std::all_of(memory_.begin(), memory_.end(), [](char c) { return c == kFill; });
    copy.swap(memory_);
    return intact;
  }

 private:
  static constexpr char kFill = 0x5a;
  rmsnorm_dtype_t dtype_ = kNone;
  int64_t rows_ = 0, groups_ = 0, cols_ = 0, row_stride_ = 0, group_stride_ = 0, lead_ = 0;
  std::vector<char> memory_;
};

enum class Values { kNormal, kAnyExponent, kTiny, kHuge, kZero, kSpecial };

// A tensor of a case: absent if its dtype is NONE.
struct Spec {
  rmsnorm_dtype_t dtype = kNone;
  Values values = Values::kNormal;
};

double draw(std::mt19937_64 *engine, const Spec &spec) {
  const double normal = std::normal_distribution<double>(0, 1)(*engine);
  const double sign = normal < 0 ? -1 : 1;
  const int top = spec.dtype == kF16 ? 15 : spec.dtype == kF64 ? 1023 : 127;
  const int bottom = spec.dtype == kF16    ? -24
                     : spec.dtype == kF64  ? -1074
                     : spec.dtype == kBf16 ? -133
                                           : -149;
  const auto power = [&](double low, double high) {
    return sign * std::exp2(std::uniform_real_distribution<double>(low, high)(*engine));
  };
  switch (spec.values) {
    case Values::kNormal: return normal;
    case Values::kAnyExponent: return power(bottom, top);
    case Values::kTiny: return power(bottom, bottom + 12);
    case Values::kHuge: return power(top - 3, top + 0.99);
    case Values::kZero: return sign * 0.0;
    case Values::kSpecial:
      return (*engine)() % 40 == 0 ? (normal < 0.5 ? sign * kInf : std::nan("")) : normal;
  }
  return 0;
}

using Arrays = std::map<std::string, Array>;

// A case of either operation: tensors by name, in rmsnorm.h's order.
struct Case {
  int64_t rows = 3, groups = 1, cols = 64;
  double eps = 1e-6, offset = 0;
  bool llama = false, accumulate = false, per_group = false;
  uint64_t seed = 1;
  std::map<std::string, Spec> tensors;

  rmsnorm_dtype_t dtype(const std::string &name) const {
    const auto found = tensors.find(name);
    return found == tensors.end() ? kNone : found->second.dtype;
  }
};

std::ostream &operator<<(std::ostream &out, const Case &c) {
  out << c.rows << " x " << c.groups << " x " << c.cols << " eps " << c.eps << " offset "
      << c.offset << (c.llama ? " llama" : "") << (c.accumulate ? " accumulate" : "")
      << (c.per_group ? " per_group" : "") << " seed " << c.seed;
  for (const auto &[name, spec] : c.tensors)
    out << " " << name << ":" << dtype_name(spec.dtype) << "/" << static_cast<int>(spec.values);
  return out;
}

const char *const kVectors[] = {"weight", "bias", "dweight", "dbias"};

bool is_vector(const std::string &name) {
  return std::find(std::begin(kVectors), std::end(kVectors), name) != std::end(kVectors);
}

Arrays make_arrays(const Case &c, const Layout &layout) {
  Arrays arrays;
  std::mt19937_64 engine(c.seed);
  for (const auto &[name, spec] : c.tensors) {
    const bool vector = is_vector(name), rstd = name == "rstd";
    const int64_t groups = vector && !c.per_group ? 1 : c.groups;
    Array array(spec.dtype, vector ? 1 : c.rows, groups, rstd ? 1 : c.cols, layout);
    for (int64_t r = 0; r < (vector ? 1 : c.rows); ++r)
      for (int64_t g = 0; g < groups; ++g)
        for (int64_t col = 0; col < (rstd ? 1 : c.cols); ++col)
          reference::store(draw(&engine, spec), array.at(r, g, col), spec.dtype);
    arrays.emplace(name, std::move(array));
  }
  return arrays;
}

View view_of(Arrays *arrays, const std::string &name) {
  const auto found = arrays->find(name);
  return found == arrays->end() ? View{} : found->second.view();
}

void set_scalars(const Case &c, NormProblem *problem) {
  problem->rows = c.rows, problem->groups = c.groups, problem->cols = c.cols;
  problem->eps = c.eps, problem->weight_offset = c.offset;
}

ForwardProblem forward_problem(const Case &c, Arrays *arrays) {
  ForwardProblem p;
  set_scalars(c, &p);
  p.llama = c.llama;
  p.x = view_of(arrays, "x"), p.residual = view_of(arrays, "residual");
  p.weight = view_of(arrays, "weight"), p.bias = view_of(arrays, "bias");
  p.y = view_of(arrays, "y"), p.residual_out = view_of(arrays, "residual_out");
  p.rstd = view_of(arrays, "rstd");
  p.h_dtype = p.residual_out.present()                                 ? p.residual_out.dtype
              : !p.residual.present() || p.residual.dtype == p.x.dtype ? p.x.dtype
                                                                       : kF32;
  return p;
}

BackwardProblem backward_problem(const Case &c, Arrays *arrays) {
  BackwardProblem p;
  set_scalars(c, &p);
  p.accumulate = c.accumulate, p.per_group = c.per_group && c.groups > 1;
  p.dy = view_of(arrays, "dy"), p.x = view_of(arrays, "x"), p.weight = view_of(arrays, "weight");
  p.rstd = view_of(arrays, "rstd"), p.dresidual_out = view_of(arrays, "dresidual_out");
  p.dx = view_of(arrays, "dx"), p.dresidual = view_of(arrays, "dresidual");
  p.dweight = view_of(arrays, "dweight"), p.dbias = view_of(arrays, "dbias");
  return p;
}

bool is_forward(const Case &c) { return c.dtype("y") != kNone; }

// Runs the case on one table; `skew` misaligns the workspace.
void run(const Case &c, const State &state, Arrays *arrays, size_t skew = 0) {
  if (is_forward(c)) {
    const ForwardProblem problem = forward_problem(c, arrays);
    ASSERT_EQ(cpu::forward(&state, problem, {nullptr, nullptr}), RMSNORM_SUCCESS);
    return;
  }
  const BackwardProblem problem = backward_problem(c, arrays);
  const size_t size = cpu::backward_workspace_size(&state, problem);
  std::vector<char> workspace(size + skew, static_cast<char>(0xff));  // NaNs
  ASSERT_EQ(cpu::backward(&state, problem, {workspace.data() + skew, nullptr}), RMSNORM_SUCCESS);
}

const char *const kOutputs[] = {"y", "residual_out", "rstd", "dx", "dresidual", "dweight", "dbias"};

using Bits = std::map<std::string, std::vector<uint64_t>>;

Bits output_bits(const Case &c, Arrays *arrays) {
  Bits all;
  for (const char *name : kOutputs)
    if (c.dtype(name) != kNone && (is_forward(c) || std::string(name) != "rstd"))
      all[name] = arrays->at(name).bits();
  return all;
}

Bits bits_with(const Case &c, const State &state, Arrays arrays, size_t skew = 0) {
  run(c, state, &arrays, skew);
  for (auto &[name, array] : arrays) EXPECT_TRUE(array.outside_intact()) << name << " of " << c;
  return output_bits(c, &arrays);
}

const State kGeneric = {&cpu::kGenericRows, nullptr, nullptr};

Case forward_case(rmsnorm_dtype_t dtype, int64_t rows, int64_t cols) {
  Case c;
  c.rows = rows, c.cols = cols;
  for (const char *name : {"x", "residual", "weight", "bias", "y", "residual_out"})
    c.tensors[name] = {dtype, Values::kNormal};
  c.tensors["rstd"] = {dtype == kF64 ? kF64 : kF32, Values::kNormal};
  return c;
}

Case backward_case(rmsnorm_dtype_t dtype, int64_t rows, int64_t cols) {
  Case c;
  c.rows = rows, c.cols = cols;
  for (const char *name :
       {"dy", "x", "weight", "dresidual_out", "dx", "dresidual", "dweight", "dbias"})
    c.tensors[name] = {dtype, Values::kNormal};
  c.tensors["rstd"] = {dtype == kF64 ? kF64 : kF32, Values::kNormal};
  return c;
}

// Cases of every kind for bit comparisons: dtypes and their mixtures, optional tensors, special
// values.
std::vector<Case> various_cases(int64_t rows, int64_t groups, int64_t cols, int count = 96) {
  std::vector<Case> cases;
  std::mt19937_64 engine(static_cast<uint64_t>(rows * 131 + groups * 17 + cols));
  const Values values[] = {Values::kNormal, Values::kAnyExponent, Values::kTiny,
                           Values::kHuge,   Values::kZero,        Values::kSpecial};
  for (int i = 0; i < count; ++i) {
    const bool mixed = i % 2 != 0;
    const rmsnorm_dtype_t dtype = kDtypes[i / 2 % (mixed ? 3 : 4)];
    Case c = i / 8 % 2 == 0 ? forward_case(dtype, rows, cols) : backward_case(dtype, rows, cols);
    c.groups = groups;
    c.seed = engine();
    constexpr double kEps[] = {1e-5, 0, 5e-324, 1e-45, 1e-5, 10, 1e300};
    constexpr double kOffsets[] = {0, 1, 0, -1, 0x1p-126, -3e38, 0.1};
    c.eps = kEps[engine() % 7], c.offset = kOffsets[engine() % 7];
    c.llama = i % 7 == 0, c.accumulate = i % 4 == 0, c.per_group = engine() % 2 != 0;
    const bool forward = is_forward(c);
    const Values kind = values[engine() % 6];
    for (auto &[name, spec] : c.tensors) {
      if (mixed && name != "rstd") spec.dtype = kDtypes[engine() % 3];
      if (engine() % 2 == 0) spec.values = kind;
      const bool needed = name == "x" || name == "y" || name == "dy" || name == "dx";
      if (!needed && engine() % 4 == 0) spec.dtype = kNone;
    }
    if (forward && c.dtype("residual") == kNone) c.tensors["residual_out"].dtype = kNone;
    for (auto it = c.tensors.begin(); it != c.tensors.end();)
      it = it->second.dtype == kNone ? c.tensors.erase(it) : std::next(it);
    cases.push_back(c);
  }
  return cases;
}

// ---- The same bits ------------------------------------------------------------------------------

TEST(Bits, SameOnEveryInstructionSet) {
  std::vector<Case> cases = various_cases(2, 1, 20000, 16);
  for (const int64_t cols : {1, 3, 15, 16, 17, 100, 1027})
    for (const int64_t groups : {1, 3})
      for (const Case &c : various_cases(3, groups, cols)) cases.push_back(c);
  for (const Case &c : cases) {
    const Arrays arrays = make_arrays(c, {});
    const Bits expected = bits_with(c, kGeneric, arrays);
    for (const RowTable *table : tables_here())
      ASSERT_EQ(bits_with(c, {table, nullptr, nullptr}, arrays), expected)
          << table->isa << " " << c;
  }
}

// parallel_for with `threads` threads which take the tasks in a shuffled order.
struct Pool {
  int threads;
  uint64_t seed;

  static int32_t run(void *user, int64_t count, rmsnorm_task_t task, void *arg) {
    const Pool &pool = *static_cast<const Pool *>(user);
    std::vector<int64_t> order(static_cast<size_t>(count));
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), std::mt19937_64(pool.seed));
    std::atomic<size_t> next{0};
    const auto work = [&] {
      for (size_t i; (i = next++) < order.size();) task(arg, order[i]);
    };
    std::vector<std::thread> others;
    for (int i = 1; i < pool.threads; ++i) others.emplace_back(work);
    work();
    for (std::thread &other : others) other.join();
    return 0;
  }
};

TEST(Bits, SameForEverySplit) {
  const RowTable &best = cpu::choose_rows(nullptr);
  for (const auto &[rows, groups, cols] :
       {std::array<int64_t, 3>{200, 1, 37}, {37, 5, 64}, {5000, 1, 9}, {3, 2, 3000}})
    for (const Case &c : various_cases(rows, groups, cols, 24)) {
      const Arrays arrays = make_arrays(c, {});
      const Bits expected = bits_with(c, {&best, nullptr, nullptr}, arrays);
      for (int threads = 1; threads <= 16; threads += threads < 4 ? 1 : 6) {
        Pool pool = {threads, c.seed + static_cast<uint64_t>(threads)};
        ASSERT_EQ(bits_with(c, {&best, Pool::run, &pool}, arrays), expected) << threads << " " << c;
      }
    }
}

TEST(Bits, SameForEveryLayout) {
  const Layout layouts[] = {{1, 0, 0}, {3, 5, 0}, {0, 7, 1}, {13, 1, 11}};
  for (const int64_t cols : {1, 5, 16, 33, 257})
    for (const Case &c : various_cases(5, 2, cols)) {
      const Bits expected = bits_with(c, kGeneric, make_arrays(c, {}));
      size_t skew = 1;
      for (const Layout &layout : layouts) {
        const Arrays arrays = make_arrays(c, layout);
        for (const RowTable *table : tables_here())
          ASSERT_EQ(bits_with(c, {table, nullptr, nullptr}, arrays, skew), expected)
              << table->isa << " " << c;
        skew += 3;
      }
    }
}

// Zero and negative strides of inputs: one row for all, and rows from the last to the first.
TEST(Bits, SameForZeroAndNegativeStrides) {
  const State state = {&cpu::choose_rows(nullptr), nullptr, nullptr};
  for (const rmsnorm_dtype_t dtype : kDtypes) {
    const Case c = forward_case(dtype, 4, 50);
    Arrays arrays = make_arrays(c, {});
    Arrays turned = make_arrays(c, {});
    ForwardProblem problem = forward_problem(c, &arrays);
    for (View *view : {&problem.x, &problem.residual}) {
      view->data = view->at(3, 0);
      view->row_stride = -view->row_stride;
    }
    ASSERT_EQ(cpu::forward(&state, problem, {nullptr, nullptr}), RMSNORM_SUCCESS);
    run(c, state, &turned);
    for (int64_t r = 0; r < 4; ++r)
      for (int64_t col = 0; col < 50; ++col)
        ASSERT_EQ(arrays["y"].get(r, 0, col), turned["y"].get(3 - r, 0, col));
    problem = forward_problem(c, &arrays);
    problem.x.row_stride = problem.residual.row_stride = 0;
    ASSERT_EQ(cpu::forward(&state, problem, {nullptr, nullptr}), RMSNORM_SUCCESS);
    for (int64_t r = 0; r < 4; ++r)
      for (int64_t col = 0; col < 50; ++col)
        ASSERT_EQ(arrays["y"].get(r, 0, col), turned["y"].get(0, 0, col));
  }
}

// Each pair that rmsnorm.h allows to be one view.
TEST(Bits, SameInPlace) {
  const std::pair<const char *, const char *> pairs[] = {
      {"y", "x"},  {"residual_out", "residual"}, {"residual_out", "x"}, {"dx", "dy"},
      {"dx", "x"}, {"dx", "dresidual_out"}};
  for (const RowTable *table : tables_here())
    for (const auto &[output, input] : pairs)
      for (const int64_t cols : {1, 50})
        for (Case c : various_cases(20, 2, cols, 32)) {
          if (c.dtype(output) == kNone || c.dtype(input) == kNone) continue;
          c.tensors[output] = c.tensors[input];
          const State state = {table, nullptr, nullptr};
          Arrays arrays = make_arrays(c, {});
          const Bits expected = bits_with(c, state, arrays);
          Case shared = c;
          shared.tensors.erase(output);
          arrays.erase(output);
          if (is_forward(c)) {
            ForwardProblem problem = forward_problem(shared, &arrays);
            View &view = std::string(output) == "y" ? problem.y : problem.residual_out;
            view = view_of(&arrays, input);
            if (std::string(output) == "residual_out") problem.h_dtype = view.dtype;
            ASSERT_EQ(cpu::forward(&state, problem, {nullptr, nullptr}), RMSNORM_SUCCESS);
          } else {
            BackwardProblem problem = backward_problem(shared, &arrays);
            problem.dx = view_of(&arrays, input);
            std::vector<char> workspace(cpu::backward_workspace_size(&state, problem));
            ASSERT_EQ(cpu::backward(&state, problem, {workspace.data(), nullptr}), RMSNORM_SUCCESS);
          }
          arrays[output] = arrays[input];
          ASSERT_EQ(output_bits(c, &arrays), expected) << output << " on " << input << " " << c;
        }
}

// The floating-point control register: flush to zero and rounding modes, and the mask of what is
// not a flag.
#if defined(__x86_64__)
const uint64_t kModes[] = {0x9fc0, 0x7f80, 0x3f80, 0xffc0}, kModeMask = 0xffc0;
uint64_t get_mode() { return _mm_getcsr(); }
void set_mode(uint64_t mode) { _mm_setcsr(static_cast<unsigned>(mode)); }
#elif defined(__aarch64__)
const uint64_t kModes[] = {1u << 24, 3u << 22, 2u << 22, 7u << 23}, kModeMask = ~uint64_t{0};
uint64_t get_mode() {
  uint64_t mode;
  __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
  return mode;
}
void set_mode(uint64_t mode) { __asm__ volatile("msr fpcr, %0" : : "r"(mode)); }
#endif

TEST(Bits, SameUnderTheCallersMode) {
  for (const RowTable *table : tables_here())
    for (const Case &c : various_cases(3, 1, 100)) {
      const State state = {table, nullptr, nullptr};
      const Arrays fresh = make_arrays(c, {});
      const Bits expected = bits_with(c, state, fresh);
      for (const uint64_t mode : kModes) {
        Arrays arrays = fresh;
        const uint64_t before = get_mode();
        set_mode(mode);
        if ((get_mode() & kModeMask) != (mode & kModeMask)) {
          set_mode(before);
          GTEST_SKIP() << "this machine, or what runs on its behalf, has no such modes";
        }
        run(c, state, &arrays);
        const uint64_t after = get_mode();
        set_mode(before);
        ASSERT_EQ(after & kModeMask, mode & kModeMask);
        ASSERT_EQ(output_bits(c, &arrays), expected) << table->isa << " " << c;
      }
    }
}

// Inputs made of integers, outputs as one number: what every processor and compiler must find.
TEST(Bits, SameOnEveryMachine) {
  for (const RowTable *table : tables_here()) {
    uint64_t hash = 1469598103934665603u, next = 1;
    const auto random = [&next] {
      return (next = next * 6364136223846793005u + 1442695040888963407u) >> 33;
    };
    for (const rmsnorm_dtype_t dtype : kDtypes)
      for (Case c : {forward_case(dtype, 70, 133), backward_case(dtype, 70, 133)}) {
        c.tensors.erase("rstd");
        Arrays arrays = make_arrays(c, {});
        for (auto &[name, array] : arrays)
          for (int64_t r = 0; r < (is_vector(name) ? 1 : c.rows); ++r)
            for (int64_t col = 0; col < c.cols; ++col) {
              const double fraction = static_cast<double>(random()) - 0x1p30;
              reference::store(std::ldexp(fraction, -25 - static_cast<int>(random() % 16)),
                               array.at(r, 0, col), dtype);
            }
        const Bits bits = bits_with(c, {table, nullptr, nullptr}, arrays);
        for (const auto &[name, elements] : bits)
          for (const uint64_t element : elements) hash = (hash ^ element) * 1099511628211u;
      }
    EXPECT_EQ(hash, 15794677843020488889u)
        << table->isa;  // changes with the trees of the sums alone
  }
}

// ---- Conversions --------------------------------------------------------------------------------

// residual_out of x + (-0) rounds x and nothing else.
std::vector<uint64_t> converted(const RowTable &table, const std::vector<double> &values,
                                rmsnorm_dtype_t from, rmsnorm_dtype_t to) {
  const int64_t cols = static_cast<int64_t>(values.size());
  Array x(from, 1, 1, cols, {}), zero(from, 1, 1, cols, {}), y(kF32, 1, 1, cols, {});
  Array out(to, 1, 1, cols, {});
  for (int64_t c = 0; c < cols; ++c) {
    reference::store(values[static_cast<size_t>(c)], x.at(0, 0, c), from);
    reference::store(-0.0, zero.at(0, 0, c), from);
  }
  ForwardProblem problem;
  problem.rows = 1, problem.cols = cols, problem.h_dtype = to;
  problem.x = x.view(), problem.residual = zero.view(), problem.y = y.view();
  problem.residual_out = out.view();
  const State state = {&table, nullptr, nullptr};
  EXPECT_EQ(cpu::forward(&state, problem, {nullptr, nullptr}), RMSNORM_SUCCESS);
  return out.bits();
}

TEST(Conversion, EveryHalfBothWays) {
  for (const RowTable *table : tables_here())
    for (const rmsnorm_dtype_t dtype : {kF16, kBf16}) {
      std::vector<double> values;
      for (uint32_t bits = 0; bits < 65536; ++bits) {
        const uint16_t half = static_cast<uint16_t>(bits);
        values.push_back(reference::load(&half, dtype));
      }
      const std::vector<uint64_t> same = converted(*table, values, dtype, dtype);
      const std::vector<uint64_t> wide = converted(*table, values, dtype, kF32);
      for (uint32_t bits = 0; bits < 65536; ++bits) {
        if (std::isnan(values[bits])) {
          ASSERT_EQ(same[bits], ~uint64_t{0});
          continue;
        }
        ASSERT_EQ(same[bits], bits) << table->isa << " " << dtype_name(dtype);
        uint32_t single = 0;
        reference::store(values[bits], &single, kF32);
        ASSERT_EQ(wide[bits], single) << table->isa << " " << dtype_name(dtype) << " " << bits;
      }
    }
}

// fp32 values at, just below and just above every tie of a 16-bit format, both signs.
TEST(Conversion, EveryTieFromSingle) {
  for (const RowTable *table : tables_here())
    for (const rmsnorm_dtype_t dtype : {kF16, kBf16}) {
      std::vector<double> values;
      const uint16_t infinity = dtype == kF16 ? 0x7c00 : 0x7f80;
      for (uint16_t bits = 0; bits < infinity; ++bits) {
        const uint16_t next = static_cast<uint16_t>(bits + 1);
        const double below = reference::load(&bits, dtype);
        double above = reference::load(&next, dtype);
        if (std::isinf(above)) above = std::exp2(dtype == kF16 ? 16 : 128);
        const float middle = static_cast<float>((below + above) / 2);
        for (const float value :
             {middle, std::nextafterf(middle, 0), std::nextafterf(middle, HUGE_VALF)})
          values.push_back(value), values.push_back(-value);
      }
      const std::vector<uint64_t> got = converted(*table, values, kF32, dtype);
      for (size_t i = 0; i < values.size(); ++i) {
        uint16_t expected = 0;
        reference::store(values[i], &expected, dtype);
        ASSERT_EQ(got[i], expected) << table->isa << " " << dtype_name(dtype) << " " << values[i];
      }
    }
}

// ---- Errors against the reference ---------------------------------------------------------------

// Of each kind of result: the largest error in ulps where the bound excuses nothing more, and the
// largest share of its bound that an error takes.
struct Worst {
  double ulps = 0, share = 0;
};
std::map<std::string, Worst> worst;

void expect_within(double got, const Exact &exact, double slack, rmsnorm_dtype_t dtype,
                   const std::string &what, const Case &c, double ulps = 0.501) {
  const double bound = dtype == kF64 ? 2 : ulps;
  const double error = reference::error_in_ulps(got, exact, dtype);
  const double unit = reference::ulp(exact, dtype);
  const double excused = std::isfinite(slack / unit) && slack > 0 ? slack / unit : 0;
  ASSERT_TRUE(error <= bound + excused)
      << what << " " << got << ", exactly " << exact.high << " + " << exact.low << ": " << error
      << " ulp, excused " << excused << ", " << c;
  Worst &entry = worst[what + " " + dtype_name(dtype)];
  if (excused < 1e-3) entry.ulps = std::max(entry.ulps, error);
  entry.share = std::max(entry.share, error / (bound + excused));
}

// LLAMA: y of any rounding of `scaled` within its own bound.
double llama_error(const ForwardProblem &problem, double got, const Exact &scaled, int64_t group,
                   int64_t col) {
  const double nearest = reference::round_to(scaled, problem.h_dtype);
  double least = kInf;
  const double ulp = reference::ulp(scaled, problem.h_dtype);
  for (const double t : {nearest, nearest + ulp, nearest - ulp}) {
    if (!(reference::error_in_ulps(t, scaled, problem.h_dtype) <=
          (problem.h_dtype == kF64 ? 2 : 0.501)) &&
        t != nearest)
      continue;
    least =
        std::min(least, reference::error_in_ulps(got, reference::llama_y(problem, t, group, col),
                                                 problem.y.dtype));
  }
  return least;
}

void check_forward(const Case &c, const State &state) {
  Arrays arrays = make_arrays(c, {});
  run(c, state, &arrays);
  Arrays fresh = make_arrays(c, {});
  const ForwardProblem problem = forward_problem(c, &fresh);
  for (int64_t r = 0; r < c.rows; ++r)
    for (int64_t g = 0; g < c.groups; ++g) {
      const reference::ForwardRow row = reference::forward_row(problem, r, g);
      if (problem.rstd.present())
        expect_within(arrays["rstd"].get(r, g, 0), row.rstd, 0, problem.rstd.dtype, "rstd", c);
      for (int64_t col = 0; col < c.cols; ++col) {
        const size_t i = static_cast<size_t>(col);
        if (problem.residual_out.present()) {
          const double h = arrays["residual_out"].get(r, g, col);
          ASSERT_TRUE(h == row.h[i] || (std::isnan(h) && std::isnan(row.h[i]))) << c;
        }
        const double y = arrays["y"].get(r, g, col);
        const double slack = problem.bias.present() ? row.product[i] * 0x1p-48 : 0;
        if (c.llama && std::isfinite(row.y[i].high) && !problem.bias.present())
          ASSERT_LE(llama_error(problem, y, row.scaled[i], g, col),
                    problem.y.dtype == kF64 ? 2 : 0.501)
              << c;
        else if (!c.llama) expect_within(y, row.y[i], slack, problem.y.dtype, "y", c);
      }
      if (testing::Test::HasFatalFailure()) return;
    }
}

void check_backward(const Case &c, const State &state) {
  Arrays arrays = make_arrays(c, {});
  run(c, state, &arrays);
  Arrays fresh = make_arrays(c, {});
  const BackwardProblem problem = backward_problem(c, &fresh);
  for (int64_t r = 0; r < c.rows; ++r)
    for (int64_t g = 0; g < c.groups; ++g) {
      if (!problem.dx.present() && !problem.dresidual.present()) break;
      const reference::BackwardRow row = reference::backward_row(problem, r, g);
      for (int64_t col = 0; col < c.cols; ++col) {
        const size_t i = static_cast<size_t>(col);
        for (const char *name : {"dx", "dresidual"})
          if (c.dtype(name) != kNone)
            expect_within(arrays[name].get(r, g, col), row.dx[i], row.magnitude[i] * 0x1p-40,
                          c.dtype(name), name, c);
      }
      if (testing::Test::HasFatalFailure()) return;
    }
  if (c.dtype("dweight") == kNone && c.dtype("dbias") == kNone) return;
  for (int64_t g = 0; g < (problem.per_group ? c.groups : 1); ++g) {
    const reference::WeightGradients exact = reference::weight_gradients(problem, g);
    for (int64_t col = 0; col < c.cols; ++col) {
      const size_t i = static_cast<size_t>(col);
      const auto check = [&](const char *name, Exact sum, double magnitude) {
        if (c.dtype(name) == kNone) return;
        if (c.accumulate) {
          const double old = fresh[name].get(0, g, col);
          if (c.dtype(name) == kF64) return;  // the sum needs three doubles
          sum.high += old, magnitude += std::fabs(old);
        }
        expect_within(arrays[name].get(0, g, col), sum, magnitude * 0x1p-40, c.dtype(name), name,
                      c);
      };
      check("dweight", exact.dweight[i], exact.dweight_magnitude[i]);
      check("dbias", exact.dbias[i], exact.dbias_magnitude[i]);
    }
  }
}

void check(const Case &c, const State &state) {
  if (is_forward(c)) check_forward(c, state);
  else check_backward(c, state);
}

void print_worst() {
  for (const auto &[what, error] : worst)
    std::printf("[   worst  ] %-14s %.6f ulp, %.3f of the bound\n", what.c_str(), error.ulps,
                error.share);
  worst.clear();
}

TEST(Accuracy, EveryWidth) {
  const State state = {&cpu::choose_rows(nullptr), nullptr, nullptr};
  for (const int64_t cols : kCols)
    for (const rmsnorm_dtype_t dtype : kDtypes)
      for (const bool plain : {false, true}) {
        Case forward = forward_case(dtype, 2, cols), backward = backward_case(dtype, 3, cols);
        if (plain) {
          for (const char *name : {"residual", "residual_out", "bias"}) forward.tensors.erase(name);
          for (const char *name : {"rstd", "dresidual_out"}) backward.tensors.erase(name);
        }
        ASSERT_NO_FATAL_FAILURE(check(forward, state));
        ASSERT_NO_FATAL_FAILURE(check(backward, state));
        forward.llama = true;
        forward.tensors.erase("bias");
        ASSERT_NO_FATAL_FAILURE(check(forward, state));
      }
  print_worst();
}

TEST(Accuracy, EveryKindOfValues) {
  const State state = {&cpu::choose_rows(nullptr), nullptr, nullptr};
  for (const int64_t cols : {1, 5, 16, 40, 700})
    for (const int64_t groups : {1, 3})
      for (const Case &c : various_cases(4, groups, cols)) ASSERT_NO_FATAL_FAILURE(check(c, state));
  print_worst();
}

// More rows than one level of sums holds.
TEST(Accuracy, ManyRows) {
  const State state = {&cpu::choose_rows(nullptr), nullptr, nullptr};
  for (const rmsnorm_dtype_t dtype : {kF32, kF64}) {
    Case c = backward_case(dtype, 70000, 3);
    c.tensors.erase("dx"), c.tensors.erase("dresidual");
    ASSERT_NO_FATAL_FAILURE(check(c, state));
    c.rows = 140, c.groups = 1000;
    ASSERT_NO_FATAL_FAILURE(check(c, state));
  }
  print_worst();
}

// ---- The interface ------------------------------------------------------------------------------

TEST(Dispatch, CapsAndIgnoresUnknownNames) {
  const RowTable &best = cpu::choose_rows(nullptr);
  EXPECT_EQ(&cpu::choose_rows("none such"), &best);
  EXPECT_EQ(&cpu::choose_rows(""), &best);
  EXPECT_EQ(&cpu::choose_rows("generic"), &cpu::kGenericRows);
  for (const RowTable *table : tables_here()) EXPECT_EQ(&cpu::choose_rows(table->isa), table);
}

struct ContextDeleter {
  void operator()(rmsnorm_context_t *context) const { rmsnorm_context_destroy(context); }
};
using Context = std::unique_ptr<rmsnorm_context_t, ContextDeleter>;

Context make_context(rmsnorm_parallel_for_t parallel_for, void *user) {
  rmsnorm_context_options_t options = RMSNORM_CONTEXT_OPTIONS_INIT;
  options.parallel_for = parallel_for, options.parallel_for_user = user;
  rmsnorm_context_t *context = nullptr;
  EXPECT_EQ(rmsnorm_context_create(&options, &context), RMSNORM_SUCCESS);
  return Context(context);
}

std::string last_error() {
  char text[512];
  rmsnorm_last_error(text, sizeof text);
  return text;
}

TEST(Abi, ForwardAndItsErrors) {
  Pool pool = {3, 7};
  const Context context = make_context(Pool::run, &pool);
  std::vector<float> x(20 * 33, 2.0f), y(x.size());
  rmsnorm_forward_params_t params = RMSNORM_FORWARD_PARAMS_INIT;
  params.rows = 20, params.cols = 33;
  params.x.data = x.data(), params.x.row_stride = 33, params.x.dtype = kF32;
  params.y.data = y.data(), params.y.row_stride = 33, params.y.dtype = kF32;
  ASSERT_EQ(rmsnorm_forward(context.get(), &params, nullptr, 0, nullptr), RMSNORM_SUCCESS);
  for (const float value : y) ASSERT_EQ(value, 1.0f);

  size_t size = 1;
  ASSERT_EQ(rmsnorm_forward_workspace_size(context.get(), &params, &size), RMSNORM_SUCCESS);
  EXPECT_EQ(size, 0u);
  char name[RMSNORM_KERNEL_NAME_SIZE];
  ASSERT_EQ(rmsnorm_forward_kernel_name(context.get(), &params, name, sizeof name),
            RMSNORM_SUCCESS);
  EXPECT_EQ(name, std::string("cpu_") + cpu::chosen_rows().isa + "_forward");

  std::fill(y.begin(), y.end(), 5.0f);
  EXPECT_EQ(rmsnorm_forward(context.get(), &params, nullptr, 0, &size), RMSNORM_ERROR_STREAM);
  EXPECT_EQ(last_error().rfind("stream = 0x", 0), 0u) << last_error();
  EXPECT_EQ(y[0], 5.0f);

  const auto refuses = [](void *, int64_t, rmsnorm_task_t, void *) -> int32_t { return -7; };
  const Context broken = make_context(refuses, nullptr);
  EXPECT_EQ(rmsnorm_forward(broken.get(), &params, nullptr, 0, nullptr), RMSNORM_ERROR_CALLBACK);
  EXPECT_EQ(last_error(), "parallel_for returned -7");
}

TEST(Abi, DeviceInfo) {
  rmsnorm_device_info_t info = RMSNORM_DEVICE_INFO_INIT;
  ASSERT_EQ(rmsnorm_device_info(RMSNORM_DEVICE_CPU, 0, &info), RMSNORM_SUCCESS);
  EXPECT_EQ(info.supported, 1);
  EXPECT_GE(info.processors, 1);
  EXPECT_GT(info.memory_bytes, 0);
  EXPECT_STREQ(info.isa, cpu::chosen_rows().isa);
  EXPECT_NE(info.name[0], 0);
  EXPECT_EQ(rmsnorm_device_info(RMSNORM_DEVICE_CPU, 1, &info), RMSNORM_ERROR_DEVICE);
  rmsnorm_context_options_t options = RMSNORM_CONTEXT_OPTIONS_INIT;
  options.ordinal = 2;
  rmsnorm_context_t *context = nullptr;
  EXPECT_EQ(rmsnorm_context_create(&options, &context), RMSNORM_ERROR_DEVICE);
}

TEST(Workspace, GrowsWithRowsAndSaturates) {
  for (const rmsnorm_dtype_t dtype : kDtypes)
    for (const bool per_group : {false, true}) {
      Case c = backward_case(dtype, 0, 100);
      c.groups = 4, c.per_group = per_group;
      size_t before = 0;
      for (int64_t rows = 0; rows < 200000; rows += 1 + rows / 7) {
        Arrays arrays =
            make_arrays(Case{0, c.groups, 1, 0, 0, false, false, per_group, 1, c.tensors}, {});
        c.rows = rows;
        BackwardProblem problem = backward_problem(c, &arrays);
        const size_t size = cpu::backward_workspace_size(&kGeneric, problem);
        ASSERT_GE(size, before) << rows;
        before = size;
      }
    }
  BackwardProblem problem;
  problem.rows = 1, problem.cols = int64_t{1} << 61;
  problem.x.dtype = problem.dy.dtype = problem.dweight.dtype = kF32;
  EXPECT_EQ(cpu::backward_workspace_size(&kGeneric, problem), SIZE_MAX);
}

TEST(NoRows, ZeroGradientsUnlessAccumulating) {
  for (const rmsnorm_dtype_t dtype : kDtypes)
    for (const bool accumulate : {false, true}) {
      Case c = backward_case(dtype, 0, 21);
      c.accumulate = accumulate;
      Arrays arrays = make_arrays(c, {}), before = make_arrays(c, {});
      run(c, kGeneric, &arrays);
      for (const char *name : {"dweight", "dbias"})
        for (int64_t col = 0; col < 21; ++col)
          ASSERT_EQ(arrays[name].get(0, 0, col), accumulate ? before[name].get(0, 0, col) : 0);
    }
}

}  // namespace
}  // namespace rmsnorm
