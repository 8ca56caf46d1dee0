// Backward for few rows, in one kernel: some blocks take rows (dx), others strips of columns
// (dweight), each from x and dy themselves. All is read twice, the second time from L2; but no
// block waits for another, there are no partial rows to write, and no kernel to add them.
//
// Rows: as backward_rows, with the same tree, but a row each for a group of threads, in registers.
//
// Strips: a block has strip_vectors vectors side by side, and as many lanes as its threads allow
// for each, which take every so many-th row. A lane sums its at most 32 rows in fp32; the lanes are
// added in fp64, by shuffles and then warp by warp. So dweight's tree is the shape's alone.
//
// The launcher runs strips and rows as two kernels where dx overwrites x or dy, and what is not
// plain and aligned by backward_few_columns and backward_rows.
#pragma once

#include "cuda/kernels/backward_rare.cuh"

namespace rmsnorm::cuda {
namespace {

constexpr int kMostStripColumns = 64;
constexpr int kFewRegisters = 64;  // with 56: 512x4096 8.0 us (7.3)

struct FewArgs : BackwardArgs {
  char *dweight;
  rmsnorm_dtype_t dweight_dtype;
  bool accumulate;
  int strips;         // blocks that take one, before those that take rows
  int strip_vectors;  // 4 or 8
  int lanes;          // that share a vector's rows
  int width;          // elements of a vector
};

// What a block needs of shared memory, in either part.
struct FewMemory {
  union {
    float strip[kBackwardWarps][kMostStripColumns];  // of each warp
    double squares[kBackwardWarps];
    struct {
      float sums[kBackwardWarps];
      double exact[2 * kBackwardWarps];
    } rows;
  };
};

__device__ inline int thread_of_block() { return threadIdx.y * blockDim.x + threadIdx.x; }

// A lane's sums of dy * x * rstd: fp32, which is right if `size`, the sum of their absolute values,
// is far from both ends of fp32's range; products of fp16 always are.
template <int W>
struct LaneSums {
  float sum[W] = {}, size[W] = {};

  template <bool kAlwaysRight>
  __device__ void add(const float (&x)[W], const float (&dy)[W], float rstd) {
#pragma unroll
    for (int i = 0; i < W; ++i) {
      const float product = dy[i] * x[i];
      sum[i] = fmaf(product, rstd, sum[i]);
      if (!kAlwaysRight) size[i] = fmaf(fabsf(product), fabsf(rstd), size[i]);
    }
  }
  // Of the first `valid` columns.
  __device__ bool right(int valid) const {
    bool all = true;
#pragma unroll
    for (int i = 0; i < W; ++i)
      all = all && (i >= valid || (size[i] >= 0x1p-90f && size[i] <= 0x1p100f));
    return all;
  }
};

// One lane's part of a strip.
struct Lane {
  int first, left;  // its first column, and the columns from there on
  int lane, lanes;  // it takes every lanes-th row
  int rows;

