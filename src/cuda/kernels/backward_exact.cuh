// Backward in fp64 arithmetic, for what backward_rows does not take: fp64 tensors, rows too long
// for a block's shared memory, and dbias. Three kernels: rstd of every row, dweight and dbias by
// columns (they read before dx may overwrite x or dy), then dx by rows. x and dy are read up to
// three times.
#pragma once

#include "cuda/kernels/backward_rows.cuh"
#include "cuda/kernels/forward_exact.cuh"

namespace rmsnorm::cuda {
namespace {

// rstd * 2^exponent; the exponent is 0 unless the row's squares leave fp64's range.
struct RowRstd {
  double rstd;
  int64_t exponent;

  __device__ double xhat(double x) const {
    return (exponent == 0 ? x : scalbn(x, int(exponent))) * rstd;
  }
};

struct ExactBackwardArgs {
  Tasks tasks;
  int64_t first_task;
  Matrix dy, x, weight, rstd, dresidual_out, dx, dresidual;
  RowRstd *row_rstd;        // [tasks]
  double *dweight, *dbias;  // partial sums [groups if by_group][chunks][pitch]; NULL: not wanted
  int64_t pitch;
  int64_t rows, cols, chunks, rows_per_chunk;  // rows: tasks that share a sum
  double eps, weight_offset;
  bool by_group, overlap;
};

// row_rstd: as given; computed where it is absent, 0, Inf or subnormal.
__global__ void __launch_bounds__(kExactThreads)
    backward_rstd(const __grid_constant__ ExactBackwardArgs a) {
  __shared__ Pair scratch[32];
  const int64_t task = a.first_task + blockIdx.x;
  int64_t r, g;
  a.tasks.locate(task, &r, &g);
  if (a.overlap) start_beside_neighbours();
  RowRstd row = {a.rstd.data != nullptr ? load_double(a.rstd.at(r, g), 0, a.rstd.dtype) : 0, 0};
  const double smallest = a.rstd.dtype == RMSNORM_DTYPE_F64 ? 0x1p-1022 : 0x1p-126;
  if (fabs(row.rstd) < smallest || isinf(row.rstd)) {
    const char *x = a.x.at(r, g);
    const auto element = [&](int64_t c) { return load_double(x, c, a.x.dtype); };
    const ExactScale scale = a.x.dtype == RMSNORM_DTYPE_F64
                                 ? exact_scale<true>(a.cols, a.eps, element, scratch)
                                 : exact_scale<false>(a.cols, a.eps, element, scratch);
    row = {scale.rstd.high, scale.exponent};
  }
  if (threadIdx.x == 0) a.row_rstd[task] = row;
}

// One thread a column, blockIdx.x = (group * chunks + chunk) * tiles + tile: the chunk's rows in
// order.
constexpr int kColumnThreads = 128;

__global__ void __launch_bounds__(kColumnThreads)
    backward_columns(const __grid_constant__ ExactBackwardArgs a) {
  if (a.overlap) start_beside_neighbours();
  const int64_t tiles = (a.cols + kColumnThreads - 1) / kColumnThreads;
  const int64_t tile = blockIdx.x % tiles, partial = blockIdx.x / tiles;
  const int64_t group = partial / a.chunks, chunk = partial % a.chunks;
  const int64_t c = tile * kColumnThreads + threadIdx.x;
  if (c >= a.cols) return;
  const int64_t begin = chunk * a.rows_per_chunk;
  const int64_t end = begin + a.rows_per_chunk < a.rows ? begin + a.rows_per_chunk : a.rows;
  double dweight = 0, dbias = 0;
#pragma unroll 4
  for (int64_t i = begin; i < end; ++i) {
    int64_t r = i, g = group;
    if (!a.by_group) a.tasks.locate(i, &r, &g);
    const double dy = load_double(a.dy.at(r, g), c, a.dy.dtype);
    dbias += dy;
    if (a.dweight != nullptr)
      dweight =
          fma(dy, a.row_rstd[r * a.tasks.groups + g].xhat(load_double(a.x.at(r, g), c, a.x.dtype)),
              dweight);
  }
  if (a.dweight != nullptr) a.dweight[partial * a.pitch + c] = dweight;
  if (a.dbias != nullptr) a.dbias[partial * a.pitch + c] = dbias;
}

__global__ void __launch_bounds__(kExactThreads)
    backward_exact(const __grid_constant__ ExactBackwardArgs a) {
  __shared__ Pair scratch[32];
  const int64_t task = a.first_task + blockIdx.x;
  int64_t r, g;
  a.tasks.locate(task, &r, &g);
  const char *x = a.x.at(r, g), *dy = a.dy.at(r, g);
  const char *weight = a.weight.data + g * a.weight.group_stride;
  if (a.overlap) start_beside_neighbours();
  const RowRstd row = a.row_rstd[task];
  const auto weighted_dy = [&](int64_t c) {
    const double w = a.weight.data != nullptr ? load_double(weight, c, a.weight.dtype) : 1;
    return (w + a.weight_offset) * load_double(dy, c, a.dy.dtype);
  };
  double sum = 0;
  for (int64_t c = threadIdx.x; c < a.cols; c += kExactThreads)
    sum = fma(weighted_dy(c), row.xhat(load_double(x, c, a.x.dtype)), sum);
  const double mean = block_sum({sum, 0}, scratch).high / double(a.cols);
  for (int64_t c = threadIdx.x; c < a.cols; c += kExactThreads) {
    double dx = row.rstd * fma(-row.xhat(load_double(x, c, a.x.dtype)), mean, weighted_dy(c));
    if (row.exponent != 0) dx = scalbn(dx, int(row.exponent));
    if (a.dresidual_out.data != nullptr)
      dx += load_double(a.dresidual_out.at(r, g), c, a.dresidual_out.dtype);
    if (a.dx.data != nullptr) store_double(a.dx.at(r, g), c, a.dx.dtype, dx);
    if (a.dresidual.data != nullptr) store_double(a.dresidual.at(r, g), c, a.dresidual.dtype, dx);
  }
}

}  // namespace
}  // namespace rmsnorm::cuda
