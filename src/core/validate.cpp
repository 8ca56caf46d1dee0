#include "core/validate.h"

#include <cfloat>
#include <cmath>
#include <cstring>
#include <iterator>

#include "core/params.h"
#include "core/status.h"
#include "core/view.h"

namespace rmsnorm {

#define ROW(Problem, params, name, extent, output, required) \
  { #name, offsetof(params, name), &Problem::name, Extent::extent, output, required }
#define FORWARD(...) ROW(ForwardProblem, rmsnorm_forward_params_t, __VA_ARGS__)
#define BACKWARD(...) ROW(BackwardProblem, rmsnorm_backward_params_t, __VA_ARGS__)
#define GLU_FORWARD(...) ROW(GluForwardProblem, rmsnorm_glu_forward_params_t, __VA_ARGS__)
#define GLU_BACKWARD(...) ROW(GluBackwardProblem, rmsnorm_glu_backward_params_t, __VA_ARGS__)

const Tensor<ForwardProblem> kForwardTensors[7] = {
    FORWARD(x, kElements, false, true),     FORWARD(residual, kElements, false, false),
    FORWARD(weight, kVector, false, false), FORWARD(bias, kVector, false, false),
    FORWARD(y, kElements, true, true),      FORWARD(residual_out, kElements, true, false),
    FORWARD(rstd, kRows, true, false),
};

const Tensor<BackwardProblem> kBackwardTensors[9] = {
    BACKWARD(dy, kElements, false, true),
    BACKWARD(x, kElements, false, true),
    BACKWARD(weight, kVector, false, false),
    BACKWARD(rstd, kRows, false, false),
    BACKWARD(dresidual_out, kElements, false, false),
    BACKWARD(dx, kElements, true, false),
    BACKWARD(dresidual, kElements, true, false),
    BACKWARD(dweight, kVector, true, false),
    BACKWARD(dbias, kVector, true, false),
};

const Tensor<GluForwardProblem> kGluForwardTensors[3] = {
    GLU_FORWARD(gate, kElements, false, true),
    GLU_FORWARD(up, kElements, false, true),
    GLU_FORWARD(y, kElements, true, true),
};

const Tensor<GluBackwardProblem> kGluBackwardTensors[5] = {
    GLU_BACKWARD(dy, kElements, false, true),  GLU_BACKWARD(gate, kElements, false, true),
    GLU_BACKWARD(up, kElements, false, true),  GLU_BACKWARD(dgate, kElements, true, false),
    GLU_BACKWARD(dup, kElements, true, false),
};

#undef ROW
#undef FORWARD
#undef BACKWARD
#undef GLU_FORWARD
#undef GLU_BACKWARD

namespace {

Box box_of(const Problem &problem, Extent extent) {
  return {extent == Extent::kVector ? 1 : problem.rows, problem.groups,
          extent == Extent::kRows ? 1 : problem.cols};
}

// Output/input pairs that may be the very same view.
bool may_share(const ForwardProblem &problem, const View *output, const View *input) {
  if (output == &problem.y) return input == &problem.x;
  return output == &problem.residual_out && (input == &problem.residual || input == &problem.x);
}
bool may_share(const BackwardProblem &problem, const View *output, const View *input) {
  return output == &problem.dx &&
         (input == &problem.dy || input == &problem.x || input == &problem.dresidual_out);
}
bool may_share(const GluForwardProblem &, const View *, const View *) { return true; }
bool may_share(const GluBackwardProblem &problem, const View *output, const View *input) {
  return input == &problem.dy || input == (output == &problem.dgate ? &problem.gate : &problem.up);
}

// The tensor whose dtype tells whether all is fp64.
const Tensor<ForwardProblem> &lead(const ForwardProblem &) { return kForwardTensors[0]; }
const Tensor<BackwardProblem> &lead(const BackwardProblem &) { return kBackwardTensors[1]; }
const Tensor<GluForwardProblem> &lead(const GluForwardProblem &) { return kGluForwardTensors[0]; }
const Tensor<GluBackwardProblem> &lead(const GluBackwardProblem &) {
  return kGluBackwardTensors[1];
}

template <class Params>
rmsnorm_status_t read_head(const Params &params, uint32_t known_flags, Problem *problem) {
  if (params.rows < 0)
    return fail(RMSNORM_ERROR_SHAPE, "rows = %lld is negative", (long long)params.rows);
  if (params.groups < 0)
    return fail(RMSNORM_ERROR_SHAPE, "groups = %lld is negative", (long long)params.groups);
  if (params.cols < 1)
    return fail(RMSNORM_ERROR_SHAPE, "cols = %lld, but a row has at least 1 column",
                (long long)params.cols);
  problem->rows = params.rows;
  problem->groups = params.groups == 0 ? 1 : params.groups;
  problem->cols = params.cols;
  int64_t elements = 0;
  if (__builtin_mul_overflow(problem->rows, problem->groups, &elements) ||
      __builtin_mul_overflow(elements, problem->cols, &elements))
    return fail(RMSNORM_ERROR_SHAPE, "rows = %lld x groups = %lld x cols = %lld exceeds 2^63",
                (long long)params.rows, (long long)params.groups, (long long)params.cols);
  if (const uint32_t unknown = params.flags & ~known_flags)
    return fail(RMSNORM_ERROR_NEWER_LIBRARY,
                "flags has bits 0x%x that this operation does not know: they need a newer library",
                unknown);
  problem->overlap = (params.flags & RMSNORM_FLAG_OVERLAP) != 0;
  return RMSNORM_SUCCESS;
}

template <class Params>
rmsnorm_status_t read_norm_scalars(const Params &params, NormProblem *problem) {
  if (!(params.eps >= 0) || std::isinf(params.eps))
    return fail(RMSNORM_ERROR_VALUE, "eps = %g, but it must be finite and not negative",
                params.eps);
  problem->eps = params.eps;
  if (!std::isfinite(params.weight_offset))
    return fail(RMSNORM_ERROR_VALUE, "weight_offset = %g is not finite", params.weight_offset);
  problem->weight_offset = params.weight_offset;
  if (params.rounding != RMSNORM_ROUNDING_ONCE && params.rounding != RMSNORM_ROUNDING_LLAMA)
    return fail(RMSNORM_ERROR_NEWER_LIBRARY,
                "rounding = %d is unknown here: it needs a newer library", (int)params.rounding);
  return RMSNORM_SUCCESS;
}

rmsnorm_status_t check_weight_offset(const NormProblem &problem, rmsnorm_dtype_t x) {
  const double offset = std::fabs(problem.weight_offset);
  if (x == RMSNORM_DTYPE_F64 || offset == 0 || (offset >= FLT_MIN && offset <= FLT_MAX))
    return RMSNORM_SUCCESS;
  return fail(RMSNORM_ERROR_VALUE, "weight_offset = %g is not 0 and not a normal fp32 magnitude",
              problem.weight_offset);
}

template <class Params>
rmsnorm_status_t read_activation(const Params &params, GluProblem *problem) {
  if (params.activation < RMSNORM_ACTIVATION_SILU ||
      params.activation > RMSNORM_ACTIVATION_GELU_ERF)
    return fail(RMSNORM_ERROR_NEWER_LIBRARY,
                "activation = %d is unknown here: it needs a newer library",
                (int)params.activation);
  problem->activation = params.activation;
  return RMSNORM_SUCCESS;
}

// One tensor on its own: presence, dtype, strides, pointer.
template <class Problem>
rmsnorm_status_t read_tensor(const Tensor<Problem> &row, const void *params, Check check,
                             Problem *problem) {
  rmsnorm_tensor_t given;  // rmsnorm_input_t has the same layout
  std::memcpy(&given, static_cast<const char *>(params) + row.offset, sizeof given);
  const char *name = row.name;
  if (given.reserved != 0)
    return fail(RMSNORM_ERROR_NEWER_LIBRARY,
                "%s.reserved = %d: a value other than 0 needs a newer library", name,
                (int)given.reserved);
  if (given.dtype == RMSNORM_DTYPE_NONE) {
    if (row.required)
      return fail(RMSNORM_ERROR_NULL, "%s is required, but %s.dtype is 0", name, name);
    if (given.row_stride != 0 || given.group_stride != 0 ||
        (check == Check::kMemory && given.data != nullptr))
      return fail(RMSNORM_ERROR_DTYPE,
                  "%s.dtype is 0, which means absent, but its data or strides are set", name);
    return RMSNORM_SUCCESS;
  }
  if (!is_known_dtype(given.dtype))
    return fail(RMSNORM_ERROR_NEWER_LIBRARY,
                "%s.dtype = 0x%x is unknown here: it needs a newer library", name,
                (unsigned)given.dtype);
  if (row.extent == Extent::kVector && given.row_stride != 0)
    return fail(
        RMSNORM_ERROR_NOT_SUPPORTED,
        "%s.row_stride = %lld, but %s is one vector for all rows: 0 is the only stride today", name,
        (long long)given.row_stride, name);
  const Box box = box_of(*problem, row.extent);
  View &view = problem->*row.view;
  view.data = check == Check::kMemory ? static_cast<char *>(given.data) : nullptr;
  view.row_stride = box.rows > 1 ? given.row_stride : 0;
  view.group_stride = box.groups > 1 ? given.group_stride : 0;
  view.dtype = given.dtype;
  if (check == Check::kMemory) {
    if (view.data == nullptr && !box.empty())
      return fail(RMSNORM_ERROR_NULL, "%s.data is NULL, but %s has elements", name, name);
    const int64_t size = element_size(view.dtype);
    if ((reinterpret_cast<uintptr_t>(view.data) & static_cast<uintptr_t>(size - 1)) != 0)
      return fail(RMSNORM_ERROR_ALIGNMENT,
                  "%s.data = %p is not a multiple of its %lld-byte elements", name,
                  static_cast<void *>(view.data), (long long)size);
  }
  return RMSNORM_SUCCESS;
}

template <class Problem>
rmsnorm_status_t check_dtype(const Tensor<Problem> &row, const Problem &problem) {
  const rmsnorm_dtype_t dtype = (problem.*row.view).dtype;
  const rmsnorm_dtype_t other = (problem.*lead(problem).view).dtype;
  if (dtype == RMSNORM_DTYPE_NONE) return RMSNORM_SUCCESS;
  if ((dtype == RMSNORM_DTYPE_F64) != (other == RMSNORM_DTYPE_F64))
    return fail(RMSNORM_ERROR_DTYPE, "%s.dtype is %s and %s.dtype %s: fp64 goes with fp64 alone",
                row.name, dtype_name(dtype), lead(problem).name, dtype_name(other));
  if (row.extent == Extent::kRows && dtype != RMSNORM_DTYPE_F64 && dtype != RMSNORM_DTYPE_F32)
    return fail(RMSNORM_ERROR_DTYPE, "%s.dtype is %s, but it is always fp32 (fp64 where all is)",
                row.name, dtype_name(dtype));
  return RMSNORM_SUCCESS;
}

// The strides of one present tensor: within the address space, and an output's elements distinct.
template <class Problem>
rmsnorm_status_t check_strides(const Tensor<Problem> &row, const Problem &problem,
                               ByteRange *range) {
  const View &view = problem.*row.view;
  const Box box = box_of(problem, row.extent);
  if (!byte_range(view, box, range))
    return fail(RMSNORM_ERROR_STRIDE,
                "%s with row_stride = %lld and group_stride = %lld leaves the address space",
                row.name, (long long)view.row_stride, (long long)view.group_stride);
  // A vector that is shared by the groups (group_stride 0) has one group's elements.
  const Box own = {box.rows,
                   row.extent == Extent::kVector && view.group_stride == 0 ? 1 : box.groups,
                   box.cols};
  if (!row.output || elements_distinct(view, own)) return RMSNORM_SUCCESS;
  const bool rows_alone = elements_distinct(view, {own.rows, 1, own.cols});
  return fail(RMSNORM_ERROR_STRIDE,
              rows_alone ? "%s.group_stride = %lld makes groups of %lld columns overlap"
                         : "%s.row_stride = %lld makes rows of %lld columns overlap",
              row.name, (long long)(rows_alone ? view.group_stride : view.row_stride),
              (long long)own.cols);
}

template <class Problem>
rmsnorm_status_t check_pair(const Tensor<Problem> &output, const Tensor<Problem> &other,
                            const Problem &problem) {
  const View &a = problem.*output.view, &b = problem.*other.view;
  const bool same = a.data == b.data && a.row_stride == b.row_stride &&
                    a.group_stride == b.group_stride && a.dtype == b.dtype;
  if (same && !other.output && may_share(problem, &a, &b)) return RMSNORM_SUCCESS;
  if (output.extent == other.extent && interleave(a, b, box_of(problem, output.extent)))
    return RMSNORM_SUCCESS;
  return fail(RMSNORM_ERROR_ALIAS,
              "%s.data = %p overlaps %s.data = %p in a way that is not allowed%s", output.name,
              static_cast<void *>(a.data), other.name, static_cast<void *>(b.data),
              !same && !other.output && may_share(problem, &a, &b)
                  ? ": they may only be the same view (data, strides, dtype)"
                  : "");
}

template <class Problem, size_t kCount>
rmsnorm_status_t read_tensors(const Tensor<Problem> (&table)[kCount], const void *params,
                              Check check, Problem *problem) {
  for (const Tensor<Problem> &row : table) RMSNORM_TRY(read_tensor(row, params, check, problem));
  for (const Tensor<Problem> &row : table) RMSNORM_TRY(check_dtype(row, *problem));
  ByteRange ranges[kCount];
  for (size_t i = 0; i < kCount; ++i)
    if ((problem->*table[i].view).present())
      RMSNORM_TRY(check_strides(table[i], *problem, &ranges[i]));
  if (check == Check::kShape) return RMSNORM_SUCCESS;
  for (size_t i = 0; i < kCount; ++i) {
    if (!table[i].output || !(problem->*table[i].view).present()) continue;
    for (size_t j = 0; j < kCount; ++j)
      if (ranges[i].meets(ranges[j]) && i != j && !(table[j].output && j < i))
        RMSNORM_TRY(check_pair(table[i], table[j], *problem));
  }
  return RMSNORM_SUCCESS;
}

// dweight and dbias are summed over groups or per group: both alike, and as weight is.
rmsnorm_status_t read_group_sums(BackwardProblem *problem) {
  const View *const vectors[] = {&problem->weight, &problem->dweight, &problem->dbias};
  const char *const names[] = {"weight", "dweight", "dbias"};
  const View *const outputs = problem->dweight.present() ? &problem->dweight : &problem->dbias;
  problem->per_group = outputs->present() && outputs->group_stride != 0;
  for (size_t i = 0; i < std::size(vectors); ++i)
    if (outputs->present() && vectors[i]->present() &&
        (vectors[i]->group_stride != 0) != problem->per_group)
      return fail(
          RMSNORM_ERROR_NOT_SUPPORTED,
          "%s.group_stride = %lld and %s.group_stride = %lld: weight, dweight and dbias are all "
          "shared by the groups (0) or all per group",
          names[i], (long long)vectors[i]->group_stride,
          outputs == &problem->dweight ? "dweight" : "dbias", (long long)outputs->group_stride);
  return RMSNORM_SUCCESS;
}

template <class Problem, size_t kCount>
rmsnorm_status_t check_workspace_of(const Tensor<Problem> (&table)[kCount], const Problem &problem,
                                    const void *workspace, size_t size, size_t needed) {
  if (needed == 0) return RMSNORM_SUCCESS;
  if (workspace == nullptr)
    return fail(RMSNORM_ERROR_WORKSPACE, "workspace is NULL, but this call needs %zu bytes",
                needed);
  if (size < needed)
    return fail(RMSNORM_ERROR_WORKSPACE, "workspace_size = %zu, but this call needs %zu bytes",
                size, needed);
  const uintptr_t low = reinterpret_cast<uintptr_t>(workspace);
  const ByteRange own = {low, low + needed};
  for (const Tensor<Problem> &row : table) {
    const View &view = problem.*row.view;
    ByteRange range;
    if (view.present() && byte_range(view, box_of(problem, row.extent), &range) && range.meets(own))
      return fail(RMSNORM_ERROR_ALIAS, "workspace = %p overlaps %s.data = %p", workspace, row.name,
                  static_cast<void *>(view.data));
  }
  return RMSNORM_SUCCESS;
}

}  // namespace

rmsnorm_status_t make_problem(const rmsnorm_forward_params_t *given, Check check,
                              ForwardProblem *problem) {
  rmsnorm_forward_params_t params;
  RMSNORM_TRY(read_struct("params", given, &params));
  RMSNORM_TRY(read_head(params, RMSNORM_FLAG_OVERLAP, problem));
  RMSNORM_TRY(read_norm_scalars(params, problem));
  RMSNORM_TRY(read_tensors(kForwardTensors, &params, check, problem));
  RMSNORM_TRY(check_weight_offset(*problem, problem->x.dtype));
  if (problem->residual_out.present() && !problem->residual.present())
    return fail(RMSNORM_ERROR_NULL, "residual_out is given, but residual is absent");
  problem->llama = params.rounding == RMSNORM_ROUNDING_LLAMA;
  problem->h_dtype = problem->residual_out.present() ? problem->residual_out.dtype
                     : !problem->residual.present() || problem->residual.dtype == problem->x.dtype
                         ? problem->x.dtype
                         : RMSNORM_DTYPE_F32;
  return RMSNORM_SUCCESS;
}

rmsnorm_status_t make_problem(const rmsnorm_backward_params_t *given, Check check,
                              BackwardProblem *problem) {
  rmsnorm_backward_params_t params;
  RMSNORM_TRY(read_struct("params", given, &params));
  RMSNORM_TRY(read_head(params, RMSNORM_FLAG_OVERLAP | RMSNORM_FLAG_ACCUMULATE, problem));
  RMSNORM_TRY(read_norm_scalars(params, problem));
  problem->accumulate = (params.flags & RMSNORM_FLAG_ACCUMULATE) != 0;
  RMSNORM_TRY(read_tensors(kBackwardTensors, &params, check, problem));
  RMSNORM_TRY(check_weight_offset(*problem, problem->x.dtype));
  if (!problem->dx.present() && !problem->dresidual.present() && !problem->dweight.present() &&
      !problem->dbias.present())
    return fail(RMSNORM_ERROR_NULL,
                "dx, dresidual, dweight and dbias are all absent: no output is asked for");
  return read_group_sums(problem);
}

rmsnorm_status_t make_problem(const rmsnorm_glu_forward_params_t *given, Check check,
                              GluForwardProblem *problem) {
  rmsnorm_glu_forward_params_t params;
  RMSNORM_TRY(read_struct("params", given, &params));
  RMSNORM_TRY(read_head(params, RMSNORM_FLAG_OVERLAP, problem));
  RMSNORM_TRY(read_activation(params, problem));
  return read_tensors(kGluForwardTensors, &params, check, problem);
}

rmsnorm_status_t make_problem(const rmsnorm_glu_backward_params_t *given, Check check,
                              GluBackwardProblem *problem) {
  rmsnorm_glu_backward_params_t params;
  RMSNORM_TRY(read_struct("params", given, &params));
  RMSNORM_TRY(read_head(params, RMSNORM_FLAG_OVERLAP, problem));
  RMSNORM_TRY(read_activation(params, problem));
  RMSNORM_TRY(read_tensors(kGluBackwardTensors, &params, check, problem));
  if (!problem->dgate.present() && !problem->dup.present())
    return fail(RMSNORM_ERROR_NULL, "dgate and dup are both absent: no output is asked for");
  return RMSNORM_SUCCESS;
}

rmsnorm_status_t check_workspace(const ForwardProblem &problem, const void *workspace, size_t size,
                                 size_t needed) {
  return check_workspace_of(kForwardTensors, problem, workspace, size, needed);
}

rmsnorm_status_t check_workspace(const BackwardProblem &problem, const void *workspace, size_t size,
                                 size_t needed) {
  return check_workspace_of(kBackwardTensors, problem, workspace, size, needed);
}

rmsnorm_status_t check_workspace(const GluForwardProblem &problem, const void *workspace,
                                 size_t size, size_t needed) {
  return check_workspace_of(kGluForwardTensors, problem, workspace, size, needed);
}

rmsnorm_status_t check_workspace(const GluBackwardProblem &problem, const void *workspace,
                                 size_t size, size_t needed) {
  return check_workspace_of(kGluBackwardTensors, problem, workspace, size, needed);
}

}  // namespace rmsnorm
