// Forward: forward_rows keeps a row in the registers of a block, forward_long in the shared memory
// of a block or of a cluster of blocks. Reads each byte of x (and residual) once, writes each of y
// (and residual_out) once: for halves 4 bytes an element, 8 with the fused add.
//
// Tile: blockDim.x threads share a row, blockDim.y rows a block; in a cluster each block has a part
// of one row's columns. A warp holds V * 32 vectors that follow one another, by column and never by
// address, so that a row's bits do not depend on its alignment. Short rows (at most a warp, V = 1):
// each thread works on U rows at once, so that their common instructions are paid once. Not
// persistent: the hardware's scheduler hands rows out in address order, which DRAM likes best.
#pragma once

#include "cuda/kernels/normalise.cuh"

namespace rmsnorm::cuda {
namespace {

// Registers of a thread, named because ptxas left alone would rather spill. 4 vectors: 64, of which
// rows of 16384 halves have two blocks of 512 threads a multiprocessor (with 72 only one: .69,
// .96).
template <class T, int V, bool kWhole>
constexpr int kForwardRegisters = V == 4                     ? (kWhole ? 64 : 96)
                                  : V == 2                   ? 56
                                  : std::is_same_v<T, float> ? 80
                                                             : 64;
template <int V>
constexpr int kForwardWarps = V == 4 ? 16 : 1;  // of a row, at most
constexpr int kForwardPlaces = 4;               // of rows longer than a warp in a block
constexpr int kForwardUnroll = 4;               // U of short rows in plain kernels
constexpr int kLongThreads = 512, kLongWarps = kLongThreads / 32;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800  // a multiprocessor has 1024 threads
constexpr int kLongBlocks = 2;
#else
constexpr int kLongBlocks = 3;
#endif
constexpr int kLongSlots = 256;  // row_sum's: 16 warps of 16 blocks

// One row as one of its threads sees it.
template <class T, bool kWhole>
struct ForwardRow {
  static constexpr int W = kWidth<T>;
  static constexpr int kStep = 32 * W;  // columns from vector to vector
  int64_t r, g;
  int first, left;  // the thread's first column, and the columns from there on; left <= 0: none

  __device__ char *at(const Matrix &matrix) const {
    return matrix.at(r, g) + first * int64_t(size_of_element<T>(matrix.dtype));
  }
  // The same row from vector v on.
  __device__ ForwardRow from(int v) const { return {r, g, first + v * kStep, left - v * kStep}; }

  template <int V>
  __device__ void load(const Matrix &matrix, Vector<T> (&out)[V]) const {
    const char *data = at(matrix);
#pragma unroll
    for (int v = 0; v < V; ++v)
      out[v] = load_vector<T, kWhole>(data + v * kStep * size_of_element<T>(matrix.dtype),
                                      left - v * kStep, matrix.dtype);
  }

  __device__ void store(const Matrix &matrix, int v, const Vector<T> &in, bool last,
                        Writer<T, kWhole> &writer) const {
    writer.store(at(matrix) + v * kStep * size_of_element<T>(matrix.dtype), in, left - v * kStep,
                 v == 0, last, matrix.dtype);
  }

  // h, packed in h's dtype; residual_out gets it at once. `first_part`, `last_part`: of a thread's
  // vectors.
  template <int V>
  __device__ void load_h(const ForwardArgs &a, Writer<T, kWhole> &writer, bool first_part,
                         bool last_part, Vector<T> (&h)[V]) const {
    load<V>(a.x, h);
    if (a.residual.data == nullptr) return;
    Vector<T> residual[V];
    load<V>(a.residual, residual);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      float sum[W], added[W];
      h[v].unpack(a.x.dtype, sum);
      residual[v].unpack(a.residual.dtype, added);
      // The fp32 sum of two halves of one dtype rounds to that dtype as the exact sum does; of
      // others it may not.
#pragma unroll
      for (int i = 0; i < W; ++i)
        sum[i] = std::is_same_v<T, AnyElement> && a.h_dtype != RMSNORM_DTYPE_F32
                     ? add_to_odd(sum[i], added[i])
                     : sum[i] + added[i];
      h[v].pack(a.h_dtype, sum);
    }
    if (a.residual_out.data == nullptr) return;
#pragma unroll
    for (int v = 0; v < V; ++v)
      writer.store(at(a.residual_out) + v * kStep * size_of_element<T>(a.h_dtype), h[v],
                   left - v * kStep, first_part && v == 0, last_part && v == V - 1, a.h_dtype);
  }

