// Backward for short rows, of 2^n <= 32 lanes, several of which share a warp. As backward_rows, but
// rows need no barrier: each thread has two of them in process instead, and what is read stays in
// registers.
#pragma once

#include "cuda/kernels/backward_rare.cuh"
#include "cuda/kernels/backward_ring.cuh"
#include "cuda/kernels/backward_sums.cuh"

namespace rmsnorm::cuda {
namespace {

constexpr int kShortThreads = 256;       // of a block
constexpr int kShortBackwardRows = 2;    // that a thread has in process
constexpr int kShortBackwardBlocks = 2;  // of a multiprocessor

template <class T, bool kWhole, bool kPlain>
__global__ void __launch_bounds__(kShortThreads, kShortBackwardBlocks)
    backward_short(const __grid_constant__ BackwardArgs a) {
  constexpr int W = kWidth<T>, U = kShortBackwardRows;
  constexpr Ring kRing = ring_of(kWhole, std::is_same_v<T, AnyElement>, true);
  constexpr bool kPairs = kRing == Ring::kPairs;
  constexpr int kBlocks = kPairs ? 2 : 1;          // slots of a vector, 32 apart
  constexpr int kArray = ring_slots(kRing, 1, U);  // x's slots are before dy's
  constexpr int kStage = 2 * kArray;               // of one warp
  extern __shared__ __align__(128) uint4 memory[];
  const int threads = blockDim.x, groups = blockDim.y, block_threads = threads * groups;
  const Team team = {int(threadIdx.y), threads, 1};
  const int thread = team.place * threads + threadIdx.x, first = threadIdx.x * W;
  const int left = int(a.cols) - first;  // columns from this thread's first on
  // The rows of this group of threads: tasks first_task, first_task + stride, ... All groups, which
  // share warps, take as many steps as the block's first, which has the most rows.
  const uint32_t group = a.fixed_group(), first_task = a.first_task(group);
  const int count = a.rows_from(first_task), most = a.rows_from(first_task - team.place);

  // This thread's slots: of array 0 (x) and 1 (dy), of row u.
  uint4 *const ring = memory + thread / 32 * (a.stages * kStage) + thread % 32;
  const auto slot = [&](int stage, int array, int u) {
    return ring + stage + array * kArray + u * kBlocks * 32;
  };
  const auto next_stage = [&](int stage) {
    return stage == (a.stages - 1) * kStage ? 0 : stage + kStage;
  };
  const auto stage_before = [&](int stage) {
    return stage == 0 ? (a.stages - 1) * kStage : stage - kStage;
  };
  BlockSums<1, W> sums = {
      reinterpret_cast<float4 *>(memory + block_threads / 32 * (a.stages * kStage)) + thread,
      block_threads, true};
  if (a.partial == nullptr) sums.own = nullptr;

  // This thread's first element of a row. kPlain: a pointer that moves by a constant step.
  const auto offset = [&](rmsnorm_dtype_t dtype) {
    return first * int64_t(size_of_element<T>(dtype));
  };
  const auto row_of = [&](const Matrix &matrix, int row) {
    int64_t r = 0, g = group;
    a.locate(first_task + row * a.stride, &r, &g);
    return matrix.at(r, g);
  };
  const auto start_of = [&](const Matrix &matrix, int row) {
    return row_of(matrix, row) + offset(matrix.dtype);
  };
  const auto first_of = [&](const Matrix &matrix) {
    return kPlain ? matrix.at(first_task, group) + offset(matrix.dtype) : nullptr;
  };
  const char *x_ahead = first_of(a.x), *dy_ahead = first_of(a.dy);
  char *dx_here = first_of(a.dx);
  int next_shift[2] = {misalignment(x_ahead), misalignment(dy_ahead)};

  // Starts copying the next U rows.
  const auto fetch = [&](int row, int stage) {
#pragma unroll
    for (int u = 0; u < U; ++u) {
      const bool active = row + u < count;
      const int valid = active ? left : 0;
      const char *const x = kPlain ? x_ahead : start_of(a.x, active ? row + u : 0);
      const char *const dy = kPlain ? dy_ahead : start_of(a.dy, active ? row + u : 0);
      start_copy<T, kWhole, kPairs>(slot(stage, 0, u), x, valid, a.x.dtype);
      start_copy<T, kWhole, kPairs>(slot(stage, 1, u), dy, valid, a.dy.dtype);
      x_ahead += a.x_step, dy_ahead += a.dy_step;
    }
    commit_copies();
  };

  // The weight is the only thing read before the previous kernel is done. It and the first rstd are
  // asked for before the ring's first rows, or they would come behind them.
  BackwardWeight<kWhole, W> weight;
  weight.load(a, group, first, left);
  if (a.overlap) start_beside_neighbours();
  const char *rstd_ahead = kPlain ? a.rstd.at(first_task, group) : nullptr;
  float next_rstd[U];
  const auto prefetch_rstd = [&](int row) {
#pragma unroll
    for (int u = 0; u < U; ++u) {
      next_rstd[u] = 0;
      if (row + u < count)
        next_rstd[u] =
            *reinterpret_cast<const float *>(kPlain ? rstd_ahead : row_of(a.rstd, row + u));
      rstd_ahead += a.rstd_step;
    }
  };
  prefetch_rstd(0);
#pragma unroll 1
  for (int i = 0; i < a.stages - 1; ++i) fetch(i * U, i * kStage);
  float w[W];
  weight.read(a, w);

  int row = 0, stage = 0;
  for (int chunk = 0; chunk < a.chunks; ++chunk) {
    const int end = most - row < kChunkRows ? most : row + kChunkRows;
    sums.first = true;
    do {
      float dweight[1][W] = {};
      uint32_t rare = 0;  // a bit for each row since the last flush
      const int begin = row, flush_at = end - begin < kFlushRows ? end : begin + kFlushRows;
      for (; row < flush_at; row += U) {
        fetch(row + (a.stages - 1) * U, stage_before(stage));
        if (a.stages == 3) wait_for_copies<2>();
        else wait_for_copies<1>();

        float rstd[U], x[U][W], dy[U][W], mean[U];
        bool active[U];
        Vector<T> added_row[U];
#pragma unroll
        for (int u = 0; u < U; ++u) {
          rstd[u] = next_rstd[u];
          active[u] = row + u < count;
          int shift[2] = {next_shift[0], next_shift[1]};
          if (kPairs && kPlain) {
            next_shift[0] = (shift[0] + int(a.x_step)) & 15;
            next_shift[1] = (shift[1] + int(a.dy_step)) & 15;
          } else if (kPairs) {
            shift[0] = misalignment(start_of(a.x, row + u));
            shift[1] = misalignment(start_of(a.dy, row + u));
          }
          if (!kPlain && a.dresidual_out.data != nullptr)
            added_row[u] = load_vector<T, kWhole>(start_of(a.dresidual_out, row + u),
                                                  active[u] ? left : 0, a.dresidual_out.dtype);
          read_slot<T, kRing>(slot(stage, 0, u), shift[0]).unpack(a.x.dtype, x[u]);
          read_slot<T, kRing>(slot(stage, 1, u), shift[1]).unpack(a.dy.dtype, dy[u]);
          mean[u] = 0;
#pragma unroll
          for (int i = 0; i < W; ++i) {
            dy[u][i] *= rstd[u];
            mean[u] = fmaf(w[i] * dy[u][i], x[u][i], mean[u]);
          }
        }
        prefetch_rstd(row + U);
        for (int step = threads / 2; step > 0; step /= 2)
#pragma unroll
          for (int u = 0; u < U; ++u) mean[u] += __shfl_xor_sync(0xffffffffu, mean[u], step);
#pragma unroll
        for (int u = 0; u < U; ++u) {
          mean[u] *= a.inverse_cols;
          const bool redo = active[u] && !is_fast_row(rstd[u], mean[u]);
          if (__any_sync(0xffffffffu, redo) && redo) {
            rare |= 1u << (row + u - begin);
#pragma unroll
            for (int i = 0; i < W; ++i) x[u][i] = dy[u][i] = 0;
          }
          const float slope = rstd[u] * rstd[u] * mean[u];
          float dx[W];
#pragma unroll
          for (int i = 0; i < W; ++i) {
            dx[i] = fmaf(-x[u][i], slope, w[i] * dy[u][i]);
            dweight[0][i] = fmaf(dy[u][i], x[u][i], dweight[0][i]);
          }
          if (!kPlain && a.dresidual_out.data != nullptr) {
            float added[W];
            added_row[u].unpack(a.dresidual_out.dtype, added);
#pragma unroll
            for (int i = 0; i < W; ++i) dx[i] += added[i];
          }
          const auto write = [&](char *to, rmsnorm_dtype_t dtype) {
            Vector<T> out;
            out.pack(dtype, dx);
            Writer<T, kWhole>(threads).store(to, out, active[u] && !redo ? left : 0, true, true,
                                             dtype);
          };
          if (kPlain) write(dx_here, a.dx.dtype);
          else if (a.dx.data != nullptr) write(start_of(a.dx, row + u), a.dx.dtype);
          if (!kPlain && a.dresidual.data != nullptr)
            write(start_of(a.dresidual, row + u), a.dresidual.dtype);
          dx_here += a.dx_step;
        }
        stage = next_stage(stage);
      }
      sums.flush(dweight);
      if (__any_sync(0xffffffffu, rare != 0)) {
        add_exact_rows(a, {0, group, first, 32 * W, 1, W}, first_task + begin * a.stride, rare,
                       team, static_cast<double *>(nullptr), slot(stage_before(stage), 0, 0),
                       kBlocks * 32, kArray, dweight);
        sums.flush(dweight);
      }
    } while (row < end);
    if (a.partial == nullptr) continue;
    const bool last = chunk + 1 == a.chunks;
    if (last) let_next_start();  // sum_partials: it waits for this kernel's end before it reads
    __syncwarp();
    __syncthreads();
    add_groups<1, W>(sums.own - thread,
                     a.partial + (int64_t(blockIdx.x) * a.chunks + chunk) * a.pitch);
    if (!last) __syncthreads();  // the next chunk writes where this one was read
  }
}

}  // namespace
}  // namespace rmsnorm::cuda
