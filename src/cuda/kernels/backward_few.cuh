// Backward for few rows, in one kernel: some blocks take rows (dx), others strips of columns
// (dweight), each from x and dy themselves. All is read twice, the second time from L2; but no
// block waits for another, there are no partial rows to write, and no kernel to add them.
//
// Rows: as backward_rows, with the same tree, but a row each for a group of threads, in registers.
//
// Strips: a block has strip_vectors vectors side by side, and lanes for each, which take every so
// many-th row. A lane sums its at most 32 rows in fp32 and a warp its lanes, the warps' sums are
// added in fp64: with the products' roundings at most 2^-18 of the terms are lost. dweight's tree
// is the shape's alone. Where a sum of absolute terms comes near an end of fp32's range, or an rstd
// does, the strip is summed again in fp64.
//
// The launcher runs strips and rows as two kernels where dx overwrites x or dy; unaligned and mixed
// rows and those of several groups take backward_few_columns and backward_rows.
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
  bool mixed;         // dtypes
};

// What a block needs of shared memory, for one thing after another.
union FewMemory {
  float strip[kBackwardWarps][kMostStripColumns];  // of each warp
  double exact_strip[kBackwardWarps][kMostStripColumns];
  double squares[kBackwardWarps];
  struct {
    float sums[kBackwardWarps];
    double exact[kBackwardWarps];
  } rows;
};

__device__ inline int thread_of_block() { return threadIdx.y * blockDim.x + threadIdx.x; }

// A thread's part of a strip.
struct Lane {
  int place, left;  // its first column in the strip, and the row's columns from there on
  int lane;         // it takes every a.lanes-th row
  int rows, warps;  // of the strip

  // `width`: columns of a thread.
  __device__ Lane(const FewArgs &a, int width) {
    const int thread = thread_of_block();
    place = thread % a.strip_vectors * width;
    left = int(a.cols) - first(a, width);
    lane = thread / a.strip_vectors;
    rows = int(a.tasks.count);
    warps = a.lanes * a.strip_vectors / 32;
  }
  __device__ int first(const FewArgs &a, int width) const {
    return int(blockIdx.x) * a.strip_vectors * width + place;
  }
};

// How a lane reads its rows. Aligned ones of one dtype, a vector each:
template <class T>
struct AlignedRows {
  static constexpr int W = kWidth<T>;
  static constexpr int kAtOnce = 4;
  static constexpr bool kHalves = kIsHalf<T>;                      // of one dtype
  static constexpr bool kAlwaysRight = std::is_same_v<T, __half>;  // LaneSums
  using Loaded = Vector<T>;

  __device__ static void locate(const FewArgs &, int row, int64_t *r, int64_t *g) {
    *r = row, *g = 0;
  }
  __device__ static Loaded load(const FewArgs &a, const Lane &own, const Matrix &m, int64_t r,
                                int64_t, bool valid) {
    return load_vector<T, true>(m.data + r * m.row_stride + own.first(a, W) * int64_t(sizeof(T)),
                                valid ? own.left : 0, m.dtype);
  }
};

// Others, which may be of several groups.
struct PlacedRows {
  static constexpr bool kAlwaysRight = false;

  __device__ static void locate(const FewArgs &a, int row, int64_t *r, int64_t *g) {
    a.locate(row, r, g);
  }
};

// Of one dtype, as the two aligned blocks that hold a vector, cut when they have come.
template <class T>
struct UnalignedRows : PlacedRows {
  static constexpr int W = kWidth<T>;
  static constexpr int kAtOnce = 4;
  static constexpr bool kHalves = kIsHalf<T>;
  struct Loaded {
    uint4 low, high;
    int shift;

    __device__ void unpack(rmsnorm_dtype_t dtype, float (&out)[W]) const {
      Vector<T> vector;
      vector.set(cut_out(low, high, shift));
      vector.unpack_as(dtype, out);
    }
  };

  __device__ static Loaded load(const FewArgs &a, const Lane &own, const Matrix &m, int64_t r,
                                int64_t g, bool valid) {
    const char *data = m.at(r, g) + own.first(a, W) * int64_t(sizeof(T));
    const int shift = misalignment(data), left = valid ? own.left : 0;
    Loaded out = {{}, {}, shift};
    const uint4 *blocks = reinterpret_cast<const uint4 *>(data - shift);
    if (left >= 2 * W - shift / int(sizeof(T))) {
      out.low = blocks[0], out.high = blocks[1];
    } else if (left > 0) {  // the row's last vector: nothing behind it is read
      const Vector<T> last = load_elements<T>(data, left, sizeof(T));
      out.low = make_uint4(last.word[0], last.word[1], last.word[2], last.word[3]);
      out.shift = 0;
    }
    return out;
  }
};

// Of mixed dtypes.
struct MixedRows : PlacedRows {
  static constexpr int W = kWidth<AnyElement>;
  static constexpr int kAtOnce = 2;
  static constexpr bool kHalves = false;
  struct Loaded {
    RawElements<false, W> raw;

