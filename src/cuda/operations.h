// The operations' launchers, for the backend's table, and the list of their kernels.
#pragma once

#include "core/backend.h"
#include "cuda/runtime.h"

namespace rmsnorm::cuda {

size_t workspace_size(const void *state, const ForwardProblem &problem);
void kernel_name(const void *state, const ForwardProblem &problem, char *name);
rmsnorm_status_t run(const void *state, const ForwardProblem &problem, const Launch &launch);
size_t workspace_size(const void *state, const BackwardProblem &problem);
void kernel_name(const void *state, const BackwardProblem &problem, char *name);
rmsnorm_status_t run(const void *state, const BackwardProblem &problem, const Launch &launch);
size_t workspace_size(const void *state, const GluForwardProblem &problem);
void kernel_name(const void *state, const GluForwardProblem &problem, char *name);
rmsnorm_status_t run(const void *state, const GluForwardProblem &problem, const Launch &launch);
size_t workspace_size(const void *state, const GluBackwardProblem &problem);
void kernel_name(const void *state, const GluBackwardProblem &problem, char *name);
rmsnorm_status_t run(const void *state, const GluBackwardProblem &problem, const Launch &launch);

// The row kernels' instantiations; NONE stands for mixed dtypes, switched at run time.
constexpr rmsnorm_dtype_t kRowDtypes[] = {RMSNORM_DTYPE_BF16, RMSNORM_DTYPE_F16, RMSNORM_DTYPE_F32,
                                          RMSNORM_DTYPE_NONE};

// What a new context has to allow a kernel: all of the device's shared memory, with as little of it
// as possible given to the L1 cache; clusters of more than 8 blocks.
namespace KernelNeeds {
enum : int { kNothing = 0, kSharedMemory = 1, kClusters = 2 };
}

// Prepares a new context's kernels; `all` loads those too that need nothing (PRELOAD).
struct KernelVisitor {
  const State &state;
  bool all;
  rmsnorm_status_t visit(const void *kernel, int needs) const;
};
rmsnorm_status_t visit_forward_kernels(const KernelVisitor &visitor);
rmsnorm_status_t visit_backward_kernels(const KernelVisitor &visitor);
rmsnorm_status_t visit_glu_kernels(const KernelVisitor &visitor);
const void *any_kernel();

}  // namespace rmsnorm::cuda
