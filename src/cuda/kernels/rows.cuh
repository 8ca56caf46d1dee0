// What the kernels know of rows: where a row's tensors stand, which threads share a row, how they
// sum over it in one fixed tree (in a warp, a block or a cluster of blocks), and the launch-order
// instructions.
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
  int64_t count = 0, groups = 1;
  uint32_t magic = 0;  // task / groups = task * magic >> (31 + shift) while count < 2^31
  int shift = 0;       // (Granlund and Montgomery, "Division by invariant integers", 1994)

  Tasks() = default;
  Tasks(int64_t task_count, int64_t group_count) : count(task_count), groups(group_count) {
    if (groups == 1 || count >> 31 != 0) return;
    while ((int64_t{1} << shift) < groups && shift < 31) ++shift;
    magic = uint32_t(((uint64_t{1} << (31 + shift)) + uint64_t(groups) - 1) / uint64_t(groups));
  }

  __device__ void locate(int64_t task, int64_t *row, int64_t *group) const {
    if (groups == 1) {
      *row = task;
      *group = 0;
    } else if (count >> 31 == 0) {
      *row = uint32_t((uint64_t(task) * magic) >> (31 + shift));
      *group = task - *row * groups;
    } else {
      *row = divide(task, groups);
      *group = task - *row * groups;
    }
  }

 private:
  // Out of line: it is long, and rare.
  static __device__ __noinline__ int64_t divide(int64_t task, int64_t groups) {
    return task / groups;
  }
};

// What one thread has of a row: `vectors` vectors of `width` elements, the first at column `first`
// and each `step` columns behind the one before.
struct Part {
  int64_t r, g;
  int first, step, vectors, width;

  template <class Visit>
  __device__ void each_column(int64_t cols, Visit visit) const {
    for (int v = 0; v < vectors; ++v)
      for (int i = 0; i < width; ++i) {
        const int64_t c = int64_t(first) + v * step + i;
        if (c < cols) visit(c, v, i);
      }
  }
};

// The threads that share a row: `threads` of each of `cluster` blocks; a power of two up to 32 or
// whole warps. `place`: which of its block's rows it is.
struct Team {
  int place, threads, cluster;
};

// This block's place in its cluster, and its cluster's in the grid; `cluster`: its blocks, a power
// of two. The registers that hold these take longer to read.
__device__ inline int block_of_cluster(int cluster) { return int(blockIdx.x) & (cluster - 1); }
__device__ inline uint32_t cluster_of_grid(int cluster) {
  return blockIdx.x >> (31 - __clz(cluster));
}

// The start of a cluster in two halves, so that loads can be under way in between: no block's
// shared memory may be touched by another before it is known to have started.
__device__ inline void announce_block() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
#endif
}
__device__ inline void await_blocks() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

// The address of another block's shared memory that corresponds to this block's `shared`.
__device__ inline uint32_t address_in_block(const void *shared, int rank) {
  uint32_t address = uint32_t(__cvta_generic_to_shared(shared));
#if __CUDA_ARCH__ >= 900
  asm volatile("mapa.shared::cluster.u32 %0, %0, %1;" : "+r"(address) : "r"(rank));
#endif
  return address;
}

// Waits for the threads of one row alone; `place` < kPlaces <= 15. Barriers named at compile time,
// of which few rows need few: a kernel that may use all 16 fits a multiprocessor four times only.
template <int kPlaces>
__device__ inline void row_barrier(const Team &team) {
  __syncwarp();  // bar.sync counts warps: each must arrive whole
  if (kPlaces > 2)
    asm volatile("bar.sync %0, %1;" ::"r"(team.place + 1), "r"(team.threads) : "memory");
  else if (kPlaces == 1)  // not aligned: a row's last warp may come by code of its own
    asm volatile("barrier.sync 1, %0;" ::"r"(team.threads) : "memory");
  else if (team.place == 0) asm volatile("bar.sync 1, %0;" ::"r"(team.threads) : "memory");
  else asm volatile("bar.sync 2, %0;" ::"r"(team.threads) : "memory");
}

template <class Scalar>
__device__ inline Scalar warp_sum(Scalar value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2)
    value += __shfl_xor_sync(0xffffffffu, value, offset);
  return value;
}

// What the sums below need of shared memory: a slot for each warp of a block's rows, or of one row
// in all blocks of a cluster.
__host__ __device__ constexpr int sum_slots(int rows, int threads, int cluster) {
  return threads < 32 ? 0 : rows * (threads / 32) * cluster;
}

