// The gated activations where they are hard: every 16-bit gate, dense gates far into the tails, the
// ends of each dtype's range in every operand, zeros, Infs and NaNs; and shapes of real models.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "../support/judge.h"
#include "../support/on_device.h"
#include "../support/recipes.h"
#include "reference/reference.h"

namespace rmsnorm_test {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

class Glu : public OnDevice {
 protected:
  // A case of each direction and activation, over whose inputs fill(execution) has written.
  template <class Fill>
  void check_all(int64_t rows, int64_t cols, rmsnorm_dtype_t dtype, const Fill &fill) {
    for (const rmsnorm_activation_t activation : kActivations)
      for (const Direction direction : kGluDirections) {
        Execution execution(device(), glu_case(direction, activation, rows, cols, dtype));
        fill(&execution);
        ASSERT_EQ(execution.run(), RMSNORM_SUCCESS) << last_error();
        ASSERT_TRUE(conforms(execution));
      }
  }
  // value(row, col) over one input, if the call has it.
  template <class Value>
  static void write(Execution *execution, Name name, const Value &value) {
    const Case &c = execution->tested();
    if (!takes(c.direction, name)) return;
    for (int64_t row = 0; row < c.rows; ++row)
      for (int64_t col = 0; col < c.cols; ++col) execution->set(name, row, 0, col, value(row, col));
  }
};

TEST_P(Glu, EveryHalfGate) {
  constexpr int64_t kCols = 4096, kRowsOfAll = 65536 / kCols;
  for (const rmsnorm_dtype_t dtype : kHalf) {
    const Limits limits = limits_of(dtype);
    const double ups[] = {1, -0.1, limits.largest, limits.smallest * 3};
    check_all(kRowsOfAll * 4, kCols, dtype, [&](Execution *execution) {
      write(execution, kGate, [&](int64_t row, int64_t col) {
        const uint16_t bits = static_cast<uint16_t>(row % kRowsOfAll * kCols + col);
        return rmsnorm::reference::load(&bits, dtype);
      });
      write(execution, kUp, [&](int64_t row, int64_t) { return ups[row / kRowsOfAll]; });
      write(execution, kDy, [&](int64_t row, int64_t) { return ups[3 - row / kRowsOfAll]; });
    });
  }
}

// From where act(gate) is 0 to where it is gate, in steps that no period of an algorithm divides;
// up brings the products back, leaves them, or makes them subnormal.
TEST_P(Glu, DenseGates) {
  constexpr int64_t kCols = 5000;
  for (const rmsnorm_dtype_t dtype : kDtypes) {
    const Limits limits = limits_of(dtype);
    const double root = std::sqrt(limits.largest);
    const double large = std::fmin(5e10, limits.largest);  // CUDA's fp32 takes it for a common one
    const double ups[] = {1, limits.largest, -limits.largest / 3, root, 1e-3, large};
    for (const double from : {dtype == RMSNORM_DTYPE_F64 ? -2300.0 : -200.0, -58.0, -17.0, -3.0})
      check_all(6, kCols, dtype, [&](Execution *execution) {
        const double to = from < -100 ? 90 : -from / 3;
        write(execution, kGate, [&](int64_t row, int64_t col) {
          const double place =
              (static_cast<double>(col) + 0.1237 * static_cast<double>(row)) / kCols;
          return from + (to - from) * place;
        });
        write(execution, kUp, [&](int64_t row, int64_t) { return ups[row]; });
        write(execution, kDy,
              [&](int64_t row, int64_t) { return row == 1 ? ups[1] : ups[5 - row]; });
      });
  }
}

// Where act'(gate) passes 0, its two terms cancel.
TEST_P(Glu, AroundTheMinimum) {
  constexpr double kMinima[] = {-1.2784645427610738, -0.75246142, -0.75179152469356};
  for (const rmsnorm_dtype_t dtype : kDtypes)
    for (size_t i = 0; i < 3; ++i)
      for (const double width : {1e-1, 1e-4, 1e-7, 1e-12}) {
        Execution execution(device(),
                            glu_case(Direction::kGluBackward, kActivations[i], 3, 600, dtype));
        write(&execution, kGate, [&](int64_t, int64_t col) {
          return kMinima[i] + width * (static_cast<double>(col) / 300 - 1);
        });
        ASSERT_EQ(execution.run(), RMSNORM_SUCCESS) << last_error();
        ASSERT_TRUE(conforms(execution));
      }
}

// Every exponent of the dtype in each operand, beside every other's.
TEST_P(Glu, EveryExponent) {
  for (const rmsnorm_dtype_t dtype : kDtypes) {
    const Limits limits = limits_of(dtype);
    const int low = std::ilogb(limits.smallest), high = std::ilogb(limits.largest);
    const int step = dtype == RMSNORM_DTYPE_F64 ? 23 : dtype == RMSNORM_DTYPE_F16 ? 1 : 7;
    const int64_t cols = 2 * ((high - low) / step + 1);
    const auto power = [&](int64_t index, double fraction) {
      const int exponent = low + static_cast<int>(index % (cols / 2)) * step;
      const double size = std::ldexp(exponent == low ? 1 : fraction, exponent);
      return index < cols / 2 ? size : -size;
    };
    check_all(cols, cols, dtype, [&](Execution *execution) {
      write(execution, kGate, [&](int64_t, int64_t col) { return power(col, 1.37); });
      write(execution, kUp, [&](int64_t row, int64_t) { return power(row, 1.71); });
      write(execution, kDy,
            [&](int64_t row, int64_t col) { return power((row * 5 + col * 3) % cols, 1.13); });
    });
  }
}

// Rows of extreme numbers in each operand; each recipe for gate meets others for up and dy.
TEST_P(Glu, Recipes) {
  constexpr int64_t kCols = 331;
  for (const rmsnorm_dtype_t dtype : kDtypes) {
    const std::vector<Recipe> recipes = finite_recipes(dtype, kCols);
    const size_t count = recipes.size();
    check_all(static_cast<int64_t>(count), kCols, dtype, [&](Execution *execution) {
      for (size_t row = 0; row < count; ++row) {
        cook(execution, kGate, static_cast<int64_t>(row), recipes[row]);
        cook(execution, kUp, static_cast<int64_t>(row), recipes[(row * 7 + 3) % count]);
        if (takes(execution->tested().direction, kDy))
          cook(execution, kDy, static_cast<int64_t>(row), recipes[(row * 4 + 1) % count]);
      }
    });
  }
}

// As IEEE arithmetic has it: -Inf * 0 in act(-Inf), Inf * 0 in act'(Inf), Inf * 0 in products.
TEST_P(Glu, ZerosInfsAndNans) {
  for (const rmsnorm_dtype_t dtype : kDtypes) {
    const double largest = limits_of(dtype).largest;
    const double values[] = {0.0, -0.0, 1.0, -1.0, kInf, -kInf, kNan, 8.5, largest, -largest, -8.5};
    constexpr int64_t kCount = 11;
    check_all(kCount * kCount, kCount * 3, dtype, [&](Execution *execution) {
      write(execution, kGate, [&](int64_t, int64_t col) { return values[col % kCount]; });
      write(execution, kUp, [&](int64_t row, int64_t) { return values[row % kCount]; });
      write(execution, kDy, [&](int64_t row, int64_t) { return values[row / kCount]; });
    });
  }
}

// One output alone has the bits that it has beside the other.
TEST_P(Glu, OutputsDoNotChangeOneAnother) {
  for (const rmsnorm_dtype_t dtype : kDtypes)
    for (const rmsnorm_activation_t activation : kActivations)
      for (const int64_t cols : {1, 33, 1024, 5125}) {
        Execution both(device(), glu_case(Direction::kGluBackward, activation, 5, cols, dtype));
        ASSERT_EQ(both.run(), RMSNORM_SUCCESS) << last_error();
        for (const Name absent : {kDgate, kDup}) {
          Case c = both.tested();
          c[absent] = {};
          Execution one(device(), c);
          ASSERT_EQ(one.run(), RMSNORM_SUCCESS) << last_error();
          EXPECT_TRUE(conforms(one));
          EXPECT_TRUE(same_outputs(both, one));
        }
      }
}

// Liger's test shapes, and layers of models: outputs of 90 MB go past the cache on the CPU.
TEST_P(Glu, RealShapes) {
  struct Shape {
    int64_t rows, cols;
  };
  for (const Shape shape :
       {Shape{2 * 256, 256}, Shape{6 * 42, 431}, Shape{2 * 2048, 4096}, Shape{9 * 41, 4231},
        Shape{1, 14336}, Shape{64, 11008}, Shape{4096, 11008}})
    for (const rmsnorm_activation_t activation : kActivations)
      for (const Direction direction : kGluDirections)
        for (const rmsnorm_dtype_t dtype : {RMSNORM_DTYPE_BF16, RMSNORM_DTYPE_F32}) {
          if (shape.rows * shape.cols > 1e7 &&
              (dtype == RMSNORM_DTYPE_F32 || activation != RMSNORM_ACTIVATION_SILU))
            continue;
          Case c = glu_case(direction, activation, shape.rows, shape.cols, dtype);
          c.sampled = 8;
          EXPECT_TRUE(conforms(device(), c));
        }
}

INSTANTIATE_TEST_SUITE_P(All, Glu, testing::ValuesIn(kBackends), BackendName());

}  // namespace
}  // namespace rmsnorm_test
