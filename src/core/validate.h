// Every rule of the ABI about an operation's params, once. A message names the argument, its value
// and the rule.
#pragma once

#include "core/problem.h"

namespace rmsnorm {

enum class Check {
  kShape,  // a size or name query: data pointers are ignored
  kMemory  // a call: pointers, alignment and overlaps too
};

rmsnorm_status_t make_problem(const rmsnorm_forward_params_t *params, Check check,
                              ForwardProblem *problem);
rmsnorm_status_t make_problem(const rmsnorm_backward_params_t *params, Check check,
                              BackwardProblem *problem);
rmsnorm_status_t make_problem(const rmsnorm_glu_forward_params_t *params, Check check,
                              GluForwardProblem *problem);
rmsnorm_status_t make_problem(const rmsnorm_glu_backward_params_t *params, Check check,
                              GluBackwardProblem *problem);

// The workspace is large enough and overlaps no tensor.
rmsnorm_status_t check_workspace(const ForwardProblem &problem, const void *workspace, size_t size,
                                 size_t needed);
rmsnorm_status_t check_workspace(const BackwardProblem &problem, const void *workspace, size_t size,
                                 size_t needed);
rmsnorm_status_t check_workspace(const GluForwardProblem &problem, const void *workspace,
                                 size_t size, size_t needed);
rmsnorm_status_t check_workspace(const GluBackwardProblem &problem, const void *workspace,
                                 size_t size, size_t needed);

}  // namespace rmsnorm
