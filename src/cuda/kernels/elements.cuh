// Elements in memory and in registers. A vector is 16 bytes of one row in the row's own dtype (8
// halves, 4 floats); rows of mixed dtypes are read by AnyElement, 4 elements a vector whose dtype
// is switched at run time. Vectors are kept in memory's format (packed) until they are used: half
// the registers.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "rmsnorm.h"

namespace rmsnorm::cuda {
namespace {

struct AnyElement {};

// Halves whose vectors are 8 bytes: twice the threads, each with half of the work.
template <class T>
struct Narrow {
  T element;
};

template <class T>
constexpr int kWidth = 16 / sizeof(T);  // elements of a vector
template <>
constexpr int kWidth<AnyElement> = 4;
template <class T>
constexpr int kWidth<Narrow<T>> = 8 / sizeof(T);

template <class T>
constexpr bool kIsHalf = sizeof(T) == 2;
template <>
constexpr bool kIsHalf<AnyElement> = false;
template <class T>
constexpr bool kIsNarrow = false;
template <class T>
constexpr bool kIsNarrow<Narrow<T>> = true;
template <class T>
constexpr bool kIsBf16 =
    std::is_same_v<T, __nv_bfloat16> || std::is_same_v<T, Narrow<__nv_bfloat16>>;

__host__ __device__ constexpr int size_of(rmsnorm_dtype_t dtype) { return (dtype & 0xff) / 8; }

// Bytes of one element of a T row; `dtype` is asked only of AnyElement.
template <class T>
__host__ __device__ constexpr int size_of_element(rmsnorm_dtype_t) {
  return sizeof(T);
}
template <>
__host__ __device__ constexpr int size_of_element<AnyElement>(rmsnorm_dtype_t dtype) {
  return size_of(dtype);
}

// ---- One element
// ---------------------------------------------------------------------------------

__device__ inline float from_bits(uint32_t bits, rmsnorm_dtype_t dtype) {
  if (dtype == RMSNORM_DTYPE_F16) return __half2float(__ushort_as_half(uint16_t(bits)));
  if (dtype == RMSNORM_DTYPE_BF16) return __uint_as_float(bits << 16);
  return __uint_as_float(bits);
}

__device__ inline uint32_t to_bits(float value, rmsnorm_dtype_t dtype) {
  if (dtype == RMSNORM_DTYPE_F16) return __half_as_ushort(__float2half_rn(value));
  if (dtype == RMSNORM_DTYPE_BF16) return __bfloat16_as_ushort(__float2bfloat16_rn(value));
  return __float_as_uint(value);
}

// The same, rounding an fp64 value once.
__device__ inline uint32_t to_bits(double value, rmsnorm_dtype_t dtype) {
  if (dtype == RMSNORM_DTYPE_F16) return __half_as_ushort(__double2half(value));
  if (dtype == RMSNORM_DTYPE_BF16) return __bfloat16_as_ushort(__double2bfloat16(value));
  return __float_as_uint(float(value));
}

// a + b so that rounding it again to a shorter dtype rounds the exact sum: an inexact sum keeps an
// odd last bit (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums", 2008).
__device__ inline double add_to_odd(double a, double b) {
  const double sum = a + b, part = sum - a;
  const double lost = (a - (sum - part)) + (b - part);
  const int64_t bits = __double_as_longlong(sum);
  if (!isfinite(sum) || lost == 0 || (bits & 1) != 0) return sum;
  return __longlong_as_double(bits + ((lost > 0) == (sum > 0) ? 1 : -1));
}
__device__ inline float add_to_odd(float a, float b) {
  const float sum = a + b, part = sum - a;
  const float lost = (a - (sum - part)) + (b - part);
  const int bits = __float_as_int(sum);
  if (!isfinite(sum) || lost == 0 || (bits & 1) != 0) return sum;
  return __int_as_float(bits + ((lost > 0) == (sum > 0) ? 1 : -1));
}

// Rounds to a dtype and back.
__device__ inline float round_to(float value, rmsnorm_dtype_t dtype) {
  return from_bits(to_bits(value, dtype), dtype);
}

// Any dtype, fp64 included, for the kernels that compute in fp64.
__device__ inline double load_double(const char *data, int64_t index, rmsnorm_dtype_t dtype) {
  if (dtype == RMSNORM_DTYPE_F64) return reinterpret_cast<const double *>(data)[index];
  if (dtype == RMSNORM_DTYPE_F32) return reinterpret_cast<const float *>(data)[index];
  return from_bits(reinterpret_cast<const uint16_t *>(data)[index], dtype);
}

__device__ inline void store_double(char *data, int64_t index, rmsnorm_dtype_t dtype,
                                    double value) {
  if (dtype == RMSNORM_DTYPE_F64) reinterpret_cast<double *>(data)[index] = value;
  else if (dtype == RMSNORM_DTYPE_F32) reinterpret_cast<float *>(data)[index] = float(value);
  else reinterpret_cast<uint16_t *>(data)[index] = uint16_t(to_bits(value, dtype));
}

__device__ inline double round_double_to(double value, rmsnorm_dtype_t dtype) {
  return dtype == RMSNORM_DTYPE_F64 ? value : double(from_bits(to_bits(value, dtype), dtype));
}

// x + residual, rounded once.
__device__ inline double add_rounded(double a, double b, rmsnorm_dtype_t dtype) {
  return dtype == RMSNORM_DTYPE_F64 ? a + b : round_double_to(add_to_odd(a, b), dtype);
}

// ---- One vector, packed
// --------------------------------------------------------------------------

__device__ inline void unpack_halves(uint32_t word, bool bf16, float *out) {
  if (bf16) {
    out[0] = __uint_as_float(word << 16);
    out[1] = __uint_as_float(word & 0xffff0000u);
  } else {
    const float2 pair = __half22float2(*reinterpret_cast<const __half2 *>(&word));
    out[0] = pair.x;
    out[1] = pair.y;
  }
}

__device__ inline uint32_t pack_halves(float low, float high, bool bf16) {
  if (bf16) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const uint32_t *>(&pair);
  }
  const __half2 pair = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t *>(&pair);
}

template <class T>
struct Vector {
  static constexpr int kCount = kWidth<T>;
  uint32_t word[4];

