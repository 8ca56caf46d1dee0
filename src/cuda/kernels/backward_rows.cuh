// Backward for rows that fit one block, or a cluster of blocks: dx (and dresidual), and the rows'
// contribution to dweight. Reads x and dy once, writes dx once: 6 bytes an element for halves.
// dweight's partial sums add less than 1 %.
//
// Persistent: each of blockDim.y groups of blockDim.x threads takes every (blocks * groups)-th row,
// U of them at a time (short rows); x and dy come through a ring of cp.async stages in shared
// memory, where each thread copies and later reads only its own slots (no barrier for the data);
// one barrier a row, for the mean. A warp holds V * 32 vectors that follow one another, by column
// and never by address.
//
// dweight: fp32 registers for kFlushRows rows, those sums in fp32 in shared memory for kChunkRows,
// then the block's groups are added in order, in fp64, and one partial row goes to the workspace;
// sum_partials adds those in fp64. So the error does not grow with rows, and the tree depends on
// the shape and the grid alone.
#pragma once

#include "cuda/kernels/backward_rare.cuh"

namespace rmsnorm::cuda {
namespace {

// Of n terms of one sign, sums over 64 and then over 60 such sums lose at most (64 + 60) / 2 *
// 2^-24 < 2^-18 of the whole.
constexpr int kFlushRows = 64, kChunkRows = 60 * kFlushRows;

template <int V>
constexpr int kBackwardThreads = V == 1 ? 256 : 512;  // of a block, at most
template <int V>
constexpr int kBackwardBlocks = V == 1 ? 2 : 1;  // per multiprocessor, at least

// Blocks of 16 bytes that a vector takes in the ring: an unaligned one arrives as the two aligned
// blocks that hold it.
template <class T, int V, bool kWhole>
constexpr int kRingBlocks = kWhole || V > 2 || std::is_same_v<T, AnyElement> ? 1 : 2;

// Starts copying a vector to this thread's slots. One beyond the row (`valid` <= 0) is left as it
// is: the kernel has zeroed the ring there.
template <class T, bool kWhole, int kBlocks>
__device__ inline void start_copy(uint4 *slot, const char *data, int valid, rmsnorm_dtype_t dtype) {
  if (valid <= 0) return;
  if constexpr (kWhole) return copy_whole_vector<T>(slot, data, dtype);
#if __CUDA_ARCH__ >= 800
  if constexpr (kBlocks == 2) {
    const int shift = misalignment(data), bytes = shift + valid * size_of_element<T>(dtype);
    const uint32_t address = uint32_t(__cvta_generic_to_shared(slot));
    asm volatile("cp.async.ca.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(data - shift),
                 "r"(bytes < 16 ? bytes : 16)
                 : "memory");
    asm volatile("cp.async.ca.shared.global [%0], [%1], 16, %2;" ::"r"(address + 512),
                 "l"(data - shift + 16),
                 "r"(bytes < 16   ? 0
                     : bytes < 32 ? bytes - 16
                                  : 16)
                 : "memory");
    return;
  }
#endif
  const Vector<T> vector = load_vector<T, kWhole>(data, valid, dtype);
  *slot = make_uint4(vector.word[0], vector.word[1], vector.word[2], vector.word[3]);
}

// What start_copy has brought; `data` is where the vector came from.
template <class T, int kBlocks>
__device__ inline Vector<T> read_slot(const uint4 *slot, const char *data) {
  Vector<T> out;
#if __CUDA_ARCH__ >= 800
  if constexpr (kBlocks == 2) {
    out.set(cut_out(slot[0], slot[32], misalignment(data)));
    return out;
  }
#endif
  out.set(*slot);
  return out;
}

// Shared memory of a block: the ring, dweight, and what row_sum needs. Floats of a thread lie in
// parts of 4, the threads side by side: no bank conflicts.
struct BackwardMemory {
  int threads;  // of the block
  int vectors, unroll, width, ring_blocks, stages;
  int sum_slots;
  bool dweight;

  size_t bytes() const {
    const size_t ring = size_t(stages) * 2 * vectors * unroll * ring_blocks * 16 * threads;
    const size_t sums = dweight ? size_t(threads) * vectors * width * 4 : 0;
    const size_t slots = size_t(sum_slots) * 2 * (sizeof(double) + sizeof(float));
    return ring + sums + slots + 2 * sizeof(uint64_t);
  }
};

template <int kCount>
__device__ inline void read_parts(const float4 *from, int step, float (&out)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; i += 4) {
    const float4 part = from[i / 4 * step];
    out[i] = part.x, out[i + 1] = part.y, out[i + 2] = part.z, out[i + 3] = part.w;
  }
}

template <int kCount>
__device__ inline void write_parts(float4 *to, int step, const float (&in)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; i += 4)
    to[i / 4 * step] = make_float4(in[i], in[i + 1], in[i + 2], in[i + 3]);
}

