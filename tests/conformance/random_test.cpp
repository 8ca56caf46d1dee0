// Random calls until ten million elements of each dtype and operation have been compared
// (RMSNORM_TEST_FULL: 10^9, about an hour on two cores for all): shapes, strides, alignments,
// optional tensors, scalars and values; and many small calls, most of mixed dtypes, for what only
// some combination of these shows. The largest errors are printed at the end.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <tuple>

#include "../support/judge.h"
#include "../support/on_device.h"

namespace rmsnorm_test {
namespace {

enum class Operation { kForward, kAdd, kBackward, kGluForward, kGluBackward };

struct Calls {
  int64_t elements;  // of one, or so
  int64_t mixed;     // one in so many has a tensor of another dtype
};
constexpr Calls kLarge = {200000, 4}, kSmall = {6000, 1};
constexpr int kSmallCalls = 500;

bool is_glu(Operation operation) {
  return operation == Operation::kGluForward || operation == Operation::kGluBackward;
}

class Draw {
 public:
  explicit Draw(uint64_t seed) : seed_(seed) {}
  uint64_t next() { return mix(seed_, ++count_); }
  int64_t below(int64_t count) {
    return static_cast<int64_t>(next() % static_cast<uint64_t>(count));
  }
  bool chance(int64_t one_in) { return below(one_in) == 0; }
  template <class Value, size_t kCount>
  Value pick(const Value (&values)[kCount]) {
    return values[below(static_cast<int64_t>(kCount))];
  }

