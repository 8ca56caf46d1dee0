// act(gate) and act'(gate) for fp32, fp16 and bf16, in fp64, relative to their terms within 2^-43.
// No number on the way leaves fp64's normal range unless the result is 0: gates reach 2^128,
// products of two elements 2^256, and what exp makes smaller than 2^-1021 no such element brings
// back. Nothing of the C library, so that the bits are the same everywhere. Included inside the isa
// file's namespace.
//
// T is a Vec or a Two<> of them. Comparisons with a NaN are false, and what is then chosen is NaN.

[[gnu::always_inline]] inline Vec operator+(const Vec &a, double b) { return {a.native + b}; }
[[gnu::always_inline]] inline Vec operator-(const Vec &a, double b) { return {a.native - b}; }
[[gnu::always_inline]] inline Vec operator*(const Vec &a, double b) { return {a.native * b}; }
[[gnu::always_inline]] inline Vec operator-(double a, const Vec &b) { return {a - b.native}; }
[[gnu::always_inline]] inline Vec operator/(double a, const Vec &b) { return {a / b.native}; }
// -|a|
[[gnu::always_inline]] inline Vec minus_magnitude(const Vec &a) {
  return {reinterpret_cast<Native>(reinterpret_cast<NativeLongs>(a.native) | uint64_t{1} << 63)};
}
// 2^n of the numbers 1.5 * 2^52 + 1023 + n.
[[gnu::always_inline]] inline Vec shifted_power(const Vec &a) {
  return {reinterpret_cast<Native>(reinterpret_cast<NativeLongs>(a.native) << 52)};
}
// value, and 0 where `by` is below the limit.
[[gnu::always_inline]] inline Vec zero_below(double limit, const Vec &by, const Vec &value) {
  return {by.native < limit + Native{} ? Native{} : value.native};
}
// `negative` where `by` is below 0, else `other`, or 1.
[[gnu::always_inline]] inline Vec choose_by_sign(const Vec &by, const Vec &negative,
                                                 const Vec &other) {
  return {by.native < Native{} ? negative.native : other.native};
}
[[gnu::always_inline]] inline Vec choose_by_sign(const Vec &by, const Vec &negative) {
  return {by.native < Native{} ? negative.native : 1.0 + Native{}};
}

template <class Half>
[[gnu::always_inline]] inline Two<Half> operator+(const Two<Half> &a, double b) {
  return {a.low + b, a.high + b};
}
template <class Half>
[[gnu::always_inline]] inline Two<Half> operator-(const Two<Half> &a, double b) {
  return {a.low - b, a.high - b};
}
template <class Half>
[[gnu::always_inline]] inline Two<Half> operator*(const Two<Half> &a, double b) {
  return {a.low * b, a.high * b};
}
template <class Half>
[[gnu::always_inline]] inline Two<Half> operator-(double a, const Two<Half> &b) {
  return {a - b.low, a - b.high};
}
template <class Half>
[[gnu::always_inline]] inline Two<Half> operator/(double a, const Two<Half> &b) {
  return {a / b.low, a / b.high};
}
template <class Half>
[[gnu::always_inline]] inline Two<Half> minus_magnitude(const Two<Half> &a) {
  return {minus_magnitude(a.low), minus_magnitude(a.high)};
}
template <class Half>
[[gnu::always_inline]] inline Two<Half> shifted_power(const Two<Half> &a) {
  return {shifted_power(a.low), shifted_power(a.high)};
}
template <class Half>
[[gnu::always_inline]] inline Two<Half> zero_below(double limit, const Two<Half> &by,
                                                   const Two<Half> &value) {
  return {zero_below(limit, by.low, value.low), zero_below(limit, by.high, value.high)};
}
template <class Half>
[[gnu::always_inline]] inline Two<Half> choose_by_sign(const Two<Half> &by,
                                                       const Two<Half> &negative,
                                                       const Two<Half> &other) {
  return {choose_by_sign(by.low, negative.low, other.low),
          choose_by_sign(by.high, negative.high, other.high)};
}
template <class Half>
[[gnu::always_inline]] inline Two<Half> choose_by_sign(const Two<Half> &by,
                                                       const Two<Half> &negative) {
  return {choose_by_sign(by.low, negative.low), choose_by_sign(by.high, negative.high)};
}