// Adds dweight of the block's groups in their order, in fp64, and writes one partial row in the
// columns' order. All threads of the block take part; the groups share a row's parts.
template <int V, int W>
__device__ inline void add_groups(const float4 *dweight, float *out) {
  const int threads = blockDim.x, groups = blockDim.y, block = threads * groups;
  const int place = (threadIdx.x / 32 * V * 32 + threadIdx.x % 32) * W;  // of the first vector
  if constexpr (V == 1) {  // short rows have many groups
    for (int i = threadIdx.y; i < W; i += groups) {
      const float *from =
          reinterpret_cast<const float *>(dweight + i / 4 * block + threadIdx.x) + i % 4;
      double sum = 0;
      for (int group = 0; group < groups; ++group) sum += from[group * threads * 4];
      out[place + i] = float(sum);
    }
  } else {
    for (int quad = threadIdx.y; quad < V * W / 4; quad += groups) {
      const float4 *from = dweight + quad * block + threadIdx.x;
      double x = 0, y = 0, z = 0, w = 0;
      for (int group = 0; group < groups; ++group) {
        const float4 own = from[group * threads];
        x += own.x, y += own.y, z += own.z, w += own.w;
      }
      *reinterpret_cast<float4 *>(out + place + quad / (W / 4) * 32 * W + quad % (W / 4) * 4) =
          make_float4(float(x), float(y), float(z), float(w));
    }
  }
}

// Of rstd, for arithmetic in fp32.
__device__ inline bool in_range(float rstd) {
  return fabsf(rstd) >= 0x1p-20f && fabsf(rstd) <= 0x1p20f;
}

// ---- The kernel
// ----------------------------------------------------------------------------------

