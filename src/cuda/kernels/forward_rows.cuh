// Forward for rows of 97 to 2048 vectors (16384 halves), each in the registers of one block. Reads
// each byte of x (and residual) once, writes each of y (and residual_out) once: for halves 4 bytes
// an element, 8 with the fused add.
//
// Tile: blockDim.x threads share a row, blockDim.y rows a block. A warp holds V * 32 vectors that
// follow one another. V: 4 where there are many rows; 2 where a residual needs the registers, and
// at a few rows, where more warps are sooner done. Few long rows are shared by the blocks of
// clusters, which send each other their warps' sums. The tree is the same.
// Not persistent: the hardware's scheduler hands rows out in address order, which DRAM likes best.
#pragma once

#include "cuda/kernels/forward_rare.cuh"

namespace rmsnorm::cuda {
namespace {

// kDense: few registers, as the weight is read after the sum: three blocks of 384 threads fit a
// multiprocessor, or two of 512 that add. kCluster: the blocks of a cluster share a row, and a
// block has no other.
enum class RowBlocks { kOrdinary, kDense, kCluster };

// Registers of a thread, named because ptxas left alone would rather spill. 4 vectors: 64, of which
// rows of 16384 halves have two blocks of 512 threads a multiprocessor (with 72 only one: .69,
// .96); unaligned rows too, in spite of some spills (80: 4097 halves .68, 64: .80).
template <int V, RowBlocks kBlocks>
constexpr int kForwardRegisters = V == 4 && kBlocks != RowBlocks::kDense ? 64 : 56;
template <int V>
constexpr int kForwardWarps = V == 4 ? 16 : 32;  // of a row, at most
template <int V>
constexpr int kForwardPlaces = V == 4 ? 2 : 1;  // rows of a block, at most

template <int V>
struct RowsTree {
  template <class AddSquares>
  static __device__ double rare_sum(const Team &team, double *slots, AddSquares add_squares) {
    return rare_row_sum<kForwardWarps<V>, kForwardPlaces<V>>(team, slots, [&](int ahead) {
      double part[V] = {};
      add_squares(ahead, part);
      return warp_sum_of_vectors<V>(part);
    });
  }
};

// What a block needs of shared memory.
struct ForwardMemory {
  double slots[2][32];  // of each warp of the block's rows, or of all blocks' one row
  uint64_t barrier;     // of a cluster's sum
};

// A thread's first N vectors, of V that it has a place for.
template <class T, int V, int N, bool kWhole, Asked kAsked, RowBlocks kBlocks>
__device__ inline void forward_vectors(const ForwardArgs &a, int64_t task, const Team &team,
                                       int first, ForwardMemory &memory) {
  ForwardRow<T, kWhole, false> row = {task, 0, first, int(a.cols) - first, 32, a.policy};
  if (kAsked == Asked::kAll) a.tasks.locate(task, &row.r, &row.g);
  constexpr bool kWeightFirst = kAsked != Asked::kAll && kBlocks != RowBlocks::kDense;
  Vector<T> weight[N];
  if (kWeightFirst) row.load_weight(a, weight);
  if (a.overlap) start_beside_neighbours();

  Vector<T> h[N];
  row.template load_h<kAsked, N>(a, h);
  SquareSum<T> part[V] = {};
#pragma unroll
  for (int v = 0; v < N; ++v) part[v] = sum_of_squares<T>(h[v], a.h_dtype);
  bool rare = kWeightFirst && !weights_are_small<T, N>(weight);
  Squares<T, 1> squares = {warp_sum_of_vectors<V>(part)};
  auto *const slots = reinterpret_cast<SquareSum<T> *>(memory.slots[0]);
  if constexpr (kBlocks == RowBlocks::kCluster) {
    const MailBox<SquareSum<T>> box = {slots, &memory.barrier};
    await_blocks();
    box.send(squares.of[0], team);
    squares.of[0] = box.template receive<kForwardWarps<V>>(team, 0);
  } else {
    squares.of[0] = add_warps<kForwardWarps<V>, kForwardPlaces<V>>(squares.of[0], team, slots);
  }
  const RowScale scale = scale_of_row<T>(a, squares.of[0]);
  if (a.rstd().data != nullptr && first == 0) store_rstd<T>(a, scale, row.r, row.g);
  if (kAsked == Asked::kAll && a.y().data == nullptr && scale.fast) return;
  if (kBlocks == RowBlocks::kDense) {
    row.load_weight(a, weight);
    rare = !weights_are_small<T, N>(weight);
  }
  rare = rare || !scale.fast;
  if (!normalise_row<T, kAsked, N>(a, row, scale, weight, h)) rare = true;
  if (__any_sync(0xffffffffu, rare))
    return finish_rare<T, V, 1, RowsTree<V>>(a, task, first, V, team, team.threads * V * kWidth<T>,
                                             squares, memory.slots[1]);
  row.template store<N>(a.y(), a.y().dtype, h);
}

template <class T, int V, bool kWhole, Asked kAsked, RowBlocks kBlocks = RowBlocks::kOrdinary>
__global__ void __maxnreg__((kForwardRegisters<V, kBlocks>))
    forward_rows(const __grid_constant__ ForwardArgs a) {
  constexpr bool kCluster = kBlocks == RowBlocks::kCluster;
  constexpr int W = kWidth<T>;
  __shared__ ForwardMemory memory;
  const int threads = blockDim.x;
  __builtin_assume(threads >= 32);
  const Team team = {kCluster ? 0 : int(threadIdx.y), threads, kCluster ? a.cluster : 1};
  int64_t task = a.first_task + int64_t(blockIdx.x) * blockDim.y + team.place;
  int first_of_warp = threadIdx.x / 32 * (V * 32 * W);
  if constexpr (kCluster) {
    task = a.first_task + cluster_of_grid(a.cluster);
    first_of_warp += block_of_cluster(a.cluster) * threads * V * W;
    if (threadIdx.x == 0) open_barrier(&memory.barrier, 1);
    __syncwarp();
    announce_block();
  }
  const int first = first_of_warp + threadIdx.x % 32 * W;
  if (task >= a.task_count) return;
  // Odd widths leave the last warp a few columns.
  if (!kWhole && int(a.cols) - first_of_warp <= 32 * W)
    forward_vectors<T, V, 1, kWhole, kAsked, kBlocks>(a, task, team, first, memory);
  else forward_vectors<T, V, V, kWhole, kAsked, kBlocks>(a, task, team, first, memory);
}

}  // namespace
}  // namespace rmsnorm::cuda
