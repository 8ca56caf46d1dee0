// Judges a case of the CPU backend's gated activations by the reference, within the bounds that
// rmsnorm.h promises.
#pragma once

#include "cpu_check.h"
#include "cpu_glu_case.h"
#include "reference/glu.h"

namespace rmsnorm {
namespace {

// Inf times act(gate) or act'(gate) that is next to nothing, or 0: NaN or Inf.
inline bool inf_times_little(double factor, double gate) {
  return std::isinf(factor) && std::isfinite(gate) && gate < -9;
}

inline void check(const GluCase &c, const State &state, Arrays fresh) {
  Arrays arrays = fresh;
  run(c, state, &arrays);
  const auto compare = [&](const char *name, const Exact &exact, double magnitude, int64_t row,
                           int64_t group, int64_t col) {
    const auto found = arrays.find(name);
    if (found == arrays.end() || std::isinf(magnitude)) return;
    const rmsnorm_dtype_t dtype = found->second.dtype();
    expect_within(found->second.get(row, group, col), exact,
                  magnitude * (dtype == kF64 ? 0x1p-48 : 0x1p-40), dtype, name, c);
  };
  for (int64_t r = 0; r < c.rows; ++r)
    for (int64_t g = 0; g < c.groups; ++g) {
      const std::vector<Exact> y = reference::glu_forward_row(glu_forward_problem(c, &fresh), r, g);
      const std::vector<reference::GluGradients> gradients =
          reference::glu_backward_row(glu_backward_problem(c, &fresh), r, g);
      for (int64_t col = 0; col < c.cols; ++col) {
        const size_t i = static_cast<size_t>(col);
        const double gate = fresh["gate"].get(r, g, col), dy = fresh["dy"].get(r, g, col);
        const bool up_little = inf_times_little(fresh["up"].get(r, g, col), gate);
        const bool dy_little = inf_times_little(dy, gate);
        if (!up_little) compare("y", y[i], 0, r, g, col);
        if (!dy_little) compare("dup", gradients[i].dup, 0, r, g, col);
        if (!up_little && !dy_little)
          compare("dgate", gradients[i].dgate, gradients[i].magnitude, r, g, col);
      }
      if (testing::Test::HasFatalFailure()) return;
    }
}

}  // namespace
}  // namespace rmsnorm
