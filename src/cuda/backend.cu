// The CUDA backend's table: devices, contexts, pointer checks. Nothing here runs before a caller
// asks for CUDA, and all of it answers cleanly where there is no driver.
#include <cstdio>
#include <new>

#include "core/memory.h"
#include "core/backend.h"
#include "cuda/operations.h"

namespace rmsnorm {
namespace cuda {
namespace {

// Lowest compute capability of the build, from nvcc's list of architectures (750,900,...).
constexpr int kArchitectures[] = {__CUDA_ARCH_LIST__};
constexpr int lowest_compute_capability() {
  int lowest = kArchitectures[0];
  for (const int architecture : kArchitectures)
    if (architecture < lowest) lowest = architecture;
  return lowest / 10;
}

rmsnorm_status_t device_count(int32_t *count) {
  ErrorScope scope;
  int found = 0;
  const cudaError_t error = cudaGetDeviceCount(&found);
  *count = 0;
  if (error == cudaErrorNoDevice) return RMSNORM_SUCCESS;
  if (error == cudaErrorInsufficientDriver) {
    int version = 0;
    cudaDriverGetVersion(&version);
    if (version == 0) return RMSNORM_SUCCESS;  // no driver at all
    return fail(
        RMSNORM_ERROR_DRIVER_TOO_OLD,
        "the CUDA driver supports CUDA %d.%d, this library needs %d.%d or a driver of its series",
        version / 1000, version % 1000 / 10, CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10);
  }
  if (error != cudaSuccess) return cuda_failure(error, "cudaGetDeviceCount");
  *count = found;
  return RMSNORM_SUCCESS;
}

rmsnorm_status_t check_device(int32_t ordinal) {
  int32_t count = 0;
  RMSNORM_TRY(device_count(&count));
  if (ordinal < count) return RMSNORM_SUCCESS;
  if (count > 0)
    return fail(RMSNORM_ERROR_DEVICE, "ordinal = %d, but there are %d CUDA devices", (int)ordinal,
                (int)count);
  int version = 0;
  cudaDriverGetVersion(&version);
  if (version == 0)
    return fail(RMSNORM_ERROR_NO_DRIVER, "device is CUDA, but there is no CUDA driver");
  return fail(RMSNORM_ERROR_NO_DEVICE, "device is CUDA, but the driver has no devices");
}

rmsnorm_status_t attribute(cudaDeviceAttr which, int32_t ordinal, int *value) {
  const cudaError_t error = cudaDeviceGetAttribute(value, which, ordinal);
  return error == cudaSuccess ? RMSNORM_SUCCESS : cuda_failure(error, "cudaDeviceGetAttribute");
}

rmsnorm_status_t compute_capability(int32_t ordinal, int *value) {
  int major = 0, minor = 0;
  RMSNORM_TRY(attribute(cudaDevAttrComputeCapabilityMajor, ordinal, &major));
  RMSNORM_TRY(attribute(cudaDevAttrComputeCapabilityMinor, ordinal, &minor));
  *value = major * 10 + minor;
  return RMSNORM_SUCCESS;
}

rmsnorm_status_t device_info(int32_t ordinal, rmsnorm_device_info_t *info) {
  ErrorScope scope;
  RMSNORM_TRY(check_device(ordinal));
  cudaDeviceProp properties;
  const cudaError_t error = cudaGetDeviceProperties(&properties, ordinal);
  if (error != cudaSuccess) return cuda_failure(error, "cudaGetDeviceProperties");
  info->compute_capability = properties.major * 10 + properties.minor;
  info->processors = properties.multiProcessorCount;
  info->supported = info->compute_capability >= lowest_compute_capability() ? 1 : 0;
  info->memory_bytes = static_cast<int64_t>(properties.totalGlobalMem);
  info->cache_bytes = properties.l2CacheSize;
  copy_text(properties.name, info->name, sizeof info->name);
  std::snprintf(info->isa, sizeof info->isa, "sm_%d", info->compute_capability);
  return RMSNORM_SUCCESS;
}

rmsnorm_status_t read_state(State *state, int32_t ordinal) {
  state->ordinal = ordinal;
  int shared_memory = 0, pageable = 0, clusters = 0;
  RMSNORM_TRY(compute_capability(ordinal, &state->compute_capability));
  if (state->compute_capability < lowest_compute_capability())
    return fail(RMSNORM_ERROR_ARCHITECTURE,
                "device %d is sm_%d, but this build has kernels from sm_%d on", (int)ordinal,
                state->compute_capability, lowest_compute_capability());
  RMSNORM_TRY(attribute(cudaDevAttrMultiProcessorCount, ordinal, &state->multiprocessors));
  RMSNORM_TRY(attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, ordinal, &shared_memory));
  RMSNORM_TRY(attribute(cudaDevAttrL2CacheSize, ordinal, &state->l2_bytes));
  RMSNORM_TRY(attribute(cudaDevAttrPageableMemoryAccess, ordinal, &pageable));
  RMSNORM_TRY(attribute(cudaDevAttrClusterLaunch, ordinal, &clusters));
  state->shared_memory = static_cast<size_t>(shared_memory);
  state->unregistered_memory = pageable != 0;
  // 16 blocks are more than every device with clusters has: Hopper and Blackwell's data centre
  // line.
  const int major = state->compute_capability / 10;
  state->cluster_limit = clusters == 0 ? 1 : major == 9 || major == 10 ? 16 : 8;
  RMSNORM_TRY(find_driver(&state->driver));
  CUresult result = state->driver.device_get(&state->device, ordinal);
  if (result == CUDA_SUCCESS) result = state->driver.retain_primary(&state->primary, state->device);
  if (result == CUDA_ERROR_OUT_OF_MEMORY)
    return fail(RMSNORM_ERROR_OUT_OF_MEMORY, "no memory for device %d's primary context",
                (int)ordinal);
  if (result != CUDA_SUCCESS)
    return fail(RMSNORM_ERROR_CUDA,
                "device %d's primary context cannot be had: CUDA driver error %d", (int)ordinal,
                int(result));
  return RMSNORM_SUCCESS;
}

rmsnorm_status_t prepare_kernels(State *state, bool all) {
  DeviceGuard guard(*state);
  RMSNORM_TRY(guard.status());
  const KernelVisitor visitor = {*state, all};
  RMSNORM_TRY(visit_forward_kernels(visitor));
  RMSNORM_TRY(visit_backward_kernels(visitor));
  RMSNORM_TRY(visit_glu_kernels(visitor));
  // PTX for an older architecture runs on a newer device, but does not wait for its predecessor.
  cudaFuncAttributes attributes;
  if (const cudaError_t error = cudaFuncGetAttributes(&attributes, any_kernel()))
    return cuda_failure(error, "cudaFuncGetAttributes");
  state->dependent_launch = state->compute_capability >= 90 && attributes.ptxVersion >= 90;
  if (!state->dependent_launch) state->cluster_limit = 1;
  return RMSNORM_SUCCESS;
}

void destroy(void *opaque) {
  State *state = static_cast<State *>(opaque);
  if (state->primary != nullptr) state->driver.release_primary(state->device);
  free_object(state);
}

rmsnorm_status_t create(const rmsnorm_context_options_t &options, void **opaque) {
  ErrorScope scope;
  RMSNORM_TRY(check_device(options.ordinal));
  State *state = make_object<State>();
  if (state == nullptr) return fail(RMSNORM_ERROR_OUT_OF_MEMORY, "no memory for a context");
  rmsnorm_status_t status = read_state(state, options.ordinal);
  if (status == RMSNORM_SUCCESS)
    status = prepare_kernels(state, (options.flags & RMSNORM_CONTEXT_PRELOAD) != 0);
  if (status != RMSNORM_SUCCESS) destroy(state);
  else *opaque = state;
  return status;
}

rmsnorm_status_t check_pointer(const void *opaque, const char *argument, const void *pointer) {
  const State &state = *static_cast<const State *>(opaque);
  ErrorScope scope;
  DeviceGuard guard(state);
  RMSNORM_TRY(guard.status());
  cudaPointerAttributes attributes = {};
  const cudaError_t error = cudaPointerGetAttributes(&attributes, pointer);
  if (error != cudaSuccess) return cuda_failure(error, "cudaPointerGetAttributes");
  const char *what = nullptr;
  if (attributes.type == cudaMemoryTypeUnregistered && !state.unregistered_memory)
    what = "host memory that no device can read";
  else if (attributes.type == cudaMemoryTypeHost && attributes.devicePointer != pointer)
    what = "host memory at another address of the device";
  else if (attributes.type == cudaMemoryTypeDevice && attributes.device != state.ordinal)
    what = "memory of another device";
  if (what == nullptr) return RMSNORM_SUCCESS;
  return fail(RMSNORM_ERROR_POINTER, "%s = %p is %s; the context is for device %d", argument,
              pointer, what, state.ordinal);
}

}  // namespace

rmsnorm_status_t KernelVisitor::visit(const void *kernel, int needs) const {
  if (needs == KernelNeeds::kNothing && !all) return RMSNORM_SUCCESS;
  cudaFuncAttributes attributes;  // asking loads the kernel
  cudaError_t error = cudaFuncGetAttributes(&attributes, kernel);
  const auto allow = [&](cudaFuncAttribute what, int value) {
    if (error == cudaSuccess) error = cudaFuncSetAttribute(kernel, what, value);
  };
  if (needs & KernelNeeds::kSharedMemory) {
    allow(cudaFuncAttributeMaxDynamicSharedMemorySize,
          static_cast<int>(state.shared_memory - attributes.sharedSizeBytes));
    allow(cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
  }
  if ((needs & KernelNeeds::kClusters) && state.cluster_limit > 8)
    allow(cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  return error == cudaSuccess ? RMSNORM_SUCCESS : cuda_failure(error, "preparing a kernel");
}

}  // namespace cuda

const Backend kCudaBackend = {"cuda",
                              cuda::device_count,
                              cuda::device_info,
                              cuda::create,
                              cuda::destroy,
                              cuda::check_pointer,
                              {cuda::workspace_size, cuda::kernel_name, cuda::run},
                              {cuda::workspace_size, cuda::kernel_name, cuda::run},
                              {cuda::workspace_size, cuda::kernel_name, cuda::run},
                              {cuda::workspace_size, cuda::kernel_name, cuda::run},
                              true};

}  // namespace rmsnorm
