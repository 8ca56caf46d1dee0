// The estimates that bulk comparisons go by, against the reference: what they may be off by they
// never exceed, it is little, and nothing wrong passes for their sake.
#include "../support/estimate.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "../support/execution.h"
#include "../support/judge.h"
#include "reference/glu.h"
#include "reference/reference.h"

namespace rmsnorm_test {
namespace {

using rmsnorm::reference::Exact;

Device &cpu() {
  std::string why_not;
  return *find_device(RMSNORM_DEVICE_CPU, &why_not);
}

// `size`: of which the error is a small share.
void expect_holds(const Estimate &estimate, const Exact &exact, long double size,
                  const char *what) {
  if (!std::isfinite(exact.high)) return;
  const long double off = std::fabs(estimate.value - exact.high - exact.low);
  // Below fp64's normal range the reference has no low part.
  ASSERT_LE(off, estimate.error + 0x1p-1074L) << what << " " << exact.high;
  ASSERT_LE(estimate.error, size * 0x1p-47L + 0x1p-1074L) << what << " " << exact.high;
}

TEST(Estimate, EveryHalf) {
  for (const rmsnorm_dtype_t dtype : kHalf)
    for (uint32_t bits = 0; bits < 65536; ++bits) {
      uint16_t half = static_cast<uint16_t>(bits);
      rmsnorm::View view;
      view.data = reinterpret_cast<char *>(&half), view.dtype = dtype;
      std::vector<double> loaded;
      load_row(view, 0, 0, 1, &loaded);
      const double wanted = rmsnorm::reference::load(&half, dtype);
      ASSERT_TRUE(loaded[0] == wanted || (std::isnan(loaded[0]) && std::isnan(wanted))) << bits;
      ASSERT_EQ(std::signbit(loaded[0]), std::signbit(wanted)) << bits;
    }
}

TEST(Estimate, RoundsAsTheReference) {
  for (const rmsnorm_dtype_t dtype : kDtypes)
    for (uint64_t i = 0; i < 200000; ++i) {
      // Of every size, and near ties: a number of few bits and a little.
      const uint64_t hash = mix(i, 5);
      const int bits = static_cast<int>(hash % 14);
      const double value =
          std::ldexp((hash & 64 ? -1 : 1) *
                             std::round(std::ldexp(static_cast<double>(hash >> 11), bits - 53)) +
                         (static_cast<int>(i % 3) - 1) * 0x1p-30,
                     static_cast<int>(hash >> 8 & 0x1ff) - 256);
      ASSERT_EQ(round_to(value, dtype), rmsnorm::reference::round_to({value, 0}, dtype)) << value;
    }
}

constexpr int64_t kWidths[] = {1, 2, 7, 33, 100, 1000, 20000};

TEST(Estimate, Forward) {
  for (const rmsnorm_dtype_t dtype : kDtypes)
    for (const int64_t cols : kWidths)
      for (const Pattern pattern : {Pattern::kNormal, Pattern::kWide, Pattern::kRows}) {
        Case c = full_case(Direction::kForward, 3, cols, dtype);
        c[kX].pattern = c[kResidual].pattern = pattern;
        c.groups = 2, c.eps = 1e-5, c.weight_offset = -0.75;
        const Execution execution(cpu(), c);
        const rmsnorm::ForwardProblem problem = execution.forward_problem();
        ForwardEstimate estimate(problem);
        for (int64_t row = 0; row < c.rows; ++row) {
          const auto exact = rmsnorm::reference::forward_row(problem, row, 1);
          estimate.find(row, 1);
          expect_holds(estimate.rstd(), exact.rstd, exact.rstd.high, "rstd");
          for (size_t i = 0; i < exact.y.size(); ++i) {
            double product = 0;
            ASSERT_EQ(estimate.h(i), exact.h[i]);
            const Estimate scaled = estimate.scaled(i), y = estimate.y(i, scaled, &product);
            expect_holds(scaled, exact.scaled[i], std::fabs(exact.scaled[i].high), "scaled");
            expect_holds(y, exact.y[i], exact.product[i] + std::fabs(exact.y[i].high), "y");
            ASSERT_NEAR(product, exact.product[i], 0x1p-40 * exact.product[i]);
          }
        }
      }
}

TEST(Estimate, Backward) {
  for (const rmsnorm_dtype_t dtype : kDtypes)
    for (const int64_t cols : kWidths)
      for (const bool given : {false, true}) {
        Case c = full_case(Direction::kBackward, 5, cols, dtype);
        c[kX].pattern = c[kDy].pattern = Pattern::kWide;
        c.groups = 2, c.weight_offset = 0.25;
        if (!given) c[kRstd] = {};
        const Execution execution(cpu(), c);
        const rmsnorm::BackwardProblem problem = execution.backward_problem();
        BackwardEstimate estimate(problem);
        for (int64_t row = 0; row < c.rows; ++row) {
          const auto exact = rmsnorm::reference::backward_row(problem, row, 1);
          estimate.find(row, 1);
          ASSERT_NEAR(estimate.gain(), exact.gain, 0x1p-40 * exact.gain);
          for (size_t i = 0; i < exact.dx.size(); ++i) {
            double magnitude = 0;
            expect_holds(estimate.dx(i, &magnitude), exact.dx[i], exact.magnitude[i], "dx");
            ASSERT_NEAR(magnitude, exact.magnitude[i], 0x1p-40 * exact.magnitude[i]);
          }
        }
        const auto exact = rmsnorm::reference::weight_gradients(problem, 0);
        SumEstimates sums(problem, 0, 0, 2);
        sums.add(SumEstimates(problem, 0, 2, c.rows));
        for (size_t i = 0; i < exact.dweight.size(); ++i) {
          double magnitude = 0;
          expect_holds(sums.dweight(i, &magnitude), exact.dweight[i], exact.dweight_magnitude[i],
                       "dweight");
          ASSERT_NEAR(magnitude, exact.dweight_magnitude[i], 0x1p-40 * magnitude);
          expect_holds(sums.dbias(i, &magnitude), exact.dbias[i], exact.dbias_magnitude[i],
                       "dbias");
          ASSERT_NEAR(magnitude, exact.dbias_magnitude[i], 0x1p-40 * magnitude);
        }
      }
}

TEST(Estimate, Glu) {
  for (const rmsnorm_activation_t kind : kActivations)
    for (int64_t i = 0; i < 30000; ++i) {
      const uint64_t hash = mix(static_cast<uint64_t>(kind), static_cast<uint64_t>(i));
      const double unit = static_cast<double>(hash >> 11) * 0x1p-53;
      // The tails as far as fp64 reaches, and every size of a gate.
      const double gate = i % 2 == 0 ? (unit - 0.8) * (i % 4 == 0 ? 900 : 20)
                                     : std::ldexp(unit - 0.5, static_cast<int>(hash % 90) - 80);
      const double up = std::ldexp(1 + unit, static_cast<int>(hash % 17) - 8), dy = 1 - 3 * unit;
      const auto exact = rmsnorm::reference::glu_gradients(kind, dy, gate, up);
      const GluEstimates estimate = estimate_glu_gradients(kind, dy, gate, up);
      const Exact y = rmsnorm::reference::glu_y(kind, gate, up);
      const long double tail = 1 + gate * gate;  // what an exponential makes of an error
      expect_holds(estimate_glu_y(kind, gate, up), y, tail * std::fabs(y.high), "y");
      expect_holds(estimate.dup, exact.dup, tail * std::fabs(exact.dup.high), "dup");
      expect_holds(estimate.dgate, exact.dgate, tail * exact.magnitude, "dgate");
      ASSERT_NEAR(estimate.magnitude, exact.magnitude, 0x1p-40 * exact.magnitude);
      if (testing::Test::HasFatalFailure()) FAIL() << "kind " << kind << ", gate " << gate;
    }
}

TEST(Estimate, DistanceIsNeverLess) {
  for (const rmsnorm_dtype_t dtype : kDtypes)
    for (int64_t i = 0; i < 20000; ++i) {
      const uint64_t hash = mix(static_cast<uint64_t>(dtype), static_cast<uint64_t>(i));
      const double value = std::ldexp(static_cast<double>(hash >> 11) * 0x1p-53 + 1e-3 * (i % 2),
                                      static_cast<int>(hash % 40) - 24);
      // Also just below and above a power of two, where an ulp changes.
      const Exact exact = {i % 3 == 0 ? std::exp2(std::round(std::log2(value))) : value,
                           std::ldexp(i % 5 - 2.0, -90) * value};
      const double got = rmsnorm::reference::round_to(exact, dtype) *
                         (1 + std::ldexp(static_cast<double>(hash % 7), -24));
      const Estimate estimate = {static_cast<long double>(exact.high) + exact.low,
                                 0x1p-60L * exact.high};
      const Distance from = distance(got, estimate, format_of(dtype));
      if (std::isnan(from.far)) continue;
      ASSERT_GE(static_cast<double>(from.far / from.ulp),
                rmsnorm::reference::error_in_ulps(got, exact, dtype) * (1 - 0x1p-50))
          << got << " " << exact.high << " + " << exact.low;
    }
}

// A call whose results are off by a little: by eps, by the weight's offset, by the activation.
TEST(Estimate, NothingWrongPasses) {
  const int precisions[] = {24, 11, 8, 53};  // of kDtypes; gradients' bounds excuse 2^-40
  for (size_t d = 0; d < 4; ++d)
    for (const Direction direction : kDirections) {
      Case c = full_case(direction, 40, 100, kDtypes[d]);
      c.estimated = true;
      if (direction == Direction::kForward) c[kBias] = {};
      if (direction == Direction::kBackward) c[kRstd] = {};
      for (const bool wrong : {false, true}) {
        Execution execution(cpu(), c);
        if (wrong) {
          const double little =
              std::ldexp(8, -std::min(precisions[d], direction == Direction::kBackward ? 38 : 53));
          execution.params.edit_norm([&](auto *norm) {
            norm->eps += little,
                norm->weight_offset += direction == Direction::kBackward ? little : 0;
          });
          execution.params.edit_glu(
              [&](auto *glu) { glu->activation = (glu->activation + 1) % 3; });
        }
        ASSERT_EQ(execution.run(), RMSNORM_SUCCESS) << last_error();
        EXPECT_EQ(static_cast<bool>(conforms(execution)), !wrong) << c;
      }
    }
}

}  // namespace
}  // namespace rmsnorm_test
