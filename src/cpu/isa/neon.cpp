// aarch64: two doubles a vector, with the base instruction set's conversions.
#include <cstddef>
#include <cstdint>

#include "cpu/rows.h"

#if defined(__aarch64__)

#include <arm_neon.h>

namespace rmsnorm::cpu {
namespace neon {
namespace {

using Native = float64x2_t;

#include "cpu/rows/block.inl.h"

inline Vec add_product(const Vec &sum, const Vec &a, const Vec &b) {
  return {vfmaq_f64(sum.native, a.native, b.native)};
}

// a * b - product, where that is the product rounded: exact.
inline Vec product_error(const Vec &a, const Vec &b, const Vec &product) {
  return {vnegq_f64(vfmsq_f64(product.native, a.native, b.native))};
}

using Quarter = Two<Vec>;
using Block = Two<Two<Quarter>>;

inline Quarter widen(float32x4_t value) {
  return {{vcvt_f64_f32(vget_low_f32(value))}, {vcvt_high_f64_f32(value)}};
}

inline float32x4_t narrow(const Quarter &quarter) {
  return vcvt_high_f32_f64(vcvt_f32_f64(quarter.low.native), quarter.high.native);
}

// The block's quarters, each by load(from), from + 4 and so on, or by store(quarter, to).
template <class Element, class Load>
[[gnu::always_inline]] inline Block load_quarters(const char *data, const Load &load) {
  const Element *from = reinterpret_cast<const Element *>(data);
  return {{load(from), load(from + 4)}, {load(from + 8), load(from + 12)}};
}

template <class Element, class Store>
[[gnu::always_inline]] inline void store_quarters(const Block &block, char *data,
                                                  const Store &store) {
  Element *to = reinterpret_cast<Element *>(data);
  store(block.low.low, to);
  store(block.low.high, to + 4);
  store(block.high.low, to + 8);
  store(block.high.high, to + 12);
}

inline Block load_f32(const char *data) {
  return load_quarters<float>(data, [](const float *from) { return widen(vld1q_f32(from)); });
}

inline void store_f32(const Block &block, char *data) {
  store_quarters<float>(block, data,
                        [](const Quarter &quarter, float *to) { vst1q_f32(to, narrow(quarter)); });
}

inline Block load_f16(const char *data) {
  return load_quarters<uint16_t>(data, [](const uint16_t *from) {
    return widen(vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from))));
  });
}

inline void store_f16(const Block &block, char *data) {
  store_quarters<uint16_t>(block, data, [](const Quarter &quarter, uint16_t *to) {
    vst1_u16(to, vreinterpret_u16_f16(vcvt_f16_f32(narrow(quarter))));
  });
}

inline Block load_bf16(const char *data) {
  return load_quarters<uint16_t>(data, [](const uint16_t *from) {
    return widen(vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(from), 16)));
  });
}

// Nearest even by integer arithmetic.
inline uint16x4_t narrow_to_bfloat(const Quarter &quarter) {
  const float32x4_t value = narrow(quarter);
  const uint32x4_t bits = vreinterpretq_u32_f32(value);
  const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
  const uint32x4_t rounded = vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7fff)), odd);
  const uint32x4_t quiet_nan = vorrq_u32(bits, vdupq_n_u32(0x400000));
  return vshrn_n_u32(vbslq_u32(vceqq_f32(value, value), rounded, quiet_nan), 16);
}

inline void store_bf16(const Block &block, char *data) {
  store_quarters<uint16_t>(block, data, [](const Quarter &quarter, uint16_t *to) {
    vst1_u16(to, narrow_to_bfloat(quarter));
  });
}

// ---- fp32 ---------------------------------------------------------------------------------------

using HalfBits = Two<Two<UVec>>;
using Floats = Two<Two<Two<FVec>>>;
struct FusedFloats {
  static constexpr bool kPresent = false;
};

inline FVec add_product(const FVec &sum, const FVec &a, const FVec &b) {
  return {reinterpret_cast<NativeFloat>(vfmaq_f32(reinterpret_cast<float32x4_t>(sum.native),
                                                  reinterpret_cast<float32x4_t>(a.native),
                                                  reinterpret_cast<float32x4_t>(b.native)))};
}
inline NativeBits round_to_bfloat(NativeBits bits) { return plainly_rounded(bits); }
inline NativeBits narrow_to_bfloats(NativeBits even, NativeBits odd) {
  return join_bfloats(round_to_bfloat(even), round_to_bfloat(odd));
}
struct GradientFloats {
  static constexpr bool kPresent = false;
};

inline void load_halves(const char *data, FVec *to) {
  const uint16_t *from = reinterpret_cast<const uint16_t *>(data);
  to->native = reinterpret_cast<NativeFloat>(vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from))));
}

inline float16x4_t to_halves(const FVec &value) {
  return vcvt_f16_f32(reinterpret_cast<float32x4_t>(value.native));
}

inline void narrow_halves(const Two<FVec> &value, UVec *to) {
  to->native =
      reinterpret_cast<NativeBits>(vcombine_u16(vreinterpret_u16_f16(to_halves(value.low)),
                                                vreinterpret_u16_f16(to_halves(value.high))));
}

inline void store_halves(const FVec &value, char *data) {
  vst1_u8(reinterpret_cast<uint8_t *>(data), vreinterpret_u8_f16(to_halves(value)));
}

inline FVec round_halves(const FVec &value) {
  return {reinterpret_cast<NativeFloat>(vcvt_f32_f16(to_halves(value)))};
}

// No stores past the cache here.
inline void stream(NativeBits bits, char *data) { __builtin_memcpy(data, &bits, sizeof bits); }
inline void stream_f32(const Block &block, char *data) { store_f32(block, data); }
inline void stream_16_bytes(const char *from, char *to) { __builtin_memcpy(to, from, 16); }
inline void stream_fence() {}

constexpr bool kKeepsSums = false;  // not measured here

#include "cpu/rows/rows.inl.h"

}  // namespace
}  // namespace neon

const RowTable kNeonRows = {"neon",       neon::forward,     neon::backward,    neon::fold,
                            neon::finish, neon::glu_forward, neon::glu_backward};

}  // namespace rmsnorm::cpu

#else

const rmsnorm::cpu::RowTable rmsnorm::cpu::kNeonRows = {};

#endif
