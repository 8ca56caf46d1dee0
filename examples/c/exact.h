/*
 * The formulas once more, plainly, in long double: what rmsnorm.c judges the library by.
 * SPDX-License-Identifier: Apache-2.0
 */
#ifndef EXACT_H
#define EXACT_H

#include <stddef.h>
#include <stdint.h>

#include "rmsnorm.h"

/* Element `index` of an array, exactly. */
double element(const void *data, rmsnorm_dtype_t dtype, size_t index);

/* The distance between the neighbours of `value` in a dtype. */
long double ulp(long double value, rmsnorm_dtype_t dtype);

/* 1 / sqrt(mean(h^2) + eps) of one row. */
long double exact_rstd(const void *h, rmsnorm_dtype_t dtype, size_t row, size_t cols, double eps);

/* What one element of a gradient should be, and the sum of the absolute values of its terms: they
 * can cancel, and rounding errors are relative to them. */
typedef struct gradient_t {
  long double value, terms;
} gradient_t;

/* One row of dx; all arrays of one dtype, rstd as handed to the library. */
void exact_dx(const void *dy, const void *h, const void *weight, const void *dh,
              rmsnorm_dtype_t dtype, size_t row, size_t cols, float rstd, gradient_t *dx);

/* dweight[col]. */
gradient_t exact_dweight(const void *dy, const void *h, rmsnorm_dtype_t dtype, const float *rstd,
                         size_t rows, size_t cols, size_t col);

#endif
