#include "fake_runtime.h"

#include <cstdint>
#include <cstring>

namespace rmsnorm_fake {
namespace {

std::map<const void *, std::string> &registered() {
  static std::map<const void *, std::string> all;  // filled before main
  return all;
}

// Counts a call that can fail; whether this one does.
bool fails(const char *function) {
  Runtime &now = runtime();
  ++now.calls_of[function];
  if (++now.calls != now.fails_at) return false;
  now.failed = function;
  return true;
}

// As the runtime does it: an error is kept until the caller takes it.
cudaError_t answer(const char *function) {
  if (!fails(function)) return cudaSuccess;
  return runtime().last_error = runtime().error;
}

cudaError_t keep(cudaError_t error) { return runtime().last_error = error; }

CUresult answer_of_driver(const char *function) {
  return fails(function) ? runtime().result : CUDA_SUCCESS;
}

int device_of(CUcontext context) {
  for (int device = 0; device < kDevices; ++device)
    if (context == primary_context(device) || context == own_context(device)) return device;
  return -1;
}

// The device on which a call of the runtime acts: without a context it makes device 0's.
int current_device() {
  if (!runtime().stack.empty()) return device_of(runtime().stack.back());
  runtime().made_for_nothing[0] = true;
  return 0;
}

void expect(bool good, const std::string &what) {
  if (!good) runtime().wrong.push_back(what);
}

// ---- The driver's functions ---------------------------------------------------------------------

CUresult device_get(CUdevice *device, int ordinal) {
  const CUresult result = answer_of_driver("cuDeviceGet");
  if (result == CUDA_SUCCESS) *device = ordinal;
  return result;
}
CUresult retain_primary(CUcontext *context, CUdevice device) {
  const CUresult result = answer_of_driver("cuDevicePrimaryCtxRetain");
  if (result != CUDA_SUCCESS) return result;
  ++runtime().retained[device];
  *context = primary_context(device);
  return result;
}
CUresult release_primary(CUdevice device) {
  --runtime().retained[device];
  return answer_of_driver("cuDevicePrimaryCtxRelease");
}
CUresult get_current(CUcontext *context) {
  const CUresult result = answer_of_driver("cuCtxGetCurrent");
  if (result == CUDA_SUCCESS) *context = runtime().stack.empty() ? nullptr : runtime().stack.back();
  return result;
}
CUresult get_device(CUdevice *device) {
  const CUresult result = answer_of_driver("cuCtxGetDevice");
  if (result != CUDA_SUCCESS) return result;
  if (runtime().stack.empty()) return CUDA_ERROR_INVALID_CONTEXT;
  *device = device_of(runtime().stack.back());
  return result;
}
CUresult push(CUcontext context) {
  const CUresult result = answer_of_driver("cuCtxPushCurrent");
  if (result == CUDA_SUCCESS) runtime().stack.push_back(context);
  return result;
}
CUresult pop(CUcontext *context) {
  expect(!runtime().stack.empty(), "cuCtxPopCurrent without a context");
  if (runtime().stack.empty()) return CUDA_ERROR_INVALID_CONTEXT;
  *context = runtime().stack.back();
  runtime().stack.pop_back();
  return answer_of_driver("cuCtxPopCurrent");
}

}  // namespace

Runtime &runtime() {
  static Runtime only;
  return only;
}

void Runtime::reset() {
  const Machine kept = machine;
  *this = Runtime();
  machine = kept;
}

CUcontext primary_context(int device) {
  static char contexts[kDevices];
  return reinterpret_cast<CUcontext>(&contexts[device]);
}
CUcontext own_context(int device) {
  static char contexts[kDevices];
  return reinterpret_cast<CUcontext>(&contexts[device]);
}

const std::map<const void *, std::string> &kernels() { return registered(); }

}  // namespace rmsnorm_fake

using namespace rmsnorm_fake;

