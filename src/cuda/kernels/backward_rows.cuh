// Backward for rows of whole warps in one block, or in a cluster of blocks: dx (and dresidual), and
// the rows' contribution to dweight. Reads x and dy once, writes dx once: 6 bytes an element for
// halves. dweight's partial sums add less than 1 %.
//
// Persistent: each of blockDim.y groups of blockDim.x threads takes every (blocks * groups)-th row;
// x and dy come through a ring of stages in shared memory, where each warp copies and later reads
// only its own slots. A warp holds V * 32 vectors that follow one another, by column and never by
// address.
//
// A pipeline: while the sum that a row's dx needs goes from warp to warp, the warp adds up its part
// of the next row. Each row is read from the ring twice, so nothing stays in registers in between,
// and no warp waits for the slowest.
//
// Multiprocessors that drift apart in the order of rows cost DRAM its open pages. What holds them
// together is rstd: a row is fetched only when the rstd of a row two before it has come, and that
// comes late to who is first (from DRAM) and soon to who is not (from L2, as neighbours have asked
// for the same 32 bytes). Without this wait: 8192 halves .90, with it .98.
//
// dweight: fp32 registers for kFlushRows rows, those sums in fp32 in shared memory for kChunkRows,
// then the block's groups are added in order, in fp64, and one partial row goes to the workspace;
// sum_partials adds those in fp64. So the error does not grow with rows, and the tree depends on
// the shape and the grid alone.
//
// Rows outside fp32's range (rare) are left out by the loop and done by a call whenever it flushes:
// a call among the loop's work would cost it registers.
#pragma once

#include "cuda/kernels/backward_rare.cuh"
#include "cuda/kernels/backward_ring.cuh"
#include "cuda/kernels/backward_sums.cuh"