    __device__ void unpack(rmsnorm_dtype_t dtype, float (&out)[W]) const { raw.read(dtype, out); }
  };

  __device__ static Loaded load(const FewArgs &a, const Lane &own, const Matrix &m, int64_t r,
                                int64_t g, bool valid) {
    Loaded out;
    out.raw.load(m.at(r, g) + own.first(a, W) * int64_t(size_of(m.dtype)), m.dtype,
                 valid ? own.left : 0);
    return out;
  }
};

__device__ inline float rstd_of(const BackwardArgs &a, int64_t r, int64_t g) {
  return *reinterpret_cast<const float *>(a.rstd.at(r, g));
}

// A lane's sums of dy * x * rstd: fp32, which is right if `size`, the sum of their absolute values,
// is far from both ends of fp32's range; products of fp16 always are.
template <int W, bool kAlwaysRight>
struct LaneSums {
  float sum[W] = {}, size[W] = {};

  __device__ void add(const float (&x)[W], const float (&dy)[W], float rstd) {
#pragma unroll
    for (int i = 0; i < W; ++i) {
      const float product = dy[i] * x[i];
      sum[i] = fmaf(product, rstd, sum[i]);
      if (!kAlwaysRight) size[i] = fmaf(fabsf(product), fabsf(rstd), size[i]);
    }
  }
  __device__ bool right(const Lane &own) const {
    bool all = true;
#pragma unroll
    for (int i = 0; i < W && !kAlwaysRight; ++i)
      all = all && (i >= own.left || (size[i] >= 0x1p-90f && size[i] <= 0x1p100f));
    return all;
  }
};

// Writes the strip's dweight: the warps' sums in their order.
template <class Real>
__device__ inline void store_strip(const FewArgs &a, const Lane &own, int columns,
                                   const Real (&sums)[kBackwardWarps][kMostStripColumns]) {
  __syncthreads();
  for (int i = thread_of_block(); i < columns; i += own.warps * 32) {
    const int c = int(blockIdx.x) * columns + i;
    if (c >= a.cols) return;
    double total = 0;
#pragma unroll 4
    for (int warp = 0; warp < own.warps; ++warp) total += double(sums[warp][i]);
    if (a.accumulate) total += load_double(a.dweight, c, a.dweight_dtype);
    store_double(a.dweight, c, a.dweight_dtype, total);
  }
}

// The rows whose rstd is out of range, by the whole block: it is computed where it is 0, Inf or
// subnormal. add(r, g, rstd): for the lane that has the row.
template <class Add>
__device__ inline void each_rare_row(const FewArgs &a, const Lane &own, double *slots, Add add) {
  const int thread = thread_of_block();
  for (int row = 0; row < own.rows; ++row) {
    int64_t r, g;
    a.locate(row, &r, &g);
    double rstd = rstd_of(a, r, g);
    if (in_range(float(rstd))) continue;
    if (fabs(rstd) < 0x1p-126 || isinf(rstd)) {
      double squares = 0;
      for (int64_t c = thread; c < a.cols; c += own.warps * 32) {
        const double x = load_double(a.x.at(r, g), c, a.x.dtype);
        squares = fma(x, x, squares);
      }
      squares = warp_sum(squares);
      __syncthreads();
      if (thread % 32 == 0) slots[thread / 32] = squares;
      __syncthreads();
      squares = 0;
      for (int warp = 0; warp < own.warps; ++warp) squares += slots[warp];
      rstd = 1.0 / sqrt(squares / double(a.cols) + a.eps);
    }
    if (row % a.lanes == own.lane) add(r, g, rstd);
  }
}

// The strip in fp64 throughout.
template <class Rows>
__device__ __noinline__ void exact_strip(const FewArgs &a, FewMemory &memory, Lane own) {
  constexpr int W = Rows::W;
  double sum[W] = {};
  bool rare = false;
  const auto add = [&](int64_t r, int64_t g, double rstd) {
    float x[W], dy[W];
    Rows::load(a, own, a.x, r, g, true).unpack(a.x.dtype, x);
    Rows::load(a, own, a.dy, r, g, true).unpack(a.dy.dtype, dy);
#pragma unroll
    for (int i = 0; i < W; ++i) sum[i] = fma(double(x[i]) * rstd, double(dy[i]), sum[i]);
  };
  for (int row = own.lane; row < own.rows; row += a.lanes) {
    int64_t r, g;
    Rows::locate(a, row, &r, &g);
    const float rstd = rstd_of(a, r, g);
    if (in_range(rstd)) add(r, g, rstd);
    else rare = true;
  }
  if (__syncthreads_or(rare)) each_rare_row(a, own, memory.squares, add);
  for (int offset = a.strip_vectors; offset < 32; offset *= 2)
#pragma unroll
    for (int i = 0; i < W; ++i) sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], offset);
  __syncthreads();
  const int thread = thread_of_block();
  if (thread % 32 < a.strip_vectors) {
#pragma unroll
    for (int i = 0; i < W; ++i) memory.exact_strip[thread / 32][own.place + i] = sum[i];
  }
  store_strip(a, own, a.strip_vectors * W, memory.exact_strip);
}

