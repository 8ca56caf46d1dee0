// Forward for rows of more than 2048 vectors (16384 halves): in the shared memory of a block, or of
// the blocks of a cluster. Bytes as in forward_rows.
#pragma once

#include "cuda/kernels/forward_rare.cuh"

namespace rmsnorm::cuda {
namespace {

constexpr int kLongThreads = 512, kLongWarps = kLongThreads / 32;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800  // a multiprocessor has 1024 threads
constexpr int kLongBlocks = 2;
#else
constexpr int kLongBlocks = 3;
#endif
constexpr int kLongSlots = 256;  // 16 warps of 16 blocks

struct LongTree {
  template <class AddSquares>
  static __device__ double rare_sum(const Team &team, double *slots, AddSquares add_squares) {
    return rare_row_sum<kLongWarps, 1>(team, slots, [&](int ahead) {
      double part[1] = {};
      add_squares(ahead, part);
      return warp_sum(part[0]);
    });
  }
};

// Any number of vectors a thread; each warp reads only its own slots, of which it has one more than
// vectors (copy_span).
template <class T, bool kWhole, Asked kAsked>
__global__ void __launch_bounds__(kLongThreads, kLongBlocks)
    forward_long(const __grid_constant__ ForwardArgs a) {
  using Row = ForwardRow<T, kWhole, false>;
  using Sum = SquareSum<T>;
  constexpr int W = kWidth<T>, kTogether = 2;
  extern __shared__ __align__(128) uint4 memory[];
  __shared__ alignas(16) double scratch[2][kLongSlots];
  __shared__ uint64_t barrier;
  const int threads = blockDim.x;
  __builtin_assume(threads >= 32);
  const Team team = {0, threads, a.cluster};
  const MailBox<Sum> box = {reinterpret_cast<Sum *>(scratch[0]), &barrier};
  const int64_t task = a.first_task + cluster_of_grid(a.cluster);
  const int vectors = a.vectors;  // of this thread, a multiple of kTogether
  const int first = (block_of_cluster(a.cluster) * threads * vectors +
                     threadIdx.x / 32 * vectors * 32 + threadIdx.x % 32) *
                    W;
  if (team.cluster > 1) {
    if (threadIdx.x == 0) open_barrier(&barrier, 1);
    __syncwarp();
    announce_block();
  }
  Row row = {task, 0, first, int(a.cols) - first, 32, a.policy};
  if (kAsked == Asked::kAll) a.tasks.locate(task, &row.r, &row.g);
  if (a.overlap) start_beside_neighbours();

  uint4 *const own = memory + threadIdx.x / 32 * (vectors * 32 + 1) + threadIdx.x % 32;
  Sum sum = 0;
  if ((kWhole || Row::kSpans) && a.residual().data == nullptr) {
    const char *data = row.at(a.x());
    if constexpr (Row::kSpans) {
      copy_span<T>(own, data, row.left, vectors);
    } else {
      for (int v = 0; v < vectors; ++v)
        copy_whole_vector<T>(own + v * 32, data + v * row.step() * size_of_element<T>(a.x().dtype),
                             row.left > v * row.step(), a.x().dtype);
    }
    commit_copies();
    wait_for_copies<0>();
#pragma unroll 2
    for (int v = 0; v < vectors; ++v) {
      if constexpr (Row::kSpans) align_span<T, 1>(own + v * 32, misalignment(data));
      Vector<T> h;
      h.set(own[v * 32]);
      sum += sum_of_squares<T>(h, a.h_dtype);
    }
  } else {
    for (int v = 0; v < vectors; v += kTogether) {
      Vector<T> h[kTogether];
      row.from(v).template load_h<Asked::kAll, kTogether>(a, h);
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        own[(v + i) * 32] = make_uint4(h[i].word[0], h[i].word[1], h[i].word[2], h[i].word[3]);
        sum += sum_of_squares<T>(h[i], a.h_dtype);
      }
    }
  }
  Squares<T, 1> squares;
  if (team.cluster > 1) {
    await_blocks();
    box.send(warp_sum(sum), team);
    squares.of[0] = box.template receive<kLongWarps>(team, 0);
  } else {
    squares.of[0] = add_warps<kLongWarps, 1>(warp_sum(sum), team, box.slots);
  }
  const RowScale scale = scale_of_row<T>(a, squares.of[0]);
  if (a.rstd().data != nullptr && first == 0) store_rstd<T>(a, scale, row.r, row.g);

  if (kAsked == Asked::kAll && a.y().data == nullptr && scale.fast) return;

  Vector<T> next[kTogether];
  if (kAsked != Asked::kAll) row.load_weight(a, next);
  for (int v = 0; v < vectors; v += kTogether) {
    const Row here = row.from(v);
    Vector<T> weight[kTogether], h[kTogether];
    bool rare = !scale.fast;
    if constexpr (kAsked != Asked::kAll) {
#pragma unroll
      for (int i = 0; i < kTogether; ++i) weight[i] = next[i];
      row.from(v + kTogether).load_weight(a, next);
      rare = rare || !weights_are_small<T, kTogether>(weight);
    }
#pragma unroll
    for (int i = 0; i < kTogether; ++i) h[i].set(own[(v + i) * 32]);
    if (!normalise_row<T, kAsked, kTogether>(a, here, scale, weight, h)) rare = true;
    if (__any_sync(0xffffffffu, rare))
      return finish_rare<T, 1, 1, LongTree>(a, task, here.first, vectors - v, team,
                                            threads * vectors * W, squares, scratch[1]);
    here.template store<kTogether>(a.y(), a.y().dtype, h);
  }
}

}  // namespace
}  // namespace rmsnorm::cuda
