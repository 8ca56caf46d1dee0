// Judges a case of the CPU backend by the reference, within the bounds that rmsnorm.h promises.
#pragma once

#include "cpu_case.h"

namespace rmsnorm {
namespace {

// ---- Errors against the reference ---------------------------------------------------------------

// Of each kind of result: the largest error in ulps where the bound excuses nothing more, and the
// largest share of its bound that an error takes.
struct Worst {
  double ulps = 0, share = 0;
};
inline std::map<std::string, Worst> worst;

template <class AnyCase>
void expect_within(double got, const Exact &exact, double slack, rmsnorm_dtype_t dtype,
                   const std::string &what, const AnyCase &c, double ulps = 0.501) {
  const double bound = dtype == kF64 ? 2 : ulps;
  const double error = reference::error_in_ulps(got, exact, dtype);
  const double unit = reference::ulp(exact, dtype);
  const double excused = std::isfinite(slack / unit) && slack > 0 ? slack / unit : 0;
  // Inf is right where the bound reaches what rounds to it: rmsnorm.h, 'ulp'.
  const double overflow = dtype == kF16    ? 65520
                          : dtype == kBf16 ? 0x1.ffp127
                          : dtype == kF64  ? kInf
                                           : 0x1.ffffffp127;
  if (std::isinf(got) && slack > 0 && std::copysign(1, got) * exact.high + slack >= overflow)
    return;
  ASSERT_TRUE(error <= bound + excused)
      << what << " " << got << ", exactly " << exact.high << " + " << exact.low << ": " << error
      << " ulp, excused " << excused << ", " << c;
  Worst &entry = worst[what + " " + dtype_name(dtype)];
  if (excused < 1e-3) entry.ulps = std::max(entry.ulps, error);
  entry.share = std::max(entry.share, error / (bound + excused));
}

// LLAMA: y of any rounding of `scaled` within its own bound.
inline double llama_error(const ForwardProblem &problem, double got, const Exact &scaled,
                          int64_t group, int64_t col) {
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

inline void check_forward(const Case &c, const State &state, Arrays fresh) {
  Arrays arrays = fresh;
  run(c, state, &arrays);
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

inline void check_backward(const Case &c, const State &state, Arrays fresh) {
  Arrays arrays = fresh;
  run(c, state, &arrays);
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

inline void check(const Case &c, const State &state, const Arrays &arrays) {
  if (is_forward(c)) check_forward(c, state, arrays);
  else check_backward(c, state, arrays);
}
inline void check(const Case &c, const State &state) { check(c, state, make_arrays(c, {})); }

}  // namespace
}  // namespace rmsnorm