 private:
  uint64_t seed_, count_ = 0;
};

struct Shape {
  int64_t rows, groups, cols;
};
// Widths of every size are as likely, from 1 to 2^widest.
Shape draw_shape(Draw *draw, int64_t widest, int64_t elements) {
  const double exponent = static_cast<double>(draw->below(widest * 1000)) / 1000;
  const int64_t cols = static_cast<int64_t>(std::exp2(exponent)) + draw->below(8);
  const int64_t groups = draw->chance(3) ? 1 + draw->below(4) : 1;
  return {std::clamp<int64_t>(elements / (groups * cols), 1, 20000), groups, cols};
}

Case draw_norm_case(Draw *drawn, Operation operation, rmsnorm_dtype_t dtype, Calls calls) {
  Draw &draw = *drawn;
  const auto [rows, groups, cols] = draw_shape(&draw, 17, calls.elements);
  Case c = operation == Operation::kForward ? forward_case(rows, cols, dtype)
           : operation == Operation::kAdd   ? add_case(rows, cols, dtype)
                                            : backward_case(rows, cols, dtype);
  c.groups = groups;
  c.seed = draw.next();
  constexpr double kEps[] = {1e-6, 1e-5, 1e-12, 0, 0.1, 10};
  constexpr double kOffsets[] = {0, 0, 0, 1, -0.5};
  c.eps = draw.pick(kEps), c.weight_offset = draw.pick(kOffsets);
  if (operation == Operation::kBackward) {
    if (draw.chance(3)) c[kDresidualOut].dtype = dtype;
    if (draw.chance(4)) c[kDbias].dtype = dtype;
    if (draw.chance(4)) c.flags = RMSNORM_FLAG_ACCUMULATE;
    if (draw.chance(2)) c[kDweight].dtype = rstd_dtype(dtype);
    if (draw.chance(4) && !c.has(kDbias)) c[kDweight] = {};
  } else {
    if (draw.chance(4)) c[kBias].dtype = dtype;
    if (draw.chance(4)) c.rounding = RMSNORM_ROUNDING_LLAMA;
    if (draw.chance(4)) c[kRstd] = {};
  }
  if (draw.chance(5)) c[kWeight] = {};
  if (draw.chance(calls.mixed) && dtype != RMSNORM_DTYPE_F64) {
    const Name names[] = {kY, kDx, kWeight, kResidual, kResidualOut, kDy, kDresidualOut};
    for (const Name other : {draw.pick(names), draw.pick(names)})
      if (c.has(other)) c[other].dtype = draw.pick(kMixable);
  }
  return c;
}

Case draw_glu_case(Draw *drawn, Operation operation, rmsnorm_dtype_t dtype, Calls calls) {
  Draw &draw = *drawn;
  // Each element of rows so wide is judged.
  const auto [rows, groups, cols] = draw_shape(&draw, 12, calls.elements);
  Case c = glu_case(operation == Operation::kGluForward ? Direction::kGluForward
                                                        : Direction::kGluBackward,
                    draw.pick(kActivations), rows, cols, dtype);
  c.groups = groups;
  c.seed = draw.next();
  if (dtype != RMSNORM_DTYPE_F64)
    for (const Name name : {kDy, kGate, kUp, kY, kDgate, kDup})
      if (c.has(name) && draw.chance(2 * calls.mixed)) c[name].dtype = draw.pick(kMixable);
  if (operation == Operation::kGluBackward && draw.chance(4))
    c[draw.chance(2) ? kDgate : kDup] = {};
  return c;
}

Case draw_case(Operation operation, rmsnorm_dtype_t dtype, Calls calls, uint64_t seed) {
  Draw draw(seed);
  Case c = is_glu(operation) ? draw_glu_case(&draw, operation, dtype, calls)
                             : draw_norm_case(&draw, operation, dtype, calls);
  constexpr Pattern kValues[] = {Pattern::kNormal, Pattern::kWide, Pattern::kRows};
  c.estimated = true;
  const bool apart = draw.chance(2);
  for (int i = 0; i < kNameCount; ++i) {
    Spec &spec = c[static_cast<Name>(i)];
    if (!c.has(static_cast<Name>(i))) continue;
    if (spec.pattern == Pattern::kNormal) spec.pattern = draw.pick(kValues);
    spec.scale = std::exp2(static_cast<double>(draw.below(13) - 6));
    if (apart) spec.misalign = draw.below(16) * rmsnorm::element_size(spec.dtype);
  }
  return c;
}

// Elements of the outputs that have rows.
int64_t elements_of(const Case &c) {
  int64_t outputs = 0;
  for (const Name name : {kY, kResidualOut, kDx, kDgate, kDup}) outputs += c.has(name) ? 1 : 0;
  return c.rows * c.groups * c.cols * outputs;
}

using Parameter = std::tuple<rmsnorm_device_t, rmsnorm_dtype_t, Operation>;

class Random : public testing::TestWithParam<Parameter> {};

TEST_P(Random, Elements) {
  const auto &[type, dtype, operation] = GetParam();
  Device *device = nullptr;
  require_device(type, &device);
  if (IsSkipped()) return;
  const int64_t wanted = full_run() ? 1000000000 : 10000000;
  int64_t compared = 0;
  for (uint64_t seed = 1; compared < wanted; ++seed) {
    const Case c = draw_case(operation, dtype, kLarge, mix(static_cast<uint64_t>(dtype), seed));
    ASSERT_TRUE(conforms(*device, c));
    compared += elements_of(c);
  }
}

TEST_P(Random, SmallCalls) {
  const auto &[type, dtype, operation] = GetParam();
  Device *device = nullptr;
  require_device(type, &device);
  if (IsSkipped()) return;
  for (uint64_t seed = 1; seed <= kSmallCalls; ++seed)
    ASSERT_TRUE(conforms(*device, draw_case(operation, dtype, kSmall,
                                            mix(static_cast<uint64_t>(dtype), ~seed))));
}

std::string name_of(const testing::TestParamInfo<Parameter> &tested) {
  const auto &[device, dtype, operation] = tested.param;
  constexpr const char *kOperations[] = {"forward", "add", "backward", "glu_forward",
                                         "glu_backward"};
  return std::string(backend_name(device)) + "_" + rmsnorm::dtype_name(dtype) + "_" +
         kOperations[static_cast<int>(operation)];
}

INSTANTIATE_TEST_SUITE_P(
    All, Random,
    testing::Combine(testing::ValuesIn(kBackends), testing::ValuesIn(kDtypes),
                     testing::Values(Operation::kForward, Operation::kAdd, Operation::kBackward,
                                     Operation::kGluForward, Operation::kGluBackward)),
    name_of);

}  // namespace
}  // namespace rmsnorm_test
