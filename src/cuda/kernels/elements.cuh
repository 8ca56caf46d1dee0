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

template <class T>
constexpr int kWidth = 16 / sizeof(T);  // elements of a vector
template <>
constexpr int kWidth<AnyElement> = 4;

template <class T>
constexpr bool kIsHalf = sizeof(T) == 2;
template <>
constexpr bool kIsHalf<AnyElement> = false;

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
      for (int i = 0; i < 4; ++i)
        unpack_halves(word[i], std::is_same_v<T, __nv_bfloat16>, out + 2 * i);
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
      for (int i = 0; i < 4; ++i) unpack_halves(word[i], dtype == RMSNORM_DTYPE_BF16, out + 2 * i);
    } else {
      unpack(dtype, out);
    }
  }

  // Rounds to nearest even.
  __device__ void pack(rmsnorm_dtype_t dtype, const float (&in)[kCount]) {
    if constexpr (kIsHalf<T>) {
#pragma unroll
      for (int i = 0; i < 4; ++i)
        word[i] = pack_halves(in[2 * i], in[2 * i + 1], std::is_same_v<T, __nv_bfloat16>);
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
// is there. Otherwise rows are asked one by one, and what is not aligned or not whole goes by
// elements: the same lanes, the same bits.

// Whether vectors of a row that starts here are aligned.
template <class T>
__device__ inline bool is_aligned(const char *row, rmsnorm_dtype_t dtype) {
  return reinterpret_cast<uintptr_t>(row) % (kWidth<T> * size_of_element<T>(dtype)) == 0;
}

// `data` is the vector's first element, `valid` how many of its elements are in the row (any int:
// the others read as zero), `aligned` is is_aligned of the row.
template <class T, bool kWhole>
__device__ inline Vector<T> load_vector(const char *data, int valid, bool aligned,
                                        rmsnorm_dtype_t dtype) {
  constexpr int kCount = kWidth<T>;
  Vector<T> out = {{0, 0, 0, 0}};
  if (kWhole ? valid > 0 : aligned && valid >= kCount) {
    if (size_of_element<T>(dtype) * kCount == 16) out.set(*reinterpret_cast<const uint4 *>(data));
    else out.set(*reinterpret_cast<const uint2 *>(data));
  } else if (kWhole) {
  } else if (size_of_element<T>(dtype) == 2) {
#pragma unroll
    for (int i = 0; i < kCount; ++i)
      if (i < valid)
        out.word[i / 2] |= uint32_t(reinterpret_cast<const uint16_t *>(data)[i]) << (i % 2 * 16);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (i < valid) out.word[i] = reinterpret_cast<const uint32_t *>(data)[i];
  }
  return out;
}

template <class T, bool kWhole>
__device__ inline void store_vector(char *data, const Vector<T> &in, int valid, bool aligned,
                                    rmsnorm_dtype_t dtype) {
  constexpr int kCount = kWidth<T>;
  if (kWhole ? valid > 0 : aligned && valid >= kCount) {
    if (size_of_element<T>(dtype) * kCount == 16)
      *reinterpret_cast<uint4 *>(data) = make_uint4(in.word[0], in.word[1], in.word[2], in.word[3]);
    else *reinterpret_cast<uint2 *>(data) = make_uint2(in.word[0], in.word[1]);
  } else if (kWhole) {
  } else if (size_of_element<T>(dtype) == 2) {
#pragma unroll
    for (int i = 0; i < kCount; ++i)
      if (i < valid)
        reinterpret_cast<uint16_t *>(data)[i] = uint16_t(in.word[i / 2] >> (i % 2 * 16));
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (i < valid) reinterpret_cast<uint32_t *>(data)[i] = in.word[i];
  }
}

// kCount elements of a weight or bias, whose dtype is known at run time, as floats. kWhole: aligned
// to 16 bytes.
template <int kCount, bool kWhole>
__device__ inline void load_floats(const char *data, rmsnorm_dtype_t dtype, int valid,
                                   float (&out)[kCount]) {
  if constexpr (kWhole) {
    if (dtype == RMSNORM_DTYPE_F32) {
#pragma unroll
      for (int i = 0; i < kCount; i += 4) {
        const float4 four = reinterpret_cast<const float4 *>(data)[i / 4];
        out[i] = four.x, out[i + 1] = four.y, out[i + 2] = four.z, out[i + 3] = four.w;
      }
    } else {
#pragma unroll
      for (int i = 0; i < kCount; i += 4) {
        const uint2 four = reinterpret_cast<const uint2 *>(data)[i / 4];
        unpack_halves(four.x, dtype == RMSNORM_DTYPE_BF16, out + i);
        unpack_halves(four.y, dtype == RMSNORM_DTYPE_BF16, out + i + 2);
      }
    }
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      out[i] = 0;
      if (i < valid)
        out[i] = dtype == RMSNORM_DTYPE_F32
                     ? reinterpret_cast<const float *>(data)[i]
                     : from_bits(reinterpret_cast<const uint16_t *>(data)[i], dtype);
    }
  }
}

}  // namespace
}  // namespace rmsnorm::cuda
