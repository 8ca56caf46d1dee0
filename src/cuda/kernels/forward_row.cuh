// One row as one of its threads sees it in the forward kernels: how its vectors are read, summed,
// normalised and written. Which thread has which columns is forward_short's, forward_rows's and
// forward_long's own affair.
#pragma once

#include "cuda/kernels/normalise.cuh"
#include "cuda/kernels/unaligned.cuh"

namespace rmsnorm::cuda {
namespace {

// What a kernel's code is there for. kPlain is what nearly every call asks: no bias, no offset,
// rounded once, a shared weight of the row's own dtype, rows that one stride walks. The code for
// all else is not there, which leaves registers for one more block a multiprocessor and a third of
// the instructions; kPlainAdd has the residual besides.
enum class Asked { kPlain, kPlainAdd, kAll };

// kShort: rows of 2^n <= 32 lanes, several of which share a warp. Vector v is `lanes` vectors
// behind the one before.
template <class T, bool kWhole, bool kShort>
struct ForwardRow {
  static constexpr int W = kWidth<T>;
  // Whole warps put unaligned vectors together among themselves.
  static constexpr bool kSpans = !kWhole && !kShort && !std::is_same_v<T, AnyElement>;
  int64_t r, g;
  int first, left;  // the thread's first column, and the columns from there on; left <= 0: none
  int lanes;        // of a warp
  InputPolicy policy;

  __device__ int step() const { return lanes * W; }
  __device__ char *at(const Matrix &matrix) const {
    return matrix.at(r, g) + first * int64_t(size_of_element<T>(matrix.dtype));
  }
  // The same row from vector v on.
  __device__ ForwardRow from(int v) const {
    return {r, g, first + v * step(), left - v * step(), lanes, policy};
  }

  template <int V>
  __device__ void load(const Matrix &matrix, Vector<T> (&out)[V]) const {
    const char *data = at(matrix);
    if constexpr (kSpans) {
      load_span<T, V>(data, left, out);
    } else if constexpr (kWhole && !std::is_same_v<T, AnyElement>) {
#pragma unroll
      for (int v = 0; v < V; ++v)
        out[v].set(read_block(data + v * step() * int(sizeof(T)), left > v * step(), policy));
    } else {
#pragma unroll
      for (int v = 0; v < V; ++v)
        out[v] = load_vector<T, kWhole>(data + v * step() * size_of_element<T>(matrix.dtype),
                                        left - v * step(), matrix.dtype);
    }
  }

  // `dtype`: the tensor's, or h's where it is known to have that.
  template <int V>
  __device__ void store(const Matrix &matrix, rmsnorm_dtype_t dtype,
                        const Vector<T> (&in)[V]) const {
    char *data = at(matrix);
    if constexpr (kSpans) {
      store_span<T, V>(data, left, in);
    } else {
      Writer<T, kWhole> writer(lanes);
#pragma unroll
      for (int v = 0; v < V; ++v)
        writer.store(data + v * step() * size_of_element<T>(dtype), in[v], left - v * step(),
                     v == 0, v == V - 1, dtype);
    }
  }

  // h, packed in h's dtype; residual_out gets it at once.
  template <Asked kAsked, int V>
  __device__ void load_h(const ForwardArgs &a, Vector<T> (&h)[V]) const {
    load<V>(a.x(), h);
    if (kAsked == Asked::kPlain || a.residual().data == nullptr) return;
    Vector<T> residual[V];
    load<V>(a.residual(), residual);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      float sum[W], added[W];
      h[v].unpack(a.x().dtype, sum);
      residual[v].unpack(a.residual().dtype, added);
      // The fp32 sum of two halves of one dtype rounds to that dtype as the exact sum does; of
      // others it may not.
#pragma unroll
      for (int i = 0; i < W; ++i)
        sum[i] = std::is_same_v<T, AnyElement> && a.h_dtype != RMSNORM_DTYPE_F32
                     ? add_to_odd(sum[i], added[i])
                     : sum[i] + added[i];
      h[v].pack(a.h_dtype, sum);
    }
    if (a.residual_out().data != nullptr) store<V>(a.residual_out(), a.h_dtype, h);
  }

