/*
 * Reads .npy files: version 1.0, C order, little-endian float32, float16, float64, and uint16 for
 * the bits of bfloat16, which NumPy does not know.
 * SPDX-License-Identifier: Apache-2.0
 */
#ifndef NPY_H
#define NPY_H

#include <stddef.h>
#include <stdint.h>

#include "rmsnorm.h"

typedef struct npy_t {
  void *data; /* malloc's */
  rmsnorm_dtype_t dtype;
  int64_t rows; /* 1 for a vector */
  int64_t cols;
  size_t bytes;
} npy_t;

/* NULL, or what is wrong with the file. */
const char *npy_read(const char *path, npy_t *array);

#endif
