// Rows outside fp32's comfortable range, for backward_rows: in fp64, by calls of their own that
// read the row again from memory, so that rare code costs the loop no registers.
#pragma once

#include "cuda/kernels/unaligned.cuh"
#include "cuda/kernels/rows.cuh"

namespace rmsnorm::cuda {
namespace {

constexpr int kBackwardThreads = 512;  // of a block of whole-warp rows, at most
constexpr int kBackwardWarps = 16;     // of a row, at most
constexpr int kBackwardPlaces = 15;    // rows of whole warps in a block, at most

struct BackwardArgs {
  Matrix dy, x, dx, rstd, weight;
  Tasks tasks;         // by_group: of one group, which is (block or cluster) / blocks
  int64_t stride;      // tasks from row to row of one group of threads: blocks * blockDim.y
  uint32_t rows_more;  // the groups of threads before this one have one row more than rows_each
  int rows_each;
  int64_t dy_step, x_step, dx_step, rstd_step;  // bytes that these are, without groups
  int64_t cols;
  float *partial;  // [groups if by_group][blocks][chunks][pitch]; NULL: no dweight
  int64_t pitch;
  float inverse_cols;
  int blocks;   // blocks, or clusters of them, that share the tasks
  int cluster;  // blocks that share a row
  int chunks;   // partial rows of each block
  int stages;
  int sum_slots;  // of the sums over rows
  bool by_group;  // weight or dweight is per group, and a block keeps to one group
  bool overlap;
  bool paced;  // rstd of the next row is asked for late, which holds multiprocessors together
  Matrix dresidual_out, dresidual;
  double eps, weight_offset;