  // Weight and bias of vector v as floats.
  __device__ void load_parameters(const ForwardArgs &a, int v, float (&w)[W],
                                  float (&bias)[W]) const {
    const auto load_row = [&](const Matrix &matrix, float(&out)[W]) {
      const int64_t column = first + v * kStep;
      load_floats<W, kWhole>(matrix.data + g * matrix.group_stride + column * size_of(matrix.dtype),
                             matrix.dtype, left - v * kStep, out);
    };
#pragma unroll
    for (int i = 0; i < W; ++i) w[i] = 1, bias[i] = 0;
    if (kWhole && left - v * kStep <= 0) return;
    if (a.weight.data != nullptr) load_row(a.weight, w);
    if (a.bias.data != nullptr) load_row(a.bias, bias);
  }
};

// A row's sum of squares is fp32 for halves, fp64 where an fp32 tensor is there (squares of floats
// are exact in fp64 and cannot overflow).
template <class T>
using SquareSum = std::conditional_t<kDoubleFloat<T>, double, float>;

template <class T, int V>
__device__ inline SquareSum<T> sum_of_squares(const Vector<T> (&row)[V], rmsnorm_dtype_t dtype) {
  SquareSum<T> total = 0;
#pragma unroll
  for (int v = 0; v < V; ++v) {
    float h[kWidth<T>];
    row[v].unpack(dtype, h);
    SquareSum<T> sum = 0;
#pragma unroll
    for (int i = 0; i < kWidth<T>; ++i) sum = fma(SquareSum<T>(h[i]), SquareSum<T>(h[i]), sum);
    total += sum;
  }
  return total;
}

template <class T>
__device__ inline RowScale scale_of_row(const ForwardArgs &a, SquareSum<T> sum) {
  if constexpr (kDoubleFloat<T>) return scale_of_exact_row(sum / double(a.cols) + a.eps);
  else return scale_of_half_row(fmaf(sum, a.inverse_cols, a.eps_float));
}

template <class T>
__device__ inline void store_rstd(const ForwardArgs &a, const RowScale &scale, int64_t r,
                                  int64_t g) {
  *reinterpret_cast<float *>(a.rstd.at(r, g)) = kDoubleFloat<T> ? float(scale.exact) : scale.high;
}

// The sums of squares of a thread's U rows.
template <class T, int U>
struct Squares {
  SquareSum<T> of[U];
};

// The thread's part of y for rows and weights outside the fast formula's range: what a warp with
// any of them does instead of the rest of the kernel, reading h again from memory. A vector gets
// the same bits from here as from the kernel if both are right for it. A call, and the last thing
// that its kernel does: inlined or before other work it would cost the fast path registers.
template <class T, int kWarps, int U>
__device__ __noinline__ void finish_rare(const ForwardArgs &a, int64_t task, int first, int vectors,
                                         Team team, Squares<T, U> squares, double *scratch) {
  constexpr int W = kWidth<T>;
  __syncwarp();  // residual_out may have been stored by another lane
#pragma unroll 1
  for (int u = 0; u < U; ++u, task += blockDim.y) {
    const bool active = task < a.tasks.count;
    int64_t r = 0, g = 0;
    if (active) a.tasks.locate(task, &r, &g);
    const Part part = {r, g, first, 32 * W, active ? vectors : 0, W};
    RowScale scale = scale_of_row<T>(a, squares.of[u]);
    double rstd = kDoubleFloat<T> ? scale.exact : double(scale.high);
    const bool redo = !kDoubleFloat<T> && !scale.fast;
    if (team.threads < 32 ? __any_sync(0xffffffffu, redo) : redo) {
      double sum = 0;
      part.each_column(a.cols, [&](int64_t c, int, int) {
        const double h = exact_h(a, part, c);
        sum = fma(h, h, sum);
      });
      sum = row_sum<kWarps, kForwardPlaces>(sum, team, scratch);
      if (redo) rstd = 1.0 / sqrt(sum / double(a.cols) + a.eps);
      if (redo && active && first == 0 && a.rstd.data != nullptr)
        *reinterpret_cast<float *>(a.rstd.at(r, g)) = float(rstd);
    }
    const auto parameter = [&](const Matrix &matrix, int64_t c, double absent) {
      return matrix.data == nullptr
                 ? absent
                 : load_double(matrix.data + g * matrix.group_stride, c, matrix.dtype);
    };
    for (int v = 0; v < part.vectors; ++v) {
      const int column = first + v * part.step, left = int(a.cols) - column;
      float h[W], w[W], bias[W], y[W];
#pragma unroll 1
      for (int i = 0; i < W; ++i) {
        h[i] = i < left ? float(exact_h(a, part, column + i)) : 0;
        w[i] = i < left ? float(parameter(a.weight, column + i, 1)) : 0;
        bias[i] = i < left ? float(parameter(a.bias, column + i, 0)) : 0;
      }
      const bool fast = scale.fast && weights_are_small<T>(w, a.offset_high);
      normalise<T>(a, scale, h, w, bias, y);
#pragma unroll 1
      for (int i = 0; i < W && i < left; ++i) {
        double exact = h[i] * rstd;
        if (a.llama) exact = round_double_to(exact, a.h_dtype);
        exact *= double(w[i]) + a.weight_offset;
        if (a.bias.data != nullptr) exact += bias[i];
        store_double(a.y.at(r, g), column + i, a.y.dtype, fast ? double(y[i]) : exact);
      }
    }
  }
}

// y of vector `v` (the caller's `packed` holds its weight if kPlain).
template <class T, bool kPlain, int kCount>
__device__ inline Vector<T> normalised(const ForwardArgs &a, const RowScale &scale,
                                       const Vector<T> &h, const Vector<T> &packed,
                                       const float (&w)[kCount], const float (&bias)[kCount]) {
  float own[kCount], y[kCount];
  h.unpack(a.h_dtype, own);
  if constexpr (kPlain) {
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
  out.pack(a.y.dtype, y);
  return out;
}

// kPlain: a.plain, as nearly every call is: the code for all else is not there, which leaves
// registers for one more block a multiprocessor and a third of the instructions.
template <class T, int V, int U, bool kWhole, bool kPlain>
__global__ void __maxnreg__((kForwardRegisters<T, V, kWhole>))
    forward_rows(const __grid_constant__ ForwardArgs a) {
  using Row = ForwardRow<T, kWhole>;
  using Sum = SquareSum<T>;
  constexpr int W = kWidth<T>, kWarps = kForwardWarps<V>;
  constexpr int kTogether = kPlain ? V : 1;  // vectors whose weights are in registers at once
  // 4 rows of 16 warps
  __shared__ alignas(16) double scratch[2][kWarps > 1 ? kForwardPlaces * kWarps : 1];
  const int threads = blockDim.x;
  if (V > 1) __builtin_assume(threads >= 32);
  const Team team = {int(threadIdx.y), threads, 1};
  const int64_t task = a.first_task + int64_t(blockIdx.x) * (blockDim.y * U) + team.place;
  const int first = (threadIdx.x + threadIdx.x / 32 * (V - 1) * 32) * W;
  Sum *const sums = reinterpret_cast<Sum *>(scratch[0]);
  if (kWarps > 1 && threads > 32) {
    clear_slots<kWarps>(team, sums);
    clear_slots<kWarps>(team, scratch[1]);
  }
  // A short row's threads stay for their warp's shuffles.
  if (task >= a.tasks.count && threads >= 32 && U == 1) return;

  Row rows[U];
#pragma unroll
  for (int u = 0; u < U; ++u) {
    const int64_t own = task + u * int64_t(blockDim.y);
    rows[u] = {0, 0, first, own < a.tasks.count ? int(a.cols) - first : 0};
    if (own < a.tasks.count) a.tasks.locate(own, &rows[u].r, &rows[u].g);
  }
  Vector<T> weight[kTogether];
  if constexpr (kPlain) {
    Row shared = rows[0];
    shared.left = int(a.cols) - first;
    shared.template load<V>(a.weight, weight);
  }
  if (a.overlap) start_beside_neighbours();

  Vector<T> h[U][V];
#pragma unroll
  for (int u = 0; u < U; ++u) {
    Writer<T, kWhole> writer(threads);
    rows[u].template load_h<V>(a, writer, true, true, h[u]);
  }
  Squares<T, U> squares;
  RowScale scale[U];
  bool rare = kPlain && !weights_are_small<T, kTogether>(weight);
#pragma unroll
  for (int u = 0; u < U; ++u) {
    squares.of[u] =
        row_sum<kWarps, kForwardPlaces>(sum_of_squares<T, V>(h[u], a.h_dtype), team, sums);
    scale[u] = scale_of_row<T>(a, squares.of[u]);
    rare = rare || !scale[u].fast;
    if (a.rstd.data != nullptr && first == 0 && rows[u].left > 0)
      store_rstd<T>(a, scale[u], rows[u].r, rows[u].g);
  }

  Writer<T, kWhole> writer[U];
#pragma unroll
  for (int u = 0; u < U; ++u) writer[u] = Writer<T, kWhole>(threads);
#pragma unroll
  for (int begin = 0; begin < V; begin += kTogether) {
    float w[W], bias[W];
    if constexpr (!kPlain) {
      rows[0].load_parameters(a, begin, w, bias);
      rare = rare || !weights_are_small<T>(w, a.offset_high);
    }
    if (__any_sync(0xffffffffu, rare))
      return finish_rare<T, kWarps, U>(a, task, first + begin * Row::kStep, V - begin, team,
                                       squares, scratch[1]);
#pragma unroll
    for (int i = 0; i < U * kTogether; ++i) {
      const int u = i / kTogether, v = begin + i % kTogether;
      rows[u].store(a.y, v,
                    normalised<T, kPlain>(a, scale[u], h[u][v], weight[i % kTogether], w, bias),
                    v == V - 1, writer[u]);
    }
  }
}

// One row a block or cluster, any number of vectors a thread, in shared memory: each thread reads
// only its own slots.
template <class T, bool kWhole, bool kPlain>
__global__ void __launch_bounds__(kLongThreads, kLongBlocks)
    forward_long(const __grid_constant__ ForwardArgs a) {
  using Row = ForwardRow<T, kWhole>;
  using Sum = SquareSum<T>;
  constexpr int W = kWidth<T>, kTogether = 2;
  extern __shared__ __align__(128) uint4 memory[];
  __shared__ alignas(16) double scratch[2][kLongSlots];
  __shared__ uint64_t barrier;
  const int threads = blockDim.x;
  __builtin_assume(threads >= 32);
  const Team team = {0, threads, a.cluster};
  const MailBox<Sum> box = {reinterpret_cast<Sum *>(scratch[0]), &barrier};
  const int64_t task = a.first_task + cluster_of_grid();
  const int vectors = a.vectors;  // of this thread, a multiple of kTogether
  const int first = (block_of_cluster() * threads * vectors + threadIdx.x / 32 * vectors * 32 +
                     threadIdx.x % 32) *
                    W;
  if (team.cluster > 1) {
    if (threadIdx.x == 0) open_barrier(&barrier);
    __syncwarp();
    announce_block();
  } else {
    clear_slots<kLongWarps>(team, box.slots);
    clear_slots<kLongWarps>(team, scratch[1]);
  }
  Row row = {0, 0, first, int(a.cols) - first};
  a.tasks.locate(task, &row.r, &row.g);
  if (a.overlap) start_beside_neighbours();

  uint4 *const own = memory + threadIdx.x / 32 * vectors * 32 + threadIdx.x % 32;
  Sum sum = 0;
  if (kWhole && a.residual.data == nullptr) {
    const char *data = row.at(a.x);
    for (int v = 0; v < vectors; ++v)
      if (row.left > v * Row::kStep)
        copy_whole_vector<T>(own + v * 32, data + v * Row::kStep * size_of_element<T>(a.x.dtype),
                             a.x.dtype);
    commit_copies();
    wait_for_copies<0>();
#pragma unroll 2
    for (int v = 0; v < vectors; ++v) {
      if (row.left <= v * Row::kStep) break;
      Vector<T> h[1];
      h[0].set(own[v * 32]);
      sum += sum_of_squares<T, 1>(h, a.h_dtype);
    }
  } else {
    Writer<T, kWhole> writer(threads);
    for (int v = 0; v < vectors; v += kTogether) {
      Vector<T> h[kTogether];
      row.from(v).template load_h<kTogether>(a, writer, v == 0, v + kTogether == vectors, h);
#pragma unroll
      for (int i = 0; i < kTogether; ++i)
        own[(v + i) * 32] = make_uint4(h[i].word[0], h[i].word[1], h[i].word[2], h[i].word[3]);
      sum += sum_of_squares<T, kTogether>(h, a.h_dtype);
    }
  }
  Squares<T, 1> squares;
  if (team.cluster > 1) {
    await_blocks();
    squares.of[0] = box.sum(sum, team, 0);
  } else {
    squares.of[0] = row_sum<kLongWarps, 1>(sum, {0, threads, 1}, box.slots);
  }
  const RowScale scale = scale_of_row<T>(a, squares.of[0]);
  if (a.rstd.data != nullptr && first == 0) store_rstd<T>(a, scale, row.r, row.g);

  Writer<T, kWhole> writer(threads);
  bool rare = !scale.fast;
  Vector<T> next[kTogether];
  if (kPlain) row.template load<kTogether>(a.weight, next);
  for (int v = 0; v < vectors; v += kTogether) {
    Vector<T> weight[kTogether];
    float w[kTogether][W], bias[kTogether][W];
    if constexpr (kPlain) {
#pragma unroll
      for (int i = 0; i < kTogether; ++i) weight[i] = next[i];
      row.from(v + kTogether).template load<kTogether>(a.weight, next);
      rare = rare || !weights_are_small<T, kTogether>(weight);
    } else {
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        row.load_parameters(a, v + i, w[i], bias[i]);
        rare = rare || !weights_are_small<T>(w[i], a.offset_high);
      }
    }
    if (__any_sync(0xffffffffu, rare))
      return finish_rare<T, kLongWarps, 1>(a, task, first + v * Row::kStep, vectors - v, team,
                                           squares, scratch[1]);
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      Vector<T> h;
      h.set(own[(v + i) * 32]);
      row.store(a.y, v + i, normalised<T, kPlain>(a, scale, h, weight[i], w[i], bias[i]),
                v + i == vectors - 1, writer);
    }
  }
}

}  // namespace
}  // namespace rmsnorm::cuda