// coefficients[kFrom] + coefficients[kFrom + 1] * x + ... of kTerms terms, halved again and again
// (Estrin): a chain of products and sums one after another would leave the processor waiting.
template <int kPower, class T>
[[gnu::always_inline]] inline T power_of(const T &x) {
  if constexpr (kPower == 1) return x;
  else {
    const T root = power_of<kPower / 2>(x);
    return root * root;
  }
}
template <int kFrom, int kTerms, int kCount, class T>
[[gnu::always_inline]] inline T polynomial_part(const double (&coefficients)[kCount], const T &x) {
  if constexpr (kTerms == 2) return x * coefficients[kFrom + 1] + coefficients[kFrom];
  else if constexpr (kTerms == 3)
    return (x * coefficients[kFrom + 2] + coefficients[kFrom + 1]) * x + coefficients[kFrom];
  else {
    constexpr int kLow = kTerms > 16 ? 16 : kTerms > 8 ? 8 : kTerms > 4 ? 4 : 2;
    const T low = polynomial_part<kFrom, kLow>(coefficients, x);
    if constexpr (kTerms == kLow + 1) return power_of<kLow>(x) * coefficients[kFrom + kLow] + low;
    else
      return power_of<kLow>(x) * polynomial_part<kFrom + kLow, kTerms - kLow>(coefficients, x) +
             low;
  }
}
template <int kCount, class T>
[[gnu::always_inline]] inline T polynomial(const double (&coefficients)[kCount], const T &x) {
  return polynomial_part<0, kCount>(coefficients, x);
}

constexpr double kLog2E = 0x1.71547652b82fep+0;
constexpr double kSqrtTwoOverPi = 0x1.9884533d43651p-1;
constexpr double kNormalDensity = 0x1.9884533d43651p-2;  // 1 / sqrt(2 pi)
constexpr double kGeluCubic = 0.044715;

// exp(r) for |r| <= ln(2) / 2, within 2^-45.6 of itself: its interpolation at Chebyshev's nodes.
constexpr double kExp[] = {0x1.000000000003dp0,   0x1.0000000000006p0,   0x1.ffffffffe74fp-2,
                           0x1.5555555550d87p-3,  0x1.55555588b8538p-5,  0x1.11111123bf1c5p-7,
                           0x1.6c162bb7b3ef5p-10, 0x1.a01994c82e1c6p-13, 0x1.a17df105a3981p-16,
                           0x1.72e107e8d8eb6p-19};

// exp(a) for a <= 0; 0 below -708.
template <class T>
[[gnu::always_inline]] inline T exp_negative(const T &a) {
  constexpr double kShift = 0x1.8p52 + 1023;         // a sum with it has no bits below 1
  constexpr double kLn2High = 0x1.62e42fefap-1;      // 36 bits, so that k * kLn2High is exact
  constexpr double kLn2Low = 0x1.cf79abc9e3b3ap-40;  // ln(2) - kLn2High
  const T shifted = a * kLog2E + kShift;
  const T k = shifted - kShift;
  const T r = (a - k * kLn2High) - k * kLn2Low;
  return zero_below(-708, a, polynomial(kExp, r) * shifted_power(shifted));
}

