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
    if (count >> 31 != 0) return;
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

// This block's place in its cluster, and its cluster's in the grid.
__device__ inline int block_of_cluster() {
  uint32_t rank = 0;
#if __CUDA_ARCH__ >= 900
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
#endif
  return int(rank);
}
__device__ inline uint32_t cluster_of_grid() {
  uint32_t cluster = blockIdx.x;
#if __CUDA_ARCH__ >= 900
  asm("mov.u32 %0, %%clusterid.x;" : "=r"(cluster));
#endif
  return cluster;
}

// A cluster's barrier, whole warps: what each block wrote before it, every block sees behind it.
__device__ inline void cluster_barrier() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::
                   : "memory");
#endif
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

// Waits for the threads of one row alone; `place` < 15. kPlaces: rows of a block, at most. Barriers
// named at compile time, of which few rows need few: a kernel that may use all 16 fits a
// multiprocessor four times only.
template <int kPlaces>
__device__ inline void row_barrier(const Team &team) {
  __syncwarp();  // bar.sync counts warps: each must arrive whole
  if (kPlaces == 1 || (kPlaces <= 4 && team.place == 0))
    asm volatile("bar.sync 1, %0;" ::"r"(team.threads) : "memory");
  else if (kPlaces > 4)
    asm volatile("bar.sync %0, %1;" ::"r"(team.place + 1), "r"(team.threads) : "memory");
  else if (team.place == 1) asm volatile("bar.sync 2, %0;" ::"r"(team.threads) : "memory");
  else if (team.place == 2) asm volatile("bar.sync 3, %0;" ::"r"(team.threads) : "memory");
  else asm volatile("bar.sync 4, %0;" ::"r"(team.threads) : "memory");
}

template <class Scalar>
__device__ inline Scalar warp_sum(Scalar value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2)
    value += __shfl_xor_sync(0xffffffffu, value, offset);
  return value;
}

// What row_sum needs of shared memory: a partial sum of each warp of a block's rows (at most kWarps
// a row), or of each warp of one row in all blocks of a cluster.
template <int kWarps>
__host__ __device__ constexpr int sum_slots(int rows, int threads, int cluster) {
  return cluster > 1 ? threads / 32 * cluster : rows * kWarps;
}

// Once, before the first row_sum: zeroes the slots of warps that are not there.
template <int kWarps, class Scalar>
__device__ inline void clear_slots(const Team &team, Scalar *scratch) {
  if (team.cluster == 1 && threadIdx.x < kWarps && threadIdx.x >= team.threads / 32)
    scratch[team.place * kWarps + threadIdx.x] = 0;
}

// Adds the partial sums of a cluster's warps.
template <class Scalar>
__device__ inline Scalar add_slots(const Scalar *scratch, int count) {
  Scalar value = 0;
#pragma unroll 1
  for (int i = threadIdx.x % 32; i < count; i += 32) value += scratch[i];
  return warp_sum(value);
}

// Sums over a row's team. Every thread gets the same bits, whatever else is in the block.
// `scratch`: sum_slots elements of shared memory, aligned to 16 bytes, not in use by another sum
// that a thread of the team may still be reading: two in turn are enough.
template <int kWarps, int kPlaces, class Scalar>
__device__ inline Scalar row_sum(Scalar value, const Team &team, Scalar *scratch) {
  if (team.threads < 32) {
    for (int offset = team.threads / 2; offset > 0; offset /= 2)
      value += __shfl_xor_sync(0xffffffffu, value, offset);
    return value;
  }
  value = warp_sum(value);
  if (kWarps == 1 || (team.threads == 32 && team.cluster == 1)) return value;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  if (team.cluster > 1) {  // slow: MailBox is for common paths
    const int warps = team.threads / 32;
#if __CUDA_ARCH__ >= 900
    if (lane < team.cluster) {
      const uint32_t to = address_in_block(scratch + block_of_cluster() * warps + warp, lane);
      if constexpr (sizeof(Scalar) == 4)
        asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(to), "f"(value) : "memory");
      else asm volatile("st.shared::cluster.f64 [%0], %1;" ::"r"(to), "d"(value) : "memory");
    }
#endif
    __syncwarp();
    cluster_barrier();
    return add_slots(scratch, warps * team.cluster);
  }
  struct alignas(16) Four {
    Scalar s[4];
  };
  scratch += team.place * kWarps;
  if (lane == 0) scratch[warp] = value;
  row_barrier<kPlaces>(team);
  value = 0;
#pragma unroll
  for (int i = 0; i < kWarps; i += 4) {
    const Four four = *reinterpret_cast<const Four *>(scratch + i);
    value += (four.s[0] + four.s[1]) + (four.s[2] + four.s[3]);
  }
  return value;
}

// Barriers in shared memory that count bytes (sm_90 on). open_barrier: by one thread, before any
// other uses it; expect_bytes: by one thread, once a phase; wait: phases 0 and 1 in turn.
__device__ inline void open_barrier(uint64_t *barrier) {
#if __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;\nfence.mbarrier_init.release.cluster;" ::"r"(
                   uint32_t(__cvta_generic_to_shared(barrier)))
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
__device__ inline void wait_for_bytes(uint64_t *barrier, uint32_t phase) {
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

// The same tree over a cluster's row without a barrier of all its threads, which would wait for
// every store of theirs: each warp sends its partial sum to every block (st.async), and a block
// goes on when its barrier has counted the bytes of all. Two boxes in turn are enough.
template <class Scalar>
struct MailBox {
  Scalar *slots;
  uint64_t *barrier;  // opened before announce_block

  // `phase`: 0 and 1 in turn from use to use of this box.
  __device__ Scalar sum(Scalar value, const Team &team, uint32_t phase) const {
    const int warps = team.threads / 32, count = warps * team.cluster;
    value = warp_sum(value);
    if (threadIdx.x == 0) expect_bytes(barrier, count * int(sizeof(Scalar)));
#if __CUDA_ARCH__ >= 900
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    if (lane < team.cluster) {
      const uint32_t to = address_in_block(slots + block_of_cluster() * warps + warp, lane);
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
    wait_for_bytes(barrier, phase);
    return add_slots(slots, count);
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
