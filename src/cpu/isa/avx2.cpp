// x86-64 with AVX2, FMA and F16C: four doubles a vector.
#include <cstddef>
#include <cstdint>

#include "cpu/rows.h"

#if defined(__x86_64__) && defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

#include <immintrin.h>

namespace rmsnorm::cpu {
namespace avx2 {
namespace {

using Native = __m256d;

#include "cpu/rows/block.inl.h"

inline Vec add_product(const Vec &sum, const Vec &a, const Vec &b) {
  return {_mm256_fmadd_pd(a.native, b.native, sum.native)};
}

// a * b - product, where that is the product rounded: exact.
inline Vec product_error(const Vec &a, const Vec &b, const Vec &product) {
  return {_mm256_fmsub_pd(a.native, b.native, product.native)};
}

using Half = Two<Vec>;
using Block = Two<Half>;

inline Half widen(__m256 value) {
  return {{_mm256_cvtps_pd(_mm256_castps256_ps128(value))},
          {_mm256_cvtps_pd(_mm256_extractf128_ps(value, 1))}};
}

inline __m256 narrow(const Half &half) {
  return _mm256_set_m128(_mm256_cvtpd_ps(half.high.native), _mm256_cvtpd_ps(half.low.native));
}

inline Half load_half_f32(const float *from) {
  return {{_mm256_cvtps_pd(_mm_loadu_ps(from))}, {_mm256_cvtps_pd(_mm_loadu_ps(from + 4))}};
}

inline Block load_f32(const char *data) {
  const float *from = reinterpret_cast<const float *>(data);
  return {load_half_f32(from), load_half_f32(from + 8)};
}

inline void store_half_f32(const Half &half, float *to) {
  _mm_storeu_ps(to, _mm256_cvtpd_ps(half.low.native));
  _mm_storeu_ps(to + 4, _mm256_cvtpd_ps(half.high.native));
}

inline void store_f32(const Block &block, char *data) {
  float *to = reinterpret_cast<float *>(data);
  store_half_f32(block.low, to);
  store_half_f32(block.high, to + 8);
}

inline Block load_f16(const char *data) {
  const __m128i *from = reinterpret_cast<const __m128i *>(data);
  return {widen(_mm256_cvtph_ps(_mm_loadu_si128(from))),
          widen(_mm256_cvtph_ps(_mm_loadu_si128(from + 1)))};
}

inline void store_f16(const Block &block, char *data) {
  __m128i *to = reinterpret_cast<__m128i *>(data);
  _mm_storeu_si128(to, _mm256_cvtps_ph(narrow(block.low), _MM_FROUND_TO_NEAREST_INT));
  _mm_storeu_si128(to + 1, _mm256_cvtps_ph(narrow(block.high), _MM_FROUND_TO_NEAREST_INT));
}

inline Half widen_bfloat(__m128i bfloat) {
  return widen(_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bfloat), 16)));
}

inline Block load_bf16(const char *data) {
  const __m128i *from = reinterpret_cast<const __m128i *>(data);
  return {widen_bfloat(_mm_loadu_si128(from)), widen_bfloat(_mm_loadu_si128(from + 1))};
}

// Nearest even by integer arithmetic, in the low halves of eight 32-bit lanes.
inline __m256i narrow_to_bfloat(const Half &half) {
  const __m256 value = narrow(half);
  const __m256i bits = _mm256_castps_si256(value), high = _mm256_srli_epi32(bits, 16);
  const __m256i odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
  const __m256i rounded =
      _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd),
                        16);
  const __m256i quiet_nan = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
  const __m256 is_nan = _mm256_cmp_ps(value, value, _CMP_UNORD_Q);
  return _mm256_blendv_epi8(rounded, quiet_nan, _mm256_castps_si256(is_nan));
}

inline void store_bf16(const Block &block, char *data) {
  const __m256i packed =
      _mm256_packus_epi32(narrow_to_bfloat(block.low), narrow_to_bfloat(block.high));
  _mm256_storeu_si256(reinterpret_cast<__m256i *>(data), _mm256_permute4x64_epi64(packed, 0xd8));
}

// ---- fp32 ---------------------------------------------------------------------------------------

using HalfBits = Two<UVec>;
using Floats = Two<Two<FVec>>;
struct FusedFloats {
  static constexpr bool kPresent = false;
};

inline FVec add_product(const FVec &sum, const FVec &a, const FVec &b) {
  return {_mm256_fmadd_ps(a.native, b.native, sum.native)};
}
inline NativeBits round_to_bfloat(NativeBits bits) { return plainly_rounded(bits); }

