// Backward at the ends of each dtype's range: rows, handed-over rstd that is no use, dx that
// cancels, and weight gradients of very many rows.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "../support/judge.h"
#include "../support/on_device.h"
#include "../support/recipes.h"

namespace rmsnorm_test {
namespace {

// Weight gradients of so many rows are added by other kernels than those of few.
constexpr int64_t kManyRows = 700;

class ExtremesBackward : public OnDevice {
 protected:
  // Every odd row of `name` is a recipe, of at least `rows`.
  void run_recipes(Case c, Name name, int64_t rows = 0) {
    const std::vector<Recipe> recipes = finite_recipes(c[name].dtype, c.cols);
    c.rows = std::max(rows, static_cast<int64_t>(2 * recipes.size() + 1));
    Execution execution(device(), c);
    for (size_t i = 0; i < recipes.size(); ++i)
      cook(&execution, name, static_cast<int64_t>(2 * i + 1), recipes[i]);
    ASSERT_EQ(execution.run(), RMSNORM_SUCCESS) << last_error();
    EXPECT_TRUE(conforms(execution));
  }
};

TEST_P(ExtremesBackward, RowsOfX) {
  for (const rmsnorm_dtype_t dtype : kDtypes)
    for (const int64_t cols : {1, 7, 64, 333, 1024})
      for (const double eps : {0.0, 1e-6}) {
        Case c = backward_case(0, cols, dtype);
        c.eps = eps;
        run_recipes(c, kX);
        if (cols >= 333) run_recipes(c, kX, kManyRows);
      }
}

// dy times weight stays within range, and so do the gradients' sums: the bounds are for numbers.
TEST_P(ExtremesBackward, RowsOfDy) {
  for (const rmsnorm_dtype_t dtype : kDtypes)
    for (const int64_t cols : {1, 7, 64, 333, 1024}) {
      Case c = backward_case(0, cols, dtype);
      c[kWeight].scale = 0x1p-12;
      c[kDweight] = {};
      run_recipes(c, kDy);
      if (cols >= 333) run_recipes(c, kDy, kManyRows);
    }
}

// Sums near the largest number, of terms that alternate in sign and of terms that do not.
TEST_P(ExtremesBackward, LargeSums) {
  for (const rmsnorm_dtype_t dtype : kDtypes)
    for (const Pattern pattern : {Pattern::kSign, Pattern::kOne}) {
      Case c = backward_case(300, 32, dtype);
      c[kDbias].dtype = dtype;
      c[kDx] = {};
      c[kX].pattern = Pattern::kOne;
      c[kDy].pattern = pattern;
      c[kDy].scale = limits_of(dtype).largest / 301;
      EXPECT_TRUE(conforms(device(), c));
    }
}

// Weight gradients whose terms are at either end of fp32, or are nothing, beside ordinary ones.
// fp64 has no wider dtype for terms that are subnormal.
TEST_P(ExtremesBackward, ColumnsAtTheEnds) {
  for (const rmsnorm_dtype_t dtype : kDtypes)
    for (const int64_t rows : {5, 300})
      for (const int64_t cols : {272, 333}) {
        Case c = backward_case(rows, cols, dtype);
        c[kWeight].scale = 0x1p-12;
        c[kDweight].dtype = rstd_dtype(dtype);
        c[kDx] = {};
        Limits limits = limits_of(dtype);
        if (dtype == RMSNORM_DTYPE_F64) limits.smallest = limits.smallest_normal = 0x1p-960;
        Execution execution(device(), c);
        for (int64_t row = 0; row < rows; ++row) {
          execution.set(kDy, row, 0, 3, limits.smallest);
          execution.set(kDy, row, 0, 9,
                        row % 2 == 0 ? limits.largest / (rows * 16.0) : -limits.smallest);
          execution.set(kDy, row, 0, 17, 0.0);
          execution.set(kDy, row, 0, 200, limits.smallest_normal);
        }
        ASSERT_EQ(execution.run(), RMSNORM_SUCCESS) << last_error();
        EXPECT_TRUE(conforms(execution));
      }
}

TEST_P(ExtremesBackward, RowsOfDresidualOut) {
  for (const rmsnorm_dtype_t dtype : kDtypes) {
    Case c = full_case(Direction::kBackward, 0, 333, dtype);
    run_recipes(c, kDresidualOut);
  }
}

// rstd that is 0, Inf or subnormal, as forward leaves it for rows at the ends of fp32: recomputed
// from x, row by row.
TEST_P(ExtremesBackward, UselessRstdIsRecomputed) {
  for (const rmsnorm_dtype_t dtype : kDtypes)
    for (const int64_t cols : {7, 333, 1024}) {
      const Limits limits = limits_of(rstd_dtype(dtype));
      const double useless[] = {0.0,
                                -0.0,
                                HUGE_VAL,
                                -HUGE_VAL,
                                limits.smallest,
                                limits.smallest_normal - limits.smallest};
      for (Case c : {full_case(Direction::kBackward, 13, cols, dtype),
                     full_case(Direction::kBackward, kManyRows, cols, dtype),
                     backward_case(13, cols, dtype), backward_case(kManyRows, cols, dtype)}) {
        c[kRstd].dtype = rstd_dtype(dtype);
        Execution execution(device(), c);
        for (int64_t i = 0; i < 6; ++i) execution.set(kRstd, 2 * i + 1, 0, 0, useless[i]);
        ASSERT_EQ(execution.run(), RMSNORM_SUCCESS) << last_error();
        EXPECT_TRUE(conforms(execution));
      }
    }
}

// The smallest normal rstd is taken as it is.
TEST_P(ExtremesBackward, SmallestNormalRstdIsUsed) {
  for (const rmsnorm_dtype_t dtype : kDtypes) {
    Execution execution(device(), full_case(Direction::kBackward, 3, 64, dtype));
    execution.set(kRstd, 1, 0, 0, limits_of(rstd_dtype(dtype)).smallest_normal);
    ASSERT_EQ(execution.run(), RMSNORM_SUCCESS) << last_error();
    EXPECT_TRUE(conforms(execution));
  }
}

// forward's rstd overflows or vanishes in fp32 and comes back to backward.
TEST_P(ExtremesBackward, ForwardAndBackwardAtTheEnds) {
  for (const rmsnorm_dtype_t dtype : {RMSNORM_DTYPE_F32, RMSNORM_DTYPE_BF16}) {
    const std::vector<Recipe> recipes = finite_recipes(dtype, 200);
    const int64_t rows = static_cast<int64_t>(recipes.size());
    Case c = forward_case(rows, 200, dtype);
    c.eps = 0;
    Execution forward(device(), c);
    Case back = backward_case(rows, 200, dtype);
    back.eps = 0;
    back[kRstd].dtype = RMSNORM_DTYPE_F32;
    Execution backward(device(), back);
    for (int64_t row = 0; row < rows; ++row)
      for (Execution *execution : {&forward, &backward})
        cook(execution, kX, row, recipes[static_cast<size_t>(row)]);
    ASSERT_EQ(forward.run(), RMSNORM_SUCCESS) << last_error();
    for (int64_t row = 0; row < rows; ++row)
      backward.set(kRstd, row, 0, 0, forward.output(kRstd, row, 0, 0));
    ASSERT_EQ(backward.run(), RMSNORM_SUCCESS) << last_error();
    EXPECT_TRUE(conforms(backward));
  }
}

// dy parallel to x and eps 0: dx is 0 but for roundings, which the bound counts against the terms.
TEST_P(ExtremesBackward, CancellingDx) {
  for (const rmsnorm_dtype_t dtype : kDtypes)
    for (const int64_t cols : {1, 7, 64, 333, 1024, 8192})
      for (const double factor : {1.0, -2.0, 0x1p-10}) {
        Case c = backward_case(5, cols, dtype);
        c[kWeight] = {};
        c.eps = 0;
        Execution execution(device(), c);
        for (int64_t row = 0; row < c.rows; ++row)
          for (int64_t col = 0; col < cols; ++col)
            execution.set(kDy, row, 0, col, factor * execution.input(kX, row, 0, col));
        ASSERT_EQ(execution.run(), RMSNORM_SUCCESS) << last_error();
        EXPECT_TRUE(conforms(execution));
      }
}

// dresidual_out takes dx away again.
TEST_P(ExtremesBackward, CancellingDresidualOut) {
  for (const rmsnorm_dtype_t dtype : kDtypes) {
    const Case plain = backward_case(5, 333, dtype);
    Execution first(device(), plain);
    ASSERT_EQ(first.run(), RMSNORM_SUCCESS) << last_error();
    Case c = plain;
    c[kDresidualOut].dtype = dtype;
    Execution second(device(), c);
    for (int64_t row = 0; row < c.rows; ++row)
      for (int64_t col = 0; col < c.cols; ++col)
        second.set(kDresidualOut, row, 0, col, -first.output(kDx, row, 0, col));
    ASSERT_EQ(second.run(), RMSNORM_SUCCESS) << last_error();
    EXPECT_TRUE(conforms(second));
  }
}

TEST_P(ExtremesBackward, ZeroRows) {
  for (const rmsnorm_dtype_t dtype : kDtypes)
    for (const double eps : {0.0, 1e-6}) {
      Case c = backward_case(3, 100, dtype);
      c.eps = eps;
      Execution execution(device(), c);
      execution.set_row(kX, 1, 0, 0.0);
      ASSERT_EQ(execution.run(), RMSNORM_SUCCESS) << last_error();
      EXPECT_TRUE(conforms(execution));
    }
}

// A NaN stays in its row of dx; in dweight and dbias it shows where it went.
TEST_P(ExtremesBackward, NanElements) {
  for (const rmsnorm_dtype_t dtype : kDtypes)
    for (const int64_t cols : {7, 333})
      for (const Name name : {kDy, kX, kRstd, kDresidualOut}) {
        Execution execution(device(), full_case(Direction::kBackward, 5, cols, dtype));
        execution.set(name, 2, 0, 0, NAN);
        ASSERT_EQ(execution.run(), RMSNORM_SUCCESS) << last_error();
        EXPECT_TRUE(conforms(execution));
      }
}

// Sums of equal terms over 131,072 rows: what fp32 sums without a second level, or half sums, get
// wrong.
TEST_P(ExtremesBackward, ConstantTermsOverManyRows) {
  for (const rmsnorm_dtype_t dtype : kDtypes)
    for (const double term : {1.0, 0.1, 0x1.8p-5}) {
      Case c = backward_case(131072, 4, dtype);
      c[kDbias].dtype = dtype;
      c[kX].pattern = c[kDy].pattern = Pattern::kOne;
      c[kDy].scale = term;
      c.sampled = 64;
      EXPECT_TRUE(conforms(device(), c));
      c[kDweight].dtype = c[kDbias].dtype = rstd_dtype(dtype);
      EXPECT_TRUE(conforms(device(), c));
    }
}

// Terms that cancel over many rows, and one large row among them.
TEST_P(ExtremesBackward, CancellingSumsOverManyRows) {
  for (const rmsnorm_dtype_t dtype : kDtypes) {
    Case c = backward_case(65536, 8, dtype);
    c[kDbias].dtype = c[kDweight].dtype = rstd_dtype(dtype);
    c[kDy].pattern = Pattern::kSign;
    c[kX].pattern = Pattern::kOne;
    c.sampled = 64;
    Execution execution(device(), c);
    execution.set_row(kDy, 30000, 0, 1000.0);
    ASSERT_EQ(execution.run(), RMSNORM_SUCCESS) << last_error();
    EXPECT_TRUE(conforms(execution));
  }
}

INSTANTIATE_TEST_SUITE_P(All, ExtremesBackward, testing::ValuesIn(kBackends), BackendName());

}  // namespace
}  // namespace rmsnorm_test
