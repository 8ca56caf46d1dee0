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
// for the same 32 bytes). Without this wait: 8192 halves .90, with it .98. Where the rows in
// process fill a multiprocessor (paced), rstd is asked for later: 4096 halves .99 (.95 to .99 from
// run to run), 4096 floats 1.00 (.95); other rows only lose by it (5120 halves .90, .91).
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

// Loads a float here and not earlier: when rstd is asked for decides how far multiprocessors drift.
__device__ inline float load_here(const char *data) {
  float value;
  asm volatile("ld.global.f32 %0, [%1];" : "=f"(value) : "l"(data) : "memory");
  return value;
}

// V = 4 is for rows that are too long for 2. Their weight is kept packed if kPlain (it is of the
// rows' dtype then, and has no offset), and else read from memory each time: 262144 halves .53
// (.82).
template <class T, int V, bool kWhole, bool kPlain>
__global__ void __launch_bounds__(kBackwardThreads, 1)
    backward_rows(const __grid_constant__ BackwardArgs a) {
  constexpr int W = kWidth<T>, kStep = 32 * W;  // columns from vector to vector
  constexpr Ring kRing = ring_of(kWhole, std::is_same_v<T, AnyElement>, false);
  constexpr bool kSpans = kRing == Ring::kSpans, kPacked = V == 4 && kPlain;
  constexpr int kArray = ring_slots(kRing, V, 1);   // x's slots are before dy's
  constexpr int kStage = 2 * kArray;                // of one warp
  extern __shared__ __align__(128) uint4 memory[];  // a warp's 512 bytes in 4 rows of the banks
  const int threads = blockDim.x, groups = blockDim.y, block_threads = threads * groups;
  __builtin_assume(threads >= 32);
  const Team team = {int(threadIdx.y), threads, a.cluster};
  const int thread = team.place * threads + threadIdx.x;
  const int rank = block_of_cluster(a.cluster);
  const int block_columns = threads * V * W;
  const int first = rank * block_columns + ((threadIdx.x / 32 * V) * 32 + threadIdx.x % 32) * W;
  const int left = int(a.cols) - first;  // columns from this thread's first on
  // The rows of this group of threads: tasks first_task, first_task + stride, ...
  const uint32_t group = a.fixed_group(), first_task = a.first_task(group);
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
      sums.own - thread +
      (sums_in_partial(V) || a.partial == nullptr ? 0 : V * W / 4 * block_threads));
  if (a.partial == nullptr) sums.own = nullptr;
  uint64_t *const barriers = reinterpret_cast<uint64_t *>(exact_slots + a.sum_slots);
  const SumsInTurn row_sums = {reinterpret_cast<float *>(barriers + 4 * groups) +
                                   team.place * (threads / 32 * a.cluster),
                               a.sum_slots, barriers + 4 * team.place};

  // This thread's first element of a row. kPlain: a pointer that moves by a constant step.
  const auto offset = [&](rmsnorm_dtype_t dtype) { return first * size_of_element<T>(dtype); };
  const auto row_of = [&](const Matrix &matrix, int row) {
    int64_t r = 0, g = group;
    a.locate(first_task + row * a.stride, &r, &g);
    return matrix.at(r, g);
  };
  const auto start_of = [&](const Matrix &matrix, int row) {
    return row_of(matrix, row) + offset(matrix.dtype);
  };
  const auto first_of = [&](const Matrix &matrix) {
    return kPlain ? a.start(matrix, first_task, group) + offset(matrix.dtype) : nullptr;
  };
  const char *x_ahead = first_of(a.x), *dy_ahead = first_of(a.dy);
  char *dx_here = first_of(a.dx);
  int x_shift = misalignment(x_ahead), dy_shift = misalignment(dy_ahead);  // of the next sum's row

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

  // The weight is the only thing read before the previous kernel is done. It and the first rstd are
  // asked for before the ring's first rows, or they would come behind them.
  BackwardWeight<kWhole, W> weight[V == 2 ? V : 1];
  Vector<T> packed[kPacked ? V : 1];
#pragma unroll
  for (int v = 0; v < (V == 2 ? V : 0); ++v)
    weight[v].load(a, group, first + v * kStep, left - v * kStep);
#pragma unroll
  for (int v = 0; v < (kPacked ? V : 0); ++v)
    packed[v] = load_vector<T, true>(a.start(a.weight, 0, group) + offset(a.weight.dtype) +
                                         v * kStep * size_of_element<T>(a.weight.dtype),
                                     left - v * kStep, a.weight.dtype);
  if (a.overlap) start_beside_neighbours();
  // Of the next row, early or late in this one's work. Each has its own register: a load that does
  // not happen would wait for the other one.
  const char *rstd_ahead = kPlain ? a.start(a.rstd, first_task, group) : nullptr;
  float early_rstd = 0, late_rstd = 0;
  const auto prefetch_rstd = [&](int row, float *rstd) {
    if (row < count) {
      *rstd = load_here(kPlain ? rstd_ahead : row_of(a.rstd, row));
      rstd_ahead += a.rstd_step;
    }
  };
  if (a.paced) prefetch_rstd(0, &late_rstd);
  else prefetch_rstd(0, &early_rstd);
