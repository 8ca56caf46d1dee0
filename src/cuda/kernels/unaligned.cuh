// Rows that start anywhere, read and written in aligned blocks of 16 bytes. A warp has V * 32
// vectors of one row that follow one another (vector v of lane l is its 32 * v + l-th), so that all
// its vectors stand `shift` bytes behind a block's start: each is cut out of two neighbours' blocks
// by funnel shifts, and each block is put together from two neighbours' vectors. Lanes are by
// column, never by address, so the bits are those of an aligned row. Whole warps call these.
//
// Reads the up to 15 bytes before a row that share its first block, never any behind the row.
// Writes the row alone.
#pragma once

#include "cuda/kernels/elements.cuh"

namespace rmsnorm::cuda {
namespace {

// 16 of the bytes of 5 words, from byte `bits / 8` (0 to 3) of the first on.
__device__ inline void funnel(const uint32_t (&word)[5], int bits, uint32_t (&out)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) out[i] = __funnelshift_r(word[i], word[i + 1], bits);
}

// Calls visit with the constant of 0 to 3 that `value` is: which words are shifted where is known
// at compile time then.
template <class Visit>
__device__ inline void with_constant(int value, Visit visit) {
  if (value < 2) {
    if (value == 0) visit(std::integral_constant<int, 0>());
    else visit(std::integral_constant<int, 1>());
  } else {
    if (value == 2) visit(std::integral_constant<int, 2>());
    else visit(std::integral_constant<int, 3>());
  }
}

// This lane's vectors, the first at `data`, with `left` elements from there to the row's end; what
// is beyond it reads as zero.
template <class T, int V>
__device__ inline void load_span(const char *data, int left, Vector<T> (&out)[V]) {
  constexpr int W = kWidth<T>, kStep = 32 * W;
  const int lane = threadIdx.x % 32, shift = misalignment(data);
  const int own = left + shift / int(sizeof(T));  // elements from this lane's first block on
  const char *const blocks = data - shift;
  // The block behind the warp's last vector is lane 0's.
  Vector<T> block[V + 1];
#pragma unroll
  for (int v = 0; v <= V; ++v) {
    block[v] = {{0, 0, 0, 0}};
    if (own - v * kStep >= W && (v < V || (lane == 0 && shift != 0)))
      block[v].set(*reinterpret_cast<const uint4 *>(blocks + v * 512));
  }
  // One lane has the block that the row ends in.
  const int last = own / kStep;
  if (own > 0 && own % kStep < W && own % kStep > 0 && (last < V || (last == V && lane == 0))) {
    const Vector<T> end = load_elements<T>(blocks + last * 512, own % kStep, sizeof(T));
#pragma unroll
    for (int v = 0; v <= V; ++v)
      if (v == last) block[v] = end;
  }
  if (shift != 0)
    with_constant(shift / 4, [&](auto constant) {
      constexpr int K = decltype(constant)::value;
#pragma unroll
      for (int v = 0; v < V; ++v) {
        uint32_t word[5];
#pragma unroll
        for (int i = 0; i < 4 - K; ++i) word[i] = block[v].word[K + i];
#pragma unroll
        for (int i = 0; i <= K; ++i)
          word[4 - K + i] =
              __shfl_sync(0xffffffffu, lane == 0 ? block[v + 1].word[i] : block[v].word[i],
                          lane + 1);
        funnel(word, shift % 4 * 8, block[v].word);
      }
    });
#pragma unroll
  for (int v = 0; v < V; ++v) out[v] = block[v];
}

// Stores this lane's vectors up to the row's end.
template <class T, int V>
__device__ inline void store_span(char *data, int left, const Vector<T> (&in)[V]) {
  constexpr int W = kWidth<T>, kStep = 32 * W;
  const int lane = threadIdx.x % 32, shift = misalignment(data);
  const int split = W - shift / int(sizeof(T));  // elements of a vector that are in its first block
  const auto store = [&](int v, uint32_t x, uint32_t y, uint32_t z, uint32_t w) {
    if (left - v * kStep >= split && (v > 0 || lane > 0 || shift == 0))
      *reinterpret_cast<uint4 *>(data - shift + v * 512) = make_uint4(x, y, z, w);
  };
  if (shift == 0) {
#pragma unroll
    for (int v = 0; v < V; ++v)
      store(v, in[v].word[0], in[v].word[1], in[v].word[2], in[v].word[3]);
  } else {
    with_constant((16 - shift) / 4, [&](auto constant) {
      constexpr int K = decltype(constant)::value;
#pragma unroll
      for (int v = 0; v < V; ++v) {
        uint32_t word[5], block[4];
#pragma unroll
        for (int i = 0; i < 4 - K; ++i)  // of the vector before: lane 0's is lane 31's last one
          word[i] = __shfl_sync(0xffffffffu,
                                lane == 31 && v > 0 ? in[v > 0 ? v - 1 : 0].word[K + i]
                                                    : in[v].word[K + i],
                                lane + 31);
#pragma unroll
        for (int i = 0; i <= K; ++i) word[4 - K + i] = in[v].word[i];
        funnel(word, (16 - shift) % 4 * 8, block);
        store(v, block[0], block[1], block[2], block[3]);
      }
    });
  }
  // By elements: what shares its block with another warp's vectors or with what is behind the row.
  // Lane 0's first vector begins so; lane 31's last vector and the row's last two may end so.
  const bool head = lane == 0 && shift != 0;
  const int last = left > V * kStep ? V - 1 : left > 0 ? (left - 1) / kStep : 0;
  const int valid = left - last * kStep;
  const int begin = valid < split ? 0 : split;
  int end = valid < W ? valid : W;
  if (valid >= W + split && (lane != 31 || last != V - 1)) end = 0;
  if (head && last == 0 && begin == 0) end = 0;  // the head has it
  Vector<T> tail, edge;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    tail.word[i] = in[0].word[i];
#pragma unroll
    for (int v = 1; v < V; ++v) tail.word[i] = v == last ? in[v].word[i] : tail.word[i];
    edge.word[i] = head ? in[0].word[i] : tail.word[i];
  }
  if (head || end > begin)
    store_elements(head ? data : data + last * 512, edge, head ? 0 : begin,
                   head ? (left < split ? left : split) : end, sizeof(T));
  if (head && end > begin) store_elements(data + last * 512, tail, begin, end, sizeof(T));
}