  __device__ void set(uint4 in) { word[0] = in.x, word[1] = in.y, word[2] = in.z, word[3] = in.w; }
  __device__ void set(uint2 in) { word[0] = in.x, word[1] = in.y, word[2] = word[3] = 0; }

  // The elements as floats. A static dtype ignores `dtype`.
  __device__ void unpack(rmsnorm_dtype_t dtype, float (&out)[kCount]) const {
    if constexpr (kIsHalf<T>) {
#pragma unroll
      for (int i = 0; i < kCount / 2; ++i) unpack_halves(word[i], kIsBf16<T>, out + 2 * i);
    } else {
      if (std::is_same_v<T, float> || dtype == RMSNORM_DTYPE_F32) {
#pragma unroll
        for (int i = 0; i < 4; ++i) out[i] = __uint_as_float(word[i]);
      } else {
        unpack_halves(word[0], dtype == RMSNORM_DTYPE_BF16, out);
        unpack_halves(word[1], dtype == RMSNORM_DTYPE_BF16, out + 2);
      }
    }
  }

  // The same bits read as another dtype of the same size (a bf16 weight beside an fp16 row).
  __device__ void unpack_as(rmsnorm_dtype_t dtype, float (&out)[kCount]) const {
    if constexpr (kIsHalf<T>) {
#pragma unroll
      for (int i = 0; i < kCount / 2; ++i)
        unpack_halves(word[i], dtype == RMSNORM_DTYPE_BF16, out + 2 * i);
    } else {
      unpack(dtype, out);
    }
  }