#pragma unroll 1
  for (int i = 0; i < a.stages - 1; ++i) fetch(i, i * kStage);
  // No block of a cluster ends while another sends to it: all have sent all before the last row of
  // each has been received.
  row_sums.open(team);
  if (team.cluster > 1) announce_block();
  float held[V == 2 ? V : 1][W];
#pragma unroll
  for (int v = 0; v < (V == 2 ? V : 0); ++v) weight[v].read(a, held[v]);
  if (team.cluster > 1) await_blocks();
  else __syncthreads();

  // x, dy and weight of vector v of the row in a stage.
  const auto read = [&](int stage, int v, float(&x)[W], float(&dy)[W], float(&w)[W]) {
    read_slot<T, kRing>(slot(stage, 0, v), 0).unpack(a.x.dtype, x);
    read_slot<T, kRing>(slot(stage, 1, v), 0).unpack(a.dy.dtype, dy);
    if constexpr (V == 2) {
#pragma unroll
      for (int i = 0; i < W; ++i) w[i] = held[v][i];
    } else if constexpr (kPacked) {
      packed[v].unpack(a.weight.dtype, w);
    } else {
      BackwardWeight<kWhole, W> own;
      own.load(a, group, first + v * kStep, left - v * kStep);
      own.read(a, w);
    }
  };
  // Sends this warp's part of sum(w dy x) of a row.
  const auto send_sum = [&](int row, int stage) {
    if (a.stages == 4) wait_for_copies<2>();
    else if (a.stages == 3) wait_for_copies<1>();
    else wait_for_copies<0>();
    if (kSpans) {
      align_span<T, V>(slot(stage, 0, 0), kPlain ? x_shift : misalignment(start_of(a.x, row)));
      align_span<T, V>(slot(stage, 1, 0), kPlain ? dy_shift : misalignment(start_of(a.dy, row)));
      x_shift = (x_shift + int(a.x_step)) & 15, dy_shift = (dy_shift + int(a.dy_step)) & 15;
    }
    float sum = 0;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      float x[W], dy[W], w[W], part = 0;
      read(stage, v, x, dy, w);
#pragma unroll
      for (int i = 0; i < W; ++i) part = fmaf(w[i] * dy[i], x[i], part);
      sum += part;
    }
    sum = warp_sum(sum);
    if (!a.paced && row > 0) prefetch_rstd(row, &early_rstd);
    row_sums.send(sum, team, row);
  };
  if (count > 0) send_sum(0, 0);

  int row = 0, stage = 0;
  for (int chunk = 0; chunk < a.chunks; ++chunk) {
    const int end = count - row < kChunkRows ? count : row + kChunkRows;
    const auto partial_row = [&] {
      return a.partial + (int64_t(a.block()) * a.chunks + chunk) * a.pitch + rank * block_columns;
    };
    if (sums_in_partial(V) && a.partial != nullptr)
      sums.own = reinterpret_cast<float4 *>(partial_row() + (first - rank * block_columns));
    sums.first = true;
    do {
      float dweight[V][W] = {};
      uint32_t rare = 0;  // a bit for each row since the last flush
      const int begin = row, flush_at = end - begin < kFlushRows ? end : begin + kFlushRows;
      for (; row < flush_at; ++row) {
        const float rstd = a.paced ? late_rstd : early_rstd;
        if (rstd == kNoRstd) __nanosleep(1);  // never: asks for rstd here, before the next fetch
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
        const int stage_ahead = next_stage(stage);
        if (row + 1 < count) send_sum(row + 1, stage_ahead);
        if (a.paced && kIsHalf<T>) prefetch_rstd(row + 1, &late_rstd);

        const float mean =
            row_sums.receive<kBackwardWarps, kBackwardPlaces>(team, row) * rstd * a.inverse_cols;
        if (a.paced && !kIsHalf<T>) prefetch_rstd(row + 1, &late_rstd);
        if (is_fast_row(rstd, mean)) {
          const float slope = rstd * rstd * mean;
          Writer<T, kWhole> dx_writer(threads), dresidual_writer(threads);
          Vector<T> span[V];
#pragma unroll
          for (int v = 0; v < V; ++v) {
            float x[W], dy[W], w[W], dx[W];
            read(stage, v, x, dy, w);
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
        add_exact_rows(a, {0, group, first, kStep, V, W}, first_task + begin * a.stride, rare, team,
                       exact_slots, slot(stage_before(stage), 0, 0), 32, kArray, dweight);
        sums.flush(dweight);
      }
    } while (row < end);
    if (a.partial == nullptr) continue;
    const bool last = chunk + 1 == a.chunks;
    if (last) let_next_start();  // sum_partials: it waits for this kernel's end before it reads
    if (sums_in_partial(V)) continue;
    if (groups > 1) {
      __syncwarp();  // the rows above may have parted a warp, and a barrier counts warps
      __syncthreads();
    }
    add_groups<V, W>(sums.own - thread, partial_row());
    if (!last && groups > 1) __syncthreads();  // the next chunk writes where this one was read
  }
}

}  // namespace
}  // namespace rmsnorm::cuda
