// y = h * rstd * (weight + weight_offset) + bias for one vector: how the promised ulps are kept.
//
// 16-bit rows: plain fp32, whose error is far below 0.01 ulp of a half. Rows with an fp32 tensor:
// double-float (two floats) products, rstd held as two floats and scaled by 2^48 so that no
// intermediate is subnormal. Both are right while rstd and weight are in a wide middle range;
// outside it (squares that left fp32, h * rstd that would be subnormal under a large weight, NaN,
// Inf) the same formula in fp64 takes over, for the vector (finish_rare in forward_rows.cuh). Which
// one runs depends on the row and weight alone.
#pragma once

#include <cstddef>

#include "cuda/kernels/elements.cuh"
#include "cuda/kernels/rows.cuh"

namespace rmsnorm::cuda {
namespace {

// The tensors of ForwardArgs that have rows.
enum class RowTensor { kX, kY, kRstd, kResidual, kResidualOut };
constexpr int kRowTensors = 5;

// What plain kernels need comes first, in two lines of 64 bytes (0x210 to 0x280) but for
// residual_out: each line of arguments is waited for when it is first touched, which a few rows
// show (1x4096 1.52 us; with two lines more 1.57). So a tensor's Matrix is kept in two parts.
struct ForwardArgs {
  char *weight_data;
  int64_t first_task, task_count, cols;
  float eps_float, inverse_cols;
  bool overlap;
  uint16_t cluster;  // blocks that share a row
  InputPolicy policy;
  struct {
    char *data;
    int64_t stride;
  } rows[kRowTensors];
  struct Rest {
    int64_t group_stride;
    rmsnorm_dtype_t dtype;
  } rest[kRowTensors], weight_rest;
  rmsnorm_dtype_t h_dtype;
  bool llama;
  int vectors;  // forward_long: of a thread
  Tasks tasks;
  Matrix bias;
  double eps, weight_offset;
  float offset_high, offset_low;  // weight_offset as two floats

  void set(RowTensor tensor, const Matrix &matrix) {
    rows[int(tensor)] = {matrix.data, matrix.row_stride};
    rest[int(tensor)] = {matrix.group_stride, matrix.dtype};
  }
  template <RowTensor kTensor>
  __device__ Matrix matrix() const {
    constexpr int i = int(kTensor);
    return {rows[i].data, rows[i].stride, rest[i].group_stride, rest[i].dtype};
  }
  __device__ Matrix x() const { return matrix<RowTensor::kX>(); }
  __device__ Matrix y() const { return matrix<RowTensor::kY>(); }  // absent: rstd alone is wanted
  __device__ Matrix rstd() const { return matrix<RowTensor::kRstd>(); }
  __device__ Matrix residual() const { return matrix<RowTensor::kResidual>(); }
  __device__ Matrix residual_out() const { return matrix<RowTensor::kResidualOut>(); }
  __device__ Matrix weight() const {
    return {weight_data, 0, weight_rest.group_stride, weight_rest.dtype};
  }
};
static_assert(offsetof(ForwardArgs, rows) == 0x30, "");

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
template <class T>
constexpr float kLargestWeight = kDoubleFloat<T> ? 0x1p64f : 0x1p9f;

template <class T, int kCount>
__device__ inline bool weights_are_small(const float (&weight)[kCount], float offset) {
  if (std::is_same_v<T, __half>) return true;
  float largest = 0;
#pragma unroll
  for (int i = 0; i < kCount; ++i) largest = fmaxf(largest, fabsf(weight[i]));
  return largest + fabsf(offset) <= kLargestWeight<T>;
}

// The same of packed weights of the row's own dtype.
template <class T, int V>
__device__ inline bool weights_are_small(const Vector<T> (&weight)[V]) {
  if constexpr (std::is_same_v<T, __half>) return true;
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    uint32_t largest = 0;  // the magnitude of each half; signs are of no meaning
#pragma unroll
    for (int v = 0; v < V; ++v)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#if __CUDA_ARCH__ >= 860
        asm("max.xorsign.abs.bf16x2 %0, %0, %1;" : "+r"(largest) : "r"(weight[v].word[i]));
#else
        const uint32_t word = weight[v].word[i];
        largest =
            max(largest & 0xffff0000u, word & 0x7fff0000u) | max(largest & 0xffffu, word & 0x7fffu);
#endif
      }
    const float low = __uint_as_float(largest << 16), high = __uint_as_float(largest & 0xffff0000u);
    return fabsf(low) <= kLargestWeight<T> && fabsf(high) <= kLargestWeight<T>;
  }
  float largest = 0;
#pragma unroll
  for (int v = 0; v < V; ++v)
#pragma unroll
    for (int i = 0; i < 4; ++i) largest = fmaxf(largest, fabsf(__uint_as_float(weight[v].word[i])));
  return largest <= kLargestWeight<T>;
}

// h, read again from memory.
__device__ inline double exact_h(const ForwardArgs &a, const Part &part, int64_t c) {
  if (a.residual_out().data != nullptr)  // which may lie over x or residual
    return load_double(a.residual_out().at(part.r, part.g), c, a.h_dtype);
  const double x = load_double(a.x().at(part.r, part.g), c, a.x().dtype);
  if (a.residual().data == nullptr) return x;
  return add_rounded(x, load_double(a.residual().at(part.r, part.g), c, a.residual().dtype),
                     a.h_dtype);
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
  for (int i = 0; i < kCount; ++i)
    y[i] *= a.offset_high == 0 ? weight[i] : weight[i] + a.offset_high;  // a weight of -0 stays
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

// y of one vector with everything the params may ask for. RowScale holds what T needs.
template <class T, int kCount>
__device__ inline void normalise(const ForwardArgs &a, const RowScale &scale,
                                 const float (&h)[kCount], const float (&weight)[kCount],
                                 const float (&bias)[kCount], float (&y)[kCount]) {
  if constexpr (kDoubleFloat<T>) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) y[i] = normalise_pair(a, scale, h[i], weight[i], bias[i]);
  } else {
    normalise_half(a, scale.high, h, weight, bias, y);
  }
}

}  // namespace
}  // namespace rmsnorm::cuda
