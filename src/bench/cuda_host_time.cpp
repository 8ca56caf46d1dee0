// What a call costs the host, beside the launches that it cannot do without: as many launches of an
// empty kernel, with the same grids, blocks, attributes and argument sizes. All of these are read
// from the call itself, captured in a graph; the driver alone tells argument sizes.
#include <cuda.h>

#include <algorithm>
#include <chrono>
#include <vector>

#include "bench/cuda_device.h"
#include "bench/cuda_kernels.h"
#include "bench/text.h"

namespace bench {
namespace {

constexpr int kCalls = 10000;
constexpr int kBurst = 400;  // launches between waits: well below what a stream's queue holds

struct Driver {
  CUresult (*node_params)(CUgraphNode, CUDA_KERNEL_NODE_PARAMS *);
  CUresult (*function_argument)(CUfunction, size_t, size_t *, size_t *);
  CUresult (*kernel_argument)(CUkernel, size_t, size_t *, size_t *);
};

Driver find_driver() {
  Driver driver = {};
  const struct {
    const char *name;
    unsigned version;
    void **function;
  } functions[] = {
      {"cuGraphKernelNodeGetParams", 12000, reinterpret_cast<void **>(&driver.node_params)},
      {"cuFuncGetParamInfo", 12040, reinterpret_cast<void **>(&driver.function_argument)},
      {"cuKernelGetParamInfo", 12040, reinterpret_cast<void **>(&driver.kernel_argument)},
  };
  for (const auto &wanted : functions) {
    cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
    require(cudaGetDriverEntryPointByVersion(wanted.name, wanted.function, wanted.version,
                                             cudaEnableDefault, &found),
            wanted.name);
#else
    require(cudaGetDriverEntryPoint(wanted.name, wanted.function, cudaEnableDefault, &found),
            wanted.name);
#endif
    if (found != cudaDriverEntryPointSuccess)
      fail(kBroken, "--host-time: the CUDA driver has no %s: one of CUDA 12.4 or later is needed",
           wanted.name);
  }
  return driver;
}

struct Launch {
  cudaLaunchConfig_t config = {};
  cudaLaunchAttribute attribute = {};
  const void *kernel = nullptr;
  size_t argument_bytes = 0;
};

// Where the last of a kernel's arguments ends.
size_t argument_bytes(const Driver &driver, const CUDA_KERNEL_NODE_PARAMS &node) {
  size_t bytes = 0;
  for (size_t i = 0;; ++i) {
    size_t offset = 0, size = 0;
    const CUresult result = node.func != nullptr
                                ? driver.function_argument(node.func, i, &offset, &size)
                                : driver.kernel_argument(node.kern, i, &offset, &size);
    if (result == CUDA_ERROR_INVALID_VALUE && i > 0) return bytes;  // there was no such argument
    if (result != CUDA_SUCCESS)
      fail(kBroken, "--host-time: a kernel's arguments: CUDA driver error %d",
           static_cast<int>(result));
    bytes = offset + size;
  }
}

// Bare launches like those of the call.
std::vector<Launch> launches_of(cudaStream_t stream, const std::function<void()> &call,
                                bool overlap) {
  int device = 0, major = 0;
  require(cudaGetDevice(&device), "cudaGetDevice");
  require(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device),
          "cudaDeviceGetAttribute");
  const Driver driver = find_driver();
  const cudaGraph_t graph = capture(stream, call);
  size_t count = 0;
  require(cudaGraphGetNodes(graph, nullptr, &count), "cudaGraphGetNodes");
  std::vector<cudaGraphNode_t> nodes(count);
  require(cudaGraphGetNodes(graph, nodes.data(), &count), "cudaGraphGetNodes");
  std::vector<Launch> launches;
  for (const cudaGraphNode_t node : nodes) {
    cudaGraphNodeType type = cudaGraphNodeTypeEmpty;
    require(cudaGraphNodeGetType(node, &type), "cudaGraphNodeGetType");
    if (type != cudaGraphNodeTypeKernel) continue;
    CUDA_KERNEL_NODE_PARAMS params = {};
    const CUresult result = driver.node_params(node, &params);
    if (result != CUDA_SUCCESS)
      fail(kBroken, "--host-time: cuGraphKernelNodeGetParams: CUDA driver error %d",
           static_cast<int>(result));
    Launch launch;
    launch.argument_bytes = argument_bytes(driver, params);
    size_t bytes = launch.argument_bytes;
    launch.kernel = empty_kernel(&bytes);
    if (launch.kernel == nullptr)
      fail(kBroken, "--host-time: a kernel with %zu bytes of arguments", launch.argument_bytes);
    launch.config.gridDim = dim3(params.gridDimX, params.gridDimY, params.gridDimZ);
    launch.config.blockDim = dim3(params.blockDimX, params.blockDimY, params.blockDimZ);
    launch.config.stream = stream;
    // Programmatic dependent launch: the first kernel's is the caller's flag; the library's later
    // kernels always depend so on the ones before them.
    launch.attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    launch.attribute.val.programmaticStreamSerializationAllowed = 1;
    launch.config.numAttrs = major >= 9 && (overlap || !launches.empty()) ? 1 : 0;
    launches.push_back(launch);
  }
  require(cudaGraphDestroy(graph), "cudaGraphDestroy");
  if (launches.empty()) fail(kBroken, "--host-time: the call launches nothing");
  return launches;
}

template <class Submit>
double median_us(cudaStream_t stream, const Submit &submit) {
  using Clock = std::chrono::steady_clock;
  std::vector<double> times;
  times.reserve(kCalls);
  for (int i = 0; i < kCalls; ++i) {
    if (i % kBurst == 0) require(cudaStreamSynchronize(stream), "the stream");
    const Clock::time_point start = Clock::now();
    submit();
    times.push_back(std::chrono::duration<double, std::micro>(Clock::now() - start).count());
  }
  require(cudaStreamSynchronize(stream), "the stream");
  std::nth_element(times.begin(), times.begin() + kCalls / 2, times.end());
  return times[kCalls / 2];
}

}  // namespace

HostTime cuda_host_time(cudaStream_t stream, const std::function<void()> &call, bool overlap) {
  std::vector<Launch> launches = launches_of(stream, call, overlap);
  HostTime time;
  for (Launch &launch : launches) {
    launch.config.attrs = &launch.attribute;
    time.argument_bytes = std::max(time.argument_bytes, launch.argument_bytes);
  }
  time.launches = static_cast<int>(launches.size());
  alignas(16) static char arguments[kLargestArguments];
  void *argument = arguments;
  const auto bare = [&] {
    for (const Launch &launch : launches)
      require(cudaLaunchKernelExC(&launch.config, launch.kernel, &argument), "an empty kernel");
  };
  call(), bare();  // what is loaded at first use
  time.call_us = median_us(stream, call);
  time.bare_us = median_us(stream, bare);
  return time;
}

}  // namespace bench
