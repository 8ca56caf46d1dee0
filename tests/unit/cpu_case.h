// Cases for the CPU backend's tests: tensors with gaps around them, drawn values of every kind, and
// how a case runs on one table of row functions. Included by the tests alone, each of which is one
// executable.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <map>
#include <new>
#include <numeric>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/operations.h"
#include "cpu/tasks.h"
#include "reference/reference.h"

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

inline std::vector<const RowTable *> tables_here() {
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

// Begins at a multiple of a cache line, so that stores past the cache are possible.
template <class T>
struct LineAligned {
  using value_type = T;
  LineAligned() = default;
  template <class U>
  LineAligned(const LineAligned<U> &) {}
  T *allocate(size_t count) {
    return static_cast<T *>(::operator new (count * sizeof(T), std::align_val_t{64}));
  }
  void deallocate(T *memory, size_t) { ::operator delete (memory, std::align_val_t{64}); }
  bool operator==(const LineAligned &) const { return true; }
  bool operator!=(const LineAligned &) const { return false; }
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

  rmsnorm_dtype_t dtype() const { return dtype_; }
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
  // visit(address of the element, its column), in order
  template <class Visit>
  void each(Visit visit) {
    for (int64_t r = 0; r < rows_; ++r)
      for (int64_t g = 0; g < groups_; ++g)
        for (int64_t c = 0; c < cols_; ++c) visit(at(r, g, c), c);
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
    std::vector<char, LineAligned<char>> copy = memory_;
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
  std::vector<char, LineAligned<char>> memory_;
};

// kMixed: normal ones with small ones among them; kFaint: these by 2^-50; kEdge: to just beyond
// what fp64 rows may hold to be ordinary (double_rows.inl.h).
enum class Values { kNormal, kAnyExponent, kTiny, kHuge, kZero, kSpecial, kMixed, kFaint, kEdge };

// A tensor of a case: absent if its dtype is NONE.
struct Spec {
  rmsnorm_dtype_t dtype = kNone;
  Values values = Values::kNormal;
};

inline double draw(std::mt19937_64 *engine, const Spec &spec) {
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
    case Values::kMixed: return (*engine)() % 64 == 0 ? power(bottom, 0) : normal;
    case Values::kFaint:
      return (*engine)() % 64 == 0 ? power(bottom, std::max(bottom, -50))
                                   : std::ldexp(normal, std::max(bottom, -50));
    case Values::kEdge: return power(-201, 201);
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

inline std::ostream &operator<<(std::ostream &out, const Case &c) {
  out << c.rows << " x " << c.groups << " x " << c.cols << " eps " << c.eps << " offset "
      << c.offset << (c.llama ? " llama" : "") << (c.accumulate ? " accumulate" : "")
      << (c.per_group ? " per_group" : "") << " seed " << c.seed;
  for (const auto &[name, spec] : c.tensors)
    out << " " << name << ":" << dtype_name(spec.dtype) << "/" << static_cast<int>(spec.values);
  return out;
}

const char *const kVectors[] = {"weight", "bias", "dweight", "dbias"};

inline bool is_vector(const std::string &name) {
  return std::find(std::begin(kVectors), std::end(kVectors), name) != std::end(kVectors);
}

inline Arrays make_arrays(const Case &c, const Layout &layout) {
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

inline View view_of(Arrays *arrays, const std::string &name) {
  const auto found = arrays->find(name);
  return found == arrays->end() ? View{} : found->second.view();
}

inline void set_scalars(const Case &c, NormProblem *problem) {
  problem->rows = c.rows, problem->groups = c.groups, problem->cols = c.cols;
  problem->eps = c.eps, problem->weight_offset = c.offset;
}

inline ForwardProblem forward_problem(const Case &c, Arrays *arrays) {
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

inline BackwardProblem backward_problem(const Case &c, Arrays *arrays) {
  BackwardProblem p;
  set_scalars(c, &p);
  p.accumulate = c.accumulate, p.per_group = c.per_group && c.groups > 1;
  p.dy = view_of(arrays, "dy"), p.x = view_of(arrays, "x"), p.weight = view_of(arrays, "weight");
  p.rstd = view_of(arrays, "rstd"), p.dresidual_out = view_of(arrays, "dresidual_out");
  p.dx = view_of(arrays, "dx"), p.dresidual = view_of(arrays, "dresidual");
  p.dweight = view_of(arrays, "dweight"), p.dbias = view_of(arrays, "dbias");
  return p;
}

inline bool is_forward(const Case &c) { return c.dtype("y") != kNone; }

// Runs the case on one table; `skew` misaligns the workspace.
inline void run(const Case &c, const State &state, Arrays *arrays, size_t skew = 0) {
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

inline Bits output_bits(const Case &c, Arrays *arrays) {
  Bits all;
  for (const char *name : kOutputs)
    if (c.dtype(name) != kNone && (is_forward(c) || std::string(name) != "rstd"))
      all[name] = arrays->at(name).bits();
  return all;
}

inline Bits bits_with(const Case &c, const State &state, Arrays arrays, size_t skew = 0) {
  run(c, state, &arrays, skew);
  for (auto &[name, array] : arrays) EXPECT_TRUE(array.outside_intact()) << name << " of " << c;
  return output_bits(c, &arrays);
}

const State kGeneric = {&cpu::kGenericRows, nullptr, nullptr};

inline Case forward_case(rmsnorm_dtype_t dtype, int64_t rows, int64_t cols) {
  Case c;
  c.rows = rows, c.cols = cols;
  for (const char *name : {"x", "residual", "weight", "bias", "y", "residual_out"})
    c.tensors[name] = {dtype, Values::kNormal};
  c.tensors["rstd"] = {dtype == kF64 ? kF64 : kF32, Values::kNormal};
  return c;
}

inline Case backward_case(rmsnorm_dtype_t dtype, int64_t rows, int64_t cols) {
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
inline std::vector<Case> various_cases(int64_t rows, int64_t groups, int64_t cols, int count = 96) {
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

}  // namespace
}  // namespace rmsnorm
