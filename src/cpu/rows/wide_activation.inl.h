// The gated activations for fp64, one element at a time in Wide arithmetic: no product leaves its
// range before the end, so that act(gate) * up is right where act(gate) alone is none of fp64's
// numbers. exp and the normal distribution's tail are right within 2^-54 of themselves, all else
// far closer, which leaves results within one ulp. Included inside the isa file's namespace.

constexpr Wide kWideZero = {0, 0, 0};

inline Wide wide_of(const Pair &value) { return make_wide(value.high, value.low, 0); }
inline Wide one_plus(const Wide &a) { return add(to_wide(1), a); }
inline Wide divide(const Wide &a, const Wide &b) {
  Wide quotient = divide(a, b.high);
  quotient.exponent -= b.exponent;
  return multiply(quotient, make_wide(1, -b.low / b.high, 0));
}

// a as it stands, for exponents within fp64's.
inline Pair to_pair(const Wide &a) {
  return {scale_by(a.high, a.exponent), is_plain(a.high) ? scale_by(a.low, a.exponent) : 0};
}

// exp(-a) for a >= 0; 0 where no product of fp64's numbers brings it back.
inline Wide exp_minus(const Wide &a) {
  constexpr double kMost = 2400, kShift = 0x1.8p52;
  constexpr double kLn2High = 0x1.62e42fefa3p-1;     // 41 bits: k * kLn2High is exact
  constexpr double kLn2Low = 0x1.3de6af278ece6p-42;  // ln(2) - kLn2High
  if (a.high != a.high) return a;
  if (to_double(a) > kMost) return kWideZero;
  const Pair argument = to_pair(negate(a));
  const double k = (argument.high * kLog2E + kShift) - kShift;
  const Pair r = two_sum(argument.high - k * kLn2High, argument.low - k * kLn2Low);
  // 1 + r + r^2 / 2 + ... + r^14 / 14!, of which only the first two terms need their low parts.
  constexpr double kTaylor[] = {1.0 / 2,          1.0 / 6,        1.0 / 24,        1.0 / 120,
                                1.0 / 720,        1.0 / 5040,     1.0 / 40320,     1.0 / 362880,
                                1.0 / 3628800,    1.0 / 39916800, 1.0 / 479001600, 1.0 / 6227020800,
                                1.0 / 87178291200};
  double rest = 0;
  for (int i = 12; i >= 0; --i) rest = rest * r.high + kTaylor[i];
  const Pair sum = two_sum(1, r.high);
  const Pair all =
      fast_two_sum(sum.high, sum.low + (rest * r.high * r.high + (r.low + r.low * r.high)));
  return make_wide(all.high, all.low, static_cast<int64_t>(k));
}

inline Pair add(const Pair &a, const Pair &b) {
  const Pair sum = two_sum(a.high, b.high);
  return fast_two_sum(sum.high, sum.low + (a.low + b.low));
}
inline Pair multiply(const Pair &a, const Pair &b) {
  const Pair product = two_prod(a.high, b.high);
  return fast_two_sum(product.high, product.low + (a.high * b.low + a.low * b.high));
}

// R(t) = Phi(-t) * exp(t^2 / 2) for 0 <= t < 70 as polynomial(q) / (t + 5), q = (t - 5) / (t + 5):
// within 2^-61. Made as activation.inl.h's; where t is large the terms cancel, so that the first
// eight coefficients and their sums have two parts.
inline Wide wide_tail(double t) {
  constexpr Pair kFirst[] = {{0x1.89d3abe1f95aep-1, -0x1.0450c597ea934p-56},
                             {-0x1.54ad03f27ca18p-1, -0x1.1c61c35ff8aa2p-57},
                             {0x1.fb31653876f88p-2, 0x1.a4c47ed4a4fdbp-58},
                             {-0x1.410ed5f87593bp-2, 0x1.026e68a8498f2p-56},
                             {0x1.51f6329f01c0ep-3, -0x1.9299b2781157ap-57},
                             {-0x1.1b1c254ca4a2p-4, -0x1.7990c6f0cfa0ep-58},
                             {0x1.54b4d4f4855cfp-6, 0x1.4357ea6e7b366p-60},
                             {-0x1.88590e96e13a3p-9, 0x1.3e64f2e263479p-64}};
  constexpr double kRest[] = {
      -0x1.a250376ef3d73p-11, 0x1.1daf1aa5c107bp-11, -0x1.f21497f7476aap-15, -0x1.a16ffd170299p-15,
      0x1.17df4d0b93c4bp-16,  0x1.0b12290f89b1ap-18, -0x1.73e78957e2672p-19, -0x1.66d9ee3f27bd2p-22,
      0x1.d4fdacab23117p-22,  0x1.53b581eaa5e65p-25, -0x1.31100d44c2c75p-24, -0x1.0f6dcf307fb24p-27,
      0x1.96d804c4b9f26p-27,  0x1.0190e9b1aa3a5p-29, -0x1.042e3b64c453cp-29, -0x1.835425f89b44dp-32,
      0x1.1291d831bd344p-32,  0x1.346e8d99848b3p-35, -0x1.526087ffd5c52p-36};
  const Wide denominator = wide_of(two_sum(t, 5));
  const Pair q = to_pair(divide(wide_of(two_sum(t, -5)), denominator));
  double rest = 0;
  for (int i = 18; i >= 0; --i) rest = rest * q.high + kRest[i];
  Pair sum = {rest, 0};
  for (int i = 7; i >= 0; --i) sum = add(multiply(sum, q), kFirst[i]);
  return divide(wide_of(sum), denominator);
}

