// Loads and stores of 16 elements, and of a vector's worth of fp16, for instruction sets without
// conversions of their own: plain integer arithmetic on bit patterns, rounding to nearest even as
// the hardware elsewhere does, subnormal numbers and overflow included. Included inside the isa
// file's namespace.

typedef float FloatPair __attribute__((vector_size(8)));
typedef uint16_t FourShorts __attribute__((vector_size(8)));

inline NativeBits bits_of(NativeFloat value) { return reinterpret_cast<NativeBits>(value); }
inline NativeFloat float_of(NativeBits bits) { return reinterpret_cast<NativeFloat>(bits); }

// By the mask of a comparison.
template <class Mask>
[[gnu::always_inline]] inline NativeBits choose(Mask mask, NativeBits yes, NativeBits no) {
  const NativeBits all = reinterpret_cast<NativeBits>(mask);
  return (yes & all) | (no & ~all);
}

inline NativeBits load_shorts(const char *data) {
  FourShorts shorts;
  __builtin_memcpy(&shorts, data, sizeof shorts);
  return __builtin_convertvector(shorts, NativeBits);
}

// The low 16 bits of each; of gcc's own making it is one by one.
inline uint64_t narrow_shorts(NativeBits bits) {
#if defined(__x86_64__)
  const __m128i extended = _mm_srai_epi32(reinterpret_cast<__m128i>(bits << 16), 16);
  return static_cast<uint64_t>(_mm_cvtsi128_si64(_mm_packs_epi32(extended, extended)));
#else
  return reinterpret_cast<uint64_t>(__builtin_convertvector(bits, FourShorts));
#endif
}

inline void store_shorts(NativeBits bits, char *data) {
  const uint64_t shorts = narrow_shorts(bits);
  __builtin_memcpy(data, &shorts, sizeof shorts);
}

inline NativeFloat half_to_float(NativeBits half) {
  const NativeBits magnitude = half & 0x7fffu, moved = magnitude << 13;
  // The fraction and exponent moved into place; the product moves the exponent's bias, also of
  // subnormals.
  const NativeBits finite = bits_of(float_of(moved) * 0x1p112f);
  const NativeBits value = choose(magnitude >= 0x7c00u, moved | 0x7f800000u, finite);
  return float_of(value | (half & 0x8000u) << 16);
}

