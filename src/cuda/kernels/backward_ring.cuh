// backward_rows' ring: x and dy come through stages of shared memory by cp.async, where each warp
// copies and later reads only its own slots.
#pragma once

#include "cuda/kernels/unaligned.cuh"

namespace rmsnorm::cuda {
namespace {

// How an unaligned row's vectors come through the ring: by copy_span, or each as the two aligned
// blocks that hold it (short rows), or by elements (mixed dtypes).
enum class Ring { kVectors, kSpans, kPairs };
__host__ __device__ constexpr Ring ring_of(bool whole, bool mixed, bool is_short) {
  return whole || mixed ? Ring::kVectors : is_short ? Ring::kPairs : Ring::kSpans;
}
// Slots of 16 bytes of one warp, array (x or dy) and stage; `rows`: that a thread has in process.
__host__ __device__ constexpr int ring_slots(Ring ring, int vectors, int rows) {
  return vectors * rows * 32 * (ring == Ring::kPairs ? 2 : 1) + (ring == Ring::kSpans ? 1 : 0);
}

// Starts copying a vector to this thread's slots; what is beyond the row (`valid` elements, any
// int) is zeroed.
template <class T, bool kWhole, bool kPairs>
__device__ inline void start_copy(uint4 *slot, const char *data, int valid, rmsnorm_dtype_t dtype) {
  if constexpr (kWhole) {
    copy_whole_vector<T>(slot, data, valid > 0, dtype);
  } else if constexpr (kPairs) {
    const int shift = misalignment(data);
    const int bytes = valid > 0 ? shift + valid * size_of_element<T>(dtype) : 0;
    copy_block(slot, data - shift, bytes);
    copy_block(slot + 32, data - shift + 16, bytes - 16);
  } else {
    const Vector<T> vector = load_vector<T, kWhole>(data, valid, dtype);
    *slot = make_uint4(vector.word[0], vector.word[1], vector.word[2], vector.word[3]);
  }
}

// What has come; `shift`: misalignment of where it came from (kPairs; kSpans: behind align_span).
template <class T, Ring kRing>
__device__ inline Vector<T> read_slot(const uint4 *slot, int shift) {
  Vector<T> out;
  if constexpr (kRing == Ring::kPairs) out.set(cut_out(slot[0], slot[32], shift));
  else out.set(*slot);
  return out;
}

// Shared memory of a block: the ring, dweight, and what the sums over rows need.
struct BackwardMemory {
  int threads;      // of the block
  int groups;       // rows in it
  int stage_slots;  // of one warp
  int stages;
  int sums;       // dweight's, of a thread
  int sum_slots;  // one of doubles, 4 of floats

  size_t bytes() const {
    const size_t ring = size_t(stages) * stage_slots * 16 * (threads / 32);
    const size_t slots = size_t(sum_slots) * (sizeof(double) + 4 * sizeof(float));
    return ring + size_t(threads) * sums * sizeof(float) + slots +
           size_t(groups) * 4 * sizeof(uint64_t);
  }
};

}  // namespace
}  // namespace rmsnorm::cuda
