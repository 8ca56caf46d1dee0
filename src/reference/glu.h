// The definition of the gated activations: rmsnorm.h's formulas in 113-bit arithmetic, element by
// element. Its exponents reach 2^-16382, so that no activation or product of fp64 elements leaves
// its range where the result is a number other than 0. Tests and nothing else use it.
#pragma once

#include <cstdint>
#include <vector>

#include "reference/reference.h"

namespace rmsnorm::reference {

// act(gate) and act'(gate); size: s(gate) + |gate * s'(gate)|, of which act' may be a small rest.
struct Activation {
  Exact value, derivative;
  double size = 0;
};
Activation activation(rmsnorm_activation_t kind, double gate);

// One element.
Exact glu_y(rmsnorm_activation_t kind, double gate, double up);
struct GluGradients {
  Exact dgate, dup;
  double magnitude = 0;  // |dy * up| * (s + |gate * s'|)
};
GluGradients glu_gradients(rmsnorm_activation_t kind, double dy, double gate, double up);

// One (row, group).
std::vector<Exact> glu_forward_row(const GluForwardProblem &problem, int64_t row, int64_t group);
std::vector<GluGradients> glu_backward_row(const GluBackwardProblem &problem, int64_t row,
                                           int64_t group);

}  // namespace rmsnorm::reference
