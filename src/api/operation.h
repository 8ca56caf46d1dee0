// What every operation's three entry points do: read the params, check them in core, hand the
// problem to the context's backend. Call, size and name go one way, so that they cannot disagree.
#pragma once

#include <cstring>

#include "core/context.h"
#include "core/log.h"
#include "core/params.h"
#include "core/status.h"
#include "core/validate.h"

namespace rmsnorm {

template <class Problem, size_t kCount>
rmsnorm_status_t check_pointers(const rmsnorm_context_t &context, const Problem &problem,
                                const Tensor<Problem> (&table)[kCount], const Launch &launch) {
  const auto ask = context.backend->check_pointer;
  if (ask == nullptr || (context.flags & RMSNORM_CONTEXT_CHECK_POINTERS) == 0)
    return RMSNORM_SUCCESS;
  for (const Tensor<Problem> &row : table) {
    const bool empty = problem.rows == 0 && row.extent != Extent::kVector;
    if ((problem.*row.view).present() && !empty)
      RMSNORM_TRY(ask(context.state, row.name, (problem.*row.view).data));
  }
  if (launch.workspace != nullptr) RMSNORM_TRY(ask(context.state, "workspace", launch.workspace));
  return RMSNORM_SUCCESS;
}

inline rmsnorm_status_t check_context(const rmsnorm_context_t *context) {
  return context != nullptr ? RMSNORM_SUCCESS : fail(RMSNORM_ERROR_NULL, "context is NULL");
}

template <class Problem, class Params, size_t kCount>
rmsnorm_status_t run(const rmsnorm_context_t *context, const Params *params,
                     const Tensor<Problem> (&table)[kCount], void *workspace, size_t workspace_size,
                     void *stream) {
  RMSNORM_TRY(check_context(context));
  if (stream != nullptr && !context->backend->has_streams)
    return fail(RMSNORM_ERROR_STREAM, "stream = %p, but the CPU has no streams: it must be NULL",
                stream);
  Problem problem;
  RMSNORM_TRY(make_problem(params, Check::kMemory, &problem));
  const Operation<Problem> &op = operation(*context->backend, problem);
  const size_t needed = op.workspace_size(context->state, problem);
  RMSNORM_TRY(check_workspace(problem, workspace, workspace_size, needed));
  const Launch launch = {needed == 0 ? nullptr : static_cast<char *>(workspace), stream};
  RMSNORM_TRY(check_pointers(*context, problem, table, launch));
  if (context->log != nullptr) log_call(*context, problem);
  return op.run(context->state, problem, launch);
}

template <class Problem, class Params>
rmsnorm_status_t workspace_size(const rmsnorm_context_t *context, const Params *params,
                                size_t *size) {
  RMSNORM_TRY(check_context(context));
  if (size == nullptr) return fail(RMSNORM_ERROR_NULL, "size is NULL");
  Problem problem;
  RMSNORM_TRY(make_problem(params, Check::kShape, &problem));
  *size = operation(*context->backend, problem).workspace_size(context->state, problem);
  return RMSNORM_SUCCESS;
}

template <class Problem, class Params>
rmsnorm_status_t kernel_name(const rmsnorm_context_t *context, const Params *params, char *name,
                             size_t capacity) {
  RMSNORM_TRY(check_context(context));
  if (name == nullptr) return fail(RMSNORM_ERROR_NULL, "name is NULL");
  Problem problem;
  RMSNORM_TRY(make_problem(params, Check::kShape, &problem));
  char text[RMSNORM_KERNEL_NAME_SIZE];
  operation(*context->backend, problem).kernel_name(context->state, problem, text);
  const size_t needed = std::strlen(text) + 1;
  if (capacity < needed)
    return fail(RMSNORM_ERROR_VALUE, "capacity = %zu, but the name needs %zu bytes", capacity,
                needed);
  copy_text(text, name, capacity);
  return RMSNORM_SUCCESS;
}

}  // namespace rmsnorm