inline NativeBits float_to_half(NativeFloat value) {
  const NativeBits bits = bits_of(value), magnitude = bits & 0x7fffffffu;
  // Normal: subtract the difference of the biases, add just under half of the last place (or half,
  // if that is odd) and cut; a carry into the exponent is right, at the top it gives Inf.
  const NativeBits normal = (magnitude - (112u << 23) + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
  // Subnormal: at 0.5 a float's last place is a half's smallest number, and the addition rounds.
  const NativeBits subnormal = bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u;
  const NativeBits special =
      choose(magnitude > 0x7f800000u, NativeBits{} + 0x7e00u, NativeBits{} + 0x7c00u);
  const NativeBits half = choose(magnitude >= 0x47800000u, special,                    // 2^16
                                 choose(magnitude < 0x38800000u, subnormal, normal));  // 2^-14
  return half | (bits >> 16 & 0x8000u);
}

inline NativeBits float_to_bfloat(NativeFloat value) {
  const NativeBits bits = bits_of(value);
  const NativeBits rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  return choose((bits & 0x7fffffffu) > 0x7f800000u, bits >> 16 | 0x40u, rounded);
}

inline Quarter widen(NativeFloat value) {
#if defined(__x86_64__)
  return {{_mm_cvtps_pd(value)}, {_mm_cvtps_pd(_mm_movehl_ps(value, value))}};
#else
  const FloatPair low = {value[0], value[1]}, high = {value[2], value[3]};
  return {{__builtin_convertvector(low, Native)}, {__builtin_convertvector(high, Native)}};
#endif
}

inline NativeFloat narrow(const Quarter &quarter) {
#if defined(__x86_64__)  // of gcc's own making it goes through integer registers
  return _mm_movelh_ps(_mm_cvtpd_ps(quarter.low.native), _mm_cvtpd_ps(quarter.high.native));
#else
  const FloatPair low = __builtin_convertvector(quarter.low.native, FloatPair);
  const FloatPair high = __builtin_convertvector(quarter.high.native, FloatPair);
  return NativeFloat{low[0], low[1], high[0], high[1]};
#endif
}

inline Vec load_pair(const float *from) {
  typedef FloatPair UnalignedPair __attribute__((aligned(4), may_alias));
  const UnalignedPair &pair = *reinterpret_cast<const UnalignedPair *>(from);
#if defined(__x86_64__)  // from memory it is one operation, which gcc makes two of, or five
  Vec vec;
  __asm__("cvtps2pd %1, %0" : "=x"(vec.native) : "m"(pair));
  return vec;
#else
  return {__builtin_convertvector(pair, Native)};
#endif
}

inline Quarter load_quarter(const float *from) { return {load_pair(from), load_pair(from + 2)}; }

inline void store_quarter(const Quarter &quarter, float *to) {
  const NativeFloat value = narrow(quarter);
  __builtin_memcpy(to, &value, sizeof value);
}

inline Block load_f32(const char *data) {
  const float *from = reinterpret_cast<const float *>(data);
  return {{load_quarter(from), load_quarter(from + 4)},
          {load_quarter(from + 8), load_quarter(from + 12)}};
}

inline void store_f32(const Block &block, char *data) {
  float *to = reinterpret_cast<float *>(data);
  store_quarter(block.low.low, to);
  store_quarter(block.low.high, to + 4);
  store_quarter(block.high.low, to + 8);
  store_quarter(block.high.high, to + 12);
}

inline Quarter load_half_quarter(const char *data) {
  return widen(half_to_float(load_shorts(data)));
}
inline Quarter load_bfloat_quarter(const char *data) {
  return widen(float_of(load_shorts(data) << 16));
}

[[gnu::noinline]] inline Block load_f16(const char *data) {
  return {{load_half_quarter(data), load_half_quarter(data + 8)},
          {load_half_quarter(data + 16), load_half_quarter(data + 24)}};
}

[[gnu::noinline]] inline void store_f16(const Block &block, char *data) {
  store_shorts(float_to_half(narrow(block.low.low)), data);
  store_shorts(float_to_half(narrow(block.low.high)), data + 8);
  store_shorts(float_to_half(narrow(block.high.low)), data + 16);
  store_shorts(float_to_half(narrow(block.high.high)), data + 24);
}

[[gnu::noinline]] inline Block load_bf16(const char *data) {
  return {{load_bfloat_quarter(data), load_bfloat_quarter(data + 8)},
          {load_bfloat_quarter(data + 16), load_bfloat_quarter(data + 24)}};
}

[[gnu::noinline]] inline void store_bf16(const Block &block, char *data) {
  store_shorts(float_to_bfloat(narrow(block.low.low)), data);
  store_shorts(float_to_bfloat(narrow(block.low.high)), data + 8);
  store_shorts(float_to_bfloat(narrow(block.high.low)), data + 16);
  store_shorts(float_to_bfloat(narrow(block.high.high)), data + 24);
}

inline void load_halves(const char *data, FVec *to) {
  to->native = half_to_float(load_shorts(data));
}
inline void narrow_halves(const Two<FVec> &value, UVec *to) {
  typedef uint64_t TwoLongs __attribute__((vector_size(16)));
  to->native =
      reinterpret_cast<NativeBits>(TwoLongs{narrow_shorts(float_to_half(value.low.native)),
                                            narrow_shorts(float_to_half(value.high.native))});
}
inline void store_halves(const FVec &value, char *data) {
  store_shorts(float_to_half(value.native), data);
}
inline FVec round_halves(const FVec &value) { return {half_to_float(float_to_half(value.native))}; }