// Half a last place is added to both, and 16 bits at a time what is then to be cut is looked at: 0
// was a tie, which has gone up and is to become even. Eight operations; one by one it takes eleven.
inline NativeBits narrow_to_bfloats(NativeBits even, NativeBits odd) {
  constexpr int kOdd = 0xaa;
  const __m256i half = _mm256_set1_epi32(0x8000);
  const __m256i low = _mm256_add_epi32(reinterpret_cast<__m256i>(even), half);
  const __m256i high = _mm256_add_epi32(reinterpret_cast<__m256i>(odd), half);
  const __m256i rounded = _mm256_blend_epi16(_mm256_srli_epi32(low, 16), high, kOdd);
  const __m256i cut = _mm256_blend_epi16(low, _mm256_slli_epi32(high, 16), kOdd);
  const __m256i is_tie = _mm256_subs_epu16(_mm256_set1_epi16(1), cut);  // 1, or 0
  return reinterpret_cast<NativeBits>(_mm256_andnot_si256(is_tie, rounded));
}

inline void load_halves(const char *data, FVec *to) {
  to->native = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(data)));
}

inline __m128i to_halves(const FVec &value) {
  return _mm256_cvtps_ph(value.native, _MM_FROUND_TO_NEAREST_INT);
}

inline void narrow_halves(const Two<FVec> &value, UVec *to) {
  to->native =
      reinterpret_cast<NativeBits>(_mm256_set_m128i(to_halves(value.high), to_halves(value.low)));
}

inline void store_halves(const FVec &value, char *data) {
  _mm_storeu_si128(reinterpret_cast<__m128i *>(data), to_halves(value));
}

inline FVec round_halves(const FVec &value) { return {_mm256_cvtph_ps(to_halves(value))}; }

// ---- Halves' gradients --------------------------------------------------------------------------

#include "cpu/rows/flags.inl.h"

struct GradientFloats : RangeFlags {
  static constexpr bool kPresent = true;

  // 16 columns: of bf16 the even and the odd ones, which takes no shuffle.
  template <rmsnorm_dtype_t kDtype>
  static Two<FVec> load_lanes(const char *data) {
    const __m128i *from = reinterpret_cast<const __m128i *>(data);
    if constexpr (kDtype == RMSNORM_DTYPE_F16)
      return {{_mm256_cvtph_ps(_mm_loadu_si128(from))},
              {_mm256_cvtph_ps(_mm_loadu_si128(from + 1))}};
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(data));
    return {{_mm256_castsi256_ps(_mm256_slli_epi32(bits, 16))},
            {_mm256_castsi256_ps(_mm256_and_si256(bits, _mm256_set1_epi32(-0x10000)))}};
  }
  // Of bf16: columns 0 to 3 and 8 to 11, and 4 to 7 and 12 to 15.
  template <rmsnorm_dtype_t kDtype>
  static Two<FVec> sort(const Two<FVec> &lanes) {
    if constexpr (kDtype == RMSNORM_DTYPE_F16) return lanes;
    return {{_mm256_unpacklo_ps(lanes.low.native, lanes.high.native)},
            {_mm256_unpackhi_ps(lanes.low.native, lanes.high.native)}};
  }
  // Columns 0 to 7, or 8 to 15, of what has been sorted.
  template <rmsnorm_dtype_t kDtype, int kPart>
  static Two<Vec> widen(const Two<FVec> &lanes) {
    if constexpr (kDtype == RMSNORM_DTYPE_F16)
      return avx2::widen(kPart == 0 ? lanes.low.native : lanes.high.native);
    return {{_mm256_cvtps_pd(_mm256_extractf128_ps(lanes.low.native, kPart))},
            {_mm256_cvtps_pd(_mm256_extractf128_ps(lanes.high.native, kPart))}};
  }
  static FVec subtract_from_product(const FVec &a, const FVec &b, const FVec &c) {
    return {_mm256_fmsub_ps(a.native, b.native, c.native)};
  }
  static bool any(NativeBits bits) {
    const __m256i whole = reinterpret_cast<__m256i>(bits);
    return _mm256_testz_si256(whole, whole) == 0;
  }
};

// ---- Past the cache -----------------------------------------------------------------------------

inline void stream(NativeBits bits, char *data) {
  _mm256_stream_si256(reinterpret_cast<__m256i *>(data), reinterpret_cast<__m256i>(bits));
}

inline void stream_f32(const Block &block, char *data) {
  stream(reinterpret_cast<NativeBits>(narrow(block.low)), data);
  stream(reinterpret_cast<NativeBits>(narrow(block.high)), data + 32);
}

inline void stream_16_bytes(const char *from, char *to) {
  _mm_stream_si128(reinterpret_cast<__m128i *>(to),
                   _mm_loadu_si128(reinterpret_cast<const __m128i *>(from)));
}

inline void stream_fence() { _mm_sfence(); }

// A row of 4096 in the cache takes .87 of the time in fp32, .8 in halves; halves in memory .85.
constexpr bool kKeepsSums = true;

#include "cpu/rows/rows.inl.h"

}  // namespace
}  // namespace avx2

const RowTable kAvx2Rows = {"avx2",       avx2::forward,     avx2::backward,    avx2::fold,
                            avx2::finish, avx2::glu_forward, avx2::glu_backward};

}  // namespace rmsnorm::cpu

#else

const rmsnorm::cpu::RowTable rmsnorm::cpu::kAvx2Rows = {};

#endif
