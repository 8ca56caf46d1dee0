// The definition, operation by operation, in the order in which rmsnorm.h states the formulas.
// Every number is a Wide (two doubles and an exponent), so that this file needs no care for range;
// elements are rounded in one function, round_wide, which serves every dtype.
#include "reference/reference.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "reference/double_double.h"

namespace rmsnorm::reference {
namespace {

// A binary floating-point format: `precision` significant bits; normal numbers from 2^lowest up to
// below 2^(highest + 1).
struct Format {
  int precision, lowest, highest;
};

Format format_of(rmsnorm_dtype_t dtype) {
  switch (dtype) {
    case RMSNORM_DTYPE_F16: return {11, -14, 15};
    case RMSNORM_DTYPE_BF16: return {8, -126, 127};
    case RMSNORM_DTYPE_F32: return {24, -126, 127};
    default: return {53, -1022, 1023};
  }
}

// The exponent of the last place of the binade of `exact` in the format.
int last_place(const Wide &exact, const Format &format) {
  int exponent = exact.exponent - 1;  // 2^exponent <= |exact|, but for a power of two less a little
  const bool below_power = std::fabs(exact.value.high) == 0.5 && exact.value.low != 0 &&
                           std::signbit(exact.value.low) != std::signbit(exact.value.high);
  if (below_power) --exponent;
  if (exact.zero() || exponent < format.lowest) exponent = format.lowest;
  return std::min(exponent, format.highest) - (format.precision - 1);
}

// Nearest even, once; beyond the largest finite value by half its last place: Inf.
double round_wide(const Wide &exact, const Format &format) {
  if (!exact.finite() || exact.zero()) return exact.value.high;
  const Wide positive = magnitude(exact);
  const int last = last_place(positive, format);
  const int shift = positive.exponent - last;
  if (shift > format.precision + 1) return std::copysign(HUGE_VAL, exact.value.high);
  const double high = scale(positive.value.high, shift);
  const double low = scale(positive.value.low, shift);
  double places = std::floor(high);
  const DoubleDouble over_half = two_sum(high - places, -0.5);
  const double above = over_half.high + (over_half.low + low);
  if (above > 0 || (above == 0 && std::fmod(places, 2) != 0)) places += 1;
  const double largest = scale(1.0, format.precision) - 1;
  if (last == format.highest - (format.precision - 1) && places > largest)
    return std::copysign(HUGE_VAL, exact.value.high);
  return std::copysign(scale(places, last), exact.value.high);
}

Wide to_wide(const Exact &exact) { return wide(two_sum(exact.high, exact.low)); }

// Below fp64's normal range the low part is dropped; high stays correctly rounded.
Exact to_exact(const Wide &value) {
  if (value.exponent < -1020) return {round_wide(value, format_of(RMSNORM_DTYPE_F64)), 0};
  const double high = scale(value.value.high, value.exponent);
  return {high, std::isfinite(high) ? scale(value.value.low, value.exponent) : 0};
}

double to_double(const Wide &value) { return to_exact(value).high; }

Wide load_wide(const View &view, int64_t row, int64_t group, int64_t col) {
  return wide(load(view.at(row, group) + col * element_size(view.dtype), view.dtype));
}

// weight + weight_offset
template <class Problem>
Wide weight_at(const Problem &problem, int64_t group, int64_t col) {
  const Wide weight =
      problem.weight.present() ? load_wide(problem.weight, 0, group, col) : wide(1.0);
  return weight + wide(problem.weight_offset);
}

// h = x + residual
Wide h_at(const ForwardProblem &problem, int64_t row, int64_t group, int64_t col) {
  const Wide x = load_wide(problem.x, row, group, col);
  if (!problem.residual.present()) return x;
  const Wide sum = x + load_wide(problem.residual, row, group, col);
  return wide(round_wide(sum, format_of(problem.h_dtype)));
}

// y = scaled * (weight + weight_offset) + bias
Wide y_of(const ForwardProblem &problem, const Wide &scaled, int64_t group, int64_t col) {
  const Wide product = scaled * weight_at(problem, group, col);
  if (!problem.bias.present()) return product;
  return product + load_wide(problem.bias, 0, group, col);
}

// 1 / sqrt(mean(h^2) + eps)
Wide rstd_of(const std::vector<Wide> &h, double eps) {
  Wide sum;
  for (const Wide &value : h) sum = sum + value * value;
  return reciprocal_sqrt(sum / static_cast<double>(h.size()) + wide(eps));
}

std::vector<Wide> load_row(const BackwardProblem &problem, const View &view, int64_t row,
                           int64_t group) {
  std::vector<Wide> values;
  values.reserve(static_cast<size_t>(problem.cols));
  for (int64_t c = 0; c < problem.cols; ++c) values.push_back(load_wide(view, row, group, c));
  return values;
}

Wide backward_rstd(const BackwardProblem &problem, const std::vector<Wide> &x, int64_t row,
                   int64_t group) {
  if (problem.rstd.present()) {
    const double given = load(problem.rstd.at(row, group), problem.rstd.dtype);
    const double smallest = scale(1.0, format_of(problem.rstd.dtype).lowest);
    const bool usable = std::fabs(given) >= smallest && !std::isinf(given);
    if (usable || std::isnan(given)) return wide(given);
  }
  return rstd_of(x, problem.eps);
}

}  // namespace

ForwardRow forward_row(const ForwardProblem &problem, int64_t row, int64_t group) {
  ForwardRow result;
  std::vector<Wide> h;
  for (int64_t c = 0; c < problem.cols; ++c) {
    h.push_back(h_at(problem, row, group, c));
    result.h.push_back(to_double(h.back()));
  }
  const Wide rstd = rstd_of(h, problem.eps);
  result.rstd = to_exact(rstd);
  for (int64_t c = 0; c < problem.cols; ++c) {
    Wide scaled = h[c] * rstd;
    result.scaled.push_back(to_exact(scaled));
    if (problem.llama) scaled = wide(round_wide(scaled, format_of(problem.h_dtype)));
    result.y.push_back(to_exact(y_of(problem, scaled, group, c)));
    result.product.push_back(to_double(magnitude(scaled * weight_at(problem, group, c))));
  }
  return result;
}

Exact llama_y(const ForwardProblem &problem, double scaled, int64_t group, int64_t col) {
  return to_exact(y_of(problem, wide(scaled), group, col));
}

BackwardRow backward_row(const BackwardProblem &problem, int64_t row, int64_t group) {
  BackwardRow result;
  const std::vector<Wide> x = load_row(problem, problem.x, row, group);
  const std::vector<Wide> dy = load_row(problem, problem.dy, row, group);
  const Wide rstd = backward_rstd(problem, x, row, group);
  result.rstd = to_exact(rstd);
  Wide sum, absolute_sum;
  for (int64_t c = 0; c < problem.cols; ++c) {
    const Wide term = weight_at(problem, group, c) * dy[c] * (x[c] * rstd);
    sum = sum + term;
    absolute_sum = absolute_sum + magnitude(term);
  }
  const Wide mean = sum / static_cast<double>(problem.cols);
  const Wide absolute_mean = absolute_sum / static_cast<double>(problem.cols);
  result.gain = to_double(magnitude(rstd) + magnitude(rstd) * absolute_mean);
  for (int64_t c = 0; c < problem.cols; ++c) {
    const Wide xhat = x[c] * rstd, wdy = weight_at(problem, group, c) * dy[c];
    Wide dx = rstd * (wdy + -(xhat * mean));
    Wide size = magnitude(rstd) * (magnitude(wdy) + magnitude(xhat) * absolute_mean);
    if (problem.dresidual_out.present()) {
      const Wide arriving = load_wide(problem.dresidual_out, row, group, c);
      dx = dx + arriving;
      size = size + magnitude(arriving);
    }
    result.dx.push_back(to_exact(dx));
    result.magnitude.push_back(to_double(size));
  }
  return result;
}

WeightGradients weight_gradients(const BackwardProblem &problem, int64_t group) {
  const size_t cols = static_cast<size_t>(problem.cols);
  std::vector<Wide> dweight(cols), dbias(cols), dweight_size(cols), dbias_size(cols);
  const int64_t first = problem.per_group ? group : 0;
  const int64_t end = problem.per_group ? group + 1 : problem.groups;
  for (int64_t row = 0; row < problem.rows; ++row) {
    for (int64_t g = first; g < end; ++g) {
      const std::vector<Wide> x = load_row(problem, problem.x, row, g);
      const std::vector<Wide> dy = load_row(problem, problem.dy, row, g);
      const Wide rstd = backward_rstd(problem, x, row, g);
      for (size_t c = 0; c < cols; ++c) {
        const Wide term = dy[c] * (x[c] * rstd);
        dweight[c] = dweight[c] + term;
        dweight_size[c] = dweight_size[c] + magnitude(term);
        dbias[c] = dbias[c] + dy[c];
        dbias_size[c] = dbias_size[c] + magnitude(dy[c]);
      }
    }
  }
  WeightGradients result;
  for (size_t c = 0; c < cols; ++c) {
    result.dweight.push_back(to_exact(dweight[c]));
    result.dbias.push_back(to_exact(dbias[c]));
    result.dweight_magnitude.push_back(to_double(dweight_size[c]));
    result.dbias_magnitude.push_back(to_double(dbias_size[c]));
  }
  return result;
}

// ---- Elements and ulps -------------------------------------------------------------------------

double load(const void *data, rmsnorm_dtype_t dtype) {
  if (dtype == RMSNORM_DTYPE_F64) {
    double value;
    std::memcpy(&value, data, sizeof value);
    return value;
  }
  if (dtype == RMSNORM_DTYPE_F32) {
    float value;
    std::memcpy(&value, data, sizeof value);
    return value;
  }
  // 16 bits: sign, biased exponent, fraction.
  uint16_t bits;
  std::memcpy(&bits, data, sizeof bits);
  const Format format = format_of(dtype);
  const int fraction_bits = format.precision - 1;
  const int fraction = bits & ((1 << fraction_bits) - 1);
  const int biased = (bits & 0x7fff) >> fraction_bits;
  double value;
  if (biased == format.highest * 2 + 1) {
    value = fraction == 0 ? HUGE_VAL : std::numeric_limits<double>::quiet_NaN();
  } else if (biased == 0) {
    value = scale(fraction, format.lowest - fraction_bits);
  } else {
    value = scale(fraction + (1 << fraction_bits), biased - format.highest - fraction_bits);
  }
  return (bits & 0x8000) != 0 ? -value : value;
}

void store(double value, void *data, rmsnorm_dtype_t dtype) {
  const Format format = format_of(dtype);
  const double rounded = round_wide(wide(value), format);
  if (dtype == RMSNORM_DTYPE_F64) {
    std::memcpy(data, &rounded, sizeof rounded);
    return;
  }
  if (dtype == RMSNORM_DTYPE_F32) {
    const float narrow = static_cast<float>(rounded);  // exact
    std::memcpy(data, &narrow, sizeof narrow);
    return;
  }
  const int fraction_bits = format.precision - 1;
  const int top = (format.highest * 2 + 1) << fraction_bits;  // Inf
  const double size = std::fabs(rounded);
  int bits;
  if (std::isnan(rounded)) {
    bits = top | (1 << (fraction_bits - 1));
  } else if (std::isinf(rounded)) {
    bits = top;
  } else if (size < scale(1.0, format.lowest)) {
    bits = static_cast<int>(scale(size, fraction_bits - format.lowest));
  } else {
    const int exponent = std::ilogb(size);
    const int significand = static_cast<int>(scale(size, fraction_bits - exponent));
    bits = ((exponent + format.highest) << fraction_bits) + significand - (1 << fraction_bits);
  }
  const uint16_t stored = static_cast<uint16_t>(bits | (std::signbit(rounded) ? 0x8000 : 0));
  std::memcpy(data, &stored, sizeof stored);
}

double round_to(const Exact &value, rmsnorm_dtype_t dtype) {
  return round_wide(to_wide(value), format_of(dtype));
}

double ulp(const Exact &exact, rmsnorm_dtype_t dtype) {
  const Wide value = to_wide(exact);
  if (!value.finite()) return std::numeric_limits<double>::quiet_NaN();
  return scale(1.0, last_place(value, format_of(dtype)));
}

double error_in_ulps(double got, const Exact &exact, rmsnorm_dtype_t dtype) {
  if (std::isnan(got) && std::isnan(exact.high)) return 0;
  if (got == exact.high && !std::isfinite(got)) return 0;
  if (std::isnan(got) || !std::isfinite(exact.high)) return HUGE_VAL;
  const Format format = format_of(dtype);
  const Wide value = to_wide(exact);
  Wide place = wide(got);
  if (std::isinf(got)) {
    if (round_wide(value, format) == got) return 0;
    // Inf stands where the next number would, for an exact result within one ulp of the largest.
    place = wide(std::copysign(0.5, got));
    place.exponent = format.highest + 2;
  }
  Wide ulps = magnitude(place + -value);
  ulps.exponent -= last_place(value, format);
  const double distance = to_double(ulps);
  return std::isinf(got) && distance > 1 ? HUGE_VAL : distance;
}

}  // namespace rmsnorm::reference
