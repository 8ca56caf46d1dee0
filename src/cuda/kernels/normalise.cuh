// y = h * rstd * (weight + weight_offset) + bias for one vector: how the promised ulps are kept.
//
// 16-bit rows: plain fp32, whose error is far below 0.01 ulp of a half. Rows with an fp32 tensor:
// double-float (two floats) products, rstd held as two floats and scaled by 2^48 so that no
// intermediate is subnormal. Both are right while rstd and weight are in a wide middle range;
// outside it (squares that left fp32, h * rstd that would be subnormal under a large weight, NaN,
// Inf) the same formula in fp64 takes over, for the vector (store_exact). Which one runs depends on
// the row and weight alone.
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
  bool plain;          // all packed, the weight's dtype too; no bias, no offset, rounded once
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

// The fast formula's limit on |weight|: a half row's h * rstd may be subnormal (an error of 2^-150
// that the weight multiplies; never in an fp16 row), a double-float row's product must not
// overflow.
template <class T, int kCount>
__device__ inline bool weights_are_small(const float (&weight)[kCount], float offset) {
  if (std::is_same_v<T, __half>) return true;
  float largest = 0;
#pragma unroll
  for (int i = 0; i < kCount; ++i) largest = fmaxf(largest, fabsf(weight[i]));
  return largest + fabsf(offset) <= (kDoubleFloat<T> ? 0x1p64f : 0x1p9f);
}

// The same of packed weights of the row's own dtype. A NaN is not large: it gives NaN either way.
template <class T, int V>
__device__ inline bool weights_are_small(const Vector<T> (&weight)[V]) {
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    __nv_bfloat162 largest = __float2bfloat162_rn(0);
#pragma unroll
    for (int v = 0; v < V; ++v)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        largest =
            __hmax2(largest, __habs2(reinterpret_cast<const __nv_bfloat162 &>(weight[v].word[i])));
    return __hble2(largest, __float2bfloat162_rn(0x1p9f));
  } else if constexpr (std::is_same_v<T, float>) {
    float largest = 0;
#pragma unroll
    for (int v = 0; v < V; ++v)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        largest = fmaxf(largest, fabsf(__uint_as_float(weight[v].word[i])));
    return largest <= 0x1p64f;
  } else {
    return std::is_same_v<T, __half>;
  }
}

// One thread's vectors first .. first + count - 1 of a row, in fp64, read again from memory. A call
// of its own: it is rare, and inlined it would cost the fast path registers.
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
        h = add_rounded(h, load_double(a.residual.at(r, g), c, a.residual.dtype), a.h_dtype);
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

// ---- Double-float: values as unevaluated sums of two floats
// --------------------------------------
//
// Error-free products by fma and sums by Knuth's two-sum; see Dekker, "A floating-point technique
// for extending the available precision", 1971. `scale` holds rstd * kScale.

// h * rstd * weight, where the weight is weight + weight_low.
__device__ inline float2 multiply_pair(const RowScale &scale, float h, float weight,
                                       float weight_low) {
  const float t = h * scale.high;
  const float t_low = fmaf(h, scale.low, fmaf(h, scale.high, -t));
  const float q = t * weight;
  return {q, fmaf(t_low, weight, fmaf(t, weight_low, fmaf(t, weight, -q)))};
}

__device__ inline float round_pair(float2 pair) {
  return (pair.x == 0 ? pair.x : pair.x + pair.y) * (1 / kScale);  // keeps the sign of a zero
}

__device__ inline float normalise_pair(const ForwardArgs &a, const RowScale &scale, float h,
                                       float weight, float bias) {
  float w = weight, w_low = 0;
  if (a.offset_high != 0) {
    w = weight + a.offset_high;
    const float part = w - weight;
    w_low = (weight - (w - part)) + (a.offset_high - part) + a.offset_low;
  }
  float2 product;
  if (a.llama) {
    const float t = round_to(round_pair(multiply_pair(scale, h, 1, 0)), a.h_dtype) * kScale;
    product.x = t * w;
    product.y = fmaf(t, w_low, fmaf(t, w, -product.x));
  } else {
    product = multiply_pair(scale, h, w, w_low);
  }
  if (a.bias.data == nullptr) return round_pair(product);
  const float sum = product.x + product.y;
  const float y = sum * (1 / kScale), rest = (product.y - (sum - product.x)) * (1 / kScale);
  const float total = y + bias;
  const float part = total - y;
  const float lost = (y - (total - part)) + (bias - part) + rest;
  return isfinite(total) ? total + lost : total;
}

}  // namespace
}  // namespace rmsnorm::cuda