// ---- The same through shared memory: V * 32 + 1 slots of a warp, lane by lane.

// Starts copying 16 bytes; where fewer (`bytes`, any int) are left, those alone are read, and the
// others zeroed. Past the L1 cache (.cg): by way of it 4097 halves back .53 (.63), 20001 .65 (.75).
__device__ inline void copy_block(uint4 *slot, const char *block, int bytes) {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(
                   uint32_t(__cvta_generic_to_shared(slot))),
               "l"(block), "r"(max(0, min(bytes, 16)))
               : "memory");
#else
  const Vector<uint16_t> read = load_elements<uint16_t>(block, bytes / 2, 2);
  *slot = make_uint4(read.word[0], read.word[1], read.word[2], read.word[3]);
#endif
}

// Starts copying the blocks that hold `vectors` vectors of each lane; `slots`: this lane's first.
template <class T>
__device__ inline void copy_span(uint4 *slots, const char *data, int left, int vectors) {
  const int shift = misalignment(data), bytes = left * int(sizeof(T)) + shift;
  for (int v = 0; v < vectors; ++v)
    copy_block(slots + v * 32, data - shift + v * 512, bytes - v * 512);
  if (threadIdx.x % 32 == 0)
    copy_block(slots + vectors * 32, data - shift + vectors * 512, bytes - vectors * 512);
}

// Puts V vectors of each lane, of what copy_span has brought, into its own slots: the first vectors
// first. `shift`: misalignment of their source.
template <class T, int V>
__device__ inline void align_span(uint4 *slots, int shift) {
  if (shift == 0) return;
  __syncwarp();
  uint4 own[V];
  with_constant(shift / 4, [&](auto constant) {
    constexpr int K = decltype(constant)::value;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const uint4 low = slots[v * 32], high = slots[v * 32 + 1];
      const uint32_t words[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
      uint32_t word[5], out[4];
#pragma unroll
      for (int i = 0; i < 5; ++i) word[i] = words[K + i];
      funnel(word, shift % 4 * 8, out);
      own[v] = make_uint4(out[0], out[1], out[2], out[3]);
    }
  });
  __syncwarp();
#pragma unroll
  for (int v = 0; v < V; ++v) slots[v * 32] = own[v];
}

}  // namespace
}  // namespace rmsnorm::cuda