// R(t) = Phi(-t) * exp(t^2 / 2), where Phi is the normal distribution, as
// polynomial(q) / (t + 4) with q = kQScale / (t + 4) - kQShift, which is in [-1, 1] for t from 0 to
// 24: within 2^-43 there, and a number of no matter above, where Phi(-t) is below 2^-400. After
// Shepherd and Laframboise, "Chebyshev Approximation of (1 + 2x) exp(x^2) erfc x", 1981; the
// coefficients are those of the interpolation at Chebyshev's nodes, computed with 70 digits.
constexpr double kTailFrom = 4;
constexpr double kQScale = 0x1.2aaaaaaaaaaabp3, kQShift = 0x1.5555555555555p0;
constexpr double kTail[] = {0x1.b381889ebac81p-1,   0x1.40a62b4aac91fp-1,   0x1.651ac2594c96ap-2,
                            0x1.1ec2ed0cbdf98p-3,   0x1.1d753b4e957fp-5,    0x1.d816de1269c1cp-10,
                            -0x1.02cba958ef424p-9,  -0x1.d45af51bedaf9p-12, 0x1.f7f07564824e9p-14,
                            0x1.9033d6fa9f146p-15,  -0x1.72b4ba64b1868p-17, -0x1.3c263aba8d31bp-18,
                            0x1.89420c4acdaa4p-20,  0x1.bbee0ca547bcep-22,  -0x1.b85e3286be8ffp-23,
                            -0x1.988954e44cf97p-26, 0x1.4b520f7baefa4p-26};

// The activations: factor * act(gate), and with it act'(gate). By the sigmoid and the tail, not by
// 1 + tanh and 1 + erf, so that both signs of gate keep all their bits.

// s(g) = 1 / (1 + exp(-Argument::of(g)))
template <class Argument>
struct SigmoidActivation {
  template <class T>
  [[gnu::always_inline]] static T value(const T &gate, const T &factor) {
    const T e = exp_negative(minus_magnitude(Argument::of(gate)));
    return factor * gate * choose_by_sign(gate, e) / (e + 1.0);
  }
  template <class T>
  [[gnu::always_inline]] static T value_and_slope(const T &gate, const T &factor, T *slope) {
    const T e = exp_negative(minus_magnitude(Argument::of(gate)));
    const T larger = 1.0 / (e + 1.0), smaller = e * larger;
    const T s = choose_by_sign(gate, smaller, larger);
    const T opposite = choose_by_sign(gate, larger, smaller);  // s(-g)
    *slope = s * (gate * Argument::slope(gate, opposite) + 1.0);
    return factor * gate * s;
  }
};

struct SiluArgument {
  template <class T>
  [[gnu::always_inline]] static T of(const T &gate) {
    return gate;
  }
  // factor * its derivative
  template <class T>
  [[gnu::always_inline]] static T slope(const T &, const T &factor) {
    return factor;
  }
};

struct GeluTanhArgument {  // (1 + tanh(u)) / 2 is the sigmoid of 2 u
  template <class T>
  [[gnu::always_inline]] static T of(const T &gate) {
    return gate * (gate * gate * (2 * kSqrtTwoOverPi * kGeluCubic) + 2 * kSqrtTwoOverPi);
  }
  template <class T>
  [[gnu::always_inline]] static T slope(const T &gate, const T &factor) {
    return factor * (gate * gate * (6 * kSqrtTwoOverPi * kGeluCubic) + 2 * kSqrtTwoOverPi);
  }
};

using Silu = SigmoidActivation<SiluArgument>;
using GeluTanh = SigmoidActivation<GeluTanhArgument>;

struct GeluErf {
  // Phi(gate), and exp(-gate^2 / 2).
  template <class T>
  [[gnu::always_inline]] static T normal(const T &gate, T *e) {
    *e = exp_negative(gate * gate * -0.5);
    const T inverse = 1.0 / (kTailFrom - minus_magnitude(gate));
    const T tail = *e * (polynomial(kTail, inverse * kQScale - kQShift) * inverse);
    return choose_by_sign(gate, tail, 1.0 - tail);
  }
  template <class T>
  [[gnu::always_inline]] static T value(const T &gate, const T &factor) {
    T e;
    return factor * gate * normal(gate, &e);
  }
  template <class T>
  [[gnu::always_inline]] static T value_and_slope(const T &gate, const T &factor, T *slope) {
    T e;
    const T phi = normal(gate, &e);
    *slope = phi + gate * (e * kNormalDensity);
    return factor * gate * phi;
  }
};
