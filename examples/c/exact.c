#include "exact.h"

#include <math.h>
#include <string.h>

static double from_half(uint16_t bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  double value = exponent == 31  ? (fraction != 0 ? (double)NAN : (double)INFINITY)
                 : exponent == 0 ? ldexp(fraction, -24)
                                 : ldexp(fraction + 1024, exponent - 25);
  return bits >> 15 != 0 ? -value : value;
}

static double from_bfloat(uint16_t bits) {
  const uint32_t wide = (uint32_t)bits << 16;
  float value;
  memcpy(&value, &wide, sizeof value);
  return value;
}

double element(const void *data, rmsnorm_dtype_t dtype, size_t index) {
  switch (dtype) {
    case RMSNORM_DTYPE_F16: return from_half(((const uint16_t *)data)[index]);
    case RMSNORM_DTYPE_BF16: return from_bfloat(((const uint16_t *)data)[index]);
    case RMSNORM_DTYPE_F32: return ((const float *)data)[index];
    default: return ((const double *)data)[index];
  }
}

long double ulp(long double value, rmsnorm_dtype_t dtype) {
  const int digits = dtype == RMSNORM_DTYPE_F16    ? 11
                     : dtype == RMSNORM_DTYPE_BF16 ? 8
                     : dtype == RMSNORM_DTYPE_F32  ? 24
                                                   : 53;
  const int smallest = dtype == RMSNORM_DTYPE_F16    ? -24
                       : dtype == RMSNORM_DTYPE_BF16 ? -133
                       : dtype == RMSNORM_DTYPE_F32  ? -149
                                                     : -1074;
  int exponent = 0;
  frexpl(value, &exponent);
  return ldexpl(1, value == 0 || exponent - digits < smallest ? smallest : exponent - digits);
}

long double exact_rstd(const void *h, rmsnorm_dtype_t dtype, size_t row, size_t cols, double eps) {
  long double sum = 0;
  for (size_t col = 0; col < cols; ++col) {
    const long double value = element(h, dtype, row * cols + col);
    sum += value * value;
  }
  return 1 / sqrtl(sum / cols + eps);
}

void exact_dx(const void *dy, const void *h, const void *weight, const void *dh,
              rmsnorm_dtype_t dtype, size_t row, size_t cols, float rstd, gradient_t *dx) {
  long double sum = 0, terms = 0;
  for (size_t col = 0; col < cols; ++col) {
    const long double xhat = element(h, dtype, row * cols + col) * (long double)rstd;
    const long double w_dy =
        (long double)element(weight, dtype, col) * element(dy, dtype, row * cols + col);
    sum += w_dy * xhat;
    terms += fabsl(w_dy * xhat);
  }
  for (size_t col = 0; col < cols; ++col) {
    const long double xhat = element(h, dtype, row * cols + col) * (long double)rstd;
    const long double w_dy =
        (long double)element(weight, dtype, col) * element(dy, dtype, row * cols + col);
    const long double skip = element(dh, dtype, row * cols + col);
    dx[col].value = rstd * (w_dy - xhat * sum / cols) + skip;
    dx[col].terms = rstd * (fabsl(w_dy) + fabsl(xhat) * terms / cols) + fabsl(skip);
  }
}

gradient_t exact_dweight(const void *dy, const void *h, rmsnorm_dtype_t dtype, const float *rstd,
                         size_t rows, size_t cols, size_t col) {
  gradient_t sum = {0, 0};
  for (size_t row = 0; row < rows; ++row) {
    const long double term = (long double)element(dy, dtype, row * cols + col) *
                             element(h, dtype, row * cols + col) * rstd[row];
    sum.value += term;
    sum.terms += fabsl(term);
  }
  return sum;
}