// Adds the `count` values of `slots`, at most kMost (a power of two), in pairs: a lane four of
// them, which shortens the way through the shuffles.
template <int kMost, class Scalar>
__device__ inline Scalar add_in_pairs(const Scalar *slots, int count) {
  constexpr int kFew = 4;
  static_assert(kMost >= kFew, "");
  const int first = threadIdx.x * kFew % kMost;
  Scalar few[kFew];
#pragma unroll
  for (int i = 0; i < kFew; ++i) few[i] = first + i < count ? slots[first + i] : 0;
  Scalar value = (few[0] + few[1]) + (few[2] + few[3]);
#pragma unroll
  for (int offset = 1; offset < kMost / kFew; offset *= 2)
    value += __shfl_xor_sync(0xffffffffu, value, offset);
  return value;
}

// Adds the sums of a row's warps, at most kWarps. `slots`: not in use by another sum that a thread
// of the team may still be reading.
template <int kWarps, int kPlaces, class Scalar>
__device__ inline Scalar add_warps(Scalar value, const Team &team, Scalar *slots) {
  if (team.threads == 32) return value;
  const int warps = team.threads / 32;
  slots += team.place * warps;
  if (threadIdx.x % 32 == 0) slots[threadIdx.x / 32] = value;
  row_barrier<kPlaces>(team);
  return add_in_pairs<kWarps>(slots, warps);
}

// Adds the sums of a row's warps, in all blocks of its cluster: in the tree of add_warps if they
// are so few that one block may have them.
template <int kWarps, class Scalar>
__device__ inline Scalar add_row_slots(const Scalar *slots, int count) {
  if (count <= kWarps) return add_in_pairs<kWarps>(slots, count);
  Scalar value = 0;
#pragma unroll 1
  for (int i = threadIdx.x % 32; i < count; i += 32) value += slots[i];
  return warp_sum(value);
}

// A row's sum for what is rare: each block of a cluster finds all of it, so that none waits for
// another, in the tree that its common path has. `of_warp(ahead)`: this warp's part of the columns
// of the block that is `ahead` behind this one. Every thread gets the same bits.
template <int kWarps, int kPlaces, class OfWarp>
__device__ inline double rare_row_sum(const Team &team, double *slots, OfWarp of_warp) {
  const int warps = team.threads / 32, all = warps * team.cluster;
  const int own = block_of_cluster(team.cluster);
  slots += team.place * all;
  row_barrier<kPlaces>(team);  // another warp may be reading an earlier sum
  for (int rank = 0; rank < team.cluster; ++rank) {
    const double value = of_warp(rank - own);
    if (threadIdx.x % 32 == 0) slots[rank * warps + threadIdx.x / 32] = value;
  }
  row_barrier<kPlaces>(team);
  return add_row_slots<kWarps>(slots, all);
}

// The sum over a warp's V * 32 vectors, vector v of this lane having given part[v]: over the 32
// vectors side by side, then over these sums in pairs, as add_warps goes on. So the tree is the
// same whether a thread has 2 or 4 of a row's vectors. Lanes exchange whole vectors while there are
// several, which saves the most of the shuffles.
template <int V, class Scalar>
__device__ inline Scalar warp_sum_of_vectors(const Scalar (&part)[V]) {
  static_assert(V == 2 || V == 4, "");
  const auto other = [](Scalar value, int offset) {
    return __shfl_xor_sync(0xffffffffu, value, offset);
  };
  Scalar value;
  const bool second = threadIdx.x & 16;
  Scalar half[V / 2];
#pragma unroll
  for (int v = 0; v < V / 2; ++v)
    half[v] = (second ? part[v + V / 2] : part[v]) + other(second ? part[v] : part[v + V / 2], 16);
  if constexpr (V == 2) {
    value = half[0] + other(half[0], 8);
  } else {
    const bool odd = threadIdx.x & 8;
    value = (odd ? half[1] : half[0]) + other(odd ? half[0] : half[1], 8);
  }
#pragma unroll
  for (int offset = 4; offset > 0; offset /= 2) value += other(value, offset);
  if constexpr (V == 4) value += other(value, 8);
  return value + other(value, 16);
}

// Barriers in shared memory that count arrivals and bytes (sm_90 on). open_barrier: by one thread,
// before any other uses it; a phase ends when `arrivals` threads have arrived and the bytes that
// they expect have come; wait: phases 0 and 1 in turn.
__device__ inline void open_barrier(uint64_t *barrier, int arrivals) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "mbarrier.init.shared::cta.b64 [%0], %1;\nfence.mbarrier_init.release.cluster;" ::"r"(
          uint32_t(__cvta_generic_to_shared(barrier))),
      "r"(arrivals)
      : "memory");
