// Forward on rows at the ends of each dtype's range, each between ordinary rows that must not
// notice: the bounds hold for every finite h; NaN, Inf and zero rows are as the header says.
#include <gtest/gtest.h>

#include <cmath>

#include "../support/judge.h"
#include "../support/on_device.h"
#include "../support/recipes.h"

namespace rmsnorm_test {
namespace {

constexpr int64_t kWidths[] = {1, 2, 7, 64, 333, 1024, 8195};

class ExtremesForward : public OnDevice {
 protected:
  // Every odd row of x is a recipe.
  void run_recipes(Case c) {
    const std::vector<Recipe> recipes = finite_recipes(c[kX].dtype, c.cols);
    c.rows = static_cast<int64_t>(2 * recipes.size() + 1);
    Execution execution(device(), c);
    for (size_t i = 0; i < recipes.size(); ++i)
      cook(&execution, kX, static_cast<int64_t>(2 * i + 1), recipes[i]);
    ASSERT_EQ(execution.run(), RMSNORM_SUCCESS) << last_error();
    EXPECT_TRUE(conforms(execution));
  }
};

TEST_P(ExtremesForward, FiniteRows) {
  for (const rmsnorm_dtype_t dtype : kDtypes)
    for (const int64_t cols : kWidths)
      for (const double eps : {0.0, 1e-6}) {
        Case c = forward_case(0, cols, dtype);
        c.eps = eps;
        run_recipes(c);
        c.rounding = RMSNORM_ROUNDING_LLAMA;
        run_recipes(c);
      }
}

TEST_P(ExtremesForward, FiniteRowsToEveryDtype) {
  for (const rmsnorm_dtype_t x : kMixable)
    for (const rmsnorm_dtype_t y : kMixable)
      for (const int64_t cols : {7, 333, 1024}) {
        Case c = forward_case(0, cols, x);
        c[kY].dtype = y;
        c.eps = 0;
        run_recipes(c);
      }
}

// h * rstd is subnormal, or below, and the weight brings it back; or the weight takes a normal one
// away.
TEST_P(ExtremesForward, WeightsOfEveryMagnitude) {
  for (const rmsnorm_dtype_t dtype : kDtypes)
    for (const int64_t cols : {7, 333, 1024})
      for (const double offset : {0.0, 1e30, -1e-30}) {
        const Limits limits = limits_of(dtype);
        for (const double weight : {limits.largest, limits.largest / 1024, limits.smallest_normal,
                                    limits.smallest, 0.0}) {
          Case c = forward_case(0, cols, dtype);
          c[kWeight].pattern = Pattern::kSign;
          c[kWeight].scale = weight;
          c.weight_offset = offset;
          c.eps = 0;
          run_recipes(c);
        }
      }
}

TEST_P(ExtremesForward, BiasBesideExtremes) {
  for (const rmsnorm_dtype_t dtype : kDtypes)
    for (const double scale : {1.0, 1e-30, 1e30}) {
      Case c = forward_case(0, 333, dtype);
      c[kBias].dtype = dtype;
      c[kBias].scale = scale;
      run_recipes(c);
    }
}

// x + residual: cancels, rounds away, or leaves the range of its dtype and is then an Inf like any
// other.
TEST_P(ExtremesForward, ResidualSums) {
  for (const rmsnorm_dtype_t dtype : kDtypes)
    for (const int64_t cols : {7, 333, 1024}) {
      const std::vector<Recipe> recipes = finite_recipes(dtype, cols);
      const int64_t count = static_cast<int64_t>(recipes.size());
      Execution execution(device(), add_case(4 * count, cols, dtype));
      for (int64_t i = 0; i < count; ++i) {
        const Recipe &recipe = recipes[static_cast<size_t>(i)];
        for (int64_t col = 0; col < cols; ++col) {
          const double value = recipe.element(col);
          execution.set(kX, 4 * i, 0, col, value);
          execution.set(kResidual, 4 * i, 0, col, -value);  // a row of zeros
          execution.set(kX, 4 * i + 1, 0, col, value);
          execution.set(kResidual, 4 * i + 1, 0, col, value / 2);
          execution.set(kX, 4 * i + 2, 0, col, value);  // the residual stays an ordinary number
        }
      }
      ASSERT_EQ(execution.run(), RMSNORM_SUCCESS) << last_error();
      EXPECT_TRUE(conforms(execution));
    }
}

TEST_P(ExtremesForward, ZeroRows) {
  for (const rmsnorm_dtype_t dtype : kDtypes)
    for (const int64_t cols : kWidths) {
      for (const double eps : {1e-6, 1e-300, 5e-324}) {
        Case c = forward_case(3, cols, dtype);
        c.eps = eps;
        c[kWeight].pattern = Pattern::kPositive;
        Execution execution(device(), c);
        for (int64_t col = 0; col < cols; ++col)
          execution.set(kX, 1, 0, col, col % 3 == 0 ? -0.0 : 0.0);
        ASSERT_EQ(execution.run(), RMSNORM_SUCCESS) << last_error();
        EXPECT_TRUE(conforms(execution));
        for (int64_t col = 0; col < cols; ++col) {
          const double y = execution.output(kY, 1, 0, col);
          EXPECT_TRUE(y == 0 && std::signbit(y) == (col % 3 == 0)) << y << "\n" << c;
        }
      }
      Case c = forward_case(3, cols, dtype);
      c.eps = 0;
      Execution execution(device(), c);
      execution.set_row(kX, 1, 0, 0.0);
      ASSERT_EQ(execution.run(), RMSNORM_SUCCESS) << last_error();
      EXPECT_TRUE(conforms(execution));
      EXPECT_EQ(execution.output(kRstd, 1, 0, 0), HUGE_VAL);
      for (int64_t col = 0; col < cols; ++col)
        EXPECT_TRUE(std::isnan(execution.output(kY, 1, 0, col))) << c;
    }
}

// A NaN anywhere makes its own row NaN.
TEST_P(ExtremesForward, NanElements) {
  for (const rmsnorm_dtype_t dtype : kDtypes)
    for (const int64_t cols : kWidths)
      for (const rmsnorm_rounding_t rounding : {RMSNORM_ROUNDING_ONCE, RMSNORM_ROUNDING_LLAMA})
        for (const int64_t at : {int64_t{0}, cols / 2, cols - 1}) {
          Case c = forward_case(3, cols, dtype);
          c.rounding = rounding;
          Execution execution(device(), c);
          execution.set(kX, 1, 0, at, NAN);
          ASSERT_EQ(execution.run(), RMSNORM_SUCCESS) << last_error();
          EXPECT_TRUE(conforms(execution));
          for (int64_t col = 0; col < cols; ++col)
            ASSERT_TRUE(std::isnan(execution.output(kY, 1, 0, col))) << col << "\n" << c;
        }
}

// An Inf gives NaN at its place and zeros elsewhere, with the sign of h * weight.
TEST_P(ExtremesForward, InfElements) {
  for (const rmsnorm_dtype_t dtype : kDtypes)
    for (const int64_t cols : kWidths)
      for (const rmsnorm_rounding_t rounding : {RMSNORM_ROUNDING_ONCE, RMSNORM_ROUNDING_LLAMA})
        for (const double infinity : {HUGE_VAL, -HUGE_VAL})
          for (const int64_t at : {int64_t{0}, cols / 2, cols - 1}) {
            Case c = forward_case(3, cols, dtype);
            c.rounding = rounding;
            c[kWeight].pattern = Pattern::kSign;
            Execution execution(device(), c);
            execution.set(kX, 1, 0, at, infinity);
            ASSERT_EQ(execution.run(), RMSNORM_SUCCESS) << last_error();
            EXPECT_TRUE(conforms(execution));
            EXPECT_EQ(execution.output(kRstd, 1, 0, 0), 0);
            for (int64_t col = 0; col < cols; ++col) {
              const double y = execution.output(kY, 1, 0, col);
              const double of_h =
                  execution.input(kX, 1, 0, col) * execution.input(kWeight, 0, 0, col);
              const bool right =
                  col == at ? std::isnan(y) : y == 0 && std::signbit(y) == std::signbit(of_h);
              ASSERT_TRUE(right) << "y(1, 0, " << col << ") = " << y << "\n" << c;
            }
          }
}

// Two Infs, an Inf beside the largest numbers, and an Inf under a NaN.
TEST_P(ExtremesForward, SeveralSpecialElements) {
  for (const rmsnorm_dtype_t dtype : kDtypes) {
    Execution execution(device(), forward_case(4, 100, dtype));
    execution.set_row(kX, 1, 0, limits_of(dtype).largest);
    for (const int64_t col : {3, 99}) execution.set(kX, 1, 0, col, HUGE_VAL);
    for (const int64_t col : {0, 50}) execution.set(kX, 2, 0, col, -HUGE_VAL);
    execution.set(kX, 2, 0, 51, NAN);
    ASSERT_EQ(execution.run(), RMSNORM_SUCCESS) << last_error();
    EXPECT_TRUE(conforms(execution));
  }
}

// NaN and Inf in weight and bias stay in their column.
TEST_P(ExtremesForward, SpecialWeightsAndBiases) {
  for (const rmsnorm_dtype_t dtype : kDtypes) {
    Execution execution(device(), full_case(Direction::kForward, 4, 100, dtype));
    execution.set(kWeight, 0, 0, 5, NAN);
    execution.set(kWeight, 0, 0, 6, HUGE_VAL);
    execution.set(kBias, 0, 0, 7, NAN);
    execution.set(kBias, 0, 0, 8, -HUGE_VAL);
    ASSERT_EQ(execution.run(), RMSNORM_SUCCESS) << last_error();
    EXPECT_TRUE(conforms(execution));
    EXPECT_EQ(execution.output(kY, 0, 0, 8), -HUGE_VAL);
  }
}

INSTANTIATE_TEST_SUITE_P(All, ExtremesForward, testing::ValuesIn(kBackends), BackendName());

}  // namespace
}  // namespace rmsnorm_test
