// A backend is one table of functions. The api layer picks a context's table and calls through it;
// a backend sees validated problems only.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/problem.h"

namespace rmsnorm {

struct Launch {
  char *workspace;  // at least workspace_size bytes, of any alignment
  void *stream;     // CUDA: a cudaStream_t; CPU: NULL
};

// `state` is what Backend::create made.
template <class Problem>
struct Operation {
  // Bytes for the problem; sees neither addresses nor strides (they are not to be used).
  size_t (*workspace_size)(const void *state, const Problem &problem);
  // Writes what `run` would run, at most RMSNORM_KERNEL_NAME_SIZE bytes.
  void (*kernel_name)(const void *state, const Problem &problem, char *name);
  rmsnorm_status_t (*run)(const void *state, const Problem &problem, const Launch &launch);
};

struct Backend {
  const char *name;  // "cpu"
  rmsnorm_status_t (*device_count)(int32_t *count);
  // `info` arrives zeroed but for struct_size, device and ordinal, which is not negative.
  rmsnorm_status_t (*device_info)(int32_t ordinal, rmsnorm_device_info_t *info);
  rmsnorm_status_t (*create)(const rmsnorm_context_options_t &options, void **state);
  void (*destroy)(void *state);
  // Whether the device can use this memory; called under CHECK_POINTERS. NULL: nothing to ask.
  rmsnorm_status_t (*check_pointer)(const void *state, const char *argument, const void *pointer);
  Operation<ForwardProblem> forward;
  Operation<BackwardProblem> backward;
  Operation<GluForwardProblem> glu_forward;
  Operation<GluBackwardProblem> glu_backward;
  bool has_streams = false;  // else a call's stream must be NULL
};

// A backend's functions for the operation that a problem describes.
inline const Operation<ForwardProblem> &operation(const Backend &backend, const ForwardProblem &) {
  return backend.forward;
}
inline const Operation<BackwardProblem> &operation(const Backend &backend,
                                                   const BackwardProblem &) {
  return backend.backward;
}
inline const Operation<GluForwardProblem> &operation(const Backend &backend,
                                                     const GluForwardProblem &) {
  return backend.glu_forward;
}
inline const Operation<GluBackwardProblem> &operation(const Backend &backend,
                                                      const GluBackwardProblem &) {
  return backend.glu_backward;
}

extern const Backend kCpuBackend;
extern const Backend
    kCudaBackend;  // in a build without CUDA: every function answers BACKEND_NOT_BUILT

}  // namespace rmsnorm
