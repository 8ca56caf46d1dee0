// Gated activations: each vector is read, computed and written by one thread. Reads 2 and writes 1
// element for each (forward), reads 3 and writes up to 2 (backward): for halves 6 and 10 bytes.
//
// FlatGluArgs: all is one row. The others: rows stand anywhere; where they are not aligned to the
// vector, it is cut out of aligned blocks and put together by neighbouring lanes (unaligned.cuh),
// for which rows are filled up to whole warps.
#pragma once

#include "cuda/kernels/glu_exact.cuh"
#include "cuda/kernels/unaligned.cuh"

namespace rmsnorm::cuda {
namespace {

// The last vector of a row, out of line: no code and no registers in the common path.
template <class T>
__device__ __noinline__ Vector<T> load_end(const char *data, int left, int size) {
  return load_elements<T>(data, left, size);
}
template <class T>
__device__ __noinline__ void store_end(char *data, Vector<T> in, int left, int size) {
  store_elements(data, in, 0, left, size);
}

template <class T, class Args>
__device__ inline Vector<T> load_at(const Args &a, const typename Args::Tensor &tensor,
                                    const GluPlace &place) {
  const int size = size_of_element<T>(tensor.dtype);
  const char *const data = a.row_of(tensor, place) + place.col * size;
  if (!a.aligned()) {
    if constexpr (std::is_same_v<T, AnyElement>) {
      return load_vector<T, false>(data, place.left, tensor.dtype);
    } else {
      Vector<T> span[1];
      load_span<T, 1>(data, place.left, span);
      return span[0];
    }
  }
  if (place.left >= kWidth<T>) return load_vector<T, true>(data, place.left, tensor.dtype);
  return load_end<T>(data, place.left, size);
}

template <class T, class Args>
__device__ inline void store_at(const Args &a, const typename Args::Tensor &tensor,
                                const GluPlace &place, const Vector<T> &in) {
  const int size = size_of_element<T>(tensor.dtype);
  char *const data = a.row_of(tensor, place) + place.col * size;
  if (!a.aligned()) {
    if constexpr (std::is_same_v<T, AnyElement>) {
      Writer<T, false>(32).store(data, in, place.left, true, true, tensor.dtype);
    } else {
      const Vector<T> span[1] = {in};
      store_span<T, 1>(data, place.left, span);
    }
  } else if (place.left >= kWidth<T>) {
    Writer<T, true>().store(data, in, place.left, true, true, tensor.dtype);
  } else {
    store_end<T>(data, in, place.left, size);
  }
}

template <class Body>
__device__ inline void with_activation(rmsnorm_activation_t activation, Body body) {
  if (__builtin_expect(activation == RMSNORM_ACTIVATION_SILU, 1))  // the common one
    body(std::integral_constant<int, RMSNORM_ACTIVATION_SILU>());
  else if (activation == RMSNORM_ACTIVATION_GELU_TANH)
    body(std::integral_constant<int, RMSNORM_ACTIVATION_GELU_TANH>());
  else body(std::integral_constant<int, RMSNORM_ACTIVATION_GELU_ERF>());
}

template <class T, int kActivation, class Args>
__device__ inline Vector<T> forward_of(const Args &a, const Vector<T> &gate, const Vector<T> &up) {
  constexpr int W = kWidth<T>;
  float g[W], u[W], y[W];
  gate.unpack(a.gate.dtype, g);
  up.unpack(a.up.dtype, u);
  bool rare = false;
#pragma unroll
  for (int i = 0; i < W; ++i) {
    const float product = g[i] * u[i];
    rare = rare || !(fabsf(product) <= kLargestProduct);
    if constexpr (kIsHalf<T>) {
      const Factors f = factors_of<T, kActivation>(g[i]);
      y[i] = times(product, f, f.share);
    } else {
      const TwoFactors f = two_factors_of<kActivation>(g[i]);
      y[i] = times_share(multiply(g[i], u[i]), f);
    }
  }
  if (rare) {
    float to[W], g_of[W], u_of[W];
#pragma unroll
    for (int i = 0; i < W; ++i) to[i] = y[i], g_of[i] = g[i], u_of[i] = u[i];
    redo_forward(kActivation, W, g_of, u_of, to);
#pragma unroll
    for (int i = 0; i < W; ++i) y[i] = to[i];
  }
  Vector<T> out;
  out.pack(a.y.dtype, y);
  return out;
}

// dy becomes dgate, up becomes dup.
template <class T, int kActivation, class Args>
__device__ inline void backward_of(const Args &a, Vector<T> &dy, const Vector<T> &gate,
                                   Vector<T> &up) {
  constexpr int W = kWidth<T>;
  float d[W], g[W], u[W], dgate[W], dup[W];
  dy.unpack(a.dy.dtype, d);
  gate.unpack(a.gate.dtype, g);
  up.unpack(a.up.dtype, u);
  bool rare = false;
#pragma unroll
  for (int i = 0; i < W; ++i) {
    const float of_gate = d[i] * u[i], of_up = d[i] * g[i];
    rare = rare || !(fabsf(of_gate) <= kLargestProduct) || !(fabsf(of_up) <= kLargestProduct);
    if constexpr (kIsHalf<T>) {
      const Factors f = factors_of<T, kActivation>(g[i]);
      dgate[i] = times(of_gate, f, f.slope);
      dup[i] = times(of_up, f, f.share);
    } else {
      const TwoFactors f = two_factors_of<kActivation>(g[i]);
      dgate[i] = times_slope(of_gate, f);
      dup[i] = times_share(multiply(d[i], g[i]), f);
    }
  }
  if (rare) {
    float to_gate[W], to_up[W], d_of[W], g_of[W], u_of[W];
#pragma unroll
    for (int i = 0; i < W; ++i) {
      to_gate[i] = dgate[i], to_up[i] = dup[i];
      d_of[i] = d[i], g_of[i] = g[i], u_of[i] = u[i];
    }
    redo_backward(kActivation, W, d_of, g_of, u_of, to_gate, to_up);
#pragma unroll
    for (int i = 0; i < W; ++i) dgate[i] = to_gate[i], dup[i] = to_up[i];
  }
  dy.pack(a.dgate.dtype, dgate);
  up.pack(a.dup.dtype, dup);
}

// Blocks of a multiprocessor, at least: bytes in flight count most; as many as need no spills.
template <class Args>
constexpr int kForwardBlocks = std::is_same_v<Args, FlatGluArgs> ? 6 : 5;
template <class T, class Args>
constexpr int kBackwardBlocks = kIsNarrow<T>                        ? 6
                                : std::is_same_v<Args, FlatGluArgs> ? 5
                                                                    : 4;

template <class T, class Args>
__global__ void __launch_bounds__(kGluThreads, kForwardBlocks<Args>)
    glu_forward(const __grid_constant__ Args a) {
  if (a.overlap) start_beside_neighbours();
  const GluPlace place = a.place(kWidth<T>);
  if (a.aligned() && place.left <= 0) return;
  const Vector<T> gate = load_at<T>(a, a.gate, place), up = load_at<T>(a, a.up, place);
  Vector<T> y;
  with_activation(a.activation,
                  [&](auto kActivation) { y = forward_of<T, kActivation.value>(a, gate, up); });
  store_at<T>(a, a.y, place, y);
}

template <class T, class Args>
__global__ void __launch_bounds__(kGluThreads, (kBackwardBlocks<T, Args>))
    glu_backward(const __grid_constant__ Args a) {
  if (a.overlap) start_beside_neighbours();
  const GluPlace place = a.place(kWidth<T>);
  if (a.aligned() && place.left <= 0) return;
  Vector<T> dy = load_at<T>(a, a.dy, place);
  const Vector<T> gate = load_at<T>(a, a.gate, place);
  Vector<T> up = load_at<T>(a, a.up, place);
  with_activation(a.activation,
                  [&](auto kActivation) { backward_of<T, kActivation.value>(a, dy, gate, up); });
  if (a.dgate.data != nullptr) store_at<T>(a, a.dgate, place, dy);
  if (a.dup.data != nullptr) store_at<T>(a, a.dup, place, up);
}

}  // namespace
}  // namespace rmsnorm::cuda
