// The definition once more, in long double: fast, and each number with what it may be off by. Where
// billions of elements are compared, what is within its bound whatever the exact result may be need
// not be seen by the reference, which takes fifty times as long.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "core/problem.h"

namespace rmsnorm_test {

// |value - exact| <= error; NaN in either where an estimate cannot tell.
struct Estimate {
  long double value = 0, error = 0;
};

// A binary format: significant bits, and normal numbers from 2^lowest up to below 2^(highest + 1).
struct Format {
  int precision, lowest, highest;
};
constexpr Format format_of(rmsnorm_dtype_t dtype) {
  return dtype == RMSNORM_DTYPE_F16    ? Format{11, -14, 15}
         : dtype == RMSNORM_DTYPE_BF16 ? Format{8, -126, 127}
         : dtype == RMSNORM_DTYPE_F32  ? Format{24, -126, 127}
                                       : Format{53, -1022, 1023};
}

inline double of_bits(uint64_t bits) {
  double value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
inline uint64_t bits_of(double value) {
  uint64_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

// How far `got` is from the exact result: `near`, by the estimate, and at most `far`. `ulp` is no
// longer than the exact result's. NaN where the estimate cannot tell.
struct Distance {
  long double near, far;
  double ulp;
};
inline Distance distance(double got, const Estimate &exact, const Format &format) {
  const long double near = std::fabs(got - exact.value);
  // The exact result may be less than the estimate, and lie below a power of two.
  const double least = static_cast<double>((std::fabs(exact.value) - exact.error) * (1 - 0x1p-50L));
  int exponent = format.lowest;
  if (least > 0) exponent = std::max(exponent, static_cast<int>(bits_of(least) >> 52) - 1023);
  const int place = exponent - (format.precision - 1);
  const double ulp = of_bits(place < -1022 ? uint64_t{1} << (place + 1074)
                                           : static_cast<uint64_t>(place + 1023) << 52);
  // Beyond the largest numbers, what is near rounds to Inf: that is the reference's to tell.
  if (!(exponent < format.highest) || !std::isfinite(got)) return {NAN, NAN, ulp};
  return {near, (near + exact.error) * (1 + 0x1p-60L), ulp};
}

// The nearest number of a dtype, ties to even.
double round_to(double value, rmsnorm_dtype_t dtype);

// The elements of one (row, group), as reference::load has them.
void load_row(const rmsnorm::View &view, int64_t row, int64_t group, int64_t cols,
              std::vector<double> *to);

// One (row, group) of forward after another.
class ForwardEstimate {
 public:
  explicit ForwardEstimate(const rmsnorm::ForwardProblem &problem) : problem_(problem) {}
  void find(int64_t row, int64_t group);
  const Estimate &rstd() const { return rstd_; }
  double h(size_t col) const { return h_[col]; }  // exactly
  Estimate scaled(size_t col) const;              // h * rstd
  // scaled * (weight + weight_offset) + bias, and the size of that product.
  Estimate y(size_t col, const Estimate &scaled, double *product) const;

 private:
  const rmsnorm::ForwardProblem &problem_;
  std::vector<double> h_, residual_, weight_, bias_;
  Estimate rstd_;
};

// One (row, group) of backward after another.
class BackwardEstimate {
 public:
  explicit BackwardEstimate(const rmsnorm::BackwardProblem &problem) : problem_(problem) {}
  void find_rstd(int64_t row, int64_t group);  // enough for the terms of dweight and dbias
  void find(int64_t row, int64_t group);
  long double dweight_term(size_t col) const { return dy_[col] * (x_[col] * rstd_); }
  double dbias_term(size_t col) const { return dy_[col]; }
  // dx, and what its bound is relative to.
  Estimate dx(size_t col, double *magnitude) const;
  double gain() const;

 private:
  long double weight(size_t col) const {
    return static_cast<long double>(weight_[col]) + problem_.weight_offset;
  }

  const rmsnorm::BackwardProblem &problem_;
  std::vector<double> x_, dy_, weight_, arriving_;
  long double rstd_ = 0, mean_ = 0, absolute_mean_ = 0;
};

// dweight and dbias of one group or of all over some rows, without what ACCUMULATE adds.
class SumEstimates {
 public:
  SumEstimates(const rmsnorm::BackwardProblem &problem, int64_t group, int64_t first_row,
               int64_t end_row);
  void add(const SumEstimates &other);
  // A column's sum, and that of the absolute terms.
  Estimate dweight(size_t col, double *magnitude) const { return of(dweight_[col], magnitude); }
  Estimate dbias(size_t col, double *magnitude) const { return of(dbias_[col], magnitude); }

 private:
  struct Sum {
    long double value = 0, size = 0;
    void add(long double term, long double its_size) { value += term, size += its_size; }
  };
  Estimate of(const Sum &sum, double *magnitude) const;

  std::vector<Sum> dweight_, dbias_;
  int64_t terms_ = 0;
};

// Gated activations, one element.
Estimate estimate_glu_y(rmsnorm_activation_t kind, double gate, double up);
struct GluEstimates {
  Estimate dgate, dup;
  double magnitude = 0;
};
GluEstimates estimate_glu_gradients(rmsnorm_activation_t kind, double dy, double gate, double up);

}  // namespace rmsnorm_test
