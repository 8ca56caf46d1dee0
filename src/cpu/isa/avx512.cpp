// x86-64 with AVX-512 F, BW, DQ and VL: eight doubles a vector. Not the bf16 instructions: they
// flush subnormals.
#include <cstddef>
#include <cstdint>

#include "cpu/rows.h"

#if defined(__x86_64__) && defined(__AVX512F__) && defined(__AVX512BW__) && \
    defined(__AVX512DQ__) && defined(__AVX512VL__)

#include <immintrin.h>

namespace rmsnorm::cpu {
namespace avx512 {
namespace {

using Native = __m512d;

#include "cpu/rows/block.inl.h"

inline Vec add_product(const Vec &sum, const Vec &a, const Vec &b) {
  return {_mm512_fmadd_pd(a.native, b.native, sum.native)};
}

// a * b - product, where that is the product rounded: exact.
inline Vec product_error(const Vec &a, const Vec &b, const Vec &product) {
  return {_mm512_fmsub_pd(a.native, b.native, product.native)};
}

using Block = Two<Vec>;

// With a mask of all lanes, which costs nothing: gcc warns about the insides of the ones without.
inline Vec widen(__m256 value) { return {_mm512_maskz_cvtps_pd(0xff, value)}; }
inline __m256 narrow(const Vec &vec) { return _mm512_maskz_cvtpd_ps(0xff, vec.native); }

inline Block load_f32(const char *data) {
  const float *from = reinterpret_cast<const float *>(data);
  return {widen(_mm256_loadu_ps(from)), widen(_mm256_loadu_ps(from + 8))};
}

inline void store_f32(const Block &block, char *data) {
  float *to = reinterpret_cast<float *>(data);
  _mm256_storeu_ps(to, narrow(block.low));
  _mm256_storeu_ps(to + 8, narrow(block.high));
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

inline Vec widen_bfloat(__m128i bfloat) {
  return widen(_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bfloat), 16)));
}

inline Block load_bf16(const char *data) {
  const __m128i *from = reinterpret_cast<const __m128i *>(data);
  return {widen_bfloat(_mm_loadu_si128(from)), widen_bfloat(_mm_loadu_si128(from + 1))};
}

inline __m512 join(__m256 low, __m256 high) {
  return _mm512_maskz_insertf32x8(0xffff, _mm512_castps256_ps512(low), high, 1);
}

// Nearest even by integer arithmetic.
inline void store_bf16(const Block &block, char *data) {
  const __m512 value = join(narrow(block.low), narrow(block.high));
  const __m512i bits = _mm512_castps_si512(value);
  const __m512i high = _mm512_maskz_srli_epi32(0xffff, bits, 16);
  const __m512i odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
  const __m512i raised = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
  const __mmask16 is_nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
  const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
  const __m512i rounded = _mm512_mask_blend_epi32(is_nan, raised, quiet);
  _mm256_storeu_si256(reinterpret_cast<__m256i *>(data),
                      _mm512_maskz_cvtepi32_epi16(0xffff,
                                                  _mm512_maskz_srli_epi32(0xffff, rounded, 16)));
}

// ---- fp32 ---------------------------------------------------------------------------------------

using HalfBits = UVec;
using Floats = Two<FVec>;

inline FVec add_product(const FVec &sum, const FVec &a, const FVec &b) {
  return {_mm512_fmadd_ps(a.native, b.native, sum.native)};
}

// By a mask: an operation less.
inline NativeBits round_to_bfloat(NativeBits bits) {
  const __m512i whole = reinterpret_cast<__m512i>(bits);
  const __mmask16 is_odd = _mm512_test_epi32_mask(whole, _mm512_set1_epi32(0x10000));
  const __m512i raised = _mm512_add_epi32(whole, _mm512_set1_epi32(0x7fff));
  return reinterpret_cast<NativeBits>(
      _mm512_mask_add_epi32(raised, is_odd, whole, _mm512_set1_epi32(0x8000)));
}
inline NativeBits narrow_to_bfloats(NativeBits even, NativeBits odd) {
  return join_bfloats(round_to_bfloat(even), round_to_bfloat(odd));
}

inline void load_halves(const char *data, FVec *to) {
  to->native =
      _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i *>(data)));
}

inline __m256i to_halves(const FVec &value) {
  return _mm512_maskz_cvtps_ph(0xffff, value.native, _MM_FROUND_TO_NEAREST_INT);
}