#endif
}
__device__ inline void arrive(uint64_t *barrier) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(uint32_t(__cvta_generic_to_shared(barrier)))
      : "memory");
#endif
}
__device__ inline void expect_bytes(uint64_t *barrier, int bytes) {
#if __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(
                   uint32_t(__cvta_generic_to_shared(barrier))),
               "r"(bytes)
               : "memory");
#endif
}
__device__ inline void wait_for_phase(uint64_t *barrier, uint32_t phase) {
#if __CUDA_ARCH__ >= 900
  const uint32_t address = uint32_t(__cvta_generic_to_shared(barrier));
  uint32_t done = 0;
  while (done == 0)
    asm volatile(
        "{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n}"
        : "=r"(done)
        : "r"(address), "r"(phase)
        : "memory");
  __syncwarp();
#endif
}

// The sums of a cluster's row without a barrier of all its threads, which would wait for every
// store of theirs: each warp sends its partial sum to every block (st.async), and a block goes on
// when its barrier has counted the bytes of all.
template <class Scalar>
struct MailBox {
  Scalar *slots;      // of all warps of the cluster
  uint64_t *barrier;  // opened for 1 arrival, before announce_block

  // `value`: the same in all of a warp.
  __device__ void send(Scalar value, const Team &team) const {
    const int warps = team.threads / 32;
    if (threadIdx.x == 0) expect_bytes(barrier, warps * team.cluster * int(sizeof(Scalar)));
#if __CUDA_ARCH__ >= 900
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    if (lane < team.cluster) {
      const uint32_t to =
          address_in_block(slots + block_of_cluster(team.cluster) * warps + warp, lane);
      const uint32_t there = address_in_block(barrier, lane);
      if constexpr (sizeof(Scalar) == 4)
        asm volatile(
            "st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(to),
            "r"(__float_as_uint(value)), "r"(there)
            : "memory");
      else
        asm volatile(
            "st.async.shared::cluster.mbarrier::complete_tx::bytes.b64 [%0], %1, [%2];" ::"r"(to),
            "l"(__double_as_longlong(value)), "r"(there)
            : "memory");
    }
#endif
  }
  // `phase`: 0 and 1 in turn from use to use.
  template <int kWarps>
  __device__ Scalar receive(const Team &team, uint32_t phase) const {
    wait_for_phase(barrier, phase);
    return add_row_slots<kWarps>(slots, team.threads / 32 * team.cluster);
  }
};

// Sums of one row after another, each received only after the next row's has been sent, so that
// nobody waits in between. Row k uses slots and barrier k % 4: a warp that sends row k has received
// row k - 2, so all had sent that, so all are done with row k - 4.
struct SumsInTurn {
  float *slots;        // of the team: those of row 0
  int count;           // from row to row: those of the whole block
  uint64_t *barriers;  // 4 of the team

  __device__ void open(const Team &team) const {
    if (threadIdx.x == 0)
      for (uint32_t k = 0; k < 4; ++k)
        open_barrier(barriers + k, team.cluster > 1 ? 1 : team.threads / 32);
    __syncwarp();
  }
  // `value`: the same in all of a warp.
  __device__ void send(float value, const Team &team, uint32_t k) const {
    float *const own = slots + k % 4 * count;
    if (team.cluster > 1) return MailBox<float>{own, barriers + k % 4}.send(value, team);
    if (threadIdx.x % 32 == 0) {
      own[threadIdx.x / 32] = value;
      arrive(barriers + k % 4);
    }
  }
  template <int kWarps, int kPlaces>
  __device__ float receive(const Team &team, uint32_t k) const {
    const float *own = slots + k % 4 * count;
    const int all = team.threads / 32 * team.cluster;
#if __CUDA_ARCH__ >= 900
    wait_for_phase(barriers + k % 4, k / 4 % 2);
#else
    row_barrier<kPlaces>(team);
#endif
    if (all > kWarps) return add_row_slots<kWarps>(own, all);
    // Not by add_in_pairs, whose registers backward_rows does not have: it would spill.
    const int lane = threadIdx.x % kWarps;
    float value = lane < all ? own[lane] : 0;
#pragma unroll
    for (int offset = 1; offset < kWarps; offset *= 2)
      value += __shfl_xor_sync(0xffffffffu, value, offset);
    return value;
  }
};

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
