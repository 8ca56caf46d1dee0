// act(g) = g * s(g) and its derivative in fp32, for SiLU and both GELUs: in single precision for
// halves, in two floats for fp32. Each is even or odd in all but one exponential, which is found
// for
// -|g| so that nothing is ever taken from 1 that it nearly equals:
//
//   SILU, GELU_TANH  s(g) = r(e) for g >= 0, e * r(e) for g < 0;  r(e) = 1 / (1 + e)
//                    e = exp(-|g|), exp(-2 sqrt(2 / pi) (|g| + 0.044715 |g|^3))
//   GELU_ERF         s(g) = 1 - e * R(|g|), e * R(|g|);  e = exp(-g^2 / 2),
//                    R(x) = exp(x^2 / 2) * erfc(x / sqrt(2)) / 2, a polynomial in 1 / (1 + 0.3 x)
//
// e itself leaves fp32's range long before e * g * up does: halves keep its square root, fp32 a
// power of two beside it.
#pragma once

#include "cuda/kernels/elements.cuh"

namespace rmsnorm::cuda {
namespace {

// A product of two operands up to here loses nothing in what follows; an element with a larger one
// (or NaN, or Inf) is redone in fp64.
constexpr float kLargestProduct = 0x1p60f;

// Where e is 2^-245. Beyond, the result is 0.
template <int kActivation>
constexpr float kLargestGate = kActivation == RMSNORM_ACTIVATION_SILU        ? 170.0f
                               : kActivation == RMSNORM_ACTIVATION_GELU_TANH ? 12.4f
                                                                             : 18.4f;

constexpr double kLog2e = 1.4426950408889634074;
constexpr double kTanhScale = 1.5957691216057307117;  // 2 sqrt(2 / pi)
constexpr double kTanhCubic = 0.044715;
constexpr double kDensity = 0.3989422804014326779;  // 1 / sqrt(2 pi)

__device__ inline float exp2_approximate(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ inline float reciprocal_approximate(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// R(x): minimax in 1 / (1 + 0.3 x) (Remez); fp16 to 2^-19.2 for x up to 9, beyond
// which any product of fp16 operands gives 0, bf16 to 2^-18.2.
template <class T>
__device__ inline float erfc_ratio(float x) {
  constexpr bool kShort = std::is_same_v<T, __half>;
  constexpr float kFactors[] = {kShort ? -3.40367366426e-5f : -5.97147016122e-5f,
                                kShort ? 0.120753216733f : 0.120967840144f,
                                kShort ? 0.109077663285f : 0.108527174765f,
                                kShort ? 0.159234345416f : 0.159372191784f,
                                kShort ? -0.0416657802103f : -0.0402310245729f,
                                kShort ? 0.236037386029f : 0.233973888968f,
                                kShort ? -0.0834036280977f : -0.0825487867519f};
  const float z = reciprocal_approximate(fmaf(x, 0.3f, 1.0f));
  float value = kFactors[6];
#pragma unroll
  for (int i = 5; i >= 0; --i) value = fmaf(value, z, kFactors[i]);
  return value;
}

// GELU_ERF's s(g) and act'(g) are 1 less than what they are of -|g|, turned round, where g >= 0.
template <int kActivation>
__device__ inline bool flips(float g) {
  return kActivation == RMSNORM_ACTIVATION_GELU_ERF && !(g < 0);
}

// What s(g) and act'(g) are products of: s(g) = root * share * root, act'(g) = root * slope * root,
// or 1 - those where it flips.
struct Factors {
  float root, share, slope;
  bool flip;
};

// `e` and `ratio`: R or r.
template <int kActivation>
__device__ inline float slope_of(bool negative, float x, float e, float ratio) {
  if constexpr (kActivation == RMSNORM_ACTIVATION_GELU_ERF) {
    return fmaf(-x, float(kDensity), ratio);
  } else {
    float inner = (negative ? -x : x * e) * ratio;
    if (kActivation == RMSNORM_ACTIVATION_GELU_TANH)
      inner *= fmaf(x * x, float(3 * kTanhScale * kTanhCubic), float(kTanhScale));
    return fmaf(inner, ratio, ratio);
  }
}

template <class T, int kActivation>
__device__ inline Factors factors_of(float g) {
  constexpr bool kErf = kActivation == RMSNORM_ACTIVATION_GELU_ERF;
  const bool negative = g < 0;
  const float x =
      fminf(fabsf(g), kErf && std::is_same_v<T, __half> ? 9.5f : kLargestGate<kActivation>);
  float exponent;  // of e's root
  if constexpr (kActivation == RMSNORM_ACTIVATION_SILU) exponent = x * float(-0.5 * kLog2e);
  else if constexpr (kErf) exponent = (x * x) * float(-0.25 * kLog2e);
  else
    exponent = x * fmaf(x * x, float(-0.5 * kLog2e * kTanhScale * kTanhCubic),
                        float(-0.5 * kLog2e * kTanhScale));
  const float root = exp2_approximate(exponent), e = root * root;
  float share;
  if constexpr (kErf) share = erfc_ratio<T>(x);
  else share = reciprocal_approximate(1.0f + e);
  return {kErf || negative ? root : 1.0f, share, slope_of<kActivation>(negative, x, e, share),
          flips<kActivation>(g)};
}

__device__ inline float times(float product, const Factors &f, float factor) {
  const float value = ((product * f.root) * factor) * f.root;
  return f.flip ? product - value : value;
}

// ---- Two floats ---------------------------------------------------------------------------------

struct TwoFloats {
  float high, low;
};

// Rounded before they are used: the compiler may not contract what error-free sums take apart.
__device__ inline TwoFloats multiply(float a, float b) {
  const float high = __fmul_rn(a, b);
  return {high, fmaf(a, b, -high)};
}

// a * (b.high + b.low), to about 2^-48.
__device__ inline TwoFloats multiply(float a, const TwoFloats &b) {
  const TwoFloats high = multiply(a, b.high);
  return {high.high, fmaf(a, b.low, high.low)};
}

__device__ inline TwoFloats multiply(const TwoFloats &a, const TwoFloats &b) {
  const TwoFloats high = multiply(a.high, b.high);
  return {high.high, high.low + fmaf(a.high, b.low, a.low * b.high)};
}

// a + b.high + b.low for |a| >= |b.high| or a's exponent not below it.
__device__ inline TwoFloats add(float a, const TwoFloats &b) {
  const float high = __fadd_rn(a, b.high);
  return {high, (a - high) + b.high + b.low};
}

// A constant as two floats.
__host__ __device__ constexpr TwoFloats split(double value) {
  return {float(value), float(value - double(float(value)))};
}

// 1 / x to about 2^-45.
__device__ inline TwoFloats reciprocal(const TwoFloats &x) {
  const float high = reciprocal_approximate(x.high);
  return {high, high * fmaf(-x.low, high, fmaf(-x.high, high, 1.0f))};
}

// tail * scale = 2^x, x from -246 to 0; scale is 1 or 2^-122.
struct Power {
  float tail, scale;
};
__device__ inline Power exp2_of(const TwoFloats &x) {
  constexpr float kRound = 0x1.8p23f;  // added, it leaves an integer in the last bits
  const float shifted = __fadd_rn(x.high, kRound), whole = shifted - kRound;
  const float f = (x.high - whole) + x.low;
  float value = 0.000154035993084f;  // 2^f, to 2^-27.5 of it (Remez)
  value = fmaf(value, f, 0.00133907759819f);
  value = fmaf(value, f, 0.00961823734392f);
  value = fmaf(value, f, 0.0555035733259f);
  value = fmaf(value, f, 0.240226497944f);
  value = fmaf(value, f, 0.693147187958f);
  value = fmaf(value, f, 1.0f);
  const bool small = x.high < -122;
  const int exponent = __float_as_int(shifted) + (small ? 122 : 0);
  return {__int_as_float(__float_as_int(value) + (exponent << 23)), small ? 0x1p-122f : 1.0f};
}

// R(x): the minimax (Remez) of R(x) * (1 + sqrt(2) x), which varies little, in 1 / (1 + x / 4)
// about the middle of that, to 2^-28.
__device__ inline float exact_erfc_ratio(float x) {
  constexpr TwoFloats kRoot = split(1.4142135623730950488);
  const float quarter = x * 0.25f;  // z = 1 / (1 + x / 4) - 0.59, exact enough near 0
  const float z = fmaf(-quarter, reciprocal_approximate(1.0f + quarter), 0.41f);
  float value = -0.1095449799012f;
  value = fmaf(value, z, -0.06274226169745f);
  value = fmaf(value, z, 0.2570251286327f);
  value = fmaf(value, z, 0.2828312008088f);
  value = fmaf(value, z, -0.3485199508675f);
  value = fmaf(value, z, -1.149951667588f);
  value = fmaf(value, z, -1.402239890633f);
  value = fmaf(value, z, -0.9784912345425f);
  value = fmaf(value, z, -0.3309372063244f);
  value = fmaf(value, z, 0.09284024450716f);
  value = fmaf(value, z, 0.638886180339f);
  const float slant = fmaf(x, kRoot.high, 1.0f), rest = fmaf(x, kRoot.high, 1.0f - slant);
  const TwoFloats over = reciprocal({slant, rest});
  return fmaf(value, over.high, value * over.low);
}

// The same factors for fp32: s(g) = tail * share * scale, act'(g) = tail * slope * scale, or 1 -
// those.
struct TwoFactors {
  TwoFloats share;
  float tail, scale, slope;
  bool flip;
};

template <int kActivation>
__device__ inline TwoFactors two_factors_of(float g) {
  constexpr bool kErf = kActivation == RMSNORM_ACTIVATION_GELU_ERF;
  const bool negative = g < 0;
  const float x = fminf(fabsf(g), kLargestGate<kActivation>);
  TwoFloats exponent;
  if constexpr (kActivation == RMSNORM_ACTIVATION_SILU) {
    exponent = multiply(x, split(-kLog2e));
  } else if constexpr (kErf) {
    exponent = multiply(multiply(x, x), split(-0.5 * kLog2e));
  } else {
    constexpr TwoFloats kLinear = split(-kLog2e * kTanhScale);
    const TwoFloats cubic = multiply(multiply(x, x), split(-kLog2e * kTanhScale * kTanhCubic));
    const float sum = __fadd_rn(kLinear.high, cubic.high), part = sum - kLinear.high;
    const float lost = (kLinear.high - (sum - part)) + (cubic.high - part);
    exponent = multiply(x, {sum, lost + (cubic.low + kLinear.low)});
  }
  const Power power = exp2_of(exponent);
  const float e = __fmul_rn(power.tail, power.scale);
  TwoFactors out;
  if constexpr (kErf) out.share = {exact_erfc_ratio(x), 0};
  else out.share = reciprocal(add(1.0f, {e, 0}));
  out.tail = kErf || negative ? power.tail : 1.0f;
  out.scale = kErf || negative ? power.scale : 1.0f;
  out.slope = slope_of<kActivation>(negative, x, e, out.share.high);
  out.flip = flips<kActivation>(g);
  return out;
}

__device__ inline float times_share(const TwoFloats &product, const TwoFactors &f) {
  const TwoFloats inner = multiply(f.tail, product);
  const float low = fmaf(inner.high, f.share.low, inner.low * f.share.high);
  const float value = fmaf(inner.high, f.share.high, low) * f.scale;
  return f.flip ? (product.high - value) + product.low : value;
}

__device__ inline float times_slope(float product, const TwoFactors &f) {
  const float value = ((product * f.slope) * f.tail) * f.scale;
  return f.flip ? product - value : value;
}

}  // namespace
}  // namespace rmsnorm::cuda
