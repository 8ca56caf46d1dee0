// The definition of every operation: plain scalar C++, obviously right, slow. Each result is the
// sum of two doubles (high + low, about 100 bits), computed with error-free sums and products, so
// that it can judge an fp64 result as well. Intermediate numbers carry an exponent of their own and
// leave no range. In fp64's subnormal range high is correctly rounded and low is 0. Host memory
// only. Tests and nothing else use it.
#pragma once

#include <cstdint>
#include <vector>

#include "core/problem.h"

namespace rmsnorm::reference {

struct Exact {
  double high = 0, low = 0;
};

// One (row, group) of forward.
struct ForwardRow {
  std::vector<double> h;        // x + residual, rounded once to h_dtype
  Exact rstd;                   // of h
  std::vector<Exact> scaled;    // h * rstd; LLAMA rounds this to h_dtype
  std::vector<Exact> y;         // before its one rounding; LLAMA: of the rounded `scaled`
  std::vector<double> product;  // |h * rstd * (weight + weight_offset)|: what a bias can cancel
};
ForwardRow forward_row(const ForwardProblem &problem, int64_t row, int64_t group);

// y of one element if LLAMA's rounded h * rstd is `scaled` (for results that lie at a tie).
Exact llama_y(const ForwardProblem &problem, double scaled, int64_t group, int64_t col);

// One (row, group) of backward.
struct BackwardRow {
  Exact rstd;                     // as given, or recomputed
  std::vector<Exact> dx;          // before its one rounding
  std::vector<double> magnitude;  // rstd * (|w dy| + |xhat| * mean|w dy xhat|) + |dresidual_out|
  double gain = 0;  // rstd * (1 + mean|w dy xhat|): what a subnormal operand's error gains
};
BackwardRow backward_row(const BackwardProblem &problem, int64_t row, int64_t group);

// dweight and dbias of one group (problem.per_group) or of all of them (group 0), without what
// ACCUMULATE adds: sums over rows, and the sums of the absolute terms.
struct WeightGradients {
  std::vector<Exact> dweight, dbias;
  std::vector<double> dweight_magnitude, dbias_magnitude;
};
WeightGradients weight_gradients(const BackwardProblem &problem, int64_t group);

// ---- Elements and ulps -------------------------------------------------------------------------

// The element that `data` points to, as a double (exact for every dtype).
double load(const void *data, rmsnorm_dtype_t dtype);
// Rounds to nearest even, once.
void store(double value, void *data, rmsnorm_dtype_t dtype);
double round_to(const Exact &value, rmsnorm_dtype_t dtype);

// The distance between the neighbours of `exact` in `dtype`: 2^-149 or more for fp32, and so on.
double ulp(const Exact &exact, rmsnorm_dtype_t dtype);
// |got - exact| in ulps. Where exact lies beyond the largest finite value by half an ulp, Inf of
// its sign is 0 ulps away, and within an ulp of it Inf counts as the next number. NaN against NaN
// and equal Infs are 0; any other mismatch of the two is Inf. The sign of a zero is not looked at.
double error_in_ulps(double got, const Exact &exact, rmsnorm_dtype_t dtype);

}  // namespace rmsnorm::reference
