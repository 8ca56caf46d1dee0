// Backward for rows that fit one block: dx (and dresidual), and the rows' contribution to dweight.
// Reads x and dy once, writes dx once: 6 bytes an element for halves. dweight's partial sums add
// less than 1 %.
//
// Persistent: each of blockDim.y groups of blockDim.x threads takes every (blocks * groups)-th row;
// x and dy come through a ring of cp.async stages in shared memory, where each thread copies and
// later reads only its own slots (no barrier for the data); one barrier a row, for the mean. Vector
// v of thread t is column (v * threads + t) * width: lanes by column, never by address.
//
// dweight: fp32 registers for kFlushRows rows, then the block's groups are added in order, in fp64,
// and one partial row goes to the workspace; sum_partials adds those in fp64. So the error does not
// grow with rows, and the tree depends on the shape and the grid alone.
#pragma once

#include "cuda/kernels/elements.cuh"
#include "cuda/kernels/rows.cuh"

namespace rmsnorm::cuda {
namespace {

struct BackwardArgs {
  Tasks tasks;  // by_group: of one group, which is blockIdx.x / blocks
  Matrix dy, x, weight, rstd, dresidual_out, dx, dresidual;
  float *partial;  // [groups if by_group][blocks][chunks][padded]; NULL: no dweight
  int64_t cols;
  double eps, weight_offset;
  float inverse_cols;
  int blocks;      // that share the tasks
  int chunks;      // partial rows of each block
  int iterations;  // rows of each group of threads
  int stages;
  bool by_group,
      overlap;  // by_group: weight or dweight is per group, and a block keeps to one group
};

// At most this many fp32 additions in a row for dweight: 64 terms of one sign lose at most 2^-19 of
// their sum.
constexpr int kFlushRows = 64;
constexpr int kMaxBackwardGroups =
    8;  // rows longer than a warp: each has a named barrier and scratch

template <int V>
constexpr int kBackwardThreads = V == 1 ? 256 : 512;
template <int V>
constexpr int kBackwardBlocks = V == 1 ? 3 : 1;  // per multiprocessor, at least

// Copies a vector to this thread's slot: asynchronously if it is whole and aligned. A vector beyond
// the row is left as it is (the kernel has zeroed the ring).
template <class T, bool kWhole>
__device__ inline void copy_vector(Vector<T> *slot, const char *data, int valid, bool aligned,
                                   rmsnorm_dtype_t dtype) {
  if (valid <= 0) return;
#if __CUDA_ARCH__ >= 800
  if (kWhole || (aligned && valid >= kWidth<T>)) {
    const uint32_t address = uint32_t(__cvta_generic_to_shared(slot));
    if (size_of_element<T>(dtype) * kWidth<T> == 16)
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(data)
                   : "memory");
    else
      asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(address), "l"(data) : "memory");
    return;
  }
#endif
  *slot = load_vector<T, kWhole>(data, valid, aligned, dtype);
}

__device__ inline void commit_stage() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most `stages` - 1 younger stages are in flight.
__device__ inline void wait_for_stage(int stages) {
#if __CUDA_ARCH__ >= 800
  if (stages == 2) asm volatile("cp.async.wait_group 1;" ::: "memory");
  else asm volatile("cp.async.wait_group 2;" ::: "memory");
#endif
}

// Shared memory of a block, in floats: the ring, the weight with its offset as floats, and for
// several groups the dweight of each. Floats of a thread lie in parts of 4, the threads side by
// side: no bank conflicts.
struct BackwardMemory {
  int slots;   // vectors of a block's rows
  int padded;  // columns of a row, rounded up to its threads' vectors
  int stages, groups;

  __host__ __device__ size_t ring_bytes() const { return size_t(stages) * 2 * slots * 16; }
  __host__ __device__ size_t weight_bytes() const { return size_t(padded) * 4; }
  __host__ __device__ size_t bytes() const {
    return ring_bytes() + weight_bytes() * (groups > 1 ? 1 + groups : 1);
  }
};

template <int kCount>
__device__ inline void read_parts(const float *from, int lane, int threads, float (&out)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; i += 4) {
    const float4 part = reinterpret_cast<const float4 *>(from)[i / 4 * threads + lane];
    out[i] = part.x, out[i + 1] = part.y, out[i + 2] = part.z, out[i + 3] = part.w;
  }
}

