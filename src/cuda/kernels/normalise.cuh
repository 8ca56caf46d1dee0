// y = h * rstd * (weight + weight_offset) + bias for one vector: how the promised ulps are kept.
//
// 16-bit rows: plain fp32, whose error is far below 0.01 ulp of a half. Rows with an fp32 tensor: double-float
// (two floats) products, rstd held as two floats and scaled by 2^48 so that no intermediate is
// subnormal. Both are right while rstd and weight are in a wide middle range; outside it (squares that
// left fp32, h * rstd that would be subnormal under a large weight, NaN, Inf) the same formula in
// fp64 takes over, for the vector (store_exact). Which one runs depends on the row and weight alone.
#pragma once

#include "cuda/kernels/elements.cuh"
#include "cuda/kernels/rows.cuh"

namespace rmsnorm::cuda {
namespace {

struct ForwardArgs {
  Tasks tasks;
  int64_t first_task;
  Matrix x, residual, weight, bias, y, residual_out, rstd;
  int64_t cols;
  double eps, weight_offset;
  float eps_float, inverse_cols;
  float offset_high, offset_low;  // weight_offset as two floats
  rmsnorm_dtype_t h_dtype;
  bool llama, overlap;
  bool weight_packed;  // weight's elements are as large as x's: read before x arrives, kept packed
  bool plain;          // weight_packed of the row's own dtype, no bias, no offset, rounded once
};

struct RowScale {
  double exact;     // rstd
  float high, low;  // rstd, or rstd * 2^48 as two floats (kDoubleFloat)
  bool fast;        // in the middle range
};

template <class T>
constexpr bool kDoubleFloat = !kIsHalf<T>;

constexpr float kScale = 0x1p48f;

__device__ inline RowScale scale_of_half_row(float mean_plus_eps) {
  // 2^-60 < mean < 2^100: no square that matters was lost or overflowed.
  return {0, rsqrtf(mean_plus_eps), 0, mean_plus_eps >= 0x1p-60f && mean_plus_eps <= 0x1p100f};
}

__device__ inline RowScale scale_of_exact_row(double mean_plus_eps) {
  const double exact = 1.0 / sqrt(mean_plus_eps);
  const double scaled = exact * kScale;
  const float high = float(scaled);
  return {exact, high, float(scaled - high), exact >= 0x1p-20 && exact <= 0x1p40};
}

// Whether the fast formula holds for this vector's weights: a half row's h * rstd may be subnormal (an error of
// 2^-150 that the weight multiplies; never in an fp16 row), a double-float row's product must not overflow.
template <class T, int kCount>
__device__ inline bool is_fast(const ForwardArgs &a, const RowScale &scale, const float (&weight)[kCount]) {
  if (std::is_same_v<T, __half>) return scale.fast;
  float largest = 0;
#pragma unroll
  for (int i = 0; i < kCount; ++i) largest = fmaxf(largest, fabsf(weight[i]));
  return scale.fast && largest + fabsf(a.offset_high) <= (kDoubleFloat<T> ? 0x1p64f : 0x1p9f);
}

// One thread's vectors first .. first + count - 1 of a row, in fp64, read again from memory. A call of its own: it
// is rare, and inlined it would cost the fast path registers.
__device__ __noinline__ void store_exact(const ForwardArgs &a, double rstd, int64_t r, int64_t g,
                                         int first_column, int valid) {
  const char *weight = a.weight.data + g * a.weight.group_stride;
  const char *bias = a.bias.data + g * a.bias.group_stride;
  for (int64_t c = first_column; c < first_column + valid; ++c) {
    double h;
    if (a.residual_out.data != nullptr) {  // which may lie over x or residual
      h = load_double(a.residual_out.at(r, g), c, a.h_dtype);
    } else {
      h = load_double(a.x.at(r, g), c, a.x.dtype);
      if (a.residual.data != nullptr)
        h = round_double_to(h + load_double(a.residual.at(r, g), c, a.residual.dtype), a.h_dtype);
    }
    double t = h * rstd;
    if (a.llama) t = round_double_to(t, a.h_dtype);
    t *= (a.weight.data != nullptr ? load_double(weight, c, a.weight.dtype) : 1) + a.weight_offset;
    if (a.bias.data != nullptr) t += load_double(bias, c, a.bias.dtype);
    store_double(a.y.at(r, g), c, a.y.dtype, t);
  }
}

template <int kCount>
__device__ inline void normalise_half(const ForwardArgs &a, float rstd, const float (&h)[kCount],
                                      const float (&weight)[kCount], const float (&bias)[kCount],
                                      float (&y)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) y[i] = h[i] * rstd;
  if (a.llama) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) y[i] = round_to(y[i], a.h_dtype);
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) y[i] *= weight[i] + a.offset_high;
  if (a.bias.data != nullptr) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) y[i] += bias[i];
  }
}

// One element in pairs of floats or doubles: rstd * scale = high + low, weight_offset = offset + offset_low, `scale` a
// power of two. Error-free products by fma and sums by Knuth's two-sum; see Dekker, "A floating-point
// technique for extending the available precision", 1971.
template <class Real>
struct PairScale {
  Real high, low, scale, offset, offset_low;
};

__device__ inline float round_real(float value, rmsnorm_dtype_t dtype) { return round_to(value, dtype); }
__device__ inline double round_real(double value, rmsnorm_dtype_t dtype) {
  return round_double_to(value, dtype);
}

template <class Real>
struct PairProduct {
  Real high, low;
};

// h * rstd * scale * weight
template <class Real>
__device__ inline PairProduct<Real> multiply_pair(const PairScale<Real> &s, Real h, Real weight) {
  const Real t = h * s.high;
  const Real t_low = fma(h, s.low, fma(h, s.high, -t));
  const Real q = t * weight;
  return {q, fma(t_low, weight, fma(t, weight, -q))};
}

template <class Real>
__device__ inline Real normalise_pair(const ForwardArgs &a, const PairScale<Real> &s, Real h,
                                      Real weight, Real bias) {
  const Real unscale = Real(1) / s.scale;
  Real t = h * s.high;  // t + t_low = h * rstd * scale
  Real t_low = fma(h, s.high, -t) + h * s.low;
  if (a.llama) {
    t = round_real((t + t_low) * unscale, a.h_dtype) * s.scale;
    t_low = 0;
  }
  Real w = weight, w_low = 0;  // w + w_low = weight + weight_offset
  if (s.offset != 0) {
    w = weight + s.offset;
    const Real part = w - weight;
    w_low = (weight - (w - part)) + (s.offset - part) + s.offset_low;
  }
  const Real q = t * w;
  const Real q_low = fma(t, w, -q) + (t_low * w + t * w_low);
  const Real sum = q + q_low;
  const Real product = sum * unscale;
  if (a.bias.data == nullptr) return isfinite(product) ? product : q * unscale;
  const Real rest = (q_low - (sum - q)) * unscale;
  const Real total = product + bias;
  const Real part = total - product;
  const Real lost = (product - (total - part)) + (bias - part) + rest;
  return isfinite(total) ? total + lost : q * unscale + bias;
}

}  // namespace
}  // namespace rmsnorm::cuda