// s(gate) and s'(gate).
struct WideGate {
  Wide s, slope;
};

// Of 1 / (1 + exp(-argument)), by the argument's magnitude and derivative.
inline WideGate wide_sigmoid(bool negative, const Wide &magnitude, const Wide &derivative) {
  const Wide e = exp_minus(magnitude);
  const Wide larger = divide(to_wide(1), one_plus(e)), smaller = multiply(e, larger);
  return {negative ? smaller : larger, multiply(multiply(larger, smaller), derivative)};
}

inline WideGate wide_gate(rmsnorm_activation_t activation, double gate) {
  constexpr Wide kArgument = {kSqrtTwoOverPi, -0x1.cbc0d30ebfd15p-55, 1};
  constexpr Wide kCubic = {0x1.6e4e26d4801f7p-1, 0x1.441355475a31ap-55, -4};
  constexpr Wide kDensity = {kSqrtTwoOverPi, -0x1.cbc0d30ebfd15p-55, -1};
  const bool negative = gate < 0;
  const Wide size = to_wide(__builtin_fabs(gate));
  if (activation == RMSNORM_ACTIVATION_SILU) return wide_sigmoid(negative, size, to_wide(1));
  const Wide square = multiply(size, size);
  if (activation == RMSNORM_ACTIVATION_GELU_TANH) {
    // 2 u = sqrt(8 / pi) * (g + 0.044715 g^3), and its derivative.
    const Wide cubic = multiply(kCubic, square);
    const Wide twice = multiply(multiply(kArgument, size), one_plus(cubic));
    return wide_sigmoid(negative, twice,
                        multiply(kArgument, one_plus(multiply(to_wide(3), cubic))));
  }
  Wide half_square = square;
  half_square.exponent -= 1;
  const Wide e = exp_minus(half_square);
  const Wide tail = is_plain(e.high) ? multiply(e, wide_tail(__builtin_fabs(gate))) : e;
  return {negative ? tail : one_plus(negate(tail)), multiply(e, kDensity)};
}

void glu_forward_rows_f64(const GluForwardProblem &problem, const Tile &tile) {
  each_row(tile.row_begin, tile.row_end, problem.groups, [&](int64_t index_row, int64_t group) {
    const Elements gates = elements(problem.gate, index_row, group);
    const Elements ups = elements(problem.up, index_row, group);
    const Elements y = elements(problem.y, index_row, group);
    for (int64_t col = tile.col_begin; col < tile.col_end; ++col) {
      const double gate = load_f64(gates, col);
      const Wide act = multiply(to_wide(gate), wide_gate(problem.activation, gate).s);
      store_f64(to_double(multiply(act, to_wide(load_f64(ups, col)))), y, col);
    }
  });
}

void glu_backward_rows_f64(const GluBackwardProblem &problem, const Tile &tile) {
  each_row(tile.row_begin, tile.row_end, problem.groups, [&](int64_t index_row, int64_t group) {
    const Elements dys = elements(problem.dy, index_row, group);
    const Elements gates = elements(problem.gate, index_row, group);
    const Elements ups = elements(problem.up, index_row, group);
    const Elements dgate = elements(problem.dgate, index_row, group);
    const Elements dup = elements(problem.dup, index_row, group);
    for (int64_t col = tile.col_begin; col < tile.col_end; ++col) {
      const double element = load_f64(gates, col);
      const WideGate of = wide_gate(problem.activation, element);
      const Wide gate = to_wide(element), dy = to_wide(load_f64(dys, col));
      const Wide up = to_wide(load_f64(ups, col));
      if (dgate.present()) {
        const Wide slope = add(of.s, multiply(gate, of.slope));
        store_f64(to_double(multiply(multiply(dy, up), slope)), dgate, col);
      }
      if (dup.present()) store_f64(to_double(multiply(multiply(gate, of.s), dy)), dup, col);
    }
  });
}