template <int kCount>
__device__ inline void write_parts(float *to, int lane, int threads, const float (&in)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; i += 4)
    reinterpret_cast<float4 *>(to)[i / 4 * threads + lane] =
        make_float4(in[i], in[i + 1], in[i + 2], in[i + 3]);
}

// Adds the groups' dweight, each laid out by write_parts, in the groups' order, and writes the sums
// in the columns' order. All threads of the block take part.
__device__ inline void add_groups(const float *combined, float *out, int width, int threads,
                                  int groups, int padded) {
  for (int i = threadIdx.y * threads + threadIdx.x; i < padded; i += threads * groups) {
    double sum = 0;
    for (int group = 0; group < groups; ++group) sum += double(combined[group * padded + i]);
    const int part = i / (4 * threads),
              lane = i / 4 % threads;  // part: of 4 of a vector's elements
    const int parts = width / 4;
    out[(part / parts * threads + lane) * width + part % parts * 4 + i % 4] = float(sum);
  }
}

// ---- Rows outside fp32's comfortable range, in fp64
// ----------------------------------------------
//
// Calls of their own that read the row again from memory, so that rare code costs the loop no
// registers.

// Where a thread stands in a row: its elements are columns (v * threads + lane) * width + i.
struct Place {
  int64_t r, g;
  int lane, threads, vectors, width;

  template <class Visit>
  __device__ void each_column(int64_t cols, Visit visit) const {
    for (int v = 0; v < vectors; ++v)
      for (int i = 0; i < width; ++i) {
        const int64_t c = int64_t(v * threads + lane) * width + i;
        if (c < cols) visit(c, v, i);
      }
  }
};

__device__ inline double exact_weight(const BackwardArgs &a, int64_t g, int64_t c) {
  const char *row = a.weight.data + g * a.weight.group_stride;
  return (a.weight.data != nullptr ? load_double(row, c, a.weight.dtype) : 1) + a.weight_offset;
}

// This thread's part of the sum of squares.
__device__ __noinline__ double exact_squares(const BackwardArgs &a, Place place) {
  const char *x_row = a.x.at(place.r, place.g);
  double sum = 0;
  place.each_column(a.cols, [&](int64_t c, int, int) {
    const double x = load_double(x_row, c, a.x.dtype);
    sum = fma(x, x, sum);
  });
  return sum;
}

// This thread's part of the sum of w * dy * xhat.
__device__ __noinline__ double exact_products(const BackwardArgs &a, Place place, double rstd) {
  const char *x_row = a.x.at(place.r, place.g), *dy_row = a.dy.at(place.r, place.g);
  double sum = 0;
  place.each_column(a.cols, [&](int64_t c, int, int) {
    sum = fma(exact_weight(a, place.g, c) * load_double(dy_row, c, a.dy.dtype),
              load_double(x_row, c, a.x.dtype) * rstd, sum);
  });
  return sum;
}

// Writes this thread's elements of dx and dresidual, and leaves dy * xhat for dweight as floats in
// the thread's own slots of the row: elements 0 to 3 of vector v at v * slot_step, 4 to 7 at
// dy_slots + v * slot_step.
__device__ __noinline__ void exact_row(const BackwardArgs &a, Place place, double rstd, double mean,
                                       float4 *x_slots, float4 *dy_slots, int slot_step) {
  const char *x_row = a.x.at(place.r, place.g), *dy_row = a.dy.at(place.r, place.g);
  place.each_column(a.cols, [&](int64_t c, int v, int i) {
    const double dy = load_double(dy_row, c, a.dy.dtype);
    const double xhat = load_double(x_row, c, a.x.dtype) * rstd;
    double dx = rstd * fma(-xhat, mean, exact_weight(a, place.g, c) * dy);
    if (a.dresidual_out.data != nullptr)
      dx += load_double(a.dresidual_out.at(place.r, place.g), c, a.dresidual_out.dtype);
    if (a.dx.data != nullptr) store_double(a.dx.at(place.r, place.g), c, a.dx.dtype, dx);
    if (a.dresidual.data != nullptr)
      store_double(a.dresidual.at(place.r, place.g), c, a.dresidual.dtype, dx);
    float4 *const slots = i < 4 ? x_slots : dy_slots;
    reinterpret_cast<float *>(slots + v * slot_step)[i % 4] = float(dy * xhat);
  });
}