extern "C" {

// ---- The runtime --------------------------------------------------------------------------------

cudaError_t CUDARTAPI cudaGetDeviceCount(int *count) {
  if (const cudaError_t error = answer("cudaGetDeviceCount")) return error;
  const Machine &machine = runtime().machine;
  if (machine.no_devices != cudaSuccess) return keep(machine.no_devices);
  *count = machine.devices;
  return cudaSuccess;
}

cudaError_t CUDARTAPI cudaDriverGetVersion(int *version) {
  if (const cudaError_t error = answer("cudaDriverGetVersion")) return error;
  *version = runtime().machine.driver_version;
  return cudaSuccess;
}

cudaError_t CUDARTAPI cudaDeviceGetAttribute(int *value, cudaDeviceAttr which, int device) {
  if (const cudaError_t error = answer("cudaDeviceGetAttribute")) return error;
  expect(device >= 0 && device < runtime().machine.devices, "attribute of no device");
  const Machine &machine = runtime().machine;
  switch (which) {
    case cudaDevAttrComputeCapabilityMajor: *value = machine.compute_capability / 10; break;
    case cudaDevAttrComputeCapabilityMinor: *value = machine.compute_capability % 10; break;
    case cudaDevAttrMultiProcessorCount: *value = kMultiprocessors; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = static_cast<int>(kSharedMemory); break;
    case cudaDevAttrL2CacheSize: *value = 50 << 20; break;
    case cudaDevAttrPageableMemoryAccess: *value = machine.pageable ? 1 : 0; break;
    case cudaDevAttrClusterLaunch: *value = machine.compute_capability >= 90 ? 1 : 0; break;
    default: expect(false, "an attribute that the fake does not know"); *value = 0;
  }
  return cudaSuccess;
}

cudaError_t CUDARTAPI cudaGetDeviceProperties(cudaDeviceProp *properties, int) {
  if (const cudaError_t error = answer("cudaGetDeviceProperties")) return error;
  std::memset(properties, 0, sizeof *properties);
  std::strcpy(properties->name, "a device that computes nothing");
  properties->major = runtime().machine.compute_capability / 10;
  properties->minor = runtime().machine.compute_capability % 10;
  properties->multiProcessorCount = kMultiprocessors;
  properties->totalGlobalMem = size_t{1} << 34;
  return cudaSuccess;
}

cudaError_t CUDARTAPI cudaGetDriverEntryPointByVersion(const char *name, void **function, unsigned,
                                                       unsigned long long,
                                                       cudaDriverEntryPointQueryResult *found) {
  if (const cudaError_t error = answer("cudaGetDriverEntryPointByVersion")) return error;
  const std::map<std::string, void *> functions = {
      {"cuDeviceGet", reinterpret_cast<void *>(device_get)},
      {"cuDevicePrimaryCtxRetain", reinterpret_cast<void *>(retain_primary)},
      {"cuDevicePrimaryCtxRelease", reinterpret_cast<void *>(release_primary)},
      {"cuCtxGetCurrent", reinterpret_cast<void *>(get_current)},
      {"cuCtxGetDevice", reinterpret_cast<void *>(get_device)},
      {"cuCtxPushCurrent", reinterpret_cast<void *>(push)},
      {"cuCtxPopCurrent", reinterpret_cast<void *>(pop)}};
  const auto at = functions.find(name);
  if (found != nullptr)
    *found =
        at == functions.end() ? cudaDriverEntryPointSymbolNotFound : cudaDriverEntryPointSuccess;
  *function = at == functions.end() ? nullptr : at->second;
  return cudaSuccess;
}

cudaError_t CUDARTAPI cudaFuncGetAttributes(cudaFuncAttributes *attributes, const void *kernel) {
  if (const cudaError_t error = answer("cudaFuncGetAttributes")) return error;
  current_device();
  if (kernels().count(kernel) == 0) return keep(cudaErrorInvalidDeviceFunction);
  std::memset(attributes, 0, sizeof *attributes);
  attributes->sharedSizeBytes = 1024;
  attributes->ptxVersion = runtime().machine.ptx_version;
  return cudaSuccess;
}

cudaError_t CUDARTAPI cudaFuncSetAttribute(const void *kernel, cudaFuncAttribute which, int value) {
  if (const cudaError_t error = answer("cudaFuncSetAttribute")) return error;
  current_device();
  expect(kernels().count(kernel) != 0, "an attribute of no kernel");
  runtime().attributes[kernel][which] = value;
  return cudaSuccess;
}

cudaError_t CUDARTAPI cudaPointerGetAttributes(cudaPointerAttributes *attributes,
                                               const void *pointer) {
  if (const cudaError_t error = answer("cudaPointerGetAttributes")) return error;
  std::memset(attributes, 0, sizeof *attributes);
  attributes->type = cudaMemoryTypeDevice;
  attributes->device = current_device();
  attributes->devicePointer = const_cast<void *>(pointer);
  return cudaSuccess;
}

cudaError_t CUDARTAPI cudaLaunchKernelExC(const cudaLaunchConfig_t *config, const void *kernel,
                                          void **arguments) {
  if (const cudaError_t error = answer("cudaLaunchKernelExC")) return error;
  Launch launch = {kernel, current_device(), config->stream, false, 1, config->gridDim.x};
  for (unsigned i = 0; i < config->numAttrs; ++i) {
    const cudaLaunchAttribute &attribute = config->attrs[i];
    if (attribute.id == cudaLaunchAttributeClusterDimension)
      launch.cluster = static_cast<int>(attribute.val.clusterDim.x);
    if (attribute.id == cudaLaunchAttributeProgrammaticStreamSerialization)
      launch.overlap = attribute.val.programmaticStreamSerializationAllowed != 0;
  }
  const auto at = kernels().find(kernel);
  expect(at != kernels().end(), "a launch of no kernel");
  const std::string name = at == kernels().end() ? "" : at->second;
  const std::map<int, int> &allowed = runtime().attributes[kernel];
  const auto allowance = [&](cudaFuncAttribute which, int otherwise) {
    const auto found = allowed.find(which);
    return found == allowed.end() ? otherwise : found->second;
  };
  const uint64_t threads = uint64_t{config->blockDim.x} * config->blockDim.y * config->blockDim.z;
  expect(threads >= 1 && threads <= 1024, name + ": threads of a block");
  expect(config->gridDim.x >= 1 && config->gridDim.x <= 0x7fffffff && config->gridDim.y >= 1 &&
             config->gridDim.y <= 65535 && config->gridDim.z >= 1 && config->gridDim.z <= 65535,
         name + ": blocks");
  expect(config->gridDim.x % static_cast<unsigned>(launch.cluster) == 0,
         name + ": the clusters do not divide the grid");
  expect(static_cast<int>(config->dynamicSmemBytes) <=
             allowance(cudaFuncAttributeMaxDynamicSharedMemorySize, 48 * 1024),
         name + ": more shared memory than was allowed");
  expect(launch.cluster <= (allowance(cudaFuncAttributeNonPortableClusterSizeAllowed, 0) ? 16 : 8),
         name + ": a larger cluster than was allowed");
  expect(arguments != nullptr && arguments[0] != nullptr, name + ": no arguments");
  runtime().launches.push_back(launch);
  return cudaSuccess;
}

cudaError_t CUDARTAPI cudaPeekAtLastError(void) { return runtime().last_error; }

cudaError_t CUDARTAPI cudaGetLastError(void) {
  const cudaError_t error = runtime().last_error;
  runtime().last_error = cudaSuccess;
  return error;
}

const char *CUDARTAPI cudaGetErrorName(cudaError_t) { return "cudaErrorOfTheFake"; }
const char *CUDARTAPI cudaGetErrorString(cudaError_t) { return "an error of the fake runtime"; }

// ---- What nvcc's code calls ---------------------------------------------------------------------

void **__cudaRegisterFatBinary(void *) {
  static void *handle;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void **) {}
void __cudaUnregisterFatBinary(void **) {}
void __cudaRegisterFunction(void **, const char *stub, char *, const char *name, int, uint3 *,
                            uint3 *, dim3 *, dim3 *, int *) {
  registered()[stub] = name;
}
char __cudaInitModule(void **) { return 0; }
// The stubs' own launches: the library launches by cudaLaunchKernelExC alone.
cudaError_t CUDARTAPI cudaLaunchKernel(const void *, dim3, dim3, void **, size_t, cudaStream_t) {
  expect(false, "a kernel launched by its stub");
  return cudaErrorUnknown;
}
cudaError_t __cudaPopCallConfiguration(dim3 *, dim3 *, size_t *, void *) {
  expect(false, "a kernel launched by its stub");
  return cudaErrorUnknown;
}
unsigned __cudaPushCallConfiguration(dim3, dim3, size_t, void *) { return 1; }

}  // extern "C"
