// rmsnorm_glu_forward and rmsnorm_glu_backward with their size and name queries.
#include "api/operation.h"

using rmsnorm::GluBackwardProblem;
using rmsnorm::GluForwardProblem;

extern "C" {

void rmsnorm_glu_forward_params_init(void *params, size_t struct_size) {
  rmsnorm::init_struct(params, struct_size);
}

rmsnorm_status_t rmsnorm_glu_forward(const rmsnorm_context_t *context,
                                     const rmsnorm_glu_forward_params_t *params, void *workspace,
                                     size_t workspace_size, void *stream) {
  return rmsnorm::run<GluForwardProblem>(context, params, rmsnorm::kGluForwardTensors, workspace,
                                         workspace_size, stream);
}

rmsnorm_status_t rmsnorm_glu_forward_workspace_size(const rmsnorm_context_t *context,
                                                    const rmsnorm_glu_forward_params_t *params,
                                                    size_t *size) {
  return rmsnorm::workspace_size<GluForwardProblem>(context, params, size);
}

rmsnorm_status_t rmsnorm_glu_forward_kernel_name(const rmsnorm_context_t *context,
                                                 const rmsnorm_glu_forward_params_t *params,
                                                 char *name, size_t capacity) {
  return rmsnorm::kernel_name<GluForwardProblem>(context, params, name, capacity);
}

void rmsnorm_glu_backward_params_init(void *params, size_t struct_size) {
  rmsnorm::init_struct(params, struct_size);
}

rmsnorm_status_t rmsnorm_glu_backward(const rmsnorm_context_t *context,
                                      const rmsnorm_glu_backward_params_t *params, void *workspace,
                                      size_t workspace_size, void *stream) {
  return rmsnorm::run<GluBackwardProblem>(context, params, rmsnorm::kGluBackwardTensors, workspace,
                                          workspace_size, stream);
}

rmsnorm_status_t rmsnorm_glu_backward_workspace_size(const rmsnorm_context_t *context,
                                                     const rmsnorm_glu_backward_params_t *params,
                                                     size_t *size) {
  return rmsnorm::workspace_size<GluBackwardProblem>(context, params, size);
}

rmsnorm_status_t rmsnorm_glu_backward_kernel_name(const rmsnorm_context_t *context,
                                                  const rmsnorm_glu_backward_params_t *params,
                                                  char *name, size_t capacity) {
  return rmsnorm::kernel_name<GluBackwardProblem>(context, params, name, capacity);
}

}  // extern "C"