// A computed rstd: 1 / sqrt(mean + eps).
__device__ __noinline__ double exact_rstd(double sum, double cols, double eps) {
  return 1.0 / sqrt(sum / cols + eps);
}

// ---- The kernel
// ----------------------------------------------------------------------------------

// The rows that one group of threads takes, one after another: every stride-th task. kSteps: from
// row to row of one group, where each tensor's pointer moves by a constant.
template <bool kSteps>
class Walk {
 public:
  __device__ Walk(const BackwardArgs &a, int64_t first, int64_t stride, int64_t fixed_group)
      : r_(first), g_(fixed_group), row_step_(stride) {
    if (kSteps || a.by_group || a.tasks.groups == 1) return;
    a.tasks.locate(first, &r_, &g_);
    a.tasks.locate(stride, &row_step_, &group_step_);
    groups_ = a.tasks.groups;
  }
  __device__ int64_t row() const { return r_; }
  __device__ int64_t group() const { return g_; }
  __device__ void advance() {
    r_ += row_step_;
    if (kSteps) return;
    g_ += group_step_;
    if (g_ >= groups_) g_ -= groups_, ++r_;
  }
  __device__ int64_t row_step() const { return row_step_; }

 private:
  int64_t r_, g_;
  int64_t row_step_, group_step_ = 0, groups_ = INT64_MAX;
};

template <bool kSteps>
class RowPointer {
 public:
  __device__ RowPointer(const Matrix &matrix, const Walk<kSteps> &walk)
      : matrix_(matrix),
        row_(matrix.at(walk.row(), walk.group())),
        step_(walk.row_step() * matrix.row_stride) {}
  __device__ char *at(const Walk<kSteps> &walk) const {
    return kSteps ? row_ : matrix_.at(walk.row(), walk.group());
  }
  __device__ void advance() { row_ += step_; }

 private:
  const Matrix &matrix_;
  char *row_;
  int64_t step_;
};

// kPlain: dx alone is asked for, rows are walked in one group, and nothing is added to dx.
template <class T, int V, bool kWhole, bool kPlain>
__global__ void __launch_bounds__(kBackwardThreads<V>, kBackwardBlocks<V>)
    backward_rows(const __grid_constant__ BackwardArgs a) {
  constexpr int W = kWidth<T>;
  extern __shared__ uint4 memory[];
  __shared__ float scratch[2][kMaxBackwardGroups][32];
  __shared__ double scratch_exact[2][kMaxBackwardGroups][32];
  const int lane = threadIdx.x, threads = blockDim.x, place = threadIdx.y, groups = blockDim.y;
  const int own_scratch = threads > 32 ? place : 0;
  const int cols = int(a.cols), padded = V * W * threads, slots = V * threads * groups;
  float *const weights = reinterpret_cast<float *>(memory + a.stages * 2 * slots);
  float *const combined = weights + padded;  // [groups][padded]
  const int64_t fixed_group = a.by_group ? blockIdx.x / a.blocks : 0;
  const int64_t block = a.by_group ? blockIdx.x % a.blocks : blockIdx.x;
  const int64_t first = block * groups + place, stride = int64_t(a.blocks) * groups;
  const int count =  // of rows; the other groups may have one more
      first < a.tasks.count ? int((a.tasks.count - 1 - first) / stride) + 1 : 0;
  const auto column = [&](int v) { return (v * threads + lane) * W; };

  // This thread's slots of a stage: vector v of x at v * slot_step, of dy `slots` further.
  const int slot_step = threads * groups;
  Vector<T> *const ring = reinterpret_cast<Vector<T> *>(memory) + place * threads + lane;
  Vector<T> *const ring_end = ring + a.stages * 2 * slots;
  const auto next_stage = [&](Vector<T> *stage) {
    stage += 2 * slots;
    return stage == ring_end ? ring : stage;
  };

  Walk<kPlain> ahead(a, first, stride, fixed_group), here = ahead;
  RowPointer<kPlain> x_rows(a.x, ahead), dy_rows(a.dy, ahead), dx_rows(a.dx, here),
      rstd_rows(a.rstd, here);
  // Starts copying the row that `ahead` stands at.
  const auto fetch = [&](int iteration, Vector<T> *stage) {
    if (iteration < count) {
      const char *const rows[2] = {x_rows.at(ahead), dy_rows.at(ahead)};
      const rmsnorm_dtype_t dtypes[2] = {a.x.dtype, a.dy.dtype};
#pragma unroll
      for (int array = 0; array < 2; ++array) {
        const bool aligned = is_aligned<T>(rows[array], dtypes[array]);
#pragma unroll
        for (int v = 0; v < V; ++v)
          copy_vector<T, kWhole>(stage + array * slots + v * slot_step,
                                 rows[array] + column(v) * size_of_element<T>(dtypes[array]),
                                 cols - column(v), aligned, dtypes[array]);
      }
      ahead.advance(), x_rows.advance(), dy_rows.advance();
    }
    commit_stage();
  };

  // The weight is the only thing read before the previous kernel is done.
  if (place == 0) {
    const char *row = a.weight.data + fixed_group * a.weight.group_stride;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      float w[W];
#pragma unroll
      for (int i = 0; i < W; ++i) w[i] = 1;
      if (a.weight.data != nullptr && column(v) < cols)
        load_floats<W, kWhole>(row + column(v) * int64_t(size_of(a.weight.dtype)), a.weight.dtype,
                               cols - column(v), w);
      if (a.weight_offset != 0) {
#pragma unroll
        for (int i = 0; i < W; ++i) w[i] = float(double(w[i]) + a.weight_offset);
      }
      write_parts(weights + v * W * threads, lane, threads, w);
    }
  }
  if (a.overlap) start_beside_neighbours();
  for (int i = 0; i < a.stages * 2 * V; ++i) ring[i * slot_step] = {{0, 0, 0, 0}};
  Vector<T> *stage = ring, *fetch_stage = ring;
  for (int i = 0; i < a.stages - 1; ++i) {
    fetch(i, fetch_stage);
    fetch_stage = next_stage(fetch_stage);
  }
  const auto given_rstd = [&](bool active) {
    return a.rstd.data != nullptr && active ? *reinterpret_cast<const float *>(rstd_rows.at(here))
                                            : 0;
  };
  float next_rstd = given_rstd(count > 0);
  __syncthreads();

  float dweight[V][W];
