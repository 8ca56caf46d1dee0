// Forward for rows that fit one block: forward_rows keeps the row in registers, forward_long in
// shared memory. Reads each byte of x (and residual) once, writes each of y (and residual_out)
// once: for halves 4 bytes an element, 8 with the fused add.
//
// Tile: blockDim.x threads share a row, blockDim.y rows a block. Thread t holds vectors t, t +
// threads, ... of the row, by column and never by address, so that a row's bits do not depend on
// its alignment. Not persistent: the hardware's scheduler hands rows out in address order, which
// DRAM likes best.
#pragma once

#include "cuda/kernels/normalise.cuh"

namespace rmsnorm::cuda {
namespace {

// Rows of a block that are longer than a warp: each has a barrier and scratch of its own.
constexpr int kMaxLongRows = 8;
constexpr int kForwardThreads = 256;
constexpr int kForwardLongThreads = 512;
constexpr int kForwardLongVectors = 4;  // loaded together

// One row as one of its threads sees it.
template <class T, bool kWhole>
struct ForwardRow {
  static constexpr int W = kWidth<T>;
  const ForwardArgs &a;
  int lane, threads, cols;  // cols 0: no row
  int64_t r, g;

  __device__ int column(int v) const { return (v * threads + lane) * W; }

  // Vectors first .. first + V - 1 of h, packed in h's dtype; residual_out gets them at once.
  template <int V>
  __device__ void load(int first, Vector<T> (&row)[V]) const {
    load_matrix<V>(a.x, first, row);
    if (a.residual.data == nullptr) return;
    Vector<T> residual[V];
    load_matrix<V>(a.residual, first, residual);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      float h[W], added[W];
      row[v].unpack(a.x.dtype, h);
      residual[v].unpack(a.residual.dtype, added);
      // The fp32 sum of two halves of one dtype rounds to that dtype as the exact sum does; of
      // others it may not.
#pragma unroll
      for (int i = 0; i < W; ++i)
        h[i] = std::is_same_v<T, AnyElement> && a.h_dtype != RMSNORM_DTYPE_F32
                   ? add_to_odd(h[i], added[i])
                   : h[i] + added[i];
      row[v].pack(a.h_dtype, h);
    }
    if (a.residual_out.data == nullptr) return;
    char *out = a.residual_out.at(r, g);
    const bool aligned = is_aligned<T>(out, a.h_dtype);
#pragma unroll
    for (int v = 0; v < V; ++v)
      store_vector<T, kWhole>(out + column(first + v) * int64_t(size_of_element<T>(a.h_dtype)),
                              row[v], cols - column(first + v), aligned, a.h_dtype);
  }

  template <int V>
  __device__ void load_matrix(const Matrix &matrix, int first, Vector<T> (&out)[V]) const {
    const char *row = matrix.at(r, g);
    const bool aligned = is_aligned<T>(row, matrix.dtype);
#pragma unroll
    for (int v = 0; v < V; ++v)
      out[v] = load_vector<T, kWhole>(row + column(first + v) *
                                                int64_t(size_of_element<T>(matrix.dtype)),
                                      cols - column(first + v), aligned, matrix.dtype);
  }

  __device__ const char *weight() const { return a.weight.data + g * a.weight.group_stride; }

  // Writes the V vectors of y where a.plain, and rstd and weight allow the fast formula.
  template <int V>
  __device__ void store_plain(const Vector<T> (&row)[V], const Vector<T> (&weight)[V],
                              const RowScale &scale) const {
    char *y_row = a.y.at(r, g);
    const bool aligned = is_aligned<T>(y_row, a.y.dtype);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      float h[W], w[W], y[W];
      row[v].unpack(a.h_dtype, h);
      weight[v].unpack(a.h_dtype, w);
#pragma unroll
      for (int i = 0; i < W; ++i)
        y[i] = kDoubleFloat<T> ? round_pair(multiply_pair(scale, h[i], w[i], 0))
                               : h[i] * scale.high * w[i];
      Vector<T> out;
      out.pack(a.y.dtype, y);
      store_vector<T, kWhole>(y_row + column(v) * int64_t(size_of_element<T>(a.y.dtype)), out,
                              cols - column(v), aligned, a.y.dtype);
    }
  }

