/* RMSNORM_EXAMPLE_CUDA is defined where the CUDA runtime is at hand; nothing else here needs it. */
#include "device.h"

#include <stdlib.h>
#include <string.h>

static int copy_host(void *to, const void *from, size_t bytes) {
  memcpy(to, from, bytes);
  return 0;
}

static int wait_host(void) { return 0; }

const device_t cpu_device = {RMSNORM_DEVICE_CPU, "cpu",    (size_t)8 << 20, 1, malloc, free,
                             copy_host,          wait_host};

#ifdef RMSNORM_EXAMPLE_CUDA
#include <cuda_runtime_api.h>

static void *allocate_cuda(size_t bytes) {
  void *memory = NULL;
  return cudaMalloc(&memory, bytes) == cudaSuccess ? memory : NULL;
}

static void release_cuda(void *memory) { cudaFree(memory); }

static int copy_cuda(void *to, const void *from, size_t bytes) {
  return cudaMemcpy(to, from, bytes, cudaMemcpyDefault) != cudaSuccess;
}

static int wait_cuda(void) { return cudaDeviceSynchronize() != cudaSuccess; }

static const device_t cuda = {RMSNORM_DEVICE_CUDA, "cuda",       (size_t)64 << 20, 16,
                              allocate_cuda,       release_cuda, copy_cuda,        wait_cuda};
const device_t *const cuda_device = &cuda;
#else
const device_t *const cuda_device = NULL;
#endif