inline void narrow_halves(const Two<FVec> &value, UVec *to) {
  to->native = reinterpret_cast<NativeBits>(
      _mm512_inserti64x4(_mm512_castsi256_si512(to_halves(value.low)), to_halves(value.high), 1));
}

inline void store_halves(const FVec &value, char *data) {
  _mm256_storeu_si256(reinterpret_cast<__m256i *>(data), to_halves(value));
}

inline FVec round_halves(const FVec &value) {
  return {_mm512_maskz_cvtph_ps(0xffff, to_halves(value))};
}

#include "cpu/rows/flags.inl.h"

struct FusedFloats : RangeFlags {
  static constexpr bool kPresent = true;

  // from - a * b, and sum + a * b, rounded once.
  static FVec subtract_product(const FVec &from, const FVec &a, const FVec &b) {
    return {_mm512_fnmadd_ps(a.native, b.native, from.native)};
  }
  static FVec add_product(const FVec &sum, const FVec &a, const FVec &b) {
    return avx512::add_product(sum, a, b);
  }

  // Whether each of a is the number of b; NaN is none.
  static bool are_same(const Floats &a, const Floats &b) {
    return _kortestz_mask16_u8(_mm512_cmp_ps_mask(a.low.native, b.low.native, _CMP_NEQ_UQ),
                               _mm512_cmp_ps_mask(a.high.native, b.high.native, _CMP_NEQ_UQ)) != 0;
  }
};

// ---- Halves' gradients --------------------------------------------------------------------------

struct GradientFloats : RangeFlags {
  static constexpr bool kPresent = true;

  // 16 columns.
  template <rmsnorm_dtype_t kDtype>
  static FVec load_lanes(const char *data) {
    const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(data));
    if constexpr (kDtype == RMSNORM_DTYPE_F16) return {_mm512_maskz_cvtph_ps(0xffff, halves)};
    const __m512i wide = _mm512_maskz_cvtepu16_epi32(0xffff, halves);
    return {_mm512_castsi512_ps(_mm512_maskz_slli_epi32(0xffff, wide, 16))};
  }
  template <rmsnorm_dtype_t>
  static FVec sort(const FVec &lanes) {
    return lanes;
  }
  template <rmsnorm_dtype_t, int>
  static Two<Vec> widen(const FVec &lanes) {
    return {avx512::widen(_mm512_castps512_ps256(lanes.native)),
            avx512::widen(_mm512_maskz_extractf32x8_ps(0xff, lanes.native, 1))};
  }
  static FVec subtract_from_product(const FVec &a, const FVec &b, const FVec &c) {
    return {_mm512_fmsub_ps(a.native, b.native, c.native)};
  }
  static bool any(NativeBits bits) {
    const __m512i whole = reinterpret_cast<__m512i>(bits);
    return _mm512_test_epi32_mask(whole, whole) != 0;
  }
};

// ---- Past the cache -----------------------------------------------------------------------------

inline void stream(NativeBits bits, char *data) {
  _mm512_stream_si512(reinterpret_cast<__m512i *>(data), reinterpret_cast<__m512i>(bits));
}

inline void stream_f32(const Block &block, char *data) {
  stream(reinterpret_cast<NativeBits>(join(narrow(block.low), narrow(block.high))), data);
}

inline void stream_16_bytes(const char *from, char *to) {
  _mm_stream_si128(reinterpret_cast<__m128i *>(to),
                   _mm_loadu_si128(reinterpret_cast<const __m128i *>(from)));
}

inline void stream_fence() { _mm_sfence(); }

constexpr bool kKeepsSums = false;  // not measured here

#include "cpu/rows/rows.inl.h"

// fp32 that streams from and to memory by way of fp64 takes a tenth less time by AVX2's narrower
// vectors, of the same bits; within the cache a sixth more.
void forward_by_width(const ForwardProblem &problem, bool streams, int64_t begin, int64_t end) {
  if (streams && common_dtype(problem) == RMSNORM_DTYPE_F32 && !takes_pairs(problem))
    return kAvx2Rows.forward(problem, streams, begin, end);
  forward(problem, streams, begin, end);
}

}  // namespace
}  // namespace avx512

const RowTable kAvx512Rows = {
    "avx512",       avx512::forward_by_width, avx512::backward,    avx512::fold,
    avx512::finish, avx512::glu_forward,      avx512::glu_backward};

}  // namespace rmsnorm::cpu

#else

const rmsnorm::cpu::RowTable rmsnorm::cpu::kAvx512Rows = {};

#endif
