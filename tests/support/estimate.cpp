// Errors are counted in kUnit, the rounding error of one operation. A constant beside it is the sum
// of what the operations before it lose, rounded up to a power of two.
#include "estimate.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>

#include "reference/reference.h"

namespace rmsnorm_test {
namespace {

using rmsnorm::View;

static_assert(LDBL_MANT_DIG >= 64 && LDBL_MAX_EXP == 16384, "the range of fp64's squares and more");
constexpr long double kUnit = 0x1p-64L;
constexpr long double kTiny = 0x1p-16000L;  // where long double ends, errors are no longer relative

float bits_to_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

float half_to_float(uint16_t half) {
  const uint32_t sign = (half & 0x8000u) << 16;
  const uint32_t size = half & 0x7fffu;
  if (size >= 0x7c00) return bits_to_float(sign | 0x7f800000 | (size & 0x3ff) << 13);
  return bits_to_float(sign | size << 13) * 0x1p112f;  // exact, subnormal ones too
}

// a + b rounded once.
double rounded_sum(double a, double b, rmsnorm_dtype_t dtype) {
  const double sum = a + b, part = sum - a;
  const double rest = (a - (sum - part)) + (b - part);
  if (rest == 0 || dtype == RMSNORM_DTYPE_F64) return round_to(sum, dtype);
  return rmsnorm::reference::round_to({sum, rest}, dtype);
}

// The sum of squares, in short sums of which each loses little.
long double sum_of_squares(const std::vector<double> &values) {
  constexpr size_t kBlock = 32;
  long double sum = 0, lost = 0;
  for (size_t begin = 0; begin < values.size(); begin += kBlock) {
    const size_t end = std::min(begin + kBlock, values.size());
    long double block = 0;
    for (size_t i = begin; i < end; ++i) block += static_cast<long double>(values[i]) * values[i];
    const long double next = sum + block, part = next - sum;
    lost += (sum - (next - part)) + (block - part);
    sum = next;
  }
  return sum + lost;
}

// 1 / sqrt(mean + eps), off by at most 32 units of itself.
long double rstd_of(const std::vector<double> &values, double eps) {
  return 1 / std::sqrt(sum_of_squares(values) / values.size() + static_cast<long double>(eps));
}

void load_weight(const View &view, int64_t group, int64_t cols, double absent,
                 std::vector<double> *to) {
  if (view.present()) load_row(view, 0, group, cols, to);
  else to->assign(static_cast<size_t>(cols), absent);
}

long double magnitude(long double value) { return std::fabs(value); }

}  // namespace

double round_to(double value, rmsnorm_dtype_t dtype) {
  if (dtype == RMSNORM_DTYPE_F64) return value;
  if (dtype == RMSNORM_DTYPE_F32) return static_cast<float>(value);
  const Format format = format_of(dtype);
  const uint64_t bits = bits_of(value);
  const int exponent = static_cast<int>(bits >> 52 & 0x7ff) - 1023, cut = 53 - format.precision;
  if (exponent < format.lowest || exponent >= format.highest)  // what is special, and zero
    return rmsnorm::reference::round_to({value, 0}, dtype);
  const uint64_t half = (uint64_t{1} << (cut - 1)) - 1 + (bits >> cut & 1);
  return of_bits((bits + half) >> cut << cut);
}

void load_row(const View &view, int64_t row, int64_t group, int64_t cols, std::vector<double> *to) {
  const size_t count = static_cast<size_t>(cols);
  to->resize(count);
  const char *from = view.at(row, group);
  switch (view.dtype) {
    case RMSNORM_DTYPE_F64: std::memcpy(to->data(), from, count * sizeof(double)); return;
    case RMSNORM_DTYPE_F32:
      for (size_t i = 0; i < count; ++i) {
        float value;
        std::memcpy(&value, from + 4 * i, sizeof value);
        (*to)[i] = value;
      }
      return;
    default:
      for (size_t i = 0; i < count; ++i) {
        uint16_t half;
        std::memcpy(&half, from + 2 * i, sizeof half);
        (*to)[i] = view.dtype == RMSNORM_DTYPE_F16
                       ? half_to_float(half)
                       : bits_to_float(static_cast<uint32_t>(half) << 16);
      }
  }
}

// ---- Forward ------------------------------------------------------------------------------------

void ForwardEstimate::find(int64_t row, int64_t group) {
  load_row(problem_.x, row, group, problem_.cols, &h_);
  if (problem_.residual.present()) {
    load_row(problem_.residual, row, group, problem_.cols, &residual_);
    for (size_t i = 0; i < h_.size(); ++i)
      h_[i] = rounded_sum(h_[i], residual_[i], problem_.h_dtype);
  }
  load_weight(problem_.weight, group, problem_.cols, 1, &weight_);
  load_weight(problem_.bias, group, problem_.cols, 0, &bias_);
  rstd_.value = rstd_of(h_, problem_.eps);
  rstd_.error = 32 * kUnit * rstd_.value;
}

Estimate ForwardEstimate::scaled(size_t col) const {
  const long double value = h_[col] * rstd_.value;
  return {value, 64 * kUnit * magnitude(value)};
}

Estimate ForwardEstimate::y(size_t col, const Estimate &scaled, double *product) const {
  const long double weight = static_cast<long double>(weight_[col]) + problem_.weight_offset;
  const long double weighted = scaled.value * weight, value = weighted + bias_[col];
  *product = static_cast<double>(magnitude(weighted));
  return {value, scaled.error * magnitude(weight) * 2 + 4 * kUnit * magnitude(weighted) +
                     kUnit * magnitude(value)};
}

// ---- Backward -----------------------------------------------------------------------------------

void BackwardEstimate::find_rstd(int64_t row, int64_t group) {
  load_row(problem_.x, row, group, problem_.cols, &x_);
  load_row(problem_.dy, row, group, problem_.cols, &dy_);
  if (problem_.rstd.present()) {
    const double given =
        rmsnorm::reference::load(problem_.rstd.at(row, group), problem_.rstd.dtype);
    const double smallest = problem_.rstd.dtype == RMSNORM_DTYPE_F64 ? DBL_MIN : FLT_MIN;
    rstd_ = given;
    if (std::isnan(given) || (std::fabs(given) >= smallest && !std::isinf(given))) return;
  }
  rstd_ = rstd_of(x_, problem_.eps);
}

void BackwardEstimate::find(int64_t row, int64_t group) {
  find_rstd(row, group);
  load_weight(problem_.weight, group, problem_.cols, 1, &weight_);
  if (problem_.dresidual_out.present())
    load_row(problem_.dresidual_out, row, group, problem_.cols, &arriving_);
  long double sum = 0, absolute_sum = 0;
  for (size_t i = 0; i < x_.size(); ++i) {
    const long double term = weight(i) * dy_[i] * (x_[i] * rstd_);
    sum += term;
    absolute_sum += magnitude(term);
  }
  mean_ = sum / x_.size();
  absolute_mean_ = absolute_sum / x_.size();
}

Estimate BackwardEstimate::dx(size_t col, double *size) const {
  const long double xhat = x_[col] * rstd_, weighted = weight(col) * dy_[col];
  const long double arriving = problem_.dresidual_out.present() ? arriving_[col] : 0;
  const long double rows_own =
      magnitude(rstd_) * (magnitude(weighted) + magnitude(xhat) * absolute_mean_);
  const long double of_all = rows_own + magnitude(arriving);
  *size = static_cast<double>(of_all);
  return {rstd_ * (weighted - xhat * mean_) + arriving,
          2 * kUnit * (static_cast<long double>(x_.size()) + 128) * of_all + kTiny};
}

double BackwardEstimate::gain() const {
  return static_cast<double>(magnitude(rstd_) + magnitude(rstd_) * absolute_mean_);
}

SumEstimates::SumEstimates(const rmsnorm::BackwardProblem &problem, int64_t group,
                           int64_t first_row, int64_t end_row)
    : dweight_(static_cast<size_t>(problem.cols)), dbias_(dweight_.size()) {
  BackwardEstimate terms(problem);
  const int64_t first = problem.per_group ? group : 0;
  const int64_t end = problem.per_group ? group + 1 : problem.groups;
  for (int64_t row = first_row; row < end_row; ++row)
    for (int64_t g = first; g < end; ++g, ++terms_) {
      terms.find_rstd(row, g);
      for (size_t i = 0; i < dweight_.size(); ++i) {
        const long double term = terms.dweight_term(i), dy = terms.dbias_term(i);
        dweight_[i].add(term, magnitude(term));
        dbias_[i].add(dy, magnitude(dy));
      }
    }
}

void SumEstimates::add(const SumEstimates &other) {
  terms_ += other.terms_;
  for (size_t i = 0; i < dweight_.size(); ++i) {
    dweight_[i].add(other.dweight_[i].value, other.dweight_[i].size);
    dbias_[i].add(other.dbias_[i].value, other.dbias_[i].size);
  }
}

Estimate SumEstimates::of(const Sum &sum, double *magnitude) const {
  *magnitude = static_cast<double>(sum.size);
  return {sum.value, 2 * kUnit * static_cast<long double>(terms_ + 64) * sum.size + kTiny};
}

// ---- Gated activations --------------------------------------------------------------------------

namespace {

// s(gate), s'(gate), and how many units either may be off by.
struct Gate {
  long double s, slope, units;
};

// s of a sigmoid's argument, s(-value) beside it, without a difference of near numbers.
struct Sigmoid {
  long double s, other;
};
Sigmoid sigmoid(long double value) {
  const long double small = std::exp(-magnitude(value)), large = 1 / (1 + small);
  return value >= 0 ? Sigmoid{large, small * large} : Sigmoid{small * large, large};
}

// An exponential is off by its argument's error times the argument: where that is large, so is
// `units`, up to where s is 0 or 1.
Gate gate_of(rmsnorm_activation_t kind, long double gate) {
  const long double two_over_pi = 0.636619772367581343075535053490057448L;
  const long double square = gate * gate;
  switch (kind) {
    case RMSNORM_ACTIVATION_SILU: {
      const Sigmoid of = sigmoid(gate);
      return {of.s, of.s * of.other, 16};
    }
    case RMSNORM_ACTIVATION_GELU_TANH: {
      const long double factor = 2 * std::sqrt(two_over_pi), cubic = 0.044715L;
      const long double argument = factor * gate * (1 + cubic * square);
      const Sigmoid of = sigmoid(argument);
      return {of.s, of.s * of.other * (factor * (1 + 3 * cubic * square)),
              32 + 8 * std::min(magnitude(argument), 0x1p15L)};
    }
    default: {
      const long double half_root = 0.707106781186547524400844362104849039L;
      return {std::erfc(-gate * half_root) / 2,
              std::exp(-square / 2) * (std::sqrt(two_over_pi) / 2),
              32 + 4 * std::min(square, 0x1p16L)};
    }
  }
}

Estimate estimate(long double value, long double size, long double units) {
  return {value, units * kUnit * size + kTiny};
}

}  // namespace

Estimate estimate_glu_y(rmsnorm_activation_t kind, double gate, double up) {
  const Gate of = gate_of(kind, gate);
  const long double value = gate * of.s * up;
  return estimate(value, magnitude(value), of.units + 4);
}

GluEstimates estimate_glu_gradients(rmsnorm_activation_t kind, double dy, double gate, double up) {
  const Gate of = gate_of(kind, gate);
  const long double product = static_cast<long double>(dy) * up;
  const long double size = magnitude(product) * (of.s + magnitude(gate * of.slope));
  const long double dup = gate * of.s * dy;
  return {estimate(product * (of.s + gate * of.slope), size, of.units + 8),
          estimate(dup, magnitude(dup), of.units + 4), static_cast<double>(size)};
}

}  // namespace rmsnorm_test