  __device__ Lane(const FewArgs &a, int width) {
    const int thread = thread_of_block(), vector = thread % a.strip_vectors;
    first = (blockIdx.x * a.strip_vectors + vector) * width;
    left = int(a.cols) - first;
    lane = thread / a.strip_vectors;
    lanes = a.lanes;
    rows = int(a.tasks.count);
  }
};

__device__ inline float rstd_of(const BackwardArgs &a, int64_t r, int64_t g) {
  return *reinterpret_cast<const float *>(a.rstd.at(r, g));
}

// A lane's sums as the calls below take them: in memory, so that the common path's need not be.
template <int W>
struct ExactSums {
  double sum[W];
};

// Adds a row to a lane's sums in fp64.
template <int W>
__device__ inline void add_exactly(const FewArgs &a, const Lane &own, int64_t r, int64_t g,
                                   double rstd, ExactSums<W> &sums) {
  const char *x = a.x.at(r, g), *dy = a.dy.at(r, g);
#pragma unroll 1
  for (int i = 0; i < W; ++i)
    if (i < own.left)
      sums.sum[i] = fma(load_double(x, own.first + i, a.x.dtype) * rstd,
                        load_double(dy, own.first + i, a.dy.dtype), sums.sum[i]);
}

// The lane's rows that are in range once more, in fp64.
template <int W>
__device__ __noinline__ ExactSums<W> redo_lane(const FewArgs &a, const Lane &own) {
  ExactSums<W> sums = {};
  for (int row = own.lane; row < own.rows; row += own.lanes) {
    int64_t r, g;
    a.locate(row, &r, &g);
    const float rstd = rstd_of(a, r, g);
    if (in_range(rstd)) add_exactly(a, own, r, g, rstd, sums);
  }
  return sums;
}

// The rows whose rstd is out of range, by the whole block: it is computed where it is 0, Inf or
// subnormal.
template <int W>
__device__ __noinline__ ExactSums<W> sum_rare_rows(const FewArgs &a, const Lane &own,
                                                   FewMemory &memory) {
  ExactSums<W> sums = {};
  const int warps = own.lanes * a.strip_vectors / 32, thread = thread_of_block();
  for (int row = 0; row < own.rows; ++row) {
    int64_t r, g;
    a.locate(row, &r, &g);
    double rstd = rstd_of(a, r, g);
    if (in_range(float(rstd))) continue;
    if (fabs(rstd) < 0x1p-126 || isinf(rstd)) {
      double squares = 0;
      for (int64_t c = thread; c < a.cols; c += warps * 32) {
        const double x = load_double(a.x.at(r, g), c, a.x.dtype);
        squares = fma(x, x, squares);
      }
      squares = warp_sum(squares);
      __syncthreads();
      if (thread % 32 == 0) memory.squares[thread / 32] = squares;
      __syncthreads();
      squares = 0;
      for (int warp = 0; warp < warps; ++warp) squares += memory.squares[warp];
      rstd = 1.0 / sqrt(squares / double(a.cols) + a.eps);
    }
    if (row % own.lanes == own.lane) add_exactly(a, own, r, g, rstd, sums);
  }
  __syncthreads();
  return sums;
}

// The block's strip; load(matrix, r, g, valid, out): this lane's columns of a row as floats.
template <int W, bool kAlwaysRight, class Load>
__device__ inline void add_strip(const FewArgs &a, FewMemory &memory, const Lane &own, Load load) {
  LaneSums<W> sums;
  bool rare = false;
  constexpr int kAtOnce = 4;  // rows in flight; to fetch the next ones meanwhile would spill
  for (int row = own.lane; row < own.rows; row += kAtOnce * own.lanes) {
    decltype(load(a.x, 0, 0, 0)) x[kAtOnce], dy[kAtOnce];
    float rstd[kAtOnce];
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) {
      const int here = row + u * own.lanes;
      const bool valid = here < own.rows;
      int64_t r = 0, g = 0;
      if (valid) a.locate(here, &r, &g);
      rstd[u] = valid ? rstd_of(a, r, g) : 1;
      x[u] = load(a.x, r, g, valid ? own.left : 0);
      dy[u] = load(a.dy, r, g, valid ? own.left : 0);
    }
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) {
      float x_row[W], dy_row[W];
      x[u].unpack(a.x.dtype, x_row);
      dy[u].unpack(a.dy.dtype, dy_row);
      if (in_range(rstd[u])) sums.template add<kAlwaysRight>(x_row, dy_row, rstd[u]);
      else rare = true;
    }
  }
  float(&sum)[W] = sums.sum;
  if (!kAlwaysRight && !sums.right(own.left) && own.lane < own.rows) {
    const ExactSums<W> again = redo_lane<W>(a, own);
#pragma unroll
    for (int i = 0; i < W; ++i) sum[i] = float(again.sum[i]);
  }
  if (__syncthreads_or(rare)) {
    const ExactSums<W> more = sum_rare_rows<W>(a, own, memory);
#pragma unroll
    for (int i = 0; i < W; ++i) sum[i] += float(more.sum[i]);
  }
  // The lanes of a warp: each hands half of its columns to the other and keeps half.
  const int thread = thread_of_block();
  float half[W / 2], quarter[W / 4];
  const bool second = thread & 16, odd = thread & 8;
#pragma unroll
  for (int i = 0; i < W / 2; ++i)
    half[i] = (second ? sum[i + W / 2] : sum[i]) +
              __shfl_xor_sync(0xffffffffu, second ? sum[i] : sum[i + W / 2], 16);
#pragma unroll
  for (int i = 0; i < W / 4; ++i)
    quarter[i] = (odd ? half[i + W / 4] : half[i]) +
                 __shfl_xor_sync(0xffffffffu, odd ? half[i] : half[i + W / 4], 8);
  for (int offset = 4; offset >= a.strip_vectors; offset /= 2)
#pragma unroll
    for (int i = 0; i < W / 4; ++i) quarter[i] += __shfl_xor_sync(0xffffffffu, quarter[i], offset);
  if (thread % 8 < a.strip_vectors) {
    const int column = thread % 8 * W + (second ? W / 2 : 0) + (odd ? W / 4 : 0);
#pragma unroll
    for (int i = 0; i < W / 4; ++i) memory.strip[thread / 32][column + i] = quarter[i];
  }
  __syncthreads();
  const int columns = a.strip_vectors * W, c = int(blockIdx.x) * columns + thread;
  if (thread >= columns || c >= a.cols) return;
  double total = 0;
  const int warps = own.lanes * a.strip_vectors / 32;
#pragma unroll 4
  for (int warp = 0; warp < warps; ++warp) total += double(memory.strip[warp][thread]);
  if (a.accumulate) total += load_double(a.dweight, c, a.dweight_dtype);
  store_double(a.dweight, c, a.dweight_dtype, total);
}