#pragma unroll
  for (int v = 0; v < V; ++v)
#pragma unroll
    for (int i = 0; i < W; ++i) dweight[v][i] = 0;

  int rows_in_sum = 0, chunk = 0;
  for (int iteration = 0; iteration < a.iterations; ++iteration) {
    fetch(iteration + a.stages - 1, fetch_stage);
    fetch_stage = next_stage(fetch_stage);
    wait_for_stage(a.stages);
    const bool active = iteration < count;
    const int valid_cols = active ? cols : 0;
    const Place here_now = {here.row(), here.group(), lane, threads, V, W};
    char *const dx_row = dx_rows.at(here);
    const float given = next_rstd;
    here.advance(), dx_rows.advance(), rstd_rows.advance();
    next_rstd = given_rstd(iteration + 1 < count);

    // x, dy and weight of vector v, each time from shared memory: held in registers over the
    // barrier they would cost a block per multiprocessor.
    const auto read = [&](int v, float(&x)[W], float(&dy)[W], float(&w)[W]) {
      stage[v * slot_step].unpack(a.x.dtype, x);
      stage[slots + v * slot_step].unpack(a.dy.dtype, dy);
      read_parts(weights + v * W * threads, lane, threads, w);
    };
    Vector<T> added_row[kPlain ? 1 : V];
    if (!kPlain && a.dresidual_out.data != nullptr && active) {
      const char *row = a.dresidual_out.at(here_now.r, here_now.g);
      const bool aligned = is_aligned<T>(row, a.dresidual_out.dtype);
#pragma unroll
      for (int v = 0; v < (kPlain ? 1 : V); ++v)
        added_row[v] =
            load_vector<T, kWhole>(row + column(v) * size_of_element<T>(a.dresidual_out.dtype),
                                   valid_cols - column(v), aligned, a.dresidual_out.dtype);
    }

    // rstd as given; computed where it is absent, 0, Inf or subnormal.
    float rstd = given;
    double rstd_computed = 0;
    const bool unusable = active && (fabsf(given) < 0x1p-126f || isinf(given));
    if (any_row_of_warp(unusable, threads)) {
      const double sum = row_sum(unusable ? exact_squares(a, here_now) : 0.0, place, threads,
                                 scratch_exact[0][own_scratch]);
      if (unusable) {
        rstd_computed = exact_rstd(sum, double(a.cols), a.eps);
        rstd = float(rstd_computed);
      }
    }

    float sum = 0;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      float x[W], dy[W], w[W];
      read(v, x, dy, w);
      float part = 0;
#pragma unroll
      for (int i = 0; i < W; ++i) part = fmaf(w[i] * dy[i], x[i] * rstd, part);
      sum += part;
    }
    const float mean =
        row_sum(sum, place, threads, scratch[iteration % 2][own_scratch]) * a.inverse_cols;
    // Whether fp32 stays in its normal range: rstd^2 * mean too.
    const float size = fabsf(mean);
    const bool fast = fabsf(rstd) >= 0x1p-20f && fabsf(rstd) <= 0x1p20f && size <= 0x1p30f &&
                      (size >= 0x1p-60f || size == 0);
    const float slope = rstd * rstd * mean;
    const bool redo = active && !fast;
    if (any_row_of_warp(redo, threads)) {
      const double rstd_exact = unusable ? rstd_computed : double(given);
      const double exact = row_sum(redo ? exact_products(a, here_now, rstd_exact) : 0.0, place,
                                   threads, scratch_exact[1][own_scratch]);
      if (redo) {
        exact_row(a, here_now, rstd_exact, exact / double(a.cols),
                  reinterpret_cast<float4 *>(stage), reinterpret_cast<float4 *>(stage + slots),
                  slot_step);
#pragma unroll
        for (int v = 0; v < V; ++v)
#pragma unroll
          for (int i = 0; i < W; ++i)
            if (column(v) + i < cols)
              dweight[v][i] += __uint_as_float(stage[i / 4 * slots + v * slot_step].word[i % 4]);
      }
    }