  // Weight and bias of vector v as floats.
  __device__ void load_parameters(const ForwardArgs &a, int v, float (&w)[W],
                                  float (&bias)[W]) const {
    const auto load_row = [&](const Matrix &matrix, float(&out)[W]) {
      const int64_t column = first + v * step();
      load_floats<W, kWhole>(matrix.data + g * matrix.group_stride + column * size_of(matrix.dtype),
                             matrix.dtype, left - v * step(), out);
    };
#pragma unroll
    for (int i = 0; i < W; ++i) w[i] = 1, bias[i] = 0;
    if (kWhole && left - v * step() <= 0) return;
    if (a.weight().data != nullptr) load_row(a.weight(), w);
    if (a.bias.data != nullptr) load_row(a.bias, bias);
  }

  // The weight of the row's own dtype, packed (kPlain, kPlainAdd).
  template <int V>
  __device__ void load_weight(const ForwardArgs &a, Vector<T> (&out)[V]) const {
    ForwardRow shared = *this;
    shared.r = shared.g = 0;
    shared.left = int(a.cols) - first;
    shared.template load<V>(a.weight(), out);
  }
};

// A row's sum of squares is fp32 for halves, fp64 where an fp32 tensor is there (squares of floats
// are exact in fp64 and cannot overflow).
template <class T>
using SquareSum = std::conditional_t<kDoubleFloat<T>, double, float>;

template <class T>
__device__ inline SquareSum<T> sum_of_squares(const Vector<T> &vector, rmsnorm_dtype_t dtype) {
  float h[kWidth<T>];
  vector.unpack(dtype, h);
  SquareSum<T> sum = 0;
#pragma unroll
  for (int i = 0; i < kWidth<T>; ++i) sum = fma(SquareSum<T>(h[i]), SquareSum<T>(h[i]), sum);
  return sum;
}

template <class T>
__device__ inline RowScale scale_of_row(const ForwardArgs &a, SquareSum<T> sum) {
  if constexpr (kDoubleFloat<T>) return scale_of_exact_row(sum / double(a.cols) + a.eps);
  else return scale_of_half_row(fmaf(sum, a.inverse_cols, a.eps_float));
}

template <class T>
__device__ inline void store_rstd(const ForwardArgs &a, const RowScale &scale, int64_t r,
                                  int64_t g) {
  *reinterpret_cast<float *>(a.rstd().at(r, g)) = kDoubleFloat<T> ? float(scale.exact) : scale.high;
}

// y of a vector. `packed` is its weight unless kAsked is kAll, `w` and `bias` are if it is.
template <class T, Asked kAsked, int kCount>
__device__ inline Vector<T> normalised(const ForwardArgs &a, const RowScale &scale,
                                       const Vector<T> &h, const Vector<T> &packed,
                                       const float (&w)[kCount], const float (&bias)[kCount]) {
  float own[kCount], y[kCount];
  h.unpack(a.h_dtype, own);
  if constexpr (kAsked != Asked::kAll) {
    float weight[kCount];
    packed.unpack(a.h_dtype, weight);
#pragma unroll
    for (int i = 0; i < kCount; ++i)
      y[i] = kDoubleFloat<T> ? round_pair(multiply_pair(scale, own[i], weight[i], 0))
                             : own[i] * scale.high * weight[i];
  } else {
    normalise<T>(a, scale, own, w, bias, y);
  }
  Vector<T> out;
  out.pack(a.y().dtype, y);
  return out;
}

// The vectors of a thread, normalised in place. False: a weight is outside the fast formula's range
// and they are not all right (finish_rare).
template <class T, Asked kAsked, int V, class Row>
__device__ inline bool normalise_row(const ForwardArgs &a, const Row &row, const RowScale &scale,
                                     const Vector<T> (&weight)[V], Vector<T> (&h)[V]) {
  bool fast = true;
#pragma unroll
  for (int v = 0; v < V; ++v) {
    float w[kWidth<T>], bias[kWidth<T>];
    if constexpr (kAsked == Asked::kAll) {
      row.load_parameters(a, v, w, bias);
      fast = fast && weights_are_small<T>(w, a.offset_high);
    }
    h[v] = normalised<T, kAsked>(a, scale, h[v], weight[v], w, bias);
  }
  return fast;
}

}  // namespace
}  // namespace rmsnorm::cuda
