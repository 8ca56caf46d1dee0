// Numbers of about 106 bits as the unevaluated sum of two doubles, and the same with an exponent of
// their own, so that no square, product or sum of fp64 values overflows or loses bits below
// 2^-1074. The building blocks two_sum and two_prod are exact: Dekker 1971, Knuth TAOCP vol. 2
// (4.2.2). Scalar, slow and plain.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace rmsnorm::reference {

// std::ldexp, several times as fast: a product with 2^exponent.
inline double scale(double value, int exponent) {
  if (exponent <= -1023 || exponent >= 1024) return std::ldexp(value, exponent);
  const uint64_t bits = static_cast<uint64_t>(exponent + 1023) << 52;
  double power;
  std::memcpy(&power, &bits, sizeof power);
  return value * power;
}

// The exponent that std::frexp finds: |value| = m * 2^exponent with m in [0.5, 1).
inline int exponent_of(double value) {
  uint64_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const int biased = static_cast<int>(bits >> 52) & 0x7ff;
  int exponent = biased - 1022;
  if (biased == 0) std::frexp(value, &exponent);
  return exponent;
}

// high is the double nearest to high + low.
struct DoubleDouble {
  double high = 0, low = 0;
};

// a + b exactly.
inline DoubleDouble two_sum(double a, double b) {
  const double sum = a + b;
  const double b_part = sum - a;
  const double a_part = sum - b_part;
  return {sum, (a - a_part) + (b - b_part)};
}

// a * b exactly.
inline DoubleDouble two_prod(double a, double b) {
  const double product = a * b;
  return {product, std::fma(a, b, -product)};
}

// Relative errors below 2^-102 (of |a| + |b| for sums).
inline DoubleDouble add(DoubleDouble a, DoubleDouble b) {
  const DoubleDouble high = two_sum(a.high, b.high);
  const DoubleDouble low = two_sum(a.low, b.low);
  const DoubleDouble sum = two_sum(high.high, high.low + low.high);
  return two_sum(sum.high, sum.low + low.low);
}

inline DoubleDouble multiply(DoubleDouble a, DoubleDouble b) {
  const DoubleDouble product = two_prod(a.high, b.high);
  return two_sum(product.high, product.low + (a.high * b.low + a.low * b.high));
}

// value * 2^exponent, with |value.high| in [0.5, 1). Zeros, Infs and NaNs have exponent 0 and low
// 0; they behave as in IEEE arithmetic.
struct Wide {
  DoubleDouble value;
  int exponent = 0;

  bool finite() const { return std::isfinite(value.high); }
  bool zero() const { return value.high == 0; }
};

inline Wide wide(DoubleDouble value, int exponent = 0) {
  if (value.high == 0 || !std::isfinite(value.high)) return {{value.high, 0}, 0};
  const int shift = exponent_of(value.high);
  return {{scale(value.high, -shift), scale(value.low, -shift)}, exponent + shift};
}
inline Wide wide(double value) { return wide(DoubleDouble{value, 0}); }

inline Wide operator*(const Wide &a, const Wide &b) {
  if (!a.finite() || !b.finite() || a.zero() || b.zero()) return wide(a.value.high * b.value.high);
  return wide(multiply(a.value, b.value), a.exponent + b.exponent);
}

inline Wide operator-(const Wide &a) { return {{-a.value.high, -a.value.low}, a.exponent}; }

inline Wide operator+(const Wide &a, const Wide &b) {
  if (!a.finite() || !b.finite() || (a.zero() && b.zero()))
    return wide(a.value.high + b.value.high);
  if (a.zero()) return b;
  if (b.zero()) return a;
  if (a.exponent < b.exponent) return b + a;
  const int shift = b.exponent - a.exponent;  // what vanishes here is below 2^-900 of the sum
  const DoubleDouble shifted = {scale(b.value.high, shift), scale(b.value.low, shift)};
  return wide(add(a.value, shifted), a.exponent);
}

inline Wide operator/(const Wide &a, double b) {
  if (!a.finite() || a.zero()) return wide(a.value.high / b);
  const double quotient = a.value.high / b;  // then one step of long division
  const DoubleDouble part = two_prod(quotient, b);
  const double rest = ((a.value.high - part.high) - part.low + a.value.low) / b;
  return wide(two_sum(quotient, rest), a.exponent);
}

// 1 / sqrt(a) for a >= 0.
inline Wide reciprocal_sqrt(const Wide &a) {
  if (!a.finite() || a.zero()) return wide(1 / std::sqrt(a.value.high));
  const bool odd = a.exponent % 2 != 0;
  const DoubleDouble value = {a.value.high * (odd ? 2 : 1), a.value.low * (odd ? 2 : 1)};
  // Newton: r + r * (1 - value * r^2) / 2; its first step from 53 bits leaves an error near 2^-103.
  const double start = 1 / std::sqrt(value.high);
  const DoubleDouble square = multiply(value, two_prod(start, start));
  const double error = (1 - square.high) - square.low;
  return wide(two_sum(start, start * error / 2), -((a.exponent - (odd ? 1 : 0)) / 2));
}

inline Wide magnitude(const Wide &a) { return std::signbit(a.value.high) ? -a : a; }

}  // namespace rmsnorm::reference