namespace rmsnorm::cuda {
namespace {

constexpr float kNoRstd = -12345.678f;

// V = 4 is for rows that are too long for 2; their weight is read from memory each time.
template <class T, int V, bool kWhole, bool kPlain>
__global__ void __launch_bounds__(kBackwardThreads, 1)
    backward_rows(const __grid_constant__ BackwardArgs a) {
  constexpr int W = kWidth<T>, kStep = 32 * W;  // columns from vector to vector
  constexpr Ring kRing = ring_of(kWhole, std::is_same_v<T, AnyElement>, false);
  constexpr bool kSpans = kRing == Ring::kSpans;
  constexpr int kArray = ring_slots(kRing, V, 1);   // x's slots are before dy's
  constexpr int kStage = 2 * kArray;                // of one warp
  extern __shared__ __align__(128) uint4 memory[];  // a warp's 512 bytes in 4 rows of the banks
  const int threads = blockDim.x, groups = blockDim.y, block_threads = threads * groups;
  __builtin_assume(threads >= 32);
  const Team team = {int(threadIdx.y), threads, a.cluster};
  const int thread = team.place * threads + threadIdx.x;
  const int rank = team.cluster > 1 ? block_of_cluster() : 0;
  const int block_columns = threads * V * W;
  const int first = rank * block_columns + ((threadIdx.x / 32 * V) * 32 + threadIdx.x % 32) * W;
  const int left = int(a.cols) - first;  // columns from this thread's first on
  // The rows of this group of threads: tasks first_task, first_task + stride, ...
  const int64_t first_task = a.first_task();
  const int count = a.rows_from(first_task);

  // This thread's slots: of array 0 (x) and 1 (dy), of vector v.
  uint4 *const ring = memory + thread / 32 * (a.stages * kStage) + thread % 32;
  const auto slot = [&](int stage, int array, int v) {
    return ring + stage + array * kArray + v * 32;
  };
  const auto next_stage = [&](int stage) {
    return stage == (a.stages - 1) * kStage ? 0 : stage + kStage;
  };
  const auto stage_before = [&](int stage) {
    return stage == 0 ? (a.stages - 1) * kStage : stage - kStage;
  };
  BlockSums<V, W> sums = {
      reinterpret_cast<float4 *>(memory + block_threads / 32 * (a.stages * kStage)) + thread,
      block_threads, true};
  double *const exact_slots = reinterpret_cast<double *>(
      sums.own - thread + (a.partial != nullptr ? V * W / 4 * block_threads : 0));
  if (a.partial == nullptr) sums.own = nullptr;
  uint64_t *const barriers = reinterpret_cast<uint64_t *>(exact_slots + 2 * a.sum_slots);
  const SumsInTurn row_sums = {reinterpret_cast<float *>(barriers + 4 * groups), a.sum_slots,
                               barriers};
  row_sums.open(team);
  // No block of a cluster ends while another sends to it: all have sent all before the last row of
  // each has been received.
  if (team.cluster > 1) announce_block();

  // This thread's first element of a row. kPlain: a pointer that moves by a constant step.
  const auto offset = [&](rmsnorm_dtype_t dtype) {
    return first * int64_t(size_of_element<T>(dtype));
  };
  const auto start_of = [&](const Matrix &matrix, int row) {
    int64_t r = 0, g = 0;
    a.locate(first_task + row * a.stride, &r, &g);
    return matrix.at(r, g) + offset(matrix.dtype);
  };
  const auto first_of = [&](const Matrix &matrix) {
    return kPlain ? matrix.at(first_task, a.fixed_group()) + offset(matrix.dtype) : nullptr;
  };
  const char *x_ahead = first_of(a.x), *dy_ahead = first_of(a.dy);
  char *dx_here = first_of(a.dx);
  int shifts[2] = {misalignment(x_ahead), misalignment(dy_ahead)};  // of the row whose sum is next

  // Starts copying a row.
  const auto fetch = [&](int row, int stage) {
    if (row < count) {
      const char *const rows[2] = {kPlain ? x_ahead : start_of(a.x, row),
                                   kPlain ? dy_ahead : start_of(a.dy, row)};
      const rmsnorm_dtype_t dtypes[2] = {a.x.dtype, a.dy.dtype};
#pragma unroll
      for (int array = 0; array < 2; ++array) {
        if constexpr (kSpans) {
          copy_span<T>(slot(stage, array, 0), rows[array], left, V);
        } else {
#pragma unroll
          for (int v = 0; v < V; ++v)
            start_copy<T, kWhole, false>(slot(stage, array, v),
                                         rows[array] +
                                             v * kStep * size_of_element<T>(dtypes[array]),
                                         left - v * kStep, dtypes[array]);
        }
      }
      x_ahead += a.x_step, dy_ahead += a.dy_step;
    }
    commit_copies();
  };

  // The weight is the only thing read before the previous kernel is done.
  float held[V == 2 ? V : 1][W];
  if (V == 2) {
#pragma unroll
    for (int v = 0; v < V; ++v)
      load_backward_weight<kWhole>(a, first + v * kStep, left - v * kStep, held[V == 2 ? v : 0]);
  }
  if (a.overlap) start_beside_neighbours();
#pragma unroll
  for (int v = 0; v < V; ++v)
    if (!kSpans && left <= v * kStep)
      for (int i = 0; i < a.stages * 2; ++i) ring[(i * V + v) * 32] = make_uint4(0, 0, 0, 0);
#pragma unroll 1
  for (int i = 0; i < a.stages - 1; ++i) fetch(i, i * kStage);
  float next_rstd = 0;
  const auto prefetch_rstd = [&](int row) {
    if (row < count) {
      int64_t r = 0, g = 0;
      if (kPlain) r = first_task + row * a.stride, g = a.fixed_group();
      else a.locate(first_task + row * a.stride, &r, &g);
      next_rstd = *reinterpret_cast<const float *>(a.rstd.at(r, g));
    }
  };
  prefetch_rstd(0);
  if (team.cluster > 1) await_blocks();
  else __syncthreads();

  // x, dy and weight of vector v of the row in a stage.
  const auto read = [&](int stage, int x_shift, int dy_shift, int v, float(&x)[W], float(&dy)[W],
                        float(&w)[W]) {
    read_slot<T, kRing>(slot(stage, 0, v), x_shift).unpack(a.x.dtype, x);
    read_slot<T, kRing>(slot(stage, 1, v), dy_shift).unpack(a.dy.dtype, dy);
    if constexpr (V == 2) {
#pragma unroll
      for (int i = 0; i < W; ++i) w[i] = held[v][i];
    } else {
      load_backward_weight<kWhole>(a, first + v * kStep, left - v * kStep, w);
    }
  };
  // Sends this warp's part of sum(w dy x) of a row.
  const auto send_sum = [&](int row, int stage) {
    if (a.stages == 4) wait_for_copies<2>();
    else if (a.stages == 3) wait_for_copies<1>();
    else wait_for_copies<0>();
    if (kSpans) __syncwarp();
    if (!kWhole && !kPlain)
      shifts[0] = misalignment(start_of(a.x, row)), shifts[1] = misalignment(start_of(a.dy, row));
    float sum = 0;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      float x[W], dy[W], w[W], part = 0;
      read(stage, shifts[0], shifts[1], v, x, dy, w);
#pragma unroll
      for (int i = 0; i < W; ++i) part = fmaf(w[i] * dy[i], x[i], part);
      sum += part;
    }
    row_sums.send(sum, team, row);
  };
  if (count > 0) send_sum(0, 0);