  // Rounds to nearest even.
  __device__ void pack(rmsnorm_dtype_t dtype, const float (&in)[kCount]) {
    if constexpr (kIsHalf<T>) {
#pragma unroll
      for (int i = 0; i < kCount / 2; ++i)
        word[i] = pack_halves(in[2 * i], in[2 * i + 1], kIsBf16<T>);
    } else {
      if (std::is_same_v<T, float> || dtype == RMSNORM_DTYPE_F32) {
#pragma unroll
        for (int i = 0; i < 4; ++i) word[i] = __float_as_uint(in[i]);
      } else {
        word[0] = pack_halves(in[0], in[1], dtype == RMSNORM_DTYPE_BF16);
        word[1] = pack_halves(in[2], in[3], dtype == RMSNORM_DTYPE_BF16);
        word[2] = word[3] = 0;
      }
    }
  }
};

// ---- Loads and stores
// ----------------------------------------------------------------------------
//
// kWhole: the launcher has seen that every tensor's rows start at a multiple of the vector and that
// cols is a multiple of its elements, so that each access is one of 16 (8) bytes and no other code
// is there. Otherwise a vector may stand anywhere: it is cut out of the two aligned blocks of 16
// bytes that hold it, and put together from neighbouring lanes where it is stored. Lanes are by
// column either way, so the bits are the same.

// 16 of the 32 bytes of `low` and `high`, from byte `shift` (0 to 16) on. Branches, not selects:
// all lanes of a row go one way.
__device__ inline uint4 cut_out(const uint4 &low, const uint4 &high, int shift) {
  const int bits = (shift & 3) * 8;
  const auto cut = [&](uint32_t a, uint32_t b, uint32_t c, uint32_t d, uint32_t e) {
    return make_uint4(__funnelshift_r(a, b, bits), __funnelshift_r(b, c, bits),
                      __funnelshift_r(c, d, bits), __funnelshift_r(d, e, bits));
  };
  if (shift < 8)
    return shift < 4 ? cut(low.x, low.y, low.z, low.w, high.x)
                     : cut(low.y, low.z, low.w, high.x, high.y);
  if (shift < 16)
    return shift < 12 ? cut(low.z, low.w, high.x, high.y, high.z)
                      : cut(low.w, high.x, high.y, high.z, high.w);
  return high;
}

__device__ inline int misalignment(const char *data) {
  return int(reinterpret_cast<uintptr_t>(data) % 16);
}

// The first `valid` elements of a vector; the others read as zero.
template <class T>
__device__ inline Vector<T> load_elements(const char *data, int valid, int size) {
  Vector<T> out = {{0, 0, 0, 0}};
#pragma unroll
  for (int i = 0; i < kWidth<T>; ++i)
    if (i < valid) {
      if (size == 2)
        out.word[i / 2] |= uint32_t(reinterpret_cast<const uint16_t *>(data)[i]) << (i % 2 * 16);
      else out.word[i % 4] = reinterpret_cast<const uint32_t *>(data)[i];
    }
  return out;
}

// What the L2 does with the lines of an input, as createpolicy of sm_80 and later encodes it (and
// libcu++'s cuda::access_property on the host): the upper 32 bits, the lower ones are 0.
// kKeep: it is to give up others first; then what it gives up are lines of outputs, in the order in
// which they were written, which DRAM takes best. Copies to shared memory have none: nvcc 13.0
// makes illegal instructions of some (a descriptor in an odd register).
enum class InputPolicy : uint32_t { kNone = 0x10000000, kKeep = 0x14f00000 };

__device__ inline uint64_t bits_of(InputPolicy policy) { return uint64_t(policy) << 32; }

// 16 bytes of an input, zeros if it is not `valid`. The load has the predicate
// itself: an asm of several instructions under an `if` would become a branch.
__device__ inline uint4 read_block(const char *data, bool valid, InputPolicy policy) {
  uint4 block = {0, 0, 0, 0};
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "{\n.reg .pred valid;\nsetp.ne.s32 valid, %5, 0;\n"
      "@valid ld.global.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4], %6;\n}"
      : "+r"(block.x), "+r"(block.y), "+r"(block.z), "+r"(block.w)
      : "l"(data), "r"(int(valid)), "l"(bits_of(policy)));
#else
  if (valid) block = *reinterpret_cast<const uint4 *>(data);
#endif
  return block;
}

