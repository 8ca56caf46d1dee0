// The CPU's operations, as core/backend.h describes an Operation's functions.
#pragma once

#include "core/backend.h"

namespace rmsnorm::cpu {

size_t forward_workspace_size(const void *state, const ForwardProblem &problem);
void forward_kernel_name(const void *state, const ForwardProblem &problem, char *name);
rmsnorm_status_t forward(const void *state, const ForwardProblem &problem, const Launch &launch);

size_t backward_workspace_size(const void *state, const BackwardProblem &problem);
void backward_kernel_name(const void *state, const BackwardProblem &problem, char *name);
rmsnorm_status_t backward(const void *state, const BackwardProblem &problem, const Launch &launch);

size_t glu_forward_workspace_size(const void *state, const GluForwardProblem &problem);
void glu_forward_kernel_name(const void *state, const GluForwardProblem &problem, char *name);
rmsnorm_status_t glu_forward(const void *state, const GluForwardProblem &problem,
                             const Launch &launch);

size_t glu_backward_workspace_size(const void *state, const GluBackwardProblem &problem);
void glu_backward_kernel_name(const void *state, const GluBackwardProblem &problem, char *name);
rmsnorm_status_t glu_backward(const void *state, const GluBackwardProblem &problem,
                              const Launch &launch);

}  // namespace rmsnorm::cpu
