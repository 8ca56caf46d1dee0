// Gated activations in fp64, with an exponent of their own for what leaves even its range: fp64
// tensors, and elements of the others whose products leave the fp32 path's range.
#pragma once

#include "cuda/kernels/glu_rows.cuh"

namespace rmsnorm::cuda {
namespace {

// s(g) = share * 2^exponent, act'(g) = slope * 2^exponent.
struct ExactFactors {
  double share, slope;
  int exponent;
};

struct TwoDoubles {
  double high, low;
};

// a * (b.high + b.low)
__device__ inline TwoDoubles multiply(const TwoDoubles &a, double b_high, double b_low) {
  const double high = __dmul_rn(a.high, b_high);
  return {high, fma(a.high, b_high, -high) + fma(a.high, b_low, a.low * b_high)};
}

// -log e of glu_functions.cuh
__device__ inline TwoDoubles exact_exponent(int activation, double x) {
  if (activation == RMSNORM_ACTIVATION_SILU) return {x, 0};
  const TwoDoubles square = multiply({x, 0}, x, 0);
  if (activation == RMSNORM_ACTIVATION_GELU_ERF) return {0.5 * square.high, 0.5 * square.low};
  // 2 sqrt(2 / pi), and that times 0.044715
  constexpr double kLinear = 0x1.9884533d43651p+0, kLinearLow = -0x1.cbc0d30ebfd15p-54;
  constexpr double kCubic = 0x1.2444f2a4d8b4bp-4, kCubicLow = -0x1.6c843a29d1c70p-61;
  const TwoDoubles cubic = multiply(square, kCubic, kCubicLow);
  const double sum = __dadd_rn(kLinear, cubic.high), part = sum - kLinear;
  const double lost = (kLinear - (sum - part)) + (cubic.high - part);
  return multiply({x, 0}, sum, lost + (cubic.low + kLinearLow));
}

__device__ inline ExactFactors exact_factors(int activation, double g) {
  constexpr double kLn2 = 0x1.62e42fefa39efp-1, kLn2Low = 0x1.abc9e3b39803fp-56;
  constexpr double kLargest[] = {3000, 60, 100};  // beyond fp64's range with any other operand
  const double nan = __longlong_as_double(0x7ff8000000000000);
  if (!(g < HUGE_VAL) || g == -HUGE_VAL) return {g == HUGE_VAL ? 1 : nan, nan, 0};
  const bool negative = g < 0;
  const double x = fmin(fabs(g), kLargest[activation]);
  const TwoDoubles exponent = exact_exponent(activation, x);
  const double whole = rint(-exponent.high * kLog2e);
  const double rest = fma(-whole, kLn2Low, fma(-whole, kLn2, -exponent.high)) - exponent.low;
  const double scaled = exp(rest), e = ldexp(scaled, int(whole));
  ExactFactors out;
  if (activation == RMSNORM_ACTIVATION_GELU_ERF) {
    const double ratio = 0.5 * erfcx(x * 0.70710678118654752440);
    const double rest = fma(x, kDensity, -ratio);
    out.share = negative ? scaled * ratio : fma(-e, ratio, 1.0);
    out.slope = negative ? -scaled * rest : fma(e, rest, 1.0);
  } else {
    const double ratio = 1 / (1 + e);
    double inner = (negative ? -x : x * e) * ratio;
    if (activation == RMSNORM_ACTIVATION_GELU_TANH)
      inner *= fma(x * x, 3 * kTanhScale * kTanhCubic, kTanhScale);
    out.share = negative ? scaled * ratio : ratio;
    out.slope = fma(inner, out.share, out.share);
  }
  out.exponent = negative ? int(whole) : 0;
  return out;
}

// a * b * factor * 2^exponent
__device__ inline double exact_product(double a, double b, double factor, int exponent) {
  int of_a, of_b;
  const double value = frexp(a, &of_a) * frexp(b, &of_b) * factor;
  return ldexp(value, of_a + of_b + exponent);
}

// The elements of one vector whose products are out of range, again.
__device__ __noinline__ void redo_forward(int activation, int count, const float *gate,
                                          const float *up, float *y) {
  for (int i = 0; i < count; ++i) {
    if (fabsf(gate[i] * up[i]) <= kLargestProduct) continue;
    const ExactFactors f = exact_factors(activation, gate[i]);
    y[i] = float(exact_product(gate[i], up[i], f.share, f.exponent));
  }
}

__device__ __noinline__ void redo_backward(int activation, int count, const float *dy,
                                           const float *gate, const float *up, float *dgate,
                                           float *dup) {
  for (int i = 0; i < count; ++i) {
    if (fabsf(dy[i] * gate[i]) <= kLargestProduct && fabsf(dy[i] * up[i]) <= kLargestProduct)
      continue;
    const ExactFactors f = exact_factors(activation, gate[i]);
    dgate[i] = float(exact_product(dy[i], up[i], f.slope, f.exponent));
    dup[i] = float(exact_product(dy[i], gate[i], f.share, f.exponent));
  }
}

// ---- fp64 tensors: an element a thread. Reads 16 and writes 8 bytes an element, 24 and 16 back.

__device__ inline double *exact_element(const GluArgs &a, const Matrix &matrix,
                                        const GluPlace &place) {
  return reinterpret_cast<double *>(a.row_of(matrix, place)) + place.col;
}

__global__ void __launch_bounds__(kGluThreads)
    glu_forward_exact(const __grid_constant__ GluArgs a) {
  if (a.overlap) start_beside_neighbours();
  const GluPlace place = a.place(1);
  if (place.left <= 0) return;
  const double gate = *exact_element(a, a.gate, place), up = *exact_element(a, a.up, place);
  const ExactFactors f = exact_factors(a.activation, gate);
  *exact_element(a, a.y, place) = exact_product(gate, up, f.share, f.exponent);
}

__global__ void __launch_bounds__(kGluThreads)
    glu_backward_exact(const __grid_constant__ GluArgs a) {
  if (a.overlap) start_beside_neighbours();
  const GluPlace place = a.place(1);
  if (place.left <= 0) return;
  const double dy = *exact_element(a, a.dy, place), gate = *exact_element(a, a.gate, place);
  const double up = *exact_element(a, a.up, place);
  const ExactFactors f = exact_factors(a.activation, gate);
  if (a.dgate.data != nullptr)
    *exact_element(a, a.dgate, place) = exact_product(dy, up, f.slope, f.exponent);
  if (a.dup.data != nullptr)
    *exact_element(a, a.dup, place) = exact_product(dy, gate, f.share, f.exponent);
}

}  // namespace
}  // namespace rmsnorm::cuda
