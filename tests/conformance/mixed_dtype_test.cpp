// Each tensor picks fp32, fp16 or bf16 on its own; h is rounded where the header says; gradients of
// half weights accumulate in fp32.
#include <gtest/gtest.h>

#include "../support/judge.h"
#include "../support/on_device.h"

namespace rmsnorm_test {
namespace {

constexpr int64_t kWidths[] = {37, 512};  // scalar tails, and whole vectors

class MixedDtype : public OnDevice {};

TEST_P(MixedDtype, XWeightY) {
  for (const int64_t cols : kWidths)
    for (const rmsnorm_dtype_t x : kMixable)
      for (const rmsnorm_dtype_t weight : kMixable)
        for (const rmsnorm_dtype_t y : kMixable)
          for (const rmsnorm_rounding_t rounding :
               {RMSNORM_ROUNDING_ONCE, RMSNORM_ROUNDING_LLAMA}) {
            Case c = forward_case(5, cols, x);
            c[kWeight].dtype = weight;
            c[kY].dtype = y;
            c.rounding = rounding;
            EXPECT_TRUE(conforms(device(), c));
          }
}

TEST_P(MixedDtype, ResidualAndItsSum) {
  for (const int64_t cols : kWidths)
    for (const rmsnorm_dtype_t x : kMixable)
      for (const rmsnorm_dtype_t residual : kMixable)
        for (const rmsnorm_dtype_t sum :
             {RMSNORM_DTYPE_NONE, RMSNORM_DTYPE_F32, RMSNORM_DTYPE_F16, RMSNORM_DTYPE_BF16})
          for (const rmsnorm_rounding_t rounding :
               {RMSNORM_ROUNDING_ONCE, RMSNORM_ROUNDING_LLAMA}) {
            Case c = add_case(5, cols, x);
            c[kResidual].dtype = residual;
            c[kResidual].pattern = Pattern::kWide;
            c[kResidualOut].dtype = sum;
            c.rounding = rounding;
            EXPECT_TRUE(conforms(device(), c));
          }
}

// Many short rows, few long ones, and what else the number of rows decides.
TEST_P(MixedDtype, WithoutAWeight) {
  const struct {
    int64_t rows, cols;
  } shapes[] = {{5, 64}, {300, 64}, {300, 200}, {1, 8192}, {40, 4096}, {300, 6000}, {3, 20000}};
  for (const auto &shape : shapes)
    for (const int64_t cols : {shape.cols, shape.cols - 1}) {
      Case plain = forward_case(shape.rows, cols, RMSNORM_DTYPE_BF16);
      plain[kY].dtype = RMSNORM_DTYPE_F32;
      Case adds = add_case(shape.rows, cols, RMSNORM_DTYPE_BF16);
      adds[kResidual].dtype = adds[kResidualOut].dtype = RMSNORM_DTYPE_F32;
      for (Case *c : {&plain, &adds}) {
        (*c)[kWeight].dtype = RMSNORM_DTYPE_NONE;
        c->sampled = 64;
        EXPECT_TRUE(conforms(device(), *c));
      }
    }
}

// x lies at a tie of residual_out's dtype, and residual decides it by next to nothing: one rounding
// of the exact sum sees that, a rounding to fp32 on the way does not.
TEST_P(MixedDtype, SumsJustBesideATie) {
  for (const rmsnorm_dtype_t sum : kHalf) {
    const double half_ulp = sum == RMSNORM_DTYPE_F16 ? 0x1p-11 : 0x1p-8;
    for (const rmsnorm_dtype_t x : kMixable)
      for (const rmsnorm_dtype_t residual : kMixable) {
        Case c = add_case(2, 100, x);
        c[kResidual].dtype = residual;
        c[kResidualOut].dtype = sum;
        Execution execution(device(), c);
        for (int64_t row = 0; row < c.rows; ++row)
          for (int64_t col = 0; col < c.cols; ++col) {
            const double sign = col % 4 < 2 ? 1 : -1, step = col % 2 == 0 ? 1 : -1;
            const double tie = 1 + static_cast<double>(2 * (col % 50) + 1) * half_ulp;
            execution.set(kX, row, 0, col, sign * tie);
            execution.set(kResidual, row, 0, col, step * (row == 0 ? 0x1p-24 : 0x1p-22));
          }
        ASSERT_EQ(execution.run(), RMSNORM_SUCCESS) << last_error();
        EXPECT_TRUE(conforms(execution));
      }
  }
}

TEST_P(MixedDtype, Bias) {
  for (const int64_t cols : kWidths)
    for (const rmsnorm_dtype_t x : kMixable)
      for (const rmsnorm_dtype_t bias : kMixable)
        for (const rmsnorm_dtype_t y : kMixable) {
          Case c = forward_case(5, cols, x);
          c[kBias].dtype = bias;
          c[kY].dtype = y;
          EXPECT_TRUE(conforms(device(), c));
        }
}

TEST_P(MixedDtype, Backward) {
  for (const int64_t cols : kWidths)
    for (const rmsnorm_dtype_t dy : kMixable)
      for (const rmsnorm_dtype_t x : kMixable)
        for (const rmsnorm_dtype_t weight : kMixable)
          for (const rmsnorm_dtype_t dx : kMixable) {
            Case c = backward_case(6, cols, dy);
            c[kX].dtype = x;
            c[kWeight].dtype = weight;
            c[kDx].dtype = dx;
            EXPECT_TRUE(conforms(device(), c));
          }
}

TEST_P(MixedDtype, BackwardResiduals) {
  for (const int64_t cols : kWidths)
    for (const rmsnorm_dtype_t x : kMixable)
      for (const rmsnorm_dtype_t arriving : kMixable)
        for (const rmsnorm_dtype_t dresidual : kMixable) {
          Case c = backward_case(6, cols, x);
          c[kDresidualOut].dtype = arriving;
          c[kDresidual].dtype = dresidual;
          EXPECT_TRUE(conforms(device(), c));
        }
}

TEST_P(MixedDtype, DweightAndDbias) {
  for (const int64_t cols : kWidths)
    for (const rmsnorm_dtype_t x : kMixable)
      for (const rmsnorm_dtype_t dweight : kMixable)
        for (const rmsnorm_dtype_t dbias : kMixable)
          for (const uint32_t flags : {0, static_cast<int>(RMSNORM_FLAG_ACCUMULATE)}) {
            Case c = backward_case(41, cols, x);
            c[kDweight].dtype = dweight;
            c[kDbias].dtype = dbias;
            c.flags = flags;
            EXPECT_TRUE(conforms(device(), c));
          }
}

// Half activations and weights, fp32 main gradients: what mixed-precision training does, over some
// steps.
TEST_P(MixedDtype, MainGradientsOverSteps) {
  for (const rmsnorm_dtype_t dtype : kHalf) {
    Case c = full_case(Direction::kBackward, 300, 320, dtype);
    c[kDweight].dtype = c[kDbias].dtype = RMSNORM_DTYPE_F32;
    c[kDweight].pattern = c[kDbias].pattern = Pattern::kZero;
    c.flags = RMSNORM_FLAG_ACCUMULATE;
    std::vector<double> sums(static_cast<size_t>(2 * c.cols));
    for (uint64_t step = 1; step <= 4; ++step) {
      c.seed = step;
      Execution execution(device(), c);
      for (int64_t col = 0; col < c.cols; ++col) {
        execution.set(kDweight, 0, 0, col, sums[static_cast<size_t>(2 * col)]);
        execution.set(kDbias, 0, 0, col, sums[static_cast<size_t>(2 * col + 1)]);
      }
      ASSERT_EQ(execution.run(), RMSNORM_SUCCESS) << last_error();
      ASSERT_TRUE(conforms(execution));
      for (int64_t col = 0; col < c.cols; ++col) {
        sums[static_cast<size_t>(2 * col)] = execution.output(kDweight, 0, 0, col);
        sums[static_cast<size_t>(2 * col + 1)] = execution.output(kDbias, 0, 0, col);
      }
    }
  }
}

// fp16 and bf16 weights of a wide fp32 row: the vector widths of x, weight and y differ at every
// column.
TEST_P(MixedDtype, UnevenVectorsAtOddWidths) {
  for (int64_t cols = 1; cols <= 70; ++cols) {
    Case c = forward_case(3, cols, RMSNORM_DTYPE_F32);
    c[kWeight].dtype = RMSNORM_DTYPE_BF16;
    c[kY].dtype = RMSNORM_DTYPE_F16;
    EXPECT_TRUE(conforms(device(), c));
    c = backward_case(3, cols, RMSNORM_DTYPE_BF16);
    c[kX].dtype = RMSNORM_DTYPE_F32;
    c[kDweight].dtype = RMSNORM_DTYPE_F32;
    EXPECT_TRUE(conforms(device(), c));
  }
}

TEST_P(MixedDtype, GluForward) {
  for (const int64_t cols : kWidths)
    for (const rmsnorm_activation_t activation : kActivations)
      for (const rmsnorm_dtype_t gate : kMixable)
        for (const rmsnorm_dtype_t up : kMixable)
          for (const rmsnorm_dtype_t y : kMixable) {
            Case c = glu_case(Direction::kGluForward, activation, 5, cols, gate);
            c[kUp].dtype = up;
            c[kY].dtype = y;
            EXPECT_TRUE(conforms(device(), c));
          }
}

TEST_P(MixedDtype, GluBackward) {
  for (const int64_t cols : kWidths)
    for (const rmsnorm_dtype_t dy : kMixable)
      for (const rmsnorm_dtype_t gate : kMixable)
        for (const rmsnorm_dtype_t up : kMixable)
          for (const rmsnorm_dtype_t dgate : kMixable)
            for (const rmsnorm_dtype_t dup : kMixable) {
              const int kinds = static_cast<int>(dy + gate + up + dgate + dup) / 16;
              Case c = glu_case(Direction::kGluBackward, kActivations[kinds % 3], 3, cols, dy);
              c[kGate].dtype = gate;
              c[kUp].dtype = up;
              c[kDgate].dtype = dgate;
              c[kDup].dtype = dup;
              EXPECT_TRUE(conforms(device(), c));
            }
}

INSTANTIATE_TEST_SUITE_P(All, MixedDtype, testing::ValuesIn(kBackends), BackendName());

}  // namespace
}  // namespace rmsnorm_test
