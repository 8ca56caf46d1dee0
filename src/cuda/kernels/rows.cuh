// What the kernels know of rows: where a row's tensors stand, which threads share a row, how they
// sum over it in one fixed tree, and the launch-order instructions.
#pragma once

#include <cstdint>

#include "rmsnorm.h"

namespace rmsnorm::cuda {
namespace {

// A tensor as kernels see it: strides in bytes. Absent: data is NULL.
struct Matrix {
  char *data;
  int64_t row_stride, group_stride;
  rmsnorm_dtype_t dtype;

  __device__ char *at(int64_t row, int64_t group) const {
    return data + row * row_stride + group * group_stride;
  }
};

// A task is one (row, group): task = row * groups + group.
struct Tasks {
  int64_t count;
  int64_t groups;

  __device__ void locate(int64_t task, int64_t *row, int64_t *group) const {
    if (groups == 1) {
      *row = task;
      *group = 0;
    } else if ((task | groups) >> 32 == 0) {
      *row = uint32_t(task) / uint32_t(groups);
      *group = uint32_t(task) % uint32_t(groups);
    } else {
      *row = task / groups;
      *group = task % groups;
    }
  }
};

// Waits for the threads of one row alone; `row` < 15 is the row's place in the block.
__device__ inline void row_barrier(int row, int threads) {
  __syncwarp();  // bar.sync counts warps: each must arrive whole
  asm volatile("bar.sync %0, %1;" ::"r"(row + 1), "r"(threads) : "memory");
}

// Sums over the `threads` threads of a row: a power of two up to 32, or whole warps. Every thread
// gets the same bits, whatever else is in the block. `scratch` is this row's 32 elements of shared
// memory, not in use by another sum that a thread of this row may still be reading.
template <class Scalar>
__device__ inline Scalar row_sum(Scalar value, int row, int threads, Scalar *scratch) {
  const auto over_warp = [&] {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2)
      value += __shfl_xor_sync(0xffffffffu, value, offset);
  };
  if (threads < 32) {
    for (int offset = threads / 2; offset > 0; offset /= 2)
      value += __shfl_xor_sync(0xffffffffu, value, offset);
    return value;
  }
  over_warp();
  if (threads == 32) return value;
  const int lane = threadIdx.x % 32;
  if (lane == 0) scratch[threadIdx.x / 32] = value;
  row_barrier(row, threads);
  value = lane < threads / 32 ? scratch[lane] : Scalar(0);
  over_warp();
  return value;
}

// True for every thread of a row, or of a warp of short rows, if it is for any of their rows; rows
// of whole warps agree already.
__device__ inline bool any_row_of_warp(bool condition, int threads) {
  return threads < 32 ? __any_sync(0xffffffffu, condition) != 0 : condition;
}

// Programmatic dependent launch (sm_90 on; elsewhere nothing): lets the stream's next kernel start.
__device__ inline void let_next_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// For a kernel that was launched so that it may start before the stream's previous one ends: lets
// the next one start likewise, then waits until the previous one has ended and its writes are
// visible.
__device__ inline void start_beside_neighbours() {
#if __CUDA_ARCH__ >= 900
  let_next_start();
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

}  // namespace
}  // namespace rmsnorm::cuda