// The block's strip.
template <class Rows>
__device__ inline void add_strip(const FewArgs &a, FewMemory &memory, const Lane &own) {
  constexpr int W = Rows::W;
  // Rows in flight; to fetch the next ones meanwhile would spill.
  constexpr int kAtOnce = Rows::kAtOnce;
  LaneSums<W, Rows::kAlwaysRight> sums;
  bool rare = false;
  for (int row = own.lane; row < own.rows; row += kAtOnce * a.lanes) {
    typename Rows::Loaded x[kAtOnce], dy[kAtOnce];
    float rstd[kAtOnce];
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) {
      const int here = row + u * a.lanes;
      const bool valid = here < own.rows;
      int64_t r, g;
      Rows::locate(a, valid ? here : 0, &r, &g);
      rstd[u] = rstd_of(a, r, g);
      x[u] = Rows::load(a, own, a.x, r, g, valid);
      dy[u] = Rows::load(a, own, a.dy, r, g, valid);
    }
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) {
      float x_row[W], dy_row[W];
      x[u].unpack(a.x.dtype, x_row);
      dy[u].unpack(a.dy.dtype, dy_row);
      if (in_range(rstd[u])) sums.add(x_row, dy_row, rstd[u]);
      else rare = true;
    }
  }
  // fp16 at any address alike: whether a strip is summed again must not depend on that.
  const bool right = Rows::kHalves && a.x.dtype == RMSNORM_DTYPE_F16;
  rare = rare || (!right && own.lane < own.rows && !sums.right(own));
  if (__syncthreads_or(rare)) return exact_strip<Rows>(a, memory, own);

  // The lanes of a warp: each hands half of its columns to the other and keeps half.
  const int thread = thread_of_block();
  const bool second = thread & 16, odd = thread & 8;
  float half[W / 2], quarter[W / 4];
#pragma unroll
  for (int i = 0; i < W / 2; ++i)
    half[i] = (second ? sums.sum[i + W / 2] : sums.sum[i]) +
              __shfl_xor_sync(0xffffffffu, second ? sums.sum[i] : sums.sum[i + W / 2], 16);
#pragma unroll
  for (int i = 0; i < W / 4; ++i)
    quarter[i] = (odd ? half[i + W / 4] : half[i]) +
                 __shfl_xor_sync(0xffffffffu, odd ? half[i] : half[i + W / 4], 8);
  for (int offset = 4; offset >= a.strip_vectors; offset /= 2)
#pragma unroll
    for (int i = 0; i < W / 4; ++i) quarter[i] += __shfl_xor_sync(0xffffffffu, quarter[i], offset);
  if (thread % 8 < a.strip_vectors) {
    const int of_thread = (second ? W / 2 : 0) + (odd ? W / 4 : 0);
#pragma unroll
    for (int i = 0; i < W / 4; ++i)
      memory.strip[thread / 32][own.place + of_thread + i] = quarter[i];
  }
  store_strip(a, own, a.strip_vectors * W, memory.strip);
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
    return exact_rows<false>(a, {0, 0, first, kStep, V, W}, task, 1, team, memory.rows.exact,
                             nullptr, 0, 0);
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
    if (a.dresidual_out.data != nullptr) {
      float added[W];
      load_vector<T, true>(at(a.dresidual_out, v), left - v * kStep, a.x.dtype)
          .unpack(a.x.dtype, added);
#pragma unroll
      for (int i = 0; i < W; ++i) dx[i] += added[i];
    }
    Vector<T> out;
    out.pack(a.x.dtype, dx);
    for (const Matrix *matrix : {&a.dx, &a.dresidual})
      if (matrix->data != nullptr)
        Writer<T, true>(32).store(at(*matrix, v), out, left - v * kStep, true, true, a.x.dtype);
  }
}

// Aligned rows of one dtype and one group.
template <class T>
__global__ void __maxnreg__(kFewRegisters) backward_few(const __grid_constant__ FewArgs a) {
  __shared__ FewMemory memory;
  if (int(blockIdx.x) >= a.strips) return backward_row<T>(a, memory);
  if (a.overlap) start_beside_neighbours();
  const Lane own(a, kWidth<T>);
  if (own.lane < a.lanes) add_strip<AlignedRows<T>>(a, memory, own);
}

// The strips of all else.
__global__ void __launch_bounds__(kBackwardThreads)
    backward_few_columns(const __grid_constant__ FewArgs a) {
  __shared__ FewMemory memory;
  if (a.overlap) start_beside_neighbours();
  const Lane own(a, a.width);
  if (own.lane >= a.lanes) return;
  if (a.width == 8) add_strip<UnalignedRows<__half>>(a, memory, own);  // or bf16
  else if (a.mixed) add_strip<MixedRows>(a, memory, own);
  else add_strip<UnalignedRows<float>>(a, memory, own);
}

}  // namespace
}  // namespace rmsnorm::cuda
