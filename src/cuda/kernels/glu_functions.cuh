// act(g) = g * s(g) and its derivative in fp32, for SiLU and both GELUs: in single precision for
// halves, with what that leaves over for fp32. Each is even or odd in all but one exponential,
// which is found for -|g| so that nothing is ever taken from 1 that it nearly equals:
//
//   SILU, GELU_TANH  s(g) = r(e) for g >= 0, e * r(e) for g < 0;  r(e) = 1 / (1 + e)
//                    e = exp(-|g|), exp(-2 sqrt(2 / pi) (|g| + 0.044715 |g|^3))
//   GELU_ERF         s(g) = 1 - e * R(|g|), e * R(|g|);  e = exp(-g^2 / 2),
//                    R(x) = exp(x^2 / 2) * erfc(x / sqrt(2)) / 2, a polynomial in 1 / (1 + 0.3 x)
//
// e itself leaves fp32's range long before e * g * up does: halves keep its square root, fp32
// shifts it by a power of two that it takes away in the end. fp32 needs no select for the sign
// either: for SILU and GELU_TANH s(g) = 1 / (1 + e), e of -g, however large.
#pragma once

#include "cuda/kernels/elements.cuh"

namespace rmsnorm::cuda {
namespace {

// A product of two operands up to here loses nothing in what follows; an element with a larger one
// (or NaN, or Inf) is redone in fp64.
constexpr float kLargestProduct = 0x1p40f;

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
__device__ inline float short_erfc_ratio(float x) {
  constexpr bool kShort = !kIsBf16<T>;
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
  const float x = fminf(fabsf(g), kErf && !kIsBf16<T> ? 9.5f : kLargestGate<kActivation>);
  float exponent;  // of e's root
  if constexpr (kActivation == RMSNORM_ACTIVATION_SILU) exponent = x * float(-0.5 * kLog2e);
  else if constexpr (kErf) exponent = (x * x) * float(-0.25 * kLog2e);
  else
    exponent = x * fmaf(x * x, float(-0.5 * kLog2e * kTanhScale * kTanhCubic),
                        float(-0.5 * kLog2e * kTanhScale));
  const float root = exp2_approximate(exponent), e = root * root;
  float share;
  if constexpr (kErf) share = short_erfc_ratio<T>(x);
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

// A constant as two floats.
__host__ __device__ constexpr TwoFloats split(double value) {
  return {float(value), float(value - double(float(value)))};
}

// What is found with e lies in fp32's range by this power of two: e goes down to 2^-199, where its
// product with 2^40 is nothing.
constexpr int kShift = 74;
constexpr float kShiftedOne = 0x1p-74f;

// The gates between which e's shifted power is a normal number; beyond, act(gate) is gate to the
// last bit, or a product with it is 0.
template <int kActivation>
constexpr float kLowestGate = kActivation == RMSNORM_ACTIVATION_SILU        ? -137.5f
                              : kActivation == RMSNORM_ACTIVATION_GELU_TANH ? -11.85f
                                                                            : -16.5f;
template <int kActivation>
constexpr float kHighestGate = kActivation == RMSNORM_ACTIVATION_SILU ? 34.0f : 6.8f;

// 2^(a * b) = (1 + part * f) * 2^whole, to 2^-27.
struct Power {
  float part, f;
  int whole_in_place;  // of the exponent's bits
};
// whole: with kAdded added.
template <int kAdded>
__device__ inline Power power_of(float a, const TwoFloats &b) {
  constexpr float kRound = 0x1.8p23f + kAdded;  // added, it leaves an integer in the last bits
  const float shifted = fmaf(a, b.high, kRound), whole = __fadd_rn(shifted, -kRound);
  const float f = fmaf(a, b.low, fmaf(a, b.high, -whole));
  float part = 0.000154035993084f;  // (2^f - 1) / f (Remez)
  part = fmaf(part, f, 0.00133907759819f);
  part = fmaf(part, f, 0.00961823734392f);
  part = fmaf(part, f, 0.0555035733259f);
  part = fmaf(part, f, 0.240226497944f);
  part = fmaf(part, f, 0.693147187958f);
  return {part, f, __float_as_int(shifted) << 23};
}

// times * the power, rounded once.
__device__ inline float scaled(const Power &power, float times) {
  const float value = fmaf(power.part * times, power.f, times);
  return __int_as_float(__float_as_int(value) + power.whole_in_place);
}

// R(x) * (1 + x), which varies little: its minimax (Remez) in 1 / (1 + x / 4) about the middle of
// that, up to x = 16.5, to 2^-29.
__device__ inline float slanted_erfc_ratio(float x) {
  const float quarter = x * 0.25f;  // z = 1 / (1 + x / 4) - 0.59375, exact enough near 0
  const float z = fmaf(-quarter, reciprocal_approximate(1.0f + quarter), 0.40625f);
  float value = -0.07453775399038f;
  value = fmaf(value, z, -0.03729593743546f);
  value = fmaf(value, z, 0.1748982295089f);
  value = fmaf(value, z, 0.1743389617148f);
  value = fmaf(value, z, -0.2501957841374f);
  value = fmaf(value, z, -0.7387030379788f);
  value = fmaf(value, z, -0.8243841016026f);
  value = fmaf(value, z, -0.4775405122284f);
  value = fmaf(value, z, -0.04061014093347f);
  value = fmaf(value, z, 0.1959405490452f);
  value = fmaf(value, z, 0.490444588962f);
  return value;
}

// -g's logarithm of e over g, for the GELU by tanh: linear + cubic * g^2.
__device__ inline TwoFloats tanh_exponent(float g) {
  constexpr double kLinear = -kLog2e * kTanhScale;
  constexpr float kShort = float(int(kLinear * 4096)) / 4096;  // the sum less it is exact
  constexpr TwoFloats kCubic = split(kLinear * kTanhCubic);
  const TwoFloats square = multiply(g, g);
  const float sum = fmaf(kCubic.high, square.high, kShort);
  const float low =
      fmaf(kCubic.high, square.low, fmaf(kCubic.low, square.high, float(kLinear - kShort)));
  return {sum, fmaf(kCubic.high, square.high, kShort - sum) + low};
}

// The same factors for fp32: s(g) = above / (one + below) and act'(g) = slope, both 2^kShift times
// too large, or 1 - those. SILU and GELU_TANH have 1 above, and below e of g itself: exp(-g), ...
struct TwoFactors {
  float above, below, one;
  float reciprocal;  // of one + below, nearly
  float slope;
  bool logistic, flip;
};

template <int kActivation>
__device__ inline TwoFactors two_factors_of(float g) {
  constexpr float kLowest = kLowestGate<kActivation>;
  TwoFactors out;
  out.flip = flips<kActivation>(g);
  out.logistic = kActivation != RMSNORM_ACTIVATION_GELU_ERF;
  if constexpr (kActivation == RMSNORM_ACTIVATION_GELU_ERF) {
    const float x = fminf(fabsf(g), -kLowest);
    const Power e = power_of<kShift>(x, multiply(x, split(-0.5 * kLog2e)));
    const float slanted = slanted_erfc_ratio(x);
    out.above = scaled(e, slanted);
    out.below = x;
    out.one = 1;
    out.reciprocal = reciprocal_approximate(1.0f + x);
    out.slope = scaled(e, fmaf(-x, float(kDensity), slanted * out.reciprocal));
  } else {
    const float x = fminf(fmaxf(g, kLowest), kHighestGate<kActivation>);
    constexpr bool kSilu = kActivation == RMSNORM_ACTIVATION_SILU;
    out.above = 1;
    out.below = scaled(power_of<-kShift>(x, kSilu ? split(-kLog2e) : tanh_exponent(x)), 1.0f);
    out.one = kShiftedOne;
    out.reciprocal = reciprocal_approximate(kShiftedOne + out.below);
    float inner = x * (out.below * out.reciprocal);
    if (!kSilu) inner *= fmaf(x * x, float(3 * kTanhScale * kTanhCubic), float(kTanhScale));
    out.slope = fmaf(inner, out.reciprocal, out.reciprocal);
  }
  return out;
}

// A first quotient, and that of what it leaves over: in an order in which hardly anything is lost.
__device__ inline float times_share(const TwoFloats &product, const TwoFactors &f) {
  TwoFloats over = product;
  if (!f.logistic) {
    over = multiply(product.high, f.above);
    over.low = fmaf(product.low, f.above, over.low);
  }
  const float first = over.high * f.reciprocal;
  const float left = f.logistic ? fmaf(-f.one, first, fmaf(-f.below, first, over.high))
                                : fmaf(-f.below, first, over.high - f.one * first);
  const float value = fmaf(left + over.low, f.reciprocal, first) * kShiftedOne;
  return f.flip ? (product.high - value) + product.low : value;
}

__device__ inline float times_slope(float product, const TwoFactors &f) {
  const float value = (product * f.slope) * kShiftedOne;
  return f.flip ? product - value : value;
}

}  // namespace
}  // namespace rmsnorm::cuda