// The vector whose first element is at `data`; `valid`: how many elements there are from here to
// the row's end (any int: those beyond it read as zero). May read the up to 15 bytes before `data`
// that share its aligned block, never any behind the row.
template <class T, bool kWhole>
__device__ inline Vector<T> load_vector(const char *data, int valid, rmsnorm_dtype_t dtype) {
  constexpr int kCount = kWidth<T>;
  const int size = size_of_element<T>(dtype);
  Vector<T> out = {{0, 0, 0, 0}};
  if constexpr (kWhole) {
    if (valid > 0) {
      if (size * kCount == 16) out.set(*reinterpret_cast<const uint4 *>(data));
      else out.set(*reinterpret_cast<const uint2 *>(data));
    }
    return out;
  }
  const int shift = misalignment(data);
  if (size * kCount == 16 && valid >= (shift == 0 ? kCount : 2 * kCount - shift / size)) {
    const uint4 *blocks = reinterpret_cast<const uint4 *>(data - shift);
    const uint4 low = blocks[0];
    out.set(shift == 0 ? low : cut_out(low, blocks[1], shift));
  } else {
    out = load_elements<T>(data, valid, size);
  }
  return out;
}

// Elements begin to end - 1 of a vector.
template <class T>
__device__ inline void store_elements(char *data, const Vector<T> &in, int begin, int end,
                                      int size) {
#pragma unroll
  for (int i = 0; i < kWidth<T>; ++i)
    if (i >= begin && i < end) {
      if (size == 2)
        reinterpret_cast<uint16_t *>(data)[i] = uint16_t(in.word[i / 2] >> (i % 2 * 16));
      else reinterpret_cast<uint32_t *>(data)[i] = in.word[i % 4];
    }
}

// Stores the vectors of a thread, one after another: those of a row's lanes of one warp follow each
// other, and each lane's next vector is behind the last lane's. Not kWhole: the whole warp calls.
template <class T, bool kWhole>
class Writer {
 public:
  Writer() = default;
  // `threads`: of the row; those of one warp count.
  __device__ explicit Writer(int threads) : last_((threads < 32 ? threads : 32) - 1) {}

  // Stores the first `valid` elements; `first` and `last`: of this thread's vectors.
  __device__ void store(char *data, const Vector<T> &in, int valid, bool first, bool last,
                        rmsnorm_dtype_t dtype) {
    constexpr int kCount = kWidth<T>;
    const int size = size_of_element<T>(dtype);
    const uint4 own = make_uint4(in.word[0], in.word[1], in.word[2], in.word[3]);
    if constexpr (kWhole) {
      if (valid <= 0) return;
      if (size * kCount == 16) *reinterpret_cast<uint4 *>(data) = own;
      else *reinterpret_cast<uint2 *>(data) = make_uint2(own.x, own.y);
      return;
    }
    int begin = 0, end = kCount;
    if (size * kCount == 16) {
      // An aligned block holds the last elements of one vector and the first `split` of the next.
      const int lane = threadIdx.x + threadIdx.y * blockDim.x, own_lane = lane & last_;
      const int shift = misalignment(data), split = kCount - shift / size;
      const int source = (lane & ~last_) | ((lane - 1) & last_);
      const uint4 received = make_uint4(__shfl_sync(0xffffffffu, own.x, source),
                                        __shfl_sync(0xffffffffu, own.y, source),
                                        __shfl_sync(0xffffffffu, own.z, source),
                                        __shfl_sync(0xffffffffu, own.w, source));
      const uint4 before = own_lane == 0 ? carried_ : received;
      carried_ = received;
      if (valid >= split && (shift == 0 || own_lane != 0 || !first)) {
        *reinterpret_cast<uint4 *>(data - shift) = cut_out(before, own, 16 - shift);
        begin = split;
      }
      if (shift != 0 && (own_lane != last_ || !last) && valid - kCount >= split) end = split;
    }
    if (end > valid) end = valid;
    if (begin < end) store_elements(data, in, begin, end, size);
  }

