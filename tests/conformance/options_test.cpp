// What may be asked for or left out: bias, weight, offsets, LLAMA's rounding, eps, and each
// optional output, which must not change the bits of the others.
#include <gtest/gtest.h>

#include <cmath>

#include "../support/judge.h"
#include "../support/on_device.h"

namespace rmsnorm_test {
namespace {

constexpr int64_t kWidths[] = {1, 33, 512, 4097};

class Options : public OnDevice {};

// Every subset of forward's optional tensors.
TEST_P(Options, ForwardSubsets) {
  constexpr Name kOptional[] = {kResidual, kWeight, kBias, kResidualOut, kRstd};
  for (const rmsnorm_dtype_t dtype : kDtypes)
    for (const int64_t cols : kWidths)
      for (unsigned subset = 0; subset < 32; ++subset) {
        Case c = full_case(Direction::kForward, 3, cols, dtype);
        for (unsigned bit = 0; bit < 5; ++bit)
          if ((subset >> bit & 1) == 0) c[kOptional[bit]] = {};
        if (c.has(kResidualOut) && !c.has(kResidual)) continue;
        EXPECT_TRUE(conforms(device(), c));
      }
}

// Every subset of backward's optional tensors with at least one output.
TEST_P(Options, BackwardSubsets) {
  constexpr Name kOptional[] = {kWeight, kRstd, kDresidualOut, kDx, kDresidual, kDweight, kDbias};
  for (const rmsnorm_dtype_t dtype : kDtypes)
    for (const int64_t cols : {33, 512})
      for (unsigned subset = 8; subset < 128; ++subset) {
        Case c = full_case(Direction::kBackward, 5, cols, dtype);
        for (unsigned bit = 0; bit < 7; ++bit)
          if ((subset >> bit & 1) == 0) c[kOptional[bit]] = {};
        EXPECT_TRUE(conforms(device(), c));
      }
}

// y and dx have the same bits whichever other outputs are asked for.
TEST_P(Options, OutputsDoNotChangeOneAnother) {
  for (const rmsnorm_dtype_t dtype : kDtypes)
    for (const int64_t cols : {33, 1024, 5125}) {
      Execution all(device(), full_case(Direction::kForward, 5, cols, dtype));
      ASSERT_EQ(all.run(), RMSNORM_SUCCESS) << last_error();
      Case c = all.tested();
      c[kRstd] = {};
      Execution without_rstd(device(), c);
      ASSERT_EQ(without_rstd.run(), RMSNORM_SUCCESS) << last_error();
      EXPECT_TRUE(same_outputs(all, without_rstd));
      c[kResidualOut] = {};  // h keeps its dtype: x's and residual's are equal
      Execution y_alone(device(), c);
      ASSERT_EQ(y_alone.run(), RMSNORM_SUCCESS) << last_error();
      EXPECT_TRUE(same_outputs(all, y_alone));

      Execution every(device(), full_case(Direction::kBackward, 37, cols, dtype));
      ASSERT_EQ(every.run(), RMSNORM_SUCCESS) << last_error();
      for (unsigned subset = 1; subset < 15; ++subset) {
        constexpr Name kOutputs[] = {kDx, kDresidual, kDweight, kDbias};
        c = every.tested();
        for (unsigned bit = 0; bit < 4; ++bit)
          if ((subset >> bit & 1) == 0) c[kOutputs[bit]] = {};
        Execution some(device(), c);
        ASSERT_EQ(some.run(), RMSNORM_SUCCESS) << last_error();
        EXPECT_TRUE(same_outputs(every, some));
      }
    }
}

// dresidual is dx's value in a dtype of its own: with dx's own dtype, dx's bits.
TEST_P(Options, DresidualEqualsDx) {
  for (const rmsnorm_dtype_t dtype : kDtypes) {
    Execution execution(device(), full_case(Direction::kBackward, 9, 700, dtype));
    ASSERT_EQ(execution.run(), RMSNORM_SUCCESS) << last_error();
    EXPECT_EQ(execution.bits(kDx), execution.bits(kDresidual));
  }
}

TEST_P(Options, WeightOffsets) {
  for (const rmsnorm_dtype_t dtype : kDtypes)
    for (const double offset : {0.0, 1.0, -0.5, -1.0, 1e30, -3e38, 1.5e-38, 0x1p-126})
      for (const bool weighted : {true, false})
        for (const Direction direction : {Direction::kForward, Direction::kBackward}) {
          if (direction == Direction::kBackward && std::fabs(offset) > 1e30) continue;
          Case c = full_case(direction, 3, 300, dtype);
          if (!weighted) c[kWeight] = {};
          c.weight_offset = offset;
          EXPECT_TRUE(conforms(device(), c));
        }
}

// weight + weight_offset is one exact sum, as Gemma's 1 + weight with a half weight needs.
TEST_P(Options, WeightOffsetIsNotRoundedAlone) {
  for (const rmsnorm_dtype_t dtype : kMixable) {
    Case c = forward_case(4, 512, dtype);
    c.weight_offset = 1;
    c[kWeight].scale = 0x1p-11;
    EXPECT_TRUE(conforms(device(), c));
    c.weight_offset = 0.1;  // not a number of fp32
    EXPECT_TRUE(conforms(device(), c));
  }
}

TEST_P(Options, Epsilons) {
  for (const rmsnorm_dtype_t dtype : kDtypes)
    for (const double eps : {0.0, 1e-45, 1e-12, 1e-6, 1e-5, 1e-1, 10.0, 1e300})
      for (const double scale : {1.0, 0x1p-10, 0x1p10})
        for (const Direction direction : {Direction::kForward, Direction::kBackward}) {
          Case c = full_case(direction, 3, 130, dtype);
          c[kRstd] = direction == Direction::kForward ? c[kRstd] : Spec{};
          c[kX].scale = c[kResidual].scale = scale;
          c.eps = eps;
          EXPECT_TRUE(conforms(device(), c));
        }
}

TEST_P(Options, Llama) {
  for (const rmsnorm_dtype_t dtype : kDtypes)
    for (const int64_t cols : {1, 7, 64, 333, 1024, 4096, 20000})
      for (const bool residual : {false, true})
        for (const bool biased : {false, true}) {
          Case c = full_case(Direction::kForward, 4, cols, dtype);
          c.rounding = RMSNORM_ROUNDING_LLAMA;
          if (!residual) c[kResidual] = c[kResidualOut] = {};
          if (!biased) c[kBias] = {};
          c[kX].pattern = Pattern::kRows;
          EXPECT_TRUE(conforms(device(), c));
          c.weight_offset = 1;
          EXPECT_TRUE(conforms(device(), c));
        }
}

// Halves have few values, so ties of h * rstd do occur: constant rows, whose h * rstd is just below
// 1, and rows of a few powers of two.
TEST_P(Options, LlamaNearTies) {
  for (const rmsnorm_dtype_t dtype : kHalf)
    for (const Pattern pattern : {Pattern::kOne, Pattern::kSign})
      for (const double eps : {0.0, 0x1p-9, 0x1p-12, 0x1p-20})
        for (const double scale : {1.0, 3.0, 0.75}) {
          Case c = forward_case(4, 256, dtype);
          c.rounding = RMSNORM_ROUNDING_LLAMA;
          c[kX].pattern = pattern;
          c[kX].scale = scale;
          c.eps = eps;
          EXPECT_TRUE(conforms(device(), c));
        }
}

// Backward takes rounding, and does the same whatever it is.
TEST_P(Options, BackwardIgnoresRounding) {
  for (const rmsnorm_dtype_t dtype : kDtypes) {
    Case c = full_case(Direction::kBackward, 20, 260, dtype);
    Execution once(device(), c);
    ASSERT_EQ(once.run(), RMSNORM_SUCCESS) << last_error();
    c.rounding = RMSNORM_ROUNDING_LLAMA;
    Execution llama(device(), c);
    ASSERT_EQ(llama.run(), RMSNORM_SUCCESS) << last_error();
    EXPECT_TRUE(same_outputs(once, llama));
  }
}

// The formula has no room between forward and backward: rstd handed over, or recomputed, is the
// same to a rounding, and so is dx to its bound (conforms judges both at their own rstd).
TEST_P(Options, ForwardsRstdServesBackward) {
  for (const rmsnorm_dtype_t dtype : kDtypes) {
    Execution forward(device(), forward_case(6, 300, dtype));
    ASSERT_EQ(forward.run(), RMSNORM_SUCCESS) << last_error();
    Case c = backward_case(6, 300, dtype);
    c[kRstd].dtype = rstd_dtype(dtype);
    Execution backward(device(), c);
    for (int64_t row = 0; row < c.rows; ++row)
      backward.set(kRstd, row, 0, 0, forward.output(kRstd, row, 0, 0));
    ASSERT_EQ(backward.run(), RMSNORM_SUCCESS) << last_error();
    EXPECT_TRUE(conforms(backward));
  }
}

INSTANTIATE_TEST_SUITE_P(All, Options, testing::ValuesIn(kBackends), BackendName());

}  // namespace
}  // namespace rmsnorm_test