  // Writes vector v of y. `packed` is its weight if a.weight_packed and the kernel has `read` it
  // already.
  __device__ void store(int v, Vector<T> row, bool read, Vector<T> packed,
                        const RowScale &scale) const {
    const int valid = cols - column(v);
    if (valid <= 0) return;
    float h[W], w[W], bias[W], y[W];
    row.unpack(a.h_dtype, h);
    load_vectors(v, read, packed, w, bias);
    if (scale.fast && weights_are_small<T>(w, a.offset_high)) {
      normalise(scale, h, w, bias, y);
      Vector<T> out;
      out.pack(a.y.dtype, y);
      char *y_row = a.y.at(r, g);
      store_vector<T, kWhole>(y_row + column(v) * int64_t(size_of_element<T>(a.y.dtype)), out,
                              valid, is_aligned<T>(y_row, a.y.dtype), a.y.dtype);
    } else {
      store_rare(v, scale);
    }
  }

  // Writes vector v of y in fp64.
  __device__ void store_rare(int v, const RowScale &scale) const {
    const int valid = cols - column(v);
    store_exact(a, kDoubleFloat<T> || !scale.fast ? scale.exact : double(scale.high), r, g,
                column(v), valid < W ? valid : W);
  }

  // Weight and bias of vector v as floats.
  __device__ void load_vectors(int v, bool read, const Vector<T> &packed, float (&w)[W],
                               float (&bias)[W]) const {
    const int valid = cols - column(v);
    if (read) {
      packed.unpack_as(a.weight.dtype, w);
    } else if (a.weight.data != nullptr) {
      load_floats<W, kWhole>(weight() + column(v) * int64_t(size_of(a.weight.dtype)),
                             a.weight.dtype, valid, w);
    } else {
#pragma unroll
      for (int i = 0; i < W; ++i) w[i] = 1;
    }
    if (a.bias.data != nullptr)
      load_floats<W, kWhole>(a.bias.data + g * a.bias.group_stride +
                                 column(v) * int64_t(size_of(a.bias.dtype)),
                             a.bias.dtype, valid, bias);
  }

  // y with everything the params may ask for.
  __device__ void normalise(const RowScale &scale, const float (&h)[W], const float (&w)[W],
                            const float (&bias)[W], float (&y)[W]) const {
    if constexpr (kDoubleFloat<T>) {
#pragma unroll
      for (int i = 0; i < W; ++i) y[i] = normalise_pair(a, scale, h[i], w[i], bias[i]);
    } else {
      normalise_half(a, scale.high, h, w, bias, y);
    }
  }
};

// A row's sum of squares is fp32 for halves, fp64 where an fp32 tensor is there (squares of floats
// are exact in fp64 and cannot overflow).
template <class T>
using SquareSum = std::conditional_t<kDoubleFloat<T>, double, float>;

template <class Sum, class T>
__device__ inline Sum add_squares(Sum total, const Vector<T> &row, rmsnorm_dtype_t dtype) {
  float h[kWidth<T>];
  row.unpack(dtype, h);
  Sum sum = 0;
#pragma unroll
  for (int i = 0; i < kWidth<T>; ++i) sum = fma(Sum(h[i]), Sum(h[i]), sum);
  return total + sum;
}

// rstd from this thread's sum of squares. `redo` gives that sum in fp64, for a half row whose
// squares left fp32's middle range. scratch: two sums' worth for each long row.
template <class T, class Redo>
__device__ inline RowScale row_scale(const ForwardArgs &a, SquareSum<T> squares, int place,
                                     int threads, double (*scratch)[kMaxLongRows][32], Redo redo) {
  const int own = threads > 32 ? place : 0;
  if constexpr (kDoubleFloat<T>) {
    const double sum = row_sum(squares, place, threads, scratch[0][own]);
    return scale_of_exact_row(sum / double(a.cols) + a.eps);
  } else {
    const float sum = row_sum(squares, place, threads, reinterpret_cast<float *>(scratch[0][own]));
    RowScale scale = scale_of_half_row(fmaf(sum, a.inverse_cols, a.eps_float));
    if (any_row_of_warp(!scale.fast, threads)) {
      const double exact = row_sum(redo(), place, threads, scratch[1][own]);
      if (!scale.fast) scale.exact = 1.0 / sqrt(exact / double(a.cols) + a.eps);
    }
    return scale;
  }
}

template <class T>
__device__ inline void store_rstd(const ForwardArgs &a, const RowScale &scale, int64_t r,
                                  int64_t g) {
  *reinterpret_cast<float *>(a.rstd.at(r, g)) =
      kDoubleFloat<T> || !scale.fast ? float(scale.exact) : scale.high;
}