  int row = 0, stage = 0;
  for (int chunk = 0; chunk < a.chunks; ++chunk) {
    const int end = count - row < kChunkRows ? count : row + kChunkRows;
    sums.first = true;
    do {
      float dweight[V][W] = {};
      uint32_t rare = 0;  // a bit for each row since the last flush
      const int begin = row, flush_at = end - begin < kFlushRows ? end : begin + kFlushRows;
      for (; row < flush_at; ++row) {
        const float rstd = next_rstd;
        if (rstd == kNoRstd) __nanosleep(1);  // never: asks for rstd here, before the next fetch
        if (kSpans) __syncwarp();             // other lanes have read what is overwritten now
        fetch(row + a.stages - 1, stage_before(stage));
        Vector<T> added_row[kPlain ? 1 : V];
        if (!kPlain && a.dresidual_out.data != nullptr) {
          const char *data = start_of(a.dresidual_out, row);
#pragma unroll
          for (int v = 0; v < (kPlain ? 1 : V); ++v)
            added_row[v] =
                load_vector<T, kWhole>(data + v * kStep * size_of_element<T>(a.dresidual_out.dtype),
                                       left - v * kStep, a.dresidual_out.dtype);
        }
        if (!a.paced) prefetch_rstd(row + 1);
        const int x_shift = shifts[0], dy_shift = shifts[1], stage_ahead = next_stage(stage);
        shifts[0] = (shifts[0] + int(a.x_step)) & 15, shifts[1] = (shifts[1] + int(a.dy_step)) & 15;
        if (row + 1 < count) send_sum(row + 1, stage_ahead);
        if (a.paced) prefetch_rstd(row + 1);

        const float mean =
            row_sums.receive<kBackwardWarps, kBackwardPlaces>(team, row) * rstd * a.inverse_cols;
        if (is_fast_row(rstd, mean)) {
          const float slope = rstd * rstd * mean;
          Writer<T, kWhole> dx_writer(threads), dresidual_writer(threads);
          Vector<T> span[V];
#pragma unroll
          for (int v = 0; v < V; ++v) {
            float x[W], dy[W], w[W], dx[W];
            read(stage, x_shift, dy_shift, v, x, dy, w);
#pragma unroll
            for (int i = 0; i < W; ++i) {
              dy[i] *= rstd;
              dx[i] = fmaf(-x[i], slope, w[i] * dy[i]);
              dweight[v][i] = fmaf(dy[i], x[i], dweight[v][i]);
            }
            if (!kPlain && a.dresidual_out.data != nullptr) {
              float added[W];
              added_row[kPlain ? 0 : v].unpack(a.dresidual_out.dtype, added);
#pragma unroll
              for (int i = 0; i < W; ++i) dx[i] += added[i];
            }
            if constexpr (kSpans) {
              span[v].pack(a.x.dtype, dx);
            } else {
              const auto write = [&](char *to, rmsnorm_dtype_t dtype, Writer<T, kWhole> &writer) {
                Vector<T> out;
                out.pack(dtype, dx);
                writer.store(to + v * kStep * size_of_element<T>(dtype), out, left - v * kStep,
                             v == 0, v == V - 1, dtype);
              };
              if (kPlain) write(dx_here, a.dx.dtype, dx_writer);
              else if (a.dx.data != nullptr) write(start_of(a.dx, row), a.dx.dtype, dx_writer);
              if (!kPlain && a.dresidual.data != nullptr)
                write(start_of(a.dresidual, row), a.dresidual.dtype, dresidual_writer);
            }
          }
          if constexpr (kSpans) {
            if (kPlain || a.dx.data != nullptr)
              store_span<T, V>(kPlain ? dx_here : start_of(a.dx, row), left, span);
            if (!kPlain && a.dresidual.data != nullptr)
              store_span<T, V>(start_of(a.dresidual, row), left, span);
          }
        } else {
          rare |= 1u << (row - begin);
        }
        dx_here += a.dx_step;
        stage = stage_ahead;
      }
      sums.flush(dweight);
      if (rare != 0) {
        add_exact_rows(a, {0, 0, first, kStep, V, W}, first_task + begin * a.stride, rare, team,
                       exact_slots, slot(stage_before(stage), 0, 0), 32, kArray, dweight);
        sums.flush(dweight);
      }
    } while (row < end);
    if (a.partial == nullptr) continue;
    const bool last = chunk + 1 == a.chunks;
    if (last) let_next_start();  // sum_partials: it waits for this kernel's end before it reads
    if (groups > 1) {
      __syncwarp();  // the rows above may have parted a warp, and a barrier counts warps
      __syncthreads();
    }
    add_groups<V, W>(sums.own - thread,
                     a.partial + (int64_t(cluster_of_grid()) * a.chunks + chunk) * a.pitch +
                         rank * block_columns);
    if (!last && groups > 1) __syncthreads();  // the next chunk writes where this one was read
  }
}

}  // namespace
}  // namespace rmsnorm::cuda
