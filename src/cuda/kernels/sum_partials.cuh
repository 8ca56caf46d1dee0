// The last step of dweight and dbias: adds the partial rows of the workspace in fp64, in a fixed
// tree, and rounds once. A block takes kSumColumns columns; each of its kSumRows row-threads adds
// every kSumRows-th partial row, 4 columns at a time, with its loads in flight together.
#pragma once

#include "cuda/kernels/elements.cuh"
#include "cuda/kernels/rows.cuh"

namespace rmsnorm::cuda {
namespace {

constexpr int kSumQuads = 4, kSumColumns = 4 * kSumQuads, kSumRows = 64;
constexpr int kSumThreads = kSumQuads * kSumRows;
constexpr int kSumAtOnce = 5;  // of a row-thread's partial rows: those of 320 blocks in one go

struct SumArgs {
  const void *partial;  // [groups][count][pitch], Real
  int64_t count, pitch, cols;
  char *out;                 // groups rows of cols elements
  int64_t out_group_stride;  // bytes
  uint32_t tiles;            // of kSumColumns columns, in a group
  rmsnorm_dtype_t dtype;
  bool accumulate, overlap;
};

template <class Real>
__global__ void __launch_bounds__(kSumThreads) sum_partials(const __grid_constant__ SumArgs a) {
  __shared__ double sums[kSumThreads / 32][kSumColumns];
  const uint32_t group = blockIdx.x / a.tiles, tile = blockIdx.x - group * a.tiles;
  const int quad = threadIdx.x % kSumQuads, row = threadIdx.x / kSumQuads;
  const int64_t first = int64_t(tile) * kSumColumns + quad * 4;
  if (a.overlap) start_beside_neighbours();
  double sum[4] = {0, 0, 0, 0};
  const Real *column = static_cast<const Real *>(a.partial) + group * a.count * a.pitch + first;
  struct alignas(16) Four {
    Real real[4];
  };
  for (int64_t i = row; first + 4 <= a.pitch && i < a.count; i += kSumAtOnce * kSumRows) {
    Four four[kSumAtOnce];
#pragma unroll
    for (int u = 0; u < kSumAtOnce; ++u) {
      four[u] = {};
      if (i + u * kSumRows < a.count)
        four[u] = *reinterpret_cast<const Four *>(column + (i + u * kSumRows) * a.pitch);
    }
#pragma unroll
    for (int u = 0; u < kSumAtOnce; ++u)
#pragma unroll
      for (int c = 0; c < 4; ++c) sum[c] += double(four[u].real[c]);
  }
#pragma unroll
  for (int c = 0; c < 4; ++c)
#pragma unroll
    for (int offset = kSumQuads; offset < 32; offset *= 2)
      sum[c] += __shfl_xor_sync(0xffffffffu, sum[c], offset);
  if (threadIdx.x % 32 < kSumQuads) {
#pragma unroll
    for (int c = 0; c < 4; ++c) sums[threadIdx.x / 32][quad * 4 + c] = sum[c];
  }
  __syncthreads();
  const int64_t c = int64_t(tile) * kSumColumns + threadIdx.x;
  if (threadIdx.x >= kSumColumns || c >= a.cols) return;
  double total = 0;
#pragma unroll
  for (int warp = 0; warp < kSumThreads / 32; ++warp) total += sums[warp][threadIdx.x];
  char *out = a.out + group * a.out_group_stride;
  if (a.accumulate) total += load_double(out, c, a.dtype);
  store_double(out, c, a.dtype, total);
}

}  // namespace
}  // namespace rmsnorm::cuda