 private:
  int last_ = 31;    // lane of the row in this warp
  uint4 carried_{};  // what the last lane stored before
};

// ---- Asynchronous copies of whole vectors to shared memory (sm_80 on)
// ----------------------------------------------------------------------------

// A vector that is not `valid` is zeroed, and not read.
template <class T>
__device__ inline void copy_whole_vector(uint4 *slot, const char *data, bool valid,
                                         rmsnorm_dtype_t dtype) {
#if __CUDA_ARCH__ >= 800
  const uint32_t address = uint32_t(__cvta_generic_to_shared(slot));
  if (size_of_element<T>(dtype) * kWidth<T> == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(data),
                 "r"(valid ? 16 : 0)
                 : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(address), "l"(data),
                 "r"(valid ? 8 : 0)
                 : "memory");
#else
  const Vector<T> vector = load_vector<T, true>(data, valid ? kWidth<T> : 0, dtype);
  *slot = make_uint4(vector.word[0], vector.word[1], vector.word[2], vector.word[3]);
#endif
}

__device__ inline void commit_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most kGroups of this thread's committed groups are in flight.
template <int kGroups>
__device__ inline void wait_for_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
#endif
}

// ---- Elements of a weight or bias, whose dtype is known at run time
// ----------------------------------------------------------------------------

// kCount of them as memory has them. kWhole: aligned to 16 bytes.
template <bool kWhole, int kCount>
struct RawElements {
  uint32_t word[kCount];  // kWhole: halves two a word; else an element each

  // Those beyond the first `valid` are zero, unless kWhole.
  __device__ void load(const char *data, rmsnorm_dtype_t dtype, int valid) {
    if constexpr (kWhole) {
      if (dtype == RMSNORM_DTYPE_F32) {
#pragma unroll
        for (int i = 0; i < kCount; i += 4) set(i, reinterpret_cast<const uint4 *>(data)[i / 4]);
      } else if constexpr (kCount % 8 == 0) {
#pragma unroll
        for (int i = 0; i < kCount / 2; i += 4)
          set(i, reinterpret_cast<const uint4 *>(data)[i / 4]);
      } else {
        const uint2 four = *reinterpret_cast<const uint2 *>(data);
        word[0] = four.x, word[1] = four.y;
      }
    } else {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        word[i] = 0;
        if (i < valid)
          word[i] = dtype == RMSNORM_DTYPE_F32 ? reinterpret_cast<const uint32_t *>(data)[i]
                                               : reinterpret_cast<const uint16_t *>(data)[i];
      }
    }
  }

  __device__ void read(rmsnorm_dtype_t dtype, float (&out)[kCount]) const {
    if (dtype == RMSNORM_DTYPE_F32 || !kWhole) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) out[i] = from_bits(word[i], dtype);
    } else {
#pragma unroll
      for (int i = 0; i < kCount; i += 2)
        unpack_halves(word[i / 2], dtype == RMSNORM_DTYPE_BF16, out + i);
    }
  }

 private:
  __device__ void set(int i, uint4 in) {
    word[i] = in.x, word[i + 1] = in.y, word[i + 2] = in.z, word[i + 3] = in.w;
  }
};

// The same, as floats at once.
template <int kCount, bool kWhole>
__device__ inline void load_floats(const char *data, rmsnorm_dtype_t dtype, int valid,
                                   float (&out)[kCount]) {
  RawElements<kWhole, kCount> raw;
  raw.load(data, dtype, valid);
  raw.read(dtype, out);
}

}  // namespace
}  // namespace rmsnorm::cuda
