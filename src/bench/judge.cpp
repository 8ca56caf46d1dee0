#include "bench/judge.h"

#include <algorithm>
#include <cmath>

#include "bench/text.h"

namespace bench {
namespace {

bool is_half(rmsnorm_dtype_t dtype) {
  return dtype == RMSNORM_DTYPE_F16 || dtype == RMSNORM_DTYPE_BF16;
}

}  // namespace

Bound glu_bound_of(const Call &call, Slot output, bool cuda) {
  const rmsnorm_dtype_t dtype = call[output].dtype;
  const bool fp64 = dtype == RMSNORM_DTYPE_F64;
  Bound bound;
  bound.ulps = fp64 ? 2 : 0.501;
  if (cuda)
    bound.ulps = fp64                                         ? 8
                 : is_half(dtype)                             ? 0.51
                 : call.activation == RMSNORM_ACTIVATION_SILU ? 2
                                                              : 4;
  if (output == kDgate)
    bound.factor = std::ldexp(1, fp64 ? -48 : !cuda ? -40 : is_half(dtype) ? -17 : -20);
  return bound;
}

Bound bound_of(const Call &call, Slot output, bool cuda) {
  if (call.is_glu()) return glu_bound_of(call, output, cuda);
  const rmsnorm_dtype_t dtype = call[output].dtype;
  const bool fp64 = dtype == RMSNORM_DTYPE_F64;
  const auto power = [&](int cpu, int gpu) { return std::ldexp(1, cuda && !fp64 ? gpu : cpu); };
  Bound bound;
  bound.ulps = fp64 ? 2 : !cuda ? 0.501 : is_half(dtype) ? 0.51 : 1;
  switch (output) {
    case kResidualOut: return {0.5, 0};  // rounded once
    case kRstd:
      if (!cuda) return bound;
      for (const Slot slot : {kX, kY, kResidualOut})
        if (call.has(slot) && !is_half(call[slot].dtype)) return {1, 0};
      if (call.has(kResidual) && !call.has(kResidualOut) && call[kResidual].dtype != call[kX].dtype)
        return {1, 0};  // h is fp32
      return {0.5, std::ldexp(1, -20)};
    case kY:
      if (call.has(kBias)) bound.factor = cuda ? std::ldexp(1, -22) : std::ldexp(1, -48);
      return bound;
    case kDx:
    case kDresidual: bound.factor = power(-40, -19); return bound;
    default: bound.factor = power(-40, -18); return bound;
  }
}

void Judge::compare(double got, const Exact &exact, double magnitude, int64_t row, int64_t group,
                    int64_t col) {
  const double error = rmsnorm::reference::error_in_ulps(got, exact, dtype_);
  double allowed = bound_.ulps;
  if (bound_.factor > 0)
    allowed += bound_.factor * magnitude / rmsnorm::reference::ulp(exact, dtype_);
  ulps = std::max(ulps, error);
  share = std::max(share, error / allowed);
  if (error <= allowed || !failure.empty()) return;
  failed_row_ = row;
  failure = print("%s(%lld, %lld, %lld) = %.9g, but exactly %.12g: %.4g ulp, allowed %.4g",
                  info(output).name, static_cast<long long>(row), static_cast<long long>(group),
                  static_cast<long long>(col), std::isnan(got) ? std::fabs(got) : got, exact.high,
                  error, allowed);
}

void Judge::merge(const Judge &other) {
  ulps = std::max(ulps, other.ulps);
  share = std::max(share, other.share);
  if (other.failure.empty() || (!failure.empty() && failed_row_ <= other.failed_row_)) return;
  failure = other.failure;
  failed_row_ = other.failed_row_;
}

std::vector<double> llama_roundings(const Exact &scaled, rmsnorm_dtype_t h_dtype, bool cuda) {
  const double nearest = rmsnorm::reference::round_to(scaled, h_dtype);
  std::vector<double> values = {nearest};
  if (!std::isfinite(nearest)) return values;
  const double ulp = rmsnorm::reference::ulp(scaled, h_dtype);
  if (h_dtype == RMSNORM_DTYPE_F64) {
    for (const double step : {-2.0, -1.0, 1.0, 2.0}) values.push_back(nearest + step * ulp);
    return values;
  }
  const double offset = (scaled.high - nearest) + scaled.low;
  const double tolerance = !cuda ? 0.001 : is_half(h_dtype) ? 0.01 : 0.5;
  if (offset != 0 && std::fabs(offset) / ulp >= 0.5 - tolerance)
    values.push_back(
        rmsnorm::reference::round_to({nearest + std::copysign(ulp, offset), 0}, h_dtype));
  return values;
}

}  // namespace bench