// V vectors a thread, in registers. kPlain: a.plain, as nearly every call is: the code for all else
// is not there, which leaves registers for one more block a multiprocessor and a third of the
// instructions.
template <class T, int V, bool kWhole, bool kPlain>
__global__ void __launch_bounds__(kForwardThreads)
    forward_rows(const __grid_constant__ ForwardArgs a) {
  __shared__ double scratch[2][kMaxLongRows][32];
  const int place = threadIdx.y;
  const int64_t task = a.first_task + int64_t(blockIdx.x) * blockDim.y + place;
  const bool active = task < a.tasks.count;
  if (!active && blockDim.x >= 32) return;  // a short row's threads stay for their warp's shuffles
  ForwardRow<T, kWhole> io = {a, int(threadIdx.x), int(blockDim.x), active ? int(a.cols) : 0, 0, 0};
  if (active) a.tasks.locate(task, &io.r, &io.g);

  Vector<T> weight[V];
  if (kPlain || a.weight_packed) {
    const bool aligned = reinterpret_cast<uintptr_t>(io.weight()) % 16 == 0;
#pragma unroll
    for (int v = 0; v < V; ++v)
      weight[v] = load_vector<T, kWhole>(io.weight() + io.column(v) * int64_t(sizeof(T)),
                                         io.cols - io.column(v), aligned, a.weight.dtype);
  }
  if (a.overlap) start_beside_neighbours();

  Vector<T> row[V];
  io.template load<V>(0, row);
  const auto squares = [&](auto sum) {
#pragma unroll
    for (int v = 0; v < V; ++v) sum = add_squares(sum, row[v], a.h_dtype);
    return sum;
  };
  const RowScale scale = row_scale<T>(a, squares(SquareSum<T>(0)), place, io.threads, scratch,
                                      [&] { return squares(0.0); });
  if (a.rstd.data != nullptr && io.lane == 0 && active) store_rstd<T>(a, scale, io.r, io.g);
  if constexpr (!kPlain) {
#pragma unroll
    for (int v = 0; v < V; ++v) io.store(v, row[v], a.weight_packed, weight[v], scale);
  } else if (scale.fast && weights_are_small<T, V>(weight)) {
    io.template store_plain<V>(row, weight, scale);
  } else {
#pragma unroll 1
    for (int v = 0; v < V; ++v) io.store_rare(v, scale);
  }
}

// One row a block, any number of vectors a thread, in shared memory: each thread reads only what it
// wrote.
template <class T, bool kWhole>
__global__ void __launch_bounds__(kForwardLongThreads, 2)
    forward_long(const __grid_constant__ ForwardArgs a) {
  extern __shared__ uint4 memory[];
  __shared__ double scratch[2][kMaxLongRows][32];
  Vector<T> *const own = reinterpret_cast<Vector<T> *>(memory) + threadIdx.x;
  if (a.overlap) start_beside_neighbours();
  ForwardRow<T, kWhole> io = {a, int(threadIdx.x), int(blockDim.x), int(a.cols), 0, 0};
  a.tasks.locate(a.first_task + blockIdx.x, &io.r, &io.g);

  SquareSum<T> sum = 0;
  for (int v = 0; io.column(v) < io.cols; v += kForwardLongVectors) {
    Vector<T> part[kForwardLongVectors];
    io.template load<kForwardLongVectors>(v, part);
#pragma unroll
    for (int i = 0; i < kForwardLongVectors; ++i) {
      if (io.column(v + i) < io.cols) own[(v + i) * io.threads] = part[i];
      sum = add_squares(sum, part[i], a.h_dtype);
    }
  }
  const RowScale scale = row_scale<T>(a, sum, 0, io.threads, scratch, [&] {
    double exact = 0;
    for (int v = 0; io.column(v) < io.cols; ++v)
      exact = add_squares(exact, own[v * io.threads], a.h_dtype);
    return exact;
  });
  if (a.rstd.data != nullptr && io.lane == 0) store_rstd<T>(a, scale, io.r, io.g);
#pragma unroll 4
  for (int v = 0; io.column(v) < io.cols; ++v)
    io.store(v, own[v * io.threads], false, Vector<T>(), scale);
}

}  // namespace
}  // namespace rmsnorm::cuda
