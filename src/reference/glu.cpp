// exp and erfc are glibc's for 113 bits. An error of their arguments shows in their results as many
// times larger as the argument is large: at most 2,300 times where a result of fp64 is not 0, which
// leaves 100 bits.
#include "reference/glu.h"

#include <cfloat>
#include <cmath>

namespace rmsnorm::reference {
namespace {

#if LDBL_MANT_DIG == 113
using Quad = long double;
#else
using Quad = __float128;
#endif
extern "C" {
Quad quad_exp(Quad) __asm__("expf128");
Quad quad_erfc(Quad) __asm__("erfcf128");
}

Quad magnitude(Quad value) { return value < 0 ? -value : value; }

Exact to_exact(Quad value) {
  const double high = static_cast<double>(value);
  if (!std::isfinite(high) || std::fabs(high) < 0x1p-1020) return {high, 0};
  return {high, static_cast<double>(value - high)};
}

// sqrt(2 / pi) and sqrt(1 / 2), each the sum of three doubles.
const Quad kSqrtTwoOverPi =
    Quad{0x1.9884533d43651p-1} - 0x1.cbc0d30ebfd15p-55 - 0x1.c7402c7d60cfbp-111;
const Quad kSqrtHalf = Quad{0x1.6a09e667f3bcdp-1} - 0x1.bdd3413b26456p-55 + 0x1.57d3e3adec175p-109;
const Quad kNormalDensity = kSqrtTwoOverPi / 2;  // 1 / sqrt(2 pi)
const Quad kCubic = Quad{44715} / 1000000;

Quad sigmoid(Quad value) { return 1 / (1 + quad_exp(-value)); }

// s(gate) and s'(gate)
struct Gate {
  Quad s, slope;
};
Gate gate_of(rmsnorm_activation_t kind, Quad gate) {
  switch (kind) {
    case RMSNORM_ACTIVATION_SILU: {
      const Quad s = sigmoid(gate);
      return {s, s * sigmoid(-gate)};
    }
    case RMSNORM_ACTIVATION_GELU_TANH: {
      // (1 + tanh(u)) / 2 is the sigmoid of 2 u.
      const Quad twice = 2 * kSqrtTwoOverPi * gate * (1 + kCubic * (gate * gate));
      const Quad twice_slope = 2 * kSqrtTwoOverPi * (1 + 3 * kCubic * (gate * gate));
      const Quad s = sigmoid(twice);
      return {s, s * sigmoid(-twice) * twice_slope};
    }
    default:
      return {quad_erfc(-gate * kSqrtHalf) / 2, quad_exp(-(gate * gate) / 2) * kNormalDensity};
  }
}

double load_at(const View &view, int64_t row, int64_t group, int64_t col) {
  return load(view.at(row, group) + col * element_size(view.dtype), view.dtype);
}

}  // namespace

Activation activation(rmsnorm_activation_t kind, double gate) {
  const Gate of = gate_of(kind, gate);
  return {to_exact(gate * of.s), to_exact(of.s + gate * of.slope),
          static_cast<double>(of.s + magnitude(gate * of.slope))};
}

Exact glu_y(rmsnorm_activation_t kind, double gate, double up) {
  return to_exact(gate * gate_of(kind, gate).s * up);
}

GluGradients glu_gradients(rmsnorm_activation_t kind, double dy, double gate, double up) {
  const Gate of = gate_of(kind, gate);
  const Quad product = Quad{dy} * up;
  return {to_exact(product * (of.s + gate * of.slope)), to_exact(gate * of.s * dy),
          static_cast<double>(magnitude(product) * (of.s + magnitude(gate * of.slope)))};
}

std::vector<Exact> glu_forward_row(const GluForwardProblem &problem, int64_t row, int64_t group) {
  std::vector<Exact> y;
  for (int64_t col = 0; col < problem.cols; ++col)
    y.push_back(glu_y(problem.activation, load_at(problem.gate, row, group, col),
                      load_at(problem.up, row, group, col)));
  return y;
}

std::vector<GluGradients> glu_backward_row(const GluBackwardProblem &problem, int64_t row,
                                           int64_t group) {
  std::vector<GluGradients> gradients;
  for (int64_t col = 0; col < problem.cols; ++col)
    gradients.push_back(glu_gradients(problem.activation, load_at(problem.dy, row, group, col),
                                      load_at(problem.gate, row, group, col),
                                      load_at(problem.up, row, group, col)));
  return gradients;
}

}  // namespace rmsnorm::reference