#pragma unroll
    for (int v = 0; v < V; ++v) {
      const int valid = valid_cols - column(v);
      if (valid <= 0 || !fast) continue;
      float x[W], dy[W], w[W], dx[W];
      read(v, x, dy, w);
#pragma unroll
      for (int i = 0; i < W; ++i) {
        const float scaled_dy = dy[i] * rstd;
        dx[i] = fmaf(-x[i], slope, w[i] * scaled_dy);
        dweight[v][i] = fmaf(scaled_dy, x[i], dweight[v][i]);
      }
      if (!kPlain && a.dresidual_out.data != nullptr) {
        float added[W];
        added_row[kPlain ? 0 : v].unpack(a.dresidual_out.dtype, added);
#pragma unroll
        for (int i = 0; i < W; ++i) dx[i] += added[i];
      }
      const auto write = [&](char *row, rmsnorm_dtype_t dtype) {
        Vector<T> out;
        out.pack(dtype, dx);
        store_vector<T, kWhole>(row + column(v) * size_of_element<T>(dtype), out, valid,
                                is_aligned<T>(row, dtype), dtype);
      };
      if (kPlain || a.dx.data != nullptr) write(dx_row, a.dx.dtype);
      if (!kPlain && a.dresidual.data != nullptr)
        write(a.dresidual.at(here_now.r, here_now.g), a.dresidual.dtype);
    }

    stage = next_stage(stage);
    const bool last = iteration + 1 == a.iterations;
    if (a.partial == nullptr || (++rows_in_sum < kFlushRows && !last)) continue;
    if (last) let_next_start();  // sum_partials: it waits for this kernel's end before it reads
    float *const out = a.partial + (int64_t(blockIdx.x) * a.chunks + chunk) * int64_t(padded);
    rows_in_sum = 0;
    ++chunk;
    if (groups == 1) {
#pragma unroll
      for (int v = 0; v < V; ++v)
#pragma unroll
        for (int i = 0; i < W; i += 4)
          *reinterpret_cast<float4 *>(out + column(v) + i) =
              make_float4(dweight[v][i], dweight[v][i + 1], dweight[v][i + 2], dweight[v][i + 3]);
    } else {
#pragma unroll
      for (int v = 0; v < V; ++v)
        write_parts(combined + place * padded + v * W * threads, lane, threads, dweight[v]);
      __syncwarp();  // the rows above may have parted a warp, and a barrier counts warps
      __syncthreads();
      add_groups(combined, out, W, threads, groups, padded);
      __syncthreads();  // the next flush writes where this one was read
    }
#pragma unroll
    for (int v = 0; v < V; ++v)
#pragma unroll
      for (int i = 0; i < W; ++i) dweight[v][i] = 0;
  }
}

}  // namespace
}  // namespace rmsnorm::cuda
