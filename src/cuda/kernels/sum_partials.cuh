// The last step of dweight and dbias: adds the partial rows of the workspace in fp64, in a fixed
// tree, and rounds once. 32 columns and kSumRows row-threads a block; each thread adds every
// kSumRows-th partial row.
#pragma once

#include "cuda/kernels/elements.cuh"
#include "cuda/kernels/rows.cuh"

namespace rmsnorm::cuda {
namespace {

constexpr int kSumColumns = 32, kSumRows = 16;

struct SumArgs {
  const void *partial;  // [groups][count][pitch], Real
  int64_t count, pitch, cols;
  char *out;                 // groups rows of cols elements
  int64_t out_group_stride;  // bytes
  rmsnorm_dtype_t dtype;
  bool accumulate, overlap;
};

template <class Real>
__global__ void __launch_bounds__(kSumColumns *kSumRows)
    sum_partials(const __grid_constant__ SumArgs a) {
  __shared__ double sums[kSumRows][kSumColumns];
  const int64_t tiles = (a.cols + kSumColumns - 1) / kSumColumns;
  const int64_t group = blockIdx.x / tiles;
  const int64_t c = blockIdx.x % tiles * kSumColumns + threadIdx.x;
  if (a.overlap) start_beside_neighbours();
  double sum = 0;
  if (c < a.cols) {
    const Real *column = static_cast<const Real *>(a.partial) + group * a.count * a.pitch + c;
#pragma unroll 8
    for (int64_t i = threadIdx.y; i < a.count; i += kSumRows) sum += double(column[i * a.pitch]);
  }
  sums[threadIdx.y][threadIdx.x] = sum;
  for (int half = kSumRows / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.y < half) sums[threadIdx.y][threadIdx.x] += sums[threadIdx.y + half][threadIdx.x];
  }
  if (threadIdx.y != 0 || c >= a.cols) return;
  char *out = a.out + group * a.out_group_stride;
  double total = sums[0][threadIdx.x];
  if (a.accumulate) total += load_double(out, c, a.dtype);
  store_double(out, c, a.dtype, total);
}

}  // namespace
}  // namespace rmsnorm::cuda
