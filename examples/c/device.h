/*
 * Memory and waiting on one device, so that rmsnorm.c reads the same for the CPU and for CUDA.
 * SPDX-License-Identifier: Apache-2.0
 */
#ifndef DEVICE_H
#define DEVICE_H

#include <stddef.h>

#include "rmsnorm.h"

typedef struct device_t {
  rmsnorm_device_t type;
  const char *name;
  size_t large; /* elements of a tensor that is larger than such a device's caches */
  int batch;    /* calls between two looks at the clock */
  void *(*allocate)(size_t bytes); /* NULL if there is not so much */
  void (*release)(void *memory);
  int (*copy)(void *to, const void *from, size_t bytes); /* to, from or within; 0 on success */
  int (*wait)(void); /* for all that was started; 0 on success */
} device_t;

extern const device_t cpu_device;
extern const device_t *const cuda_device; /* NULL if compiled without RMSNORM_EXAMPLE_CUDA */

#endif