// Elements of any dtype at any address.
template <int W>
struct AnyVector {
  RawElements<false, W> raw;

  __device__ void unpack(rmsnorm_dtype_t dtype, float (&out)[W]) const { raw.read(dtype, out); }
};

template <int W>
__device__ inline void add_any_strip(const FewArgs &a, FewMemory &memory) {
  const Lane own(a, W);
  if (own.lane >= own.lanes) return;
  add_strip<W, false>(a, memory, own, [&](const Matrix &m, int64_t r, int64_t g, int valid) {
    AnyVector<W> out;
    out.raw.load(m.at(r, g) + own.first * int64_t(size_of(m.dtype)), m.dtype, valid);
    return out;
  });
}

// This group of threads' row.
template <class T>
__device__ inline void backward_row(const FewArgs &a, FewMemory &memory) {
  constexpr int V = 2, W = kWidth<T>, kStep = 32 * W;
  const Team team = {int(threadIdx.y), int(blockDim.x), 1};
  const int64_t task = int64_t(blockIdx.x - a.strips) * blockDim.y + team.place;
  if (task >= a.tasks.count) return;
  const int first = (threadIdx.x / 32 * V * 32 + threadIdx.x % 32) * W;
  const int left = int(a.cols) - first;
  BackwardWeight<true, W> weight[V];
#pragma unroll
  for (int v = 0; v < V; ++v) weight[v].load(a, 0, first + v * kStep, left - v * kStep);
  if (a.overlap) start_beside_neighbours();

  const auto at = [&](const Matrix &matrix, int v) {
    return matrix.at(task, 0) + (first + v * kStep) * int64_t(sizeof(T));
  };
  Vector<T> x_row[V], dy_row[V];
#pragma unroll
  for (int v = 0; v < V; ++v) {
    x_row[v] = load_vector<T, true>(at(a.x, v), left - v * kStep, a.x.dtype);
    dy_row[v] = load_vector<T, true>(at(a.dy, v), left - v * kStep, a.dy.dtype);
  }
  const float rstd = rstd_of(a, task, 0);
  float w[V][W], sum = 0;
#pragma unroll
  for (int v = 0; v < V; ++v) {
    float x[W], dy[W], part = 0;
    weight[v].read(a, w[v]);
    x_row[v].unpack(a.x.dtype, x);
    dy_row[v].unpack(a.dy.dtype, dy);
#pragma unroll
    for (int i = 0; i < W; ++i) part = fmaf(w[v][i] * dy[i], x[i], part);
    sum += part;
  }
  sum = add_warps<kBackwardWarps, kBackwardPlaces>(warp_sum(sum), team, memory.rows.sums);
  const float mean = sum * rstd * a.inverse_cols;
  if (!is_fast_row(rstd, mean))
    return exact_rows(a, {0, 0, first, kStep, V, W}, task, 1, team, memory.rows.exact, nullptr, 0,
                      0);
  const float slope = rstd * rstd * mean;
#pragma unroll
  for (int v = 0; v < V; ++v) {
    float x[W], dy[W], dx[W];
    x_row[v].unpack(a.x.dtype, x);
    dy_row[v].unpack(a.dy.dtype, dy);
#pragma unroll
    for (int i = 0; i < W; ++i) {
      dy[i] *= rstd;
      dx[i] = fmaf(-x[i], slope, w[v][i] * dy[i]);
    }
    Vector<T> out;
    out.pack(a.dx.dtype, dx);
    Writer<T, true>(32).store(at(a.dx, v), out, left - v * kStep, true, true, a.dx.dtype);
  }
}

// Plain and aligned.
template <class T>
__global__ void __maxnreg__(kFewRegisters) backward_few(const __grid_constant__ FewArgs a) {
  __shared__ FewMemory memory;
  if (int(blockIdx.x) >= a.strips) return backward_row<T>(a, memory);
  if (a.overlap) start_beside_neighbours();
  const Lane own(a, kWidth<T>);
  if (own.lane >= own.lanes) return;
  add_strip<kWidth<T>, std::is_same_v<T, __half>>(
      a, memory, own, [&](const Matrix &m, int64_t r, int64_t g, int valid) {
        return load_vector<T, true>(m.at(r, g) + own.first * int64_t(sizeof(T)), valid, m.dtype);
      });
}

// The strips of all else.
__global__ void __launch_bounds__(kBackwardThreads)
    backward_few_columns(const __grid_constant__ FewArgs a) {
  __shared__ FewMemory memory;
  if (a.overlap) start_beside_neighbours();
  if (a.width == 8) add_any_strip<8>(a, memory);
  else add_any_strip<4>(a, memory);
}

}  // namespace
}  // namespace rmsnorm::cuda
