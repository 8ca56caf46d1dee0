// Plain rows of fp32 that are written in pairs of floats (rows/pair_rows.inl.h) have fp64's bits:
// rows made to be ties, to underflow or overflow on the way, or to have zeros of either sign.
#include "cpu_case.h"

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace rmsnorm {
namespace {

constexpr int64_t kRows = 3, kLength = 1029;

// `value` of (row, column) for x; weights are drawn.
template <class Value>
Arrays arrays_of(const Case &c, const Value &value) {
  Arrays arrays = make_arrays(c, {});
  for (int64_t r = 0; r < c.rows; ++r)
    for (int64_t col = 0; col < c.cols; ++col)
      reference::store(value(r, col), arrays.at("x").at(r, 0, col), kF32);
  return arrays;
}

Case plain_case(bool adds, const Spec &weight = {kF32, Values::kNormal}) {
  Case c;
  c.rows = kRows, c.cols = kLength, c.eps = 0;
  c.tensors = {{"x", {kF32}}, {"weight", weight}, {"y", {kF32}}, {"rstd", {kF32}}};
  if (adds) c.tensors["residual"] = {kF32, Values::kZero}, c.tensors["residual_out"] = {kF32};
  return c;
}

template <class Value>
void expect_same(const Case &c, const Value &value) {
  const Arrays arrays = arrays_of(c, value);
  const Bits expected = bits_with(c, kGeneric, arrays);
  for (const RowTable *table : tables_here())
    for (const int64_t stream_bytes : {INT64_MAX, int64_t{0}})
      EXPECT_EQ(bits_with(c, {table, nullptr, nullptr, nullptr, stream_bytes}, arrays), expected)
          << table->isa << " " << c;
}

// 3 of 8 are 1.5 and the others 0.5, but for the last columns, which are 1: rstd is 1, and half of
// the products with a weight lie between two floats; or rstd is a little less, which fp64 alone can
// see.
TEST(Pairs, Ties) {
  for (const bool adds : {false, true})
    for (const double eps : {0.0, 0x1p-51, 0x1p-49, 0x1p-46}) {
      Case c = plain_case(adds);
      c.eps = eps;
      expect_same(c, [](int64_t row, int64_t col) {
        const double sign = (row + col) % 3 == 0 ? -1 : 1;
        return sign * (col >= 1024 ? 1 : col % 8 < 3 ? 1.5 : 0.5);
      });
    }
}

TEST(Pairs, EveryMagnitude) {
  std::mt19937_64 engine(7);
  for (const int scale : {-140, -120, -70, -50, 0, 50, 70, 120})
    for (const double weight : {0x1p-126, 0x1.234568p-100, 0x1.234568p-20, 1.0, 0x1.fffffep127})
      for (const int lowest : {-149, -126, -104, -75, -52, -30}) {
        Case c = plain_case(false);
        c.seed = engine();
        Arrays arrays = arrays_of(c, [&](int64_t, int64_t col) {
          const double normal = std::normal_distribution<double>(0, 1)(engine);
          const bool small = col % 100 == 7 && col > 500;
          return std::ldexp(normal, small ? std::max(lowest + scale, -149) : scale);
        });
        const float single = static_cast<float>(weight);
        arrays.at("weight").each(
            [&](char *at, int64_t col) { reference::store(col % 2 ? single : 1, at, kF32); });
        const Bits expected = bits_with(c, kGeneric, arrays);
        for (const RowTable *table : tables_here())
          ASSERT_EQ(bits_with(c, {table, nullptr, nullptr}, arrays), expected)
              << table->isa << " 2^" << scale << " by " << weight << ", lowest 2^" << lowest;
      }
}

TEST(Pairs, ZerosInfinitiesAndNaN) {
  for (const double odd : {0.0, -0.0, kInf, -kInf, std::nan("")})
    for (const Values weights : {Values::kNormal, Values::kZero, Values::kSpecial})
      expect_same(plain_case(false, {kF32, weights}), [odd](int64_t row, int64_t col) {
        return row == 1 && col % 37 == 5 ? odd : row == 2 ? 0.0 : (col % 11 - 5.3) * 0.37;
      });
}

// A row that has to be written twice, in place and with residual_out where residual was.
TEST(Pairs, InPlace) {
  Case c = plain_case(true);
  c.tensors["residual"] = {kF32, Values::kTiny}, c.tensors["x"] = {kF32, Values::kMixed};
  const Arrays arrays = make_arrays(c, {});
  const Bits expected = bits_with(c, kGeneric, arrays);
  for (const RowTable *table : tables_here())
    for (const bool sum_on_x : {false, true}) {
      Arrays own = arrays;
      ForwardProblem problem = forward_problem(c, &own);
      problem.residual_out = sum_on_x ? problem.x : problem.residual;
      if (!sum_on_x) problem.y = problem.x;
      const State state = {table, nullptr, nullptr};
      ASSERT_EQ(cpu::forward(&state, problem, {nullptr, nullptr}), RMSNORM_SUCCESS);
      EXPECT_EQ(own.at(sum_on_x ? "y" : "x").bits(), expected.at("y")) << table->isa;
      EXPECT_EQ(own.at(sum_on_x ? "x" : "residual").bits(), expected.at("residual_out"));
    }
}

#if defined(__x86_64__)
// The processor's flags are the caller's, before and after.
TEST(Pairs, CallersFlags) {
  Case c = plain_case(false);
  for (const Values values : {Values::kNormal, Values::kMixed}) {
    c.tensors["x"].values = values;
    const Arrays arrays = make_arrays(c, {});
    const Bits expected = bits_with(c, kGeneric, arrays);
    for (const RowTable *table : tables_here())
      for (unsigned flags = 0; flags < 0x40; ++flags) {
        Arrays own = arrays;
        const unsigned before = _mm_getcsr(), mode = (before & ~0x3fu) | flags;
        _mm_setcsr(mode);
        run(c, {table, nullptr, nullptr}, &own);
        const unsigned after = _mm_getcsr();
        _mm_setcsr(before);
        EXPECT_EQ(after, mode);
        EXPECT_EQ(output_bits(c, &own), expected) << table->isa << " " << flags;
      }
  }
}
#endif

}  // namespace
}  // namespace rmsnorm