// kPlain: dx alone is asked for, rows are walked in one group, and nothing is added to dx.
template <class T, int V, int U, bool kWhole, bool kPlain>
__global__ void __launch_bounds__(kBackwardThreads<V>, kBackwardBlocks<V>)
    backward_rows(const __grid_constant__ BackwardArgs a) {
  constexpr int W = kWidth<T>, N = U * V;  // N: vectors of a thread in process
  constexpr int kStep = 32 * W;            // columns from vector to vector
  constexpr int kBlocks = kRingBlocks<T, V, kWhole>;
  constexpr int kStage = 2 * N * kBlocks * 32;  // of one warp
  constexpr bool kHold = N <= 2;                // what is read stays in registers over the barrier
  extern __shared__ __align__(128) uint4 memory[];  // a warp's 512 bytes in 4 rows of the banks
  const int threads = blockDim.x, groups = blockDim.y;
  if (V > 1) __builtin_assume(threads >= 32);
  const Team team = {int(threadIdx.y), threads, V > 1 ? a.cluster : 1};
  const int thread = team.place * threads + threadIdx.x, block_threads = threads * groups;
  const int rank = V > 1 && team.cluster > 1 ? block_of_cluster() : 0;
  const int block_columns = threads * V * W;
  const int first = rank * block_columns + ((threadIdx.x / 32 * V) * 32 + threadIdx.x % 32) * W;
  const int left = int(a.cols) - first;  // columns from this thread's first on
  // The rows of this group of threads: tasks first_task, first_task + stride, ... Groups that share
  // warps (V = 1) take as many steps as the block's first, which has the most rows.
  const int64_t first_task = a.first_task();
  const auto rows_from = [&](int64_t task) { return a.rows_each + (task < a.rows_more ? 1 : 0); };
  const int count = rows_from(first_task);
  const int steps_to = V == 1 ? rows_from(first_task - team.place) : count;

  // This thread's slots: of array 0 (x) and 1 (dy), of row u, vector v.
  uint4 *const ring = memory + thread / 32 * (a.stages * kStage) + thread % 32;
  const auto slot = [&](int stage, int array, int n) {
    return ring + stage + (array * N + n) * kBlocks * 32;
  };
  const auto next_stage = [&](int stage) {
    return stage == (a.stages - 1) * kStage ? 0 : stage + kStage;
  };
  const auto stage_before = [&](int stage) {
    return stage == 0 ? (a.stages - 1) * kStage : stage - kStage;
  };
  float4 *const sums =  // dweight
      reinterpret_cast<float4 *>(memory + block_threads / 32 * (a.stages * kStage)) + thread;
  double *const exact_scratch = reinterpret_cast<double *>(
      sums - thread + (a.partial != nullptr ? V * W / 4 * block_threads : 0));
  float *const scratch = reinterpret_cast<float *>(exact_scratch + 2 * a.sum_slots);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    clear_slots<kBackwardWarps>(team, scratch + i * a.sum_slots);
    clear_slots<kBackwardWarps>(team, exact_scratch + i * a.sum_slots);
  }
  uint64_t *const barriers = reinterpret_cast<uint64_t *>(scratch + 2 * a.sum_slots);
  const auto mail_box = [&](int i) {
    return MailBox<float>{scratch + i * a.sum_slots, barriers + i};
  };
  const bool in_cluster = V > 1 && team.cluster > 1;
  if (in_cluster) {
    if (thread == 0) open_barrier(barriers), open_barrier(barriers + 1);
    __syncwarp();
    announce_block();
  }

  // This thread's first element of a row. kPlain: a pointer that moves by a constant step.
  const auto offset = [&](rmsnorm_dtype_t dtype) {
    return first * int64_t(size_of_element<T>(dtype));
  };
  const auto start_of = [&](const Matrix &matrix, int iteration) {
    int64_t r = 0, g = 0;
    a.locate(first_task + iteration * a.stride, &r, &g);
    return matrix.at(r, g) + offset(matrix.dtype);
  };
  const auto first_of = [&](const Matrix &matrix) {
    return kPlain ? matrix.at(first_task, a.fixed_group()) + offset(matrix.dtype) : nullptr;
  };
  const char *x_ahead = first_of(a.x), *dy_ahead = first_of(a.dy);
  const char *x_here = x_ahead, *dy_here = dy_ahead;
  char *dx_here = first_of(a.dx);
  const char *rstd_soon = kPlain ? a.rstd.at(first_task, a.fixed_group()) : nullptr;

  // Starts copying the next U rows: those from `iteration` on.
  const auto fetch = [&](int iteration, int stage) {
#pragma unroll
    for (int u = 0; u < U; ++u) {
      if (iteration + u < count) {
        const char *const rows[2] = {kPlain ? x_ahead : start_of(a.x, iteration + u),
                                     kPlain ? dy_ahead : start_of(a.dy, iteration + u)};
        const rmsnorm_dtype_t dtypes[2] = {a.x.dtype, a.dy.dtype};
#pragma unroll
        for (int array = 0; array < 2; ++array)
#pragma unroll
          for (int v = 0; v < V; ++v)
            start_copy<T, kWhole, kBlocks>(slot(stage, array, u * V + v),
                                           rows[array] +
                                               v * kStep * size_of_element<T>(dtypes[array]),
                                           left - v * kStep, dtypes[array]);
        x_ahead += a.x_step, dy_ahead += a.dy_step;
      } else if (U > 1) {
#pragma unroll
        for (int i = 0; i < 2 * kBlocks; ++i)
          slot(stage, i % 2, u * V)[i / 2 * 32] = make_uint4(0, 0, 0, 0);
      }
    }
    commit_copies();
  };

  const auto load_weight = [&](int v, float(&w)[W]) {
#pragma unroll
    for (int i = 0; i < W; ++i) w[i] = 1;
    if (a.weight.data != nullptr && left > v * kStep)
      load_floats<W, kWhole>(a.weight.data + a.fixed_group() * a.weight.group_stride +
                                 (first + v * kStep) * int64_t(size_of(a.weight.dtype)),
                             a.weight.dtype, left - v * kStep, w);
    if (a.weight_offset != 0) {
#pragma unroll
      for (int i = 0; i < W; ++i) w[i] = float(double(w[i]) + a.weight_offset);
    }
  };
  // The weight is the only thing read before the previous kernel is done.
  float weight[kHold ? V : 1][W];
  if (kHold) {
#pragma unroll
    for (int v = 0; v < V; ++v) load_weight(v, weight[kHold ? v : 0]);
  }
  if (a.overlap) start_beside_neighbours();
