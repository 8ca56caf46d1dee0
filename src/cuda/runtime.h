// What the launchers need of the CUDA runtime: the context's state, a guard that makes its device
// current, errors as statuses, one way to launch.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "core/problem.h"
#include "core/status.h"
#include "cuda/kernels/rows.cuh"

namespace rmsnorm::cuda {

// The driver's context functions, asked of the runtime: the library does not link libcuda.
struct Driver {
  CUresult (*device_get)(CUdevice *, int);
  CUresult (*retain_primary)(CUcontext *, CUdevice);
  CUresult (*release_primary)(CUdevice);
  CUresult (*get_current)(CUcontext *);
  CUresult (*get_device)(CUdevice *);
  CUresult (*push)(CUcontext);
  CUresult (*pop)(CUcontext *);
};
rmsnorm_status_t find_driver(Driver *driver);

// Read once, when the context is created.
struct State {
  int ordinal;
  int multiprocessors;
  int compute_capability;  // 90
  bool dependent_launch;  // programmatic dependent launch: the device and the kernels' code have it
  size_t shared_memory;   // bytes that a block may have
  int l2_bytes;
  int cluster_limit;         // blocks of a cluster, at most; 1: there are none
  bool unregistered_memory;  // the device can use any host memory
  Driver driver;
  CUdevice device;
  CUcontext primary;
};

// Makes the state's device current and restores what was: does nothing if it is current already,
// and pushes its primary context otherwise, so that no context is created on any other device.
class DeviceGuard {
 public:
  explicit DeviceGuard(const State &state);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard &) = delete;
  DeviceGuard &operator=(const DeviceGuard &) = delete;
  rmsnorm_status_t status() const { return status_; }

 private:
  const State &state_;
  bool pushed_ = false;
  rmsnorm_status_t status_ = RMSNORM_SUCCESS;
};

// Leaves the caller's CUDA error as it was: what fails in between is reported by status alone.
class ErrorScope {
 public:
  ErrorScope() : before_(cudaPeekAtLastError()) {}
  ~ErrorScope() {
    if (before_ == cudaSuccess) cudaGetLastError();
  }
  ErrorScope(const ErrorScope &) = delete;
  ErrorScope &operator=(const ErrorScope &) = delete;

 private:
  cudaError_t before_;
};

// The status for a failed call of the runtime; `what` says which.
rmsnorm_status_t cuda_failure(cudaError_t error, const char *what);

struct LaunchShape {
  int64_t blocks;
  int threads_x, threads_y;
  size_t shared_memory;
  void *stream;
  bool overlap;  // programmatic dependent launch, where the device has it
  int cluster;   // blocks that form a cluster; 1: none
};

// Launches `kernel` with one argument struct. Leaves the caller's CUDA error state as it was.
rmsnorm_status_t launch(const State &state, const void *kernel, const LaunchShape &shape,
                        const void *args);

// Blocks of one launch are at most 2^31 - 1.
constexpr int64_t kMostBlocks = 0x7fffffff;

// Whether every row of a view starts at a multiple of `bytes`, a power of two; absent views do.
inline bool rows_aligned(const View &view, int64_t bytes) {
  const int64_t size = view.present() ? element_size(view.dtype) : 0;
  const uintptr_t places = reinterpret_cast<uintptr_t>(view.data) |
                           static_cast<uintptr_t>(view.row_stride * size) |
                           static_cast<uintptr_t>(view.group_stride * size);
  return (places & static_cast<uintptr_t>(bytes - 1)) == 0;
}

// Whether one stride walks the (row, group) pairs of a view; `groups` of them are one row.
inline bool is_one_stride(const View &view, int64_t groups) {
  return !view.present() || view.row_stride == groups * view.group_stride;
}

inline Matrix matrix_of(const View &view) {
  const int64_t size = view.present() ? element_size(view.dtype) : 0;
  return {view.data, view.row_stride * size, view.group_stride * size, view.dtype};
}

}  // namespace rmsnorm::cuda
