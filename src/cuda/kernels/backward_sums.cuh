// dweight in a block: second-level sums of each thread, fp32, in shared memory, and how a block's
// groups are added to one partial row. Floats of a thread lie in parts of 4, the threads side by
// side: no bank conflicts.
#pragma once

#include "cuda/kernels/elements.cuh"

namespace rmsnorm::cuda {
namespace {

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

// Rows so long that a block has one group of threads keep their second-level sums where the partial
// row will be: shared memory is for one more stage of the ring, without which the next row does not
// come while this one is worked on (131072 floats .61, with it .94).
__host__ __device__ constexpr bool sums_in_partial(int vectors) { return vectors == 4; }

// A thread's second-level sums.
template <int V, int W>
struct BlockSums {
  float4 *own;  // NULL: no dweight is asked for
  int step;     // threads of the block
  bool first;   // the next flush is a chunk's first

  __device__ void flush(float (&dweight)[V][W]) {
    if (own == nullptr) return;
    const int part_step = sums_in_partial(V) ? 1 : step;
    const int vector_step = sums_in_partial(V) ? 32 * W / 4 : W / 4 * step;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      float4 *const to = own + v * vector_step;
      if (!first) {
        float sum[W];
        read_parts(to, part_step, sum);
#pragma unroll
        for (int i = 0; i < W; ++i) dweight[v][i] += sum[i];
      }
      write_parts(to, part_step, dweight[v]);
    }
    first = false;
  }
};

// This thread's place, asked for here and not earlier: what the compiler finds out before the loop
// over rows is spilled, and to have it back after the loop takes 1 us.
struct PlaceHere {
  int thread, group, threads, groups;

  __device__ PlaceHere() {
    asm volatile("mov.u32 %0, %%tid.x;\nmov.u32 %1, %%tid.y;" : "=r"(thread), "=r"(group));
    asm volatile("mov.u32 %0, %%ntid.x;\nmov.u32 %1, %%ntid.y;" : "=r"(threads), "=r"(groups));
  }
};

// Adds dweight of the block's groups in their order, in fp64, and writes one partial row in the
// columns' order. All threads of the block take part; the groups share a row's parts.
template <int V, int W>
__device__ inline void add_groups(const float4 *dweight, float *out) {
  const PlaceHere here;
  const int block = here.threads * here.groups;
  const int place = (here.thread / 32 * V * 32 + here.thread % 32) * W;  // of the first vector
  if constexpr (V == 1) {                                                // may be many groups
    for (int i = here.group; i < W; i += here.groups) {
      const float *from =
          reinterpret_cast<const float *>(dweight + i / 4 * block + here.thread) + i % 4;
      double sum = 0;
      for (int group = 0; group < here.groups; ++group) sum += from[group * here.threads * 4];
      out[place + i] = float(sum);
    }
  } else {
    for (int quad = here.group; quad < V * W / 4; quad += here.groups) {
      const float4 *from = dweight + quad * block + here.thread;
      double x = 0, y = 0, z = 0, w = 0;
      for (int group = 0; group < here.groups; ++group) {
        const float4 own = from[group * here.threads];
        x += own.x, y += own.y, z += own.z, w += own.w;
      }
      *reinterpret_cast<float4 *>(out + place + quad / (W / 4) * 32 * W + quad % (W / 4) * 4) =
          make_float4(float(x), float(y), float(z), float(w));
    }
  }
}

}  // namespace
}  // namespace rmsnorm::cuda
