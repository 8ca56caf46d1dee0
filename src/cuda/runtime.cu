#include "cuda/runtime.h"

#include "core/status.h"

namespace rmsnorm::cuda {
namespace {

cudaError_t find(const char *name, unsigned version, void **function) {
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
  const cudaError_t error =
      cudaGetDriverEntryPointByVersion(name, function, version, cudaEnableDefault, &found);
#else
  (void)version;
  const cudaError_t error = cudaGetDriverEntryPoint(name, function, cudaEnableDefault, &found);
#endif
  if (error != cudaSuccess) return error;
  return found == cudaDriverEntryPointSuccess ? cudaSuccess : cudaErrorSymbolNotFound;
}

// Errors that only work submitted earlier can have caused: a launch cannot produce them itself.
bool is_earlier_work(cudaError_t error) {
  switch (error) {
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchFailure:
    case cudaErrorLaunchTimeout:
    case cudaErrorAssert:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorECCUncorrectable: return true;
    default: return false;
  }
}

}  // namespace

rmsnorm_status_t find_driver(Driver *driver) {
  const struct {
    const char *name;
    unsigned version;
    void **function;
  } functions[] = {
      {"cuDeviceGet", 2000, reinterpret_cast<void **>(&driver->device_get)},
      {"cuDevicePrimaryCtxRetain", 7000, reinterpret_cast<void **>(&driver->retain_primary)},
      {"cuDevicePrimaryCtxRelease", 11000, reinterpret_cast<void **>(&driver->release_primary)},
      {"cuCtxGetCurrent", 4000, reinterpret_cast<void **>(&driver->get_current)},
      {"cuCtxGetDevice", 2000, reinterpret_cast<void **>(&driver->get_device)},
      {"cuCtxPushCurrent", 4000, reinterpret_cast<void **>(&driver->push)},
      {"cuCtxPopCurrent", 4000, reinterpret_cast<void **>(&driver->pop)},
  };
  for (const auto &wanted : functions)
    if (const cudaError_t error = find(wanted.name, wanted.version, wanted.function))
      return cuda_failure(error, wanted.name);
  return RMSNORM_SUCCESS;
}

DeviceGuard::DeviceGuard(const State &state) : state_(state) {
  const Driver &driver = state.driver;
  CUcontext current = nullptr;
  CUresult result = driver.get_current(&current);
  if (result == CUDA_SUCCESS && current == state.primary) return;
  CUdevice device = -1;
  if (result == CUDA_SUCCESS && current != nullptr && driver.get_device(&device) == CUDA_SUCCESS &&
      device == state.device)
    return;  // a context of the caller's own on the same device
  if (result == CUDA_SUCCESS) result = driver.push(state.primary);
  pushed_ = result == CUDA_SUCCESS;
  if (!pushed_)
    status_ = fail(RMSNORM_ERROR_CUDA, "device %d cannot be made current: CUDA driver error %d",
                   state.ordinal, int(result));
}

DeviceGuard::~DeviceGuard() {
  CUcontext popped = nullptr;
  if (pushed_) state_.driver.pop(&popped);
}

rmsnorm_status_t cuda_failure(cudaError_t error, const char *what) {
  const char *name = cudaGetErrorName(error), *text = cudaGetErrorString(error);
  switch (error) {
    case cudaErrorMemoryAllocation:
      return fail(RMSNORM_ERROR_OUT_OF_MEMORY, "%s: %s (%s)", what, name, text);
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorInvalidDeviceFunction:
    case cudaErrorUnsupportedPtxVersion:
      return fail(RMSNORM_ERROR_ARCHITECTURE,
                  "%s: %s: this build of the library has no kernels for the device", what, name);
    default: break;
  }
  if (is_earlier_work(error))
    return fail(RMSNORM_ERROR_CUDA_EARLIER,
                "%s: %s (%s), left by work that was submitted before this call", what, name, text);
  return fail(RMSNORM_ERROR_CUDA, "%s: %s (%s)", what, name, text);
}

rmsnorm_status_t launch(const State &state, const void *kernel, const LaunchShape &shape,
                        const void *args) {
  if (shape.blocks > kMostBlocks)
    return fail(RMSNORM_ERROR_NOT_SUPPORTED, "rows, cols: %lld blocks are more than a launch takes",
                (long long)shape.blocks);
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(unsigned(shape.blocks));
  config.blockDim = dim3(unsigned(shape.threads_x), unsigned(shape.threads_y));
  config.dynamicSmemBytes = shape.shared_memory;
  config.stream = static_cast<cudaStream_t>(shape.stream);
  cudaLaunchAttribute attributes[2] = {};
  config.attrs = attributes;
  if (shape.overlap && state.dependent_launch) {
    cudaLaunchAttribute &attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
  }
  if (shape.cluster > 1) {
    cudaLaunchAttribute &attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = unsigned(shape.cluster);
    attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  }
  const cudaError_t before = cudaPeekAtLastError();
  void *arguments[] = {const_cast<void *>(args)};
  const cudaError_t error = cudaLaunchKernelExC(&config, kernel, arguments);
  if (error == cudaSuccess) return RMSNORM_SUCCESS;
  if (before == cudaSuccess) cudaGetLastError();  // ours: not left for the caller to find
  return cuda_failure(error, "kernel launch");
}

}  // namespace rmsnorm::cuda
