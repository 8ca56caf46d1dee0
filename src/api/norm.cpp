// rmsnorm_forward and rmsnorm_backward with their size and name queries.
#include "api/operation.h"

using rmsnorm::BackwardProblem;
using rmsnorm::ForwardProblem;

extern "C" {

void rmsnorm_forward_params_init(void *params, size_t struct_size) {
  rmsnorm::init_struct(params, struct_size);
}

rmsnorm_status_t rmsnorm_forward(const rmsnorm_context_t *context,
                                 const rmsnorm_forward_params_t *params, void *workspace,
                                 size_t workspace_size, void *stream) {
  return rmsnorm::run<ForwardProblem>(context, params, rmsnorm::kForwardTensors, workspace,
                                      workspace_size, stream);
}

rmsnorm_status_t rmsnorm_forward_workspace_size(const rmsnorm_context_t *context,
                                                const rmsnorm_forward_params_t *params,
                                                size_t *size) {
  return rmsnorm::workspace_size<ForwardProblem>(context, params, size);
}

rmsnorm_status_t rmsnorm_forward_kernel_name(const rmsnorm_context_t *context,
                                             const rmsnorm_forward_params_t *params, char *name,
                                             size_t capacity) {
  return rmsnorm::kernel_name<ForwardProblem>(context, params, name, capacity);
}

void rmsnorm_backward_params_init(void *params, size_t struct_size) {
  rmsnorm::init_struct(params, struct_size);
}

rmsnorm_status_t rmsnorm_backward(const rmsnorm_context_t *context,
                                  const rmsnorm_backward_params_t *params, void *workspace,
                                  size_t workspace_size, void *stream) {
  return rmsnorm::run<BackwardProblem>(context, params, rmsnorm::kBackwardTensors, workspace,
                                       workspace_size, stream);
}

rmsnorm_status_t rmsnorm_backward_workspace_size(const rmsnorm_context_t *context,
                                                 const rmsnorm_backward_params_t *params,
                                                 size_t *size) {
  return rmsnorm::workspace_size<BackwardProblem>(context, params, size);
}

rmsnorm_status_t rmsnorm_backward_kernel_name(const rmsnorm_context_t *context,
                                              const rmsnorm_backward_params_t *params, char *name,
                                              size_t capacity) {
  return rmsnorm::kernel_name<BackwardProblem>(context, params, name, capacity);
}

}  // extern "C"
