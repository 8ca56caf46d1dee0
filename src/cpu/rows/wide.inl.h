// Arithmetic on Wide numbers: two doubles (about 100 bits) and an exponent of their own, so that no
// product or sum of fp64 elements overflows, underflows or loses what the promise of 2 ulp needs.
// Scalar; the same operations in the same order on every instruction set. Included inside the isa
// file's namespace.
//
// |high| is in [0.5, 1), within a rounding error, and high is the double nearest to high + low; or
// high is 0, Inf or NaN, low is 0 and the exponent means nothing. Such numbers behave as in IEEE
// arithmetic.

// 2^exponent, for a normal result.
inline double power_of_two(int64_t exponent) {
  const uint64_t bits = static_cast<uint64_t>(exponent + 1023) << 52;
  double value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

inline int64_t clamp(int64_t value, int64_t limit) {
  return value < -limit ? -limit : value > limit ? limit : value;
}

// value * 2^exponent, rounded once where |value| is in [0.5, 1).
inline double scale_by(double value, int64_t exponent) {
  const int64_t near = clamp(exponent, 1000);  // exact
  return value * power_of_two(near) * power_of_two(clamp(exponent - near, 1000));
}

// The biased exponent field: 0 for zeros and subnormal numbers, 2047 for Inf and NaN.
inline int64_t exponent_field(double value) {
  uint64_t bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  return static_cast<int64_t>(bits >> 52 & 0x7ff);
}

// The exponent of a finite, nonzero double: |value| * 2^-exponent is in [0.5, 1).
inline int64_t exponent_of(double value) {
  const int64_t field = exponent_field(value);
  return field != 0 ? field - 1022 : exponent_field(value * 0x1p64) - 1022 - 64;
}

inline bool is_plain(double value) { return value != 0 && value - value == 0; }  // nor Inf, NaN

// (high + low) * 2^exponent, high being the double nearest to high + low.
inline Wide make_wide(double high, double low, int64_t exponent) {
  const int64_t shift = exponent_field(high) - 1022;
  if (__builtin_expect(shift > -1000 && shift < 1000, 1)) {
    const double power = power_of_two(-shift);
    return {high * power, low * power, exponent + shift};
  }
  if (!is_plain(high)) return {high, 0, 0};
  const int64_t far = exponent_of(high);
  return {scale_by(high, -far), scale_by(low, -far), exponent + far};
}

inline Wide to_wide(double value) { return make_wide(value, 0, 0); }
inline double to_double(const Wide &value) { return scale_by(value.high, value.exponent); }
inline Wide negate(const Wide &a) { return {-a.high, -a.low, a.exponent}; }

// high + low of a * b, of a + b, and of a + b where |a| >= |b|: exact.
struct Pair {
  double high, low;
};
inline Pair two_prod(double a, double b) {
  const double product = a * b;
  return {product, __builtin_fma(a, b, -product)};
}
inline Pair two_sum(double a, double b) {
  const double sum = a + b, b_part = sum - a;
  return {sum, (a - (sum - b_part)) + (b - b_part)};
}
inline Pair fast_two_sum(double a, double b) {
  const double sum = a + b;
  return {sum, b - (sum - a)};
}

inline Wide multiply(const Wide &a, const Wide &b) {
  const Pair product = two_prod(a.high, b.high);
  if (!is_plain(product.high)) return {product.high, 0, 0};
  const Pair sum = fast_two_sum(product.high, product.low + (a.high * b.low + a.low * b.high));
  const bool small = __builtin_fabs(sum.high) < 0.5;
  const double factor = small ? 2 : 1;
  return {sum.high * factor, sum.low * factor, a.exponent + b.exponent - (small ? 1 : 0)};
}

inline Wide add(const Wide &a, const Wide &b) {
  if (!is_plain(a.high * b.high)) {  // zeros, Infs, NaNs
    if (a.high == 0 && is_plain(b.high)) return b;
    if (b.high == 0 && is_plain(a.high)) return a;
    return {a.high + b.high, 0, 0};
  }
  const bool swap = a.exponent < b.exponent;
  const Wide large = swap ? b : a, small = swap ? a : b;
  if (large.exponent - small.exponent > 200) return large;
  const double power = power_of_two(small.exponent - large.exponent);
  const Pair high = two_sum(large.high, small.high * power);
  const Pair low = two_sum(large.low, small.low * power);
  const Pair sum = fast_two_sum(high.high, high.low + low.high);
  const Pair whole = fast_two_sum(sum.high, sum.low + low.low);
  return make_wide(whole.high, whole.low, large.exponent);
}

inline Wide divide(const Wide &a, double b) {
  if (!is_plain(a.high)) return {a.high / b, 0, 0};
  const double quotient = a.high / b;  // and one step of long division
  const Pair part = two_prod(quotient, b);
  const double rest = ((a.high - part.high) - part.low + a.low) / b;
  const Pair sum = fast_two_sum(quotient, rest);
  return make_wide(sum.high, sum.low, a.exponent);
}

// 1 / sqrt(a)
inline Wide reciprocal_sqrt(const Wide &a) {
  if (!is_plain(a.high)) return {1 / __builtin_sqrt(a.high), 0, 0};
  const int64_t odd = a.exponent & 1;
  const double factor = odd != 0 ? 2 : 1;
  const Wide value = {a.high * factor, a.low * factor, 0};  // in [0.5, 2)
  // One Newton step, r + r * (1 - value * r^2) / 2, doubles the 52 bits of the start.
  const double start = 1 / __builtin_sqrt(value.high);
  const Pair square = two_prod(start, start);
  const Pair product = two_prod(value.high, square.high);
  const double error =
      (1 - product.high) - (product.low + (value.high * square.low + value.low * square.high));
  const Pair root = fast_two_sum(start, start * error * 0.5);
  return make_wide(root.high, root.low, -((a.exponent - odd) / 2));
}
