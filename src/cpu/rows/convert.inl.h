// Loads and stores of 16 elements for instruction sets without conversions of their own: plain
// integer arithmetic on bit patterns, rounding to nearest even as the hardware elsewhere does,
// subnormal numbers and overflow included. Not inlined: they are long. Included inside the isa
// file's namespace.

typedef float FloatPair __attribute__((vector_size(8)));

inline uint32_t bits_of(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float float_of(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

inline float half_to_float(uint16_t half) {
  const uint32_t magnitude = half & 0x7fffu;
  // The fraction and exponent moved into place; the product moves the exponent's bias, also of
  // subnormals.
  const uint32_t finite = bits_of(float_of(magnitude << 13) * 0x1p112f);
  const uint32_t special = (magnitude << 13) | 0x7f800000u;
  return float_of((magnitude >= 0x7c00u ? special : finite) | (half & 0x8000u) << 16);
}

inline uint16_t float_to_half(float value) {
  const uint32_t bits = bits_of(value), magnitude = bits & 0x7fffffffu;
  // Normal: subtract the difference of the biases, add just under half of the last place (or half,
  // if that is odd) and cut; a carry into the exponent is right, at the top it gives Inf.
  const uint32_t normal = (magnitude - (112u << 23) + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
  // Subnormal: at 0.5 a float's last place is a half's smallest number, and the addition rounds.
  const uint32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);
  const uint32_t special = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  const uint32_t half = magnitude >= 0x47800000u  ? special    // 2^16
                        : magnitude < 0x38800000u ? subnormal  // 2^-14
                                                  : normal;
  return static_cast<uint16_t>(half | (bits >> 16 & 0x8000u));
}

inline uint16_t float_to_bfloat(float value) {
  const uint32_t bits = bits_of(value);
  const uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  const uint32_t quiet_nan = bits >> 16 | 0x40u;
  return static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? quiet_nan : rounded);
}

inline Vec load_pair(const float *from) {
  FloatPair pair;
  __builtin_memcpy(&pair, from, sizeof pair);
  return {__builtin_convertvector(pair, Native)};
}

inline void store_pair(const Vec &vec, float *to) {
  const FloatPair pair = __builtin_convertvector(vec.native, FloatPair);
  __builtin_memcpy(to, &pair, sizeof pair);
}

inline Quarter load_quarter(const float *from) { return {load_pair(from), load_pair(from + 2)}; }

inline void store_quarter(const Quarter &quarter, float *to) {
  store_pair(quarter.low, to);
  store_pair(quarter.high, to + 2);
}

inline Block load_floats(const float *from) {
  return {{load_quarter(from), load_quarter(from + 4)},
          {load_quarter(from + 8), load_quarter(from + 12)}};
}

inline void store_floats(const Block &block, float *to) {
  store_quarter(block.low.low, to);
  store_quarter(block.low.high, to + 4);
  store_quarter(block.high.low, to + 8);
  store_quarter(block.high.high, to + 12);
}

inline Block load_f32(const char *data) {
  return load_floats(reinterpret_cast<const float *>(data));
}

inline void store_f32(const Block &block, char *data) {
  store_floats(block, reinterpret_cast<float *>(data));
}

[[gnu::noinline]] inline Block load_f16(const char *data) {
  uint16_t half[kLanes];
  float value[kLanes];
  __builtin_memcpy(half, data, sizeof half);
  for (int i = 0; i < kLanes; ++i) value[i] = half_to_float(half[i]);
  return load_floats(value);
}

[[gnu::noinline]] inline void store_f16(const Block &block, char *data) {
  uint16_t half[kLanes];
  float value[kLanes];
  store_floats(block, value);
  for (int i = 0; i < kLanes; ++i) half[i] = float_to_half(value[i]);
  __builtin_memcpy(data, half, sizeof half);
}

[[gnu::noinline]] inline Block load_bf16(const char *data) {
  uint16_t bfloat[kLanes];
  float value[kLanes];
  __builtin_memcpy(bfloat, data, sizeof bfloat);
  for (int i = 0; i < kLanes; ++i) value[i] = float_of(static_cast<uint32_t>(bfloat[i]) << 16);
  return load_floats(value);
}

[[gnu::noinline]] inline void store_bf16(const Block &block, char *data) {
  uint16_t bfloat[kLanes];
  float value[kLanes];
  store_floats(block, value);
  for (int i = 0; i < kLanes; ++i) bfloat[i] = float_to_bfloat(value[i]);
  __builtin_memcpy(data, bfloat, sizeof bfloat);
}
