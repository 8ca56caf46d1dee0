// Rows outside fp32's comfortable range, for backward_rows: in fp64, by calls of their own that
// read the row again from memory, so that rare code costs the loop no registers.
#pragma once

#include "cuda/kernels/elements.cuh"
#include "cuda/kernels/rows.cuh"

namespace rmsnorm::cuda {
namespace {

constexpr int kBackwardWarps = 16;   // of a row, at most
constexpr int kBackwardPlaces = 16;  // rows of a block

struct BackwardArgs {
  Matrix dy, x, dx, rstd, weight;
  Tasks tasks;        // by_group: of one group, which is (block or cluster) / blocks
  int64_t stride;     // tasks from row to row of one group of threads: blocks * blockDim.y
  int64_t rows_more;  // the groups before this one have one row more than rows_each
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
  int sum_slots;  // for row_sum
  bool by_group;  // weight or dweight is per group, and a block keeps to one group
  bool overlap;
  Matrix dresidual_out, dresidual;
  double eps, weight_offset;

  // The first task of this group of threads, and the group that its block keeps to.
  __device__ int64_t first_task() const {
    const uint32_t block = cluster_of_grid();
    return int64_t(by_group ? block % uint32_t(blocks) : block) * blockDim.y + threadIdx.y;
  }
  __device__ int64_t fixed_group() const {
    return by_group ? cluster_of_grid() / uint32_t(blocks) : 0;
  }
  __device__ void locate(int64_t task, int64_t *r, int64_t *g) const {
    if (!by_group) return tasks.locate(task, r, g);
    *r = task;
    *g = fixed_group();
  }
};

__device__ inline double exact_weight(const BackwardArgs &a, int64_t g, int64_t c) {
  const char *row = a.weight.data + g * a.weight.group_stride;
  return (a.weight.data != nullptr ? load_double(row, c, a.weight.dtype) : 1) + a.weight_offset;
}

__device__ inline double exact_rstd(const BackwardArgs &a, const Part &part, const Team &team,
                                    double *scratch) {
  const char *x_row = a.x.at(part.r, part.g);
  double sum = 0;
  part.each_column(a.cols, [&](int64_t c, int, int) {
    const double x = load_double(x_row, c, a.x.dtype);
    sum = fma(x, x, sum);
  });
  return 1.0 / sqrt(row_sum<kBackwardWarps, kBackwardPlaces>(sum, team, scratch) / double(a.cols) +
                    a.eps);
}

// rstd of a row, from x. All threads of the team call it, and all of a warp of short rows.
__device__ __noinline__ float compute_rstd(const BackwardArgs &a, Part part, int64_t task,
                                           Team team, double *scratch) {
  if (task < a.tasks.count) a.locate(task, &part.r, &part.g);
  else part.vectors = 0;
  return float(exact_rstd(a, part, team, scratch));
}

// Writes this thread's elements of dx and dresidual, and leaves dy * xhat for dweight as floats:
// element i of vector v at slots[v * slot_step + i / 4 * half_step], float i % 4. All threads of
// the team call it, and all of a warp of short rows; `redo`: whether it is for this row.
__device__ __noinline__ void exact_row(const BackwardArgs &a, Part part, int64_t task, Team team,
                                       bool redo, bool known, float rstd_given, double *scratch,
                                       uint4 *slots, int slot_step, int half_step) {
  if (task < a.tasks.count) a.locate(task, &part.r, &part.g);
  else part.vectors = 0;
  double rstd = rstd_given;
  if (any_row_of_warp(!known, team.threads)) {
    const double computed = exact_rstd(a, part, team, scratch);
    if (!known) rstd = computed;
  }
  const char *x_row = a.x.at(part.r, part.g), *dy_row = a.dy.at(part.r, part.g);
  double sum = 0;
  part.each_column(a.cols, [&](int64_t c, int, int) {
    sum = fma(exact_weight(a, part.g, c) * load_double(dy_row, c, a.dy.dtype),
              load_double(x_row, c, a.x.dtype) * rstd, sum);
  });
  const double mean =
      row_sum<kBackwardWarps, kBackwardPlaces>(sum, team, scratch + a.sum_slots) / double(a.cols);
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
    reinterpret_cast<float *>(slots + v * slot_step + i / 4 * half_step)[i % 4] = float(dy * xhat);
  });
}

}  // namespace
}  // namespace rmsnorm::cuda
