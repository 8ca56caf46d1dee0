// Forward for rows of at most 96 vectors (768 halves: heads), several of which share a warp: no
// shared memory, no barrier. Reads each byte of x (and residual) once, writes each of y (and
// residual_out) once: for halves 4 bytes an element, 8 with the fused add.
//
// Tile: blockDim.x lanes (2^n <= 32) share a row and have V vectors each, so that 80, 96 or 192
// halves leave few lanes idle; blockDim.y * U rows a block. Each thread works on U rows at once:
// their loads are in flight together, and what rows have in common is paid once.
#pragma once

#include "cuda/kernels/forward_rare.cuh"

namespace rmsnorm::cuda {
namespace {

// Rows of a thread. kAll has no registers for more than one.
template <int V, Asked kAsked>
constexpr int kShortRows = kAsked == Asked::kAll ? 1
                           : V == 1              ? 4
                                                 : 2;

// Over the thread's vectors in their order, then over the lanes.
template <int V>
struct ShortTree {
  template <class Scalar>
  static __device__ Scalar of_thread(const Scalar (&part)[V]) {
    Scalar value = part[0];
#pragma unroll
    for (int v = 1; v < V; ++v) value += part[v];
    return value;
  }
  template <class AddSquares>
  static __device__ double rare_sum(const Team &team, double *, AddSquares add_squares) {
    double part[V] = {};
    add_squares(0, part);
    double value = of_thread(part);
    for (int offset = team.threads / 2; offset > 0; offset /= 2)
      value += __shfl_xor_sync(0xffffffffu, value, offset);
    return value;
  }
};

constexpr int kShortThreads = 64;
template <class T, int V>  // more would spill
constexpr int kShortBlocks = V == 3 || std::is_same_v<T, float> ? 12 : 16;

template <class T, int V, bool kWhole, Asked kAsked>
__global__ void __launch_bounds__(kShortThreads, (kShortBlocks<T, V>))
    forward_short(const __grid_constant__ ForwardArgs a) {
  using Row = ForwardRow<T, kWhole, true>;
  constexpr int W = kWidth<T>, U = kShortRows<V, kAsked>;
  const int lanes = blockDim.x, first = threadIdx.x * W;
  const Team team = {int(threadIdx.y), lanes, 1};
  const int64_t task = a.first_task + int64_t(blockIdx.x) * (blockDim.y * U) + team.place;
  // Threads without a row stay for their warp's shuffles.
  Row rows[U];
#pragma unroll
  for (int u = 0; u < U; ++u) {
    const int64_t own = task + u * int64_t(blockDim.y);
    const bool active = own < a.task_count;
    rows[u] = {active ? own : 0, 0, first, active ? int(a.cols) - first : 0, lanes, a.policy};
    if (kAsked == Asked::kAll && active) a.tasks.locate(own, &rows[u].r, &rows[u].g);
  }
  Vector<T> weight[V];
  bool rare = false;
  if constexpr (kAsked != Asked::kAll) {
    rows[0].load_weight(a, weight);
    rare = !weights_are_small<T, V>(weight);
  }
  if (a.overlap) start_beside_neighbours();

  Vector<T> h[U][V];
  Squares<T, U> squares;
#pragma unroll
  for (int u = 0; u < U; ++u) rows[u].template load_h<kAsked, V>(a, h[u]);
#pragma unroll
  for (int u = 0; u < U; ++u) {
    SquareSum<T> part[V];
#pragma unroll
    for (int v = 0; v < V; ++v) part[v] = sum_of_squares<T>(h[u][v], a.h_dtype);
    squares.of[u] = ShortTree<V>::of_thread(part);
  }
  for (int offset = lanes / 2; offset > 0; offset /= 2)
#pragma unroll
    for (int u = 0; u < U; ++u)
      squares.of[u] += __shfl_xor_sync(0xffffffffu, squares.of[u], offset);
  RowScale scale[U];
#pragma unroll
  for (int u = 0; u < U; ++u) {
    scale[u] = scale_of_row<T>(a, squares.of[u]);
    rare = rare || !scale[u].fast;
    if (a.rstd().data != nullptr && first == 0 && rows[u].left > 0)
      store_rstd<T>(a, scale[u], rows[u].r, rows[u].g);
  }
  if (kAsked == Asked::kAll && a.y().data == nullptr && !__any_sync(0xffffffffu, rare)) return;
#pragma unroll
  for (int u = 0; u < U; ++u)
    if (!normalise_row<T, kAsked, V>(a, rows[u], scale[u], weight, h[u])) rare = true;
  if (__any_sync(0xffffffffu, rare))
    return finish_rare<T, V, U, ShortTree<V>>(a, task, first, V, team, 0, squares, nullptr);
#pragma unroll
  for (int u = 0; u < U; ++u) rows[u].template store<V>(a.y(), a.y().dtype, h[u]);
}

}  // namespace
}  // namespace rmsnorm::cuda