#pragma unroll
  for (int v = 0; v < V; ++v)
    if (left <= v * kStep)
      for (int i = 0; i < a.stages * 2 * U * kBlocks; ++i)
        ring[((i / kBlocks * V + v) * kBlocks + i % kBlocks) * 32] = make_uint4(0, 0, 0, 0);
  for (int i = 0; i < a.stages - 1; ++i) fetch(i * U, i * kStage);
  int stage = 0;
  float next_rstd[U];
  const auto prefetch_rstd = [&](int iteration) {
#pragma unroll
    for (int u = 0; u < U; ++u) {
      next_rstd[u] = 0;
      if (a.rstd.data != nullptr && iteration + u < count) {
        int64_t r = 0, g = 0;
        if (!kPlain) a.locate(first_task + (iteration + u) * a.stride, &r, &g);
        next_rstd[u] = *reinterpret_cast<const float *>(kPlain ? rstd_soon : a.rstd.at(r, g));
      }
      rstd_soon += a.rstd_step;
    }
  };
  prefetch_rstd(0);
  if (in_cluster) await_blocks();

  float dweight[V][W];
  const auto clear_dweight = [&] {
#pragma unroll
    for (int v = 0; v < V; ++v)
#pragma unroll
      for (int i = 0; i < W; ++i) dweight[v][i] = 0;
  };
  clear_dweight();

  int iteration = 0;
  for (int chunk = 0; chunk < a.chunks; ++chunk) {
    const int end = steps_to - iteration < kChunkRows ? steps_to : iteration + kChunkRows;
    const auto flush = [&](bool first_of_chunk) {
#pragma unroll
      for (int v = 0; v < V; ++v) {
        float4 *const to = sums + v * W / 4 * block_threads;
        if (!first_of_chunk) {
          float sum[W];
          read_parts(to, block_threads, sum);
#pragma unroll
          for (int i = 0; i < W; ++i) dweight[v][i] += sum[i];
        }
        write_parts(to, block_threads, dweight[v]);
      }
      clear_dweight();
    };
    for (; iteration < end; iteration += U) {
      fetch(iteration + (a.stages - 1) * U, stage_before(stage));
      if (a.stages == 3) {
        wait_for_copies<2>();
      } else if (a.stages == 2) {
        wait_for_copies<1>();
      } else {
        wait_for_copies<0>();
      }

      const char *x_row[U], *dy_row[U];
      float rstd[U];
      bool active[U], known[U];
#pragma unroll
      for (int u = 0; u < U; ++u) {
        if (!kWhole) {
          x_row[u] = kPlain ? x_here : start_of(a.x, iteration + u);
          dy_row[u] = kPlain ? dy_here : start_of(a.dy, iteration + u);
          x_here += a.x_step, dy_here += a.dy_step;
        }
        rstd[u] = next_rstd[u];
        active[u] = U == 1 || iteration + u < count;
        known[u] =
            !active[u] || in_range(rstd[u]) || !(fabsf(rstd[u]) < 0x1p-126f || isinf(rstd[u]));
      }
      prefetch_rstd(iteration + U);
      // For calls out of line, which find the row again.
      const Part part = {0, 0, first, kStep, V, W};
      const auto task = [&](int u) { return a.first_task() + (iteration + u) * a.stride; };
      Vector<T> added_row[kPlain ? 1 : N];
      if (!kPlain && a.dresidual_out.data != nullptr) {
#pragma unroll
        for (int n = 0; n < (kPlain ? 1 : N); ++n)
          added_row[n] =
              load_vector<T, kWhole>(start_of(a.dresidual_out, iteration + n / V) +
                                         n % V * kStep * size_of_element<T>(a.dresidual_out.dtype),
                                     active[n / V] ? left - n % V * kStep : 0,
                                     a.dresidual_out.dtype);
      }

      // rstd as given; computed where it is absent, 0, Inf or subnormal.
#pragma unroll
      for (int u = 0; u < U; ++u)
        if (any_row_of_warp(!known[u], threads)) {
          const float computed = compute_rstd(a, part, task(u), team, exact_scratch);
          if (!known[u]) rstd[u] = computed;
        }

      // x, dy * rstd and the weight of vector n.
      const auto read = [&](int n, float(&x)[W], float(&dy)[W], float(&w)[W]) {
        const int u = n / V, v = n % V;
        const auto source = [&](const char *row, rmsnorm_dtype_t dtype) {
          return kWhole ? nullptr : row + v * kStep * size_of_element<T>(dtype);
        };
        read_slot<T, kBlocks>(slot(stage, 0, n), source(x_row[u], a.x.dtype)).unpack(a.x.dtype, x);
        read_slot<T, kBlocks>(slot(stage, 1, n), source(dy_row[u], a.dy.dtype))
            .unpack(a.dy.dtype, dy);
        if (kHold) {
#pragma unroll
          for (int i = 0; i < W; ++i) w[i] = weight[kHold ? v : 0][i];
        } else {
          load_weight(v, w);
        }
#pragma unroll
        for (int i = 0; i < W; ++i) dy[i] *= rstd[u];
      };

      float x[kHold ? N : 1][W], dy[kHold ? N : 1][W], w[kHold ? N : 1][W];
      float slope[U];
      bool fast[U];
#pragma unroll
      for (int u = 0; u < U; ++u) {
        float sum = 0;
#pragma unroll
        for (int n = u * V; n < u * V + V; ++n) {
          const int own = kHold ? n : 0;
          read(n, x[own], dy[own], w[own]);
          float part = 0;
#pragma unroll
          for (int i = 0; i < W; ++i) part = fmaf(w[own][i] * dy[own][i], x[own][i], part);
          sum += part;
        }
        const int box = iteration % 2;
        const float mean =
            (in_cluster ? mail_box(box).sum(sum, team, iteration / 2 % 2)
                        : row_sum<kBackwardWarps, kBackwardPlaces>(sum, {team.place, threads, 1},
                                                                   scratch + box * a.sum_slots)) *
            a.inverse_cols;
        // Whether fp32 stays in its normal range: rstd^2 * mean too.
        const float size = fabsf(mean);
        fast[u] = in_range(rstd[u]) && size <= 0x1p30f && (size >= 0x1p-60f || size == 0);
        slope[u] = rstd[u] * rstd[u] * mean;
      }

#pragma unroll
      for (int u = 0; u < U; ++u) {
        const bool redo = active[u] && !fast[u];
        if (any_row_of_warp(redo, threads)) {
          constexpr int kHalf = N * kBlocks * 32;
          uint4 *const slots = slot(stage, 0, u * V);
          exact_row(a, part, task(u), team, redo, known[u], rstd[u], exact_scratch, slots,
                    kBlocks * 32, kHalf);
          if (redo) {
#pragma unroll
            for (int v = 0; v < V; ++v)
#pragma unroll
              for (int i = 0; i < W; ++i) {
                if (left - v * kStep > i)
                  dweight[v][i] += reinterpret_cast<const float *>(slots + v * kBlocks * 32 +
                                                                   i / 4 * kHalf)[i % 4];
                if (kHold) x[u * V + v][i] = dy[u * V + v][i] = 0;
              }
          }
        }
        if (!kHold && redo) continue;
        Writer<T, kWhole> dx_writer(threads), dresidual_writer(threads);
#pragma unroll
        for (int n = u * V; n < u * V + V; ++n) {
          const int own = kHold ? n : 0, v = n % V;
          const int valid = active[u] && !redo ? left - v * kStep : 0;
          if (!kHold) read(n, x[own], dy[own], w[own]);
          float dx[W];
#pragma unroll
          for (int i = 0; i < W; ++i) {
            dx[i] = fmaf(-x[own][i], slope[u], w[own][i] * dy[own][i]);
            dweight[v][i] = fmaf(dy[own][i], x[own][i], dweight[v][i]);
          }
          if (!kPlain && a.dresidual_out.data != nullptr) {
            float added[W];
            added_row[kPlain ? 0 : n].unpack(a.dresidual_out.dtype, added);
#pragma unroll
            for (int i = 0; i < W; ++i) dx[i] += added[i];
          }
          const auto write = [&](char *row, rmsnorm_dtype_t dtype, Writer<T, kWhole> &writer) {
            Vector<T> out;
            out.pack(dtype, dx);
            writer.store(row + v * kStep * size_of_element<T>(dtype), out, valid, v == 0,
                         v == V - 1, dtype);
          };
          if (kPlain) write(dx_here, a.dx.dtype, dx_writer);
          else if (a.dx.data != nullptr)
            write(start_of(a.dx, iteration + u), a.dx.dtype, dx_writer);
          if (!kPlain && a.dresidual.data != nullptr)
            write(start_of(a.dresidual, iteration + u), a.dresidual.dtype, dresidual_writer);
        }
        dx_here += a.dx_step;
      }
      stage = next_stage(stage);
      const int done = iteration + U - chunk * kChunkRows;
      if (done % kFlushRows == 0 && a.partial != nullptr) flush(done == kFlushRows);
    }
    if (a.partial == nullptr) continue;
    const bool last = chunk + 1 == a.chunks;
    if (last) let_next_start();  // sum_partials: it waits for this kernel's end before it reads
    flush(iteration - chunk * kChunkRows < kFlushRows);
    if (groups > 1) {
      __syncwarp();  // the rows above may have parted a warp, and a barrier counts warps
      __syncthreads();
    }
    add_groups<V, W>(sums - thread, a.partial +
                                        (int64_t(cluster_of_grid()) * a.chunks + chunk) * a.pitch +
                                        rank * block_columns);
    if (!last && groups > 1) __syncthreads();  // the next chunk writes where this one was read
  }
}

}  // namespace
}  // namespace rmsnorm::cuda
