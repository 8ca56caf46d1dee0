// Backward for rows that fit one block: dx (and dresidual), and the rows' contribution to dweight. Reads x and dy
// once, writes dx once: 6 bytes an element for halves. dweight's partial sums add less than 1 %.
//
// Persistent: each of blockDim.y groups of blockDim.x threads takes every (blocks * groups)-th row; x and dy come
// through a ring of cp.async stages in shared memory, where each thread copies and later reads only its own
// slots (no barrier for the data); one barrier a row, for the mean. Vector v of thread t is column
// (v * threads + t) * width: lanes by column, never by address.
//
// dweight: fp32 registers for kFlushRows rows, then the block's groups are added in a fixed tree and one partial
// row goes to the workspace; sum_partials adds those in fp64. So the error does not grow with rows, and
// the tree depends on the shape and the grid alone.
#pragma once

#include "cuda/kernels/elements.cuh"
#include "cuda/kernels/rows.cuh"

namespace rmsnorm::cuda {
namespace {

struct BackwardArgs {
  Tasks tasks;  // per_group: of one group, and blockIdx.x / blocks is the group
  Matrix dy, x, weight, rstd, dresidual_out, dx, dresidual;
  float *partial;  // [groups if per_group][blocks][chunks][pitch]; NULL: no dweight
  int64_t cols;
  double eps, weight_offset;
  float inverse_cols;
  int blocks;      // that share the tasks
  int chunks;      // partial rows of each block
  int iterations;  // rows of each group of threads
  int stages;
  bool per_group, overlap;
};

// At most this many fp32 additions in a row for dweight: 64 terms of one sign lose at most 2^-19 of their sum.
constexpr int kFlushRows = 64;
constexpr int kMaxBackwardGroups = 8;  // rows longer than a warp: each has a named barrier and scratch

constexpr int kBackwardThreads = 512;

// Copies a vector to this thread's slot: asynchronously if it is whole and aligned.
template <class T>
__device__ inline void copy_vector(Vector<T> *slot, const char *data, int valid, bool aligned,
                                   rmsnorm_dtype_t dtype) {
#if __CUDA_ARCH__ >= 800
  if (aligned && valid >= kWidth<T>) {
    const uint32_t address = uint32_t(__cvta_generic_to_shared(slot));
    if (size_of_element<T>(dtype) * kWidth<T> == 16)
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(data) : "memory");
    else
      asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(address), "l"(data) : "memory");
    return;
  }
#endif
  *slot = load_vector<T>(data, valid, aligned, dtype);
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

// Shared memory of a block, in floats: the ring, the weight with its offset as floats, and for several groups
// the dweight of each. Floats of a thread lie in parts of 4, the threads side by side: no bank conflicts.
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

// What a row's threads know of it.
struct BackwardScale {
  double exact;  // rstd
  float rstd;
  double mean;  // of w * dy * xhat
  bool fast;    // fp32 arithmetic stays in its normal range
};

template <class T, int V>
__global__ void __launch_bounds__(kBackwardThreads)
    backward_rows(const __grid_constant__ BackwardArgs a) {
  constexpr int W = kWidth<T>;
  extern __shared__ uint4 memory[];
  __shared__ float scratch[2][kMaxBackwardGroups][32];
  __shared__ double scratch_exact[2][kMaxBackwardGroups][32];
  const int lane = threadIdx.x, threads = blockDim.x, place = threadIdx.y, groups = blockDim.y;
  const int own_scratch = threads > 32 ? place : 0;
  const int cols = int(a.cols), padded = V * W * threads, slots = V * threads * groups;
  Vector<T> *const ring = reinterpret_cast<Vector<T> *>(memory);
  float *const weights = reinterpret_cast<float *>(memory + a.stages * 2 * slots);
  float *const combined = weights + padded;  // [groups][padded]
  const int block = a.per_group ? blockIdx.x % a.blocks : blockIdx.x;
  const int fixed_group = a.per_group ? blockIdx.x / a.blocks : 0;
  const int64_t first = int64_t(block) * groups + place, stride = int64_t(a.blocks) * groups;
  const auto column = [&](int v) { return (v * threads + lane) * W; };

  const auto locate = [&](int64_t task, int64_t *r, int64_t *g) {
    if (a.per_group) *r = task, *g = fixed_group;
    else a.tasks.locate(task, r, g);
  };
  // Slot of vector v of this thread: x at array 0, dy at array 1.
  const auto slot = [&](int stage, int array, int v) {
    return ring + ((stage * 2 + array) * V + v) * (threads * groups) + place * threads + lane;
  };
  const auto fetch = [&](int64_t iteration) {
    const int64_t task = first + iteration * stride;
    const bool active = iteration < a.iterations && task < a.tasks.count;
    int64_t r = 0, g = 0;
    if (active) locate(task, &r, &g);
    const int stage = int(iteration % a.stages);
    const Matrix *const arrays[2] = {&a.x, &a.dy};
#pragma unroll
    for (int array = 0; array < 2; ++array) {
      const rmsnorm_dtype_t dtype = arrays[array]->dtype;
      const char *row = arrays[array]->at(r, g);
      const bool aligned = is_aligned<T>(row, dtype);
#pragma unroll
      for (int v = 0; v < V; ++v)
        copy_vector<T>(slot(stage, array, v), row + column(v) * size_of_element<T>(dtype),
                       active ? cols - column(v) : 0, aligned, dtype);
    }
    commit_stage();
  };
  const auto given_rstd = [&](int64_t iteration) {
    const int64_t task = first + iteration * stride;
    if (a.rstd.data == nullptr || task >= a.tasks.count) return 0.0f;
    int64_t r, g;
    locate(task, &r, &g);
    return *reinterpret_cast<const float *>(a.rstd.at(r, g));
  };

  // The weight is the only thing read before the previous kernel is done.
  const char *weight_row = a.weight.data + fixed_group * a.weight.group_stride;
  const bool one_weight = a.per_group || a.weight.group_stride == 0;
  if (place == 0) {
#pragma unroll
    for (int v = 0; v < V; ++v) {
      float w[W];
#pragma unroll
      for (int i = 0; i < W; ++i) w[i] = 1;
      if (a.weight.data != nullptr && one_weight)
        load_floats(weight_row + column(v) * int64_t(size_of(a.weight.dtype)), a.weight.dtype,
                    cols - column(v), w);
#pragma unroll
      for (int i = 0; i < W; ++i) w[i] = float(double(w[i]) + a.weight_offset);
      write_parts(weights + v * W * threads, lane, threads, w);
    }
  }
  if (a.overlap) let_next_start();
  wait_for_previous();
  for (int stage = 0; stage < a.stages - 1; ++stage) fetch(stage);
  float next_rstd = given_rstd(0);
  __syncthreads();

  float dweight[V][W];
#pragma unroll
  for (int v = 0; v < V; ++v)
#pragma unroll
    for (int i = 0; i < W; ++i) dweight[v][i] = 0;

  for (int iteration = 0; iteration < a.iterations; ++iteration) {
    fetch(iteration + a.stages - 1);
    wait_for_stage(a.stages);
    const int64_t task = first + iteration * stride;
    const bool active = task < a.tasks.count;
    const int valid_cols = active ? cols : 0;
    int64_t r = 0, g = 0;
    if (active) locate(task, &r, &g);
    const float given = next_rstd;
    next_rstd = given_rstd(iteration + 1);

    Vector<T> x_row[V], dy_row[V];
#pragma unroll
    for (int v = 0; v < V; ++v) {
      x_row[v] = *slot(iteration % a.stages, 0, v);
      dy_row[v] = *slot(iteration % a.stages, 1, v);
    }
    Vector<T> dresidual_row[V];
    const bool dresidual_packed = a.dresidual_out.data != nullptr && a.dresidual_out.dtype == a.x.dtype;
    if (dresidual_packed) {
      const char *row = a.dresidual_out.at(r, g);
      const bool aligned = is_aligned<T>(row, a.x.dtype);
#pragma unroll
      for (int v = 0; v < V; ++v)
        dresidual_row[v] = load_vector<T>(row + column(v) * size_of_element<T>(a.x.dtype),
                                          valid_cols - column(v), aligned, a.x.dtype);
    }
    const auto weight_of = [&](int v, float(&w)[W]) {
      if (one_weight) {
        read_parts(weights + v * W * threads, lane, threads, w);
        return;
      }
      load_floats(a.weight.data + g * a.weight.group_stride + column(v) * int64_t(size_of(a.weight.dtype)),
                  a.weight.dtype, valid_cols - column(v), w);
#pragma unroll
      for (int i = 0; i < W; ++i) w[i] = float(double(w[i]) + a.weight_offset);
    };

    // rstd as given; computed where it is absent, 0, Inf or subnormal.
    BackwardScale scale;
    scale.rstd = given;
    scale.exact = given;
    const float size = fabsf(given);
    const bool unusable = active && (size < 0x1p-126f || size > 3.402823466e+38f);
    if (any_row_of_warp(unusable, threads)) {
      double sum = 0;
#pragma unroll
      for (int v = 0; v < V; ++v) {
        float x[W];
        x_row[v].unpack(a.x.dtype, x);
#pragma unroll
        for (int i = 0; i < W; ++i) sum = fma(double(x[i]), double(x[i]), sum);
      }
      sum = row_sum(sum, place, threads, scratch_exact[0][own_scratch]);
      if (unusable) {
        scale.exact = 1.0 / sqrt(sum / double(a.cols) + a.eps);
        scale.rstd = float(scale.exact);
      }
    }

    float sum = 0;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      float x[W], dy[W], w[W];
      x_row[v].unpack(a.x.dtype, x);
      dy_row[v].unpack(a.dy.dtype, dy);
      weight_of(v, w);
      float part = 0;
#pragma unroll
      for (int i = 0; i < W; ++i) part = fmaf(w[i] * dy[i], x[i] * scale.rstd, part);
      sum += part;
    }
    const float mean =
        row_sum(sum, place, threads, scratch[iteration % 2][own_scratch]) * a.inverse_cols;
    scale.mean = mean;
    scale.fast = fabsf(scale.rstd) >= 0x1p-60f && fabsf(scale.rstd) <= 0x1p20f && fabsf(mean) <= 0x1p30f;
    if (any_row_of_warp(active && !scale.fast, threads)) {
      double exact = 0;
#pragma unroll
      for (int v = 0; v < V; ++v) {
        float x[W], dy[W], w[W];
        x_row[v].unpack(a.x.dtype, x);
        dy_row[v].unpack(a.dy.dtype, dy);
        weight_of(v, w);
#pragma unroll
        for (int i = 0; i < W; ++i)
          exact = fma(double(w[i]) * double(dy[i]), double(x[i]) * scale.exact, exact);
      }
      exact = row_sum(exact, place, threads, scratch_exact[1][own_scratch]);
      if (!scale.fast) scale.mean = exact / double(a.cols);
    }

#pragma unroll
    for (int v = 0; v < V; ++v) {
      const int valid = valid_cols - column(v);
      if (valid <= 0) continue;
      float x[W], dy[W], w[W], dx[W];
      x_row[v].unpack(a.x.dtype, x);
      dy_row[v].unpack(a.dy.dtype, dy);
      weight_of(v, w);
      float added[W];
#pragma unroll
      for (int i = 0; i < W; ++i) added[i] = 0;
      if (dresidual_packed) dresidual_row[v].unpack(a.x.dtype, added);
      else if (a.dresidual_out.data != nullptr)
        load_floats(a.dresidual_out.at(r, g) + column(v) * int64_t(size_of(a.dresidual_out.dtype)),
                    a.dresidual_out.dtype, valid, added);
      if (scale.fast) {
#pragma unroll
        for (int i = 0; i < W; ++i) {
          const float xhat = x[i] * scale.rstd;
          dx[i] = fmaf(scale.rstd, fmaf(-xhat, mean, w[i] * dy[i]), added[i]);
          dweight[v][i] = fmaf(dy[i], xhat, dweight[v][i]);
        }
      } else {
#pragma unroll
        for (int i = 0; i < W; ++i) {
          const double xhat = double(x[i]) * scale.exact;
          dx[i] = float(fma(scale.exact, fma(-xhat, scale.mean, double(w[i]) * double(dy[i])),
                            double(added[i])));
          dweight[v][i] += float(double(dy[i]) * xhat);
        }
      }
      if (a.dx.data != nullptr) {
        char *row = a.dx.at(r, g);
        Vector<T> out;
        out.pack(a.dx.dtype, dx);
        store_vector<T>(row + column(v) * size_of_element<T>(a.dx.dtype), out, valid,
                        is_aligned<T>(row, a.dx.dtype), a.dx.dtype);
      }
      if (a.dresidual.data != nullptr)
        store_floats(a.dresidual.at(r, g) + column(v) * int64_t(size_of(a.dresidual.dtype)),
                     a.dresidual.dtype, valid, dx);
    }

    const bool last = iteration + 1 == a.iterations;
    if (a.partial == nullptr || (!last && (iteration + 1) % kFlushRows != 0)) continue;
    if (last) let_next_start();  // sum_partials: it waits for this kernel's end before it reads
    float *const out =
        a.partial + (int64_t(blockIdx.x) * a.chunks + iteration / kFlushRows) * int64_t(padded);
    if (groups > 1) {
      float *const own = combined + place * padded;
#pragma unroll
      for (int v = 0; v < V; ++v) write_parts(own + v * W * threads, lane, threads, dweight[v]);
      for (int half = groups / 2; half > 0; half /= 2) {
        __syncthreads();
        if (place < half)
          for (int i = lane; i < padded; i += threads) own[i] += own[i + half * padded];
      }
      __syncthreads();
    }
#pragma unroll
    for (int v = 0; v < V; ++v) {
      if (groups > 1 && place == 0) read_parts(combined + v * W * threads, lane, threads, dweight[v]);
      if (place == 0) {
#pragma unroll
        for (int i = 0; i < W; i += 4)
          *reinterpret_cast<float4 *>(out + column(v) + i) =
              make_float4(dweight[v][i], dweight[v][i + 1], dweight[v][i + 2], dweight[v][i + 3]);
      }
#pragma unroll
      for (int i = 0; i < W; ++i) dweight[v][i] = 0;
    }
    if (groups > 1) __syncthreads();  // the next flush writes where this one was read
  }
}

}  // namespace
}  // namespace rmsnorm::cuda
