// A CUDA runtime and driver that compute nothing: linked in place of libcudart_static.a, they are
// the whole table of what the library calls of CUDA (what is missing here does not link). A test
// chooses the machine, makes the n-th call fail, and sees what was launched, and where.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstddef>
#include <map>
#include <set>
#include <string>
#include <vector>

namespace rmsnorm_fake {

constexpr int kDevices = 2;
constexpr int kMultiprocessors = 132;
constexpr size_t kSharedMemory = 232448;  // bytes that a block may have

struct Machine {
  int driver_version = 13000;            // 0: no driver
  cudaError_t no_devices = cudaSuccess;  // what cudaGetDeviceCount answers
  int devices = kDevices;
  int compute_capability = 90;
  int ptx_version = 90;   // of the kernels' code
  bool pageable = false;  // devices can use any host memory
};

struct Launch {
  const void *kernel;
  int device;  // of the context that was current
  void *stream;
  bool overlap;
  int cluster;
  unsigned blocks;
};

struct Runtime {
  Machine machine;

  // The call that fails, counted from 1 over all that can: 0 is none. Runtime functions answer
  // `error`, the driver's `result`.
  int fails_at = 0;
  cudaError_t error = cudaErrorUnknown;
  CUresult result = CUDA_ERROR_UNKNOWN;

  int calls = 0;                        // that can fail
  std::string failed;                   // the function that did
  std::map<std::string, int> calls_of;  // each function
  std::vector<Launch> launches;
  std::vector<std::string> wrong;        // what no runtime would let pass
  cudaError_t last_error = cudaSuccess;  // the caller's
  int retained[kDevices] = {};           // primary contexts
  bool made_for_nothing[kDevices] = {};  // contexts that a call made because none was current
  std::vector<CUcontext> stack;          // the current one is the last
  std::map<const void *, std::map<int, int>> attributes;  // what kernels were allowed

  // Forgets all but the machine and the kernels.
  void reset();
};
Runtime &runtime();

CUcontext primary_context(int device);
// A context that the program made on its own, on `device`.
CUcontext own_context(int device);

// Every kernel that the build has registered: its stub and its name.
const std::map<const void *, std::string> &kernels();

}  // namespace rmsnorm_fake