  // This block's, or its cluster's, place in the grid.
  __device__ uint32_t block() const { return cluster_of_grid(cluster); }
  // by_group: the group that the block keeps to.
  __device__ uint32_t fixed_group() const { return by_group ? block() / uint32_t(blocks) : 0; }
  // The first task of this group of threads.
  __device__ uint32_t first_task(uint32_t group) const {
    return (block() - group * uint32_t(blocks)) * blockDim.y + threadIdx.y;
  }
  // Where a row starts. by_group: few calls have that, and the others save the multiplication.
  __device__ char *start(const Matrix &matrix, uint32_t row, uint32_t group) const {
    char *const start = matrix.data + row * matrix.row_stride;
    return by_group ? start + group * matrix.group_stride : start;
  }
  // The rows of a group of threads whose first task this is.
  __device__ int rows_from(uint32_t first) const { return rows_each + (first < rows_more ? 1 : 0); }
  // by_group: `*g` is the block's own already.
  __device__ void locate(int64_t task, int64_t *r, int64_t *g) const {
    if (by_group) *r = task;
    else tasks.locate(task, r, g);
  }
};

__device__ inline double exact_weight(const BackwardArgs &a, int64_t g, int64_t c) {
  const char *row = a.weight.data + g * a.weight.group_stride;
  return (a.weight.data != nullptr ? load_double(row, c, a.weight.dtype) : 1) + a.weight_offset;
}

// A sum over the row that `part` is this thread's part of: add(column, sum so far).
template <class Add>
__device__ inline double exact_sum(const BackwardArgs &a, const Part &part, const Team &team,
                                   double *slots, Add add) {
  const auto of_thread = [&](int ahead) {
    Part there = part;
    there.first += ahead * (team.threads / 32 * part.vectors * part.step);
    double sum = 0;
    there.each_column(a.cols, [&](int64_t c, int, int) { sum = add(c, sum); });
    return sum;
  };
  if (team.threads > 32 || team.cluster > 1)
    return rare_row_sum<kBackwardWarps, kBackwardPlaces>(team, slots, [&](int ahead) {
      return warp_sum(of_thread(ahead));
    });
  double sum = of_thread(0);  // rows of a warp or less have no slots
  for (int offset = team.threads / 2; offset > 0; offset /= 2)
    sum += __shfl_xor_sync(0xffffffffu, sum, offset);
  return sum;
}

// Of rstd, for arithmetic in fp32.
__device__ inline bool in_range(float rstd) {
  return fabsf(rstd) >= 0x1p-20f && fabsf(rstd) <= 0x1p20f;
}

// One row: writes this thread's elements of dx and dresidual, and adds dy * xhat for dweight to
// floats in shared memory: element i of vector v at slots[v * slot_step + i / 4 * half_step], float
// i % 4, unless kDweight is false. `redo`: whether it is for this row.
template <bool kDweight>
__device__ inline void exact_row(const BackwardArgs &a, Part part, int64_t task, Team team,
                                 bool redo, double *scratch, uint4 *slots, int slot_step,
                                 int half_step) {
  double rstd = 0;
  if (task < a.tasks.count) a.locate(task, &part.r, &part.g);
  else part.vectors = 0;
  if (part.vectors > 0) rstd = *reinterpret_cast<const float *>(a.rstd.at(part.r, part.g));
  const char *x_row = a.x.at(part.r, part.g), *dy_row = a.dy.at(part.r, part.g);
  const bool known = !(fabs(rstd) < 0x1p-126 || isinf(rstd));  // computed where 0, Inf or subnormal
  if (any_row_of_warp(!known, team.threads)) {
    const double squares = exact_sum(a, part, team, scratch, [&](int64_t c, double sum) {
      const double x = load_double(x_row, c, a.x.dtype);
      return fma(x, x, sum);
    });
    if (!known) rstd = 1.0 / sqrt(squares / double(a.cols) + a.eps);
  }
  const double mean =
      exact_sum(a, part, team, scratch,
                [&](int64_t c, double sum) {
                  return fma(exact_weight(a, part.g, c) * load_double(dy_row, c, a.dy.dtype),
                             load_double(x_row, c, a.x.dtype) * rstd, sum);
                }) /
      double(a.cols);
  if (!redo) return;
  part.each_column(a.cols, [&](int64_t c, int v, int i) {
    const double dy = load_double(dy_row, c, a.dy.dtype);
    const double xhat = load_double(x_row, c, a.x.dtype) * rstd;
    double dx = rstd * fma(-xhat, mean, exact_weight(a, part.g, c) * dy);
    if (a.dresidual_out.data != nullptr)
      dx += load_double(a.dresidual_out.at(part.r, part.g), c, a.dresidual_out.dtype);
    if (a.dx.data != nullptr) store_double(a.dx.at(part.r, part.g), c, a.dx.dtype, dx);
    if (a.dresidual.data != nullptr)
      store_double(a.dresidual.at(part.r, part.g), c, a.dresidual.dtype, dx);
    if (kDweight)
      reinterpret_cast<float *>(slots + v * slot_step + i / 4 * half_step)[i % 4] +=
          float(dy * xhat);
  });
}

// Rows between two flushes (each a bit of a mask), and in one partial row. Of n terms of one sign,
// sums over 32 and then over 96 such sums (two a flush, where there are rare rows) lose at most
// (32 + 96) / 2 * 2^-24 = 2^-18 of the whole.
constexpr int kFlushRows = 32, kChunkRows = 48 * kFlushRows;

// The rows that bits of `rows` name: bit i for task + i * a.stride. Their sum for dweight is left
// in `slots`. All threads of the team call it, and all of a warp of short rows.
template <bool kDweight>
__device__ __noinline__ void exact_rows(const BackwardArgs &a, Part part, int64_t task,
                                        uint32_t rows, Team team, double *scratch, uint4 *slots,
                                        int slot_step, int half_step) {
  for (int v = 0; kDweight && v < part.vectors; ++v)
    for (int i = 0; i < part.width; i += 4)
      slots[v * slot_step + i / 4 * half_step] = make_uint4(0, 0, 0, 0);
#pragma unroll 1
  for (int i = 0; i < kFlushRows; ++i, task += a.stride) {
    const bool redo = (rows >> i & 1) != 0;
    if (any_row_of_warp(redo, team.threads))
      exact_row<kDweight>(a, part, task, team, redo, scratch, slots, slot_step, half_step);
  }
}

// The same, and reads their sum for dweight.
template <int V, int W>
__device__ inline void add_exact_rows(const BackwardArgs &a, const Part &part, int64_t task,
                                      uint32_t rows, const Team &team, double *scratch,
                                      uint4 *slots, int slot_step, int half_step,
                                      float (&dweight)[V][W]) {
  __syncwarp();  // other lanes may have read what stands in the slots
  exact_rows<true>(a, part, task, rows, team, scratch, slots, slot_step, half_step);
#pragma unroll
  for (int v = 0; v < V; ++v)
#pragma unroll
    for (int i = 0; i < W; ++i)
      dweight[v][i] =
          reinterpret_cast<const float *>(slots + v * slot_step + i / 4 * half_step)[i % 4];
}

// kCount columns of the weight: asked for, and, when they are needed, in fp32.
template <bool kWhole, int kCount>
struct BackwardWeight {
  RawElements<kWhole, kCount> raw;

  __device__ void load(const BackwardArgs &a, uint32_t group, int column, int left) {
    raw = {};
    if (a.weight.data != nullptr && left > 0)
      raw.load(a.start(a.weight, 0, group) + column * size_of(a.weight.dtype), a.weight.dtype,
               left);
  }
  __device__ void read(const BackwardArgs &a, float (&w)[kCount]) const {
    raw.read(a.weight.dtype, w);
    if (a.weight.data == nullptr) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) w[i] = 1;
    }
    if (a.weight_offset != 0) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) w[i] = float(double(w[i]) + a.weight_offset);
    }
  }
};

// What decides whether fp32 will do for a row: it stays in its normal range, rstd^2 * mean too.
__device__ inline bool is_fast_row(float rstd, float mean) {
  const float size = fabsf(mean);
  return in_range(rstd) && size <= 0x1p30f && (size >= 0x1p-60f || size == 0);
}

}  // namespace
}  // namespace rmsnorm::cuda
