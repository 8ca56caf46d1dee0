// The launchers of rmsnorm_glu_forward and rmsnorm_glu_backward. Elements stand alone, so rows and
// groups that lie one behind another are taken as one row, whatever its length.
#include <cstdio>

#include "cuda/kernels/glu.cuh"
#include "cuda/operations.h"
#include "cuda/tuning.h"

namespace rmsnorm::cuda {
namespace {

// The tensors of elements, outputs last.
struct Views {
  const View *of[5];
  int count;
};
Views views_of(const GluForwardProblem &p) { return {{&p.gate, &p.up, &p.y}, 3}; }
Views views_of(const GluBackwardProblem &p) {
  return {{&p.dy, &p.gate, &p.up, &p.dgate, &p.dup}, 5};
}

template <class Test>
bool all_of(const Views &views, Test test) {
  for (int i = 0; i < views.count; ++i)
    if (views.of[i]->present() && !test(*views.of[i])) return false;
  return true;
}

// The dtype that all tensors have; NONE if they are mixed.
rmsnorm_dtype_t common_dtype(const Views &views) {
  const rmsnorm_dtype_t dtype = views.of[0]->dtype;
  return all_of(views, [=](const View &view) { return view.dtype == dtype; })
             ? dtype
             : rmsnorm_dtype_t(RMSNORM_DTYPE_NONE);
}

int width_of(rmsnorm_dtype_t dtype) {
  return dtype == RMSNORM_DTYPE_F64                                  ? 1
         : dtype == RMSNORM_DTYPE_F16 || dtype == RMSNORM_DTYPE_BF16 ? 8
                                                                     : 4;
}

// The shape with as few dimensions as the strides allow.
struct Shape {
  int64_t rows, groups, cols;
  bool of_groups;  // a view's group stride walks the rows
};

Shape shape_of(const Problem &p, const Views &views) {
  Shape shape = {p.rows, p.groups, p.cols, false};
  if (p.groups > 1 && (p.rows == 1 || all_of(views, [&](const View &view) {
                         return is_one_stride(view, p.groups);
                       })))
    shape = {p.rows * p.groups, 1, p.cols, true};
  if (shape.groups == 1 && (shape.rows == 1 || all_of(views, [&](const View &view) {
                              return (shape.of_groups ? view.group_stride : view.row_stride) ==
                                     p.cols;
                            })))
    shape = {1, 1, shape.rows * p.cols, shape.of_groups};
  return shape;
}

enum class Layout { kFlat, kAligned, kUnaligned };

template <class T, class Args>
const void *kernel_of(bool backward) {
  return backward ? reinterpret_cast<const void *>(glu_backward<T, Args>)
                  : reinterpret_cast<const void *>(glu_forward<T, Args>);
}

template <class T>
const void *kernel_of(bool backward, Layout layout) {
  if (layout == Layout::kFlat) return kernel_of<T, FlatGluArgs>(backward);
  if (layout == Layout::kAligned) return kernel_of<T, AlignedGluArgs>(backward);
  return kernel_of<T, UnalignedGluArgs>(backward);
}

// Mixed dtypes (NONE), and fp32 rows that are not one, are read by one kernel for any.
const void *kernel_of(rmsnorm_dtype_t dtype, bool backward, Layout layout) {
  switch (dtype) {
    case RMSNORM_DTYPE_BF16: return kernel_of<__nv_bfloat16>(backward, layout);
    case RMSNORM_DTYPE_F16: return kernel_of<__half>(backward, layout);
    case RMSNORM_DTYPE_F64:
      return backward ? reinterpret_cast<const void *>(glu_backward_exact)
                      : reinterpret_cast<const void *>(glu_forward_exact);
    case RMSNORM_DTYPE_F32:
      if (layout == Layout::kFlat) return kernel_of<float, FlatGluArgs>(backward);
      [[fallthrough]];
    default: return kernel_of<AnyElement, GluArgs>(backward);
  }
}

bool has_flat_kernel(rmsnorm_dtype_t dtype) {
  return dtype != RMSNORM_DTYPE_NONE && dtype != RMSNORM_DTYPE_F64;
}

rmsnorm_status_t launch_glu(const State &state, const GluProblem &p, const Views &views,
                            bool backward, void *stream) {
  if (p.rows * p.groups == 0) return RMSNORM_SUCCESS;
  const Shape shape = shape_of(p, views);
  const rmsnorm_dtype_t dtype = common_dtype(views);
  const int width = width_of(dtype);
  const bool aligned = all_of(views, [&](const View &view) {
    View walked = view;
    if (shape.of_groups) walked.row_stride = 0;
    if (shape.rows == 1) walked.row_stride = walked.group_stride = 0;
    return rows_aligned(walked, width * element_size(view.dtype));
  });
  const bool flat = has_flat_kernel(dtype) && aligned && shape.rows * shape.groups == 1;
  const Layout layout = flat ? Layout::kFlat : aligned ? Layout::kAligned : Layout::kUnaligned;
  int64_t vectors = divide_up(shape.cols, width);
  if (!aligned) vectors = divide_up(vectors, 32) * 32;  // a warp is within one row
  const int64_t items = shape.rows * shape.groups * vectors;
  const int threads = choose_glu_threads(items, state.multiprocessors);
  const LaunchShape launch_shape = {divide_up(items, threads), threads, 1, 0, stream, p.overlap, 1};
  const void *kernel = kernel_of(dtype, backward, layout);
  DeviceGuard guard(state);
  RMSNORM_TRY(guard.status());
  if (flat) {
    FlatGluArgs args = {};
    FlatTensor *const forward_tensors[] = {&args.gate, &args.up, &args.y};
    FlatTensor *const backward_tensors[] = {&args.dy, &args.gate, &args.up, &args.dgate, &args.dup};
    for (int i = 0; i < views.count; ++i)
      (backward ? backward_tensors : forward_tensors)[i]->data = views.of[i]->data;
    args.count = shape.cols;
    args.activation = p.activation;
    args.overlap = p.overlap;
    return launch(state, kernel, launch_shape, &args);
  }
  GluArgs args = {};
  Matrix *const forward_tensors[] = {&args.gate, &args.up, &args.y};
  Matrix *const backward_tensors[] = {&args.dy, &args.gate, &args.up, &args.dgate, &args.dup};
  for (int i = 0; i < views.count; ++i) {
    Matrix &matrix = *(backward ? backward_tensors : forward_tensors)[i];
    matrix = matrix_of(*views.of[i]);
    if (shape.of_groups) matrix.row_stride = matrix.group_stride;
  }
  args.rows = Tasks(shape.rows * shape.groups, shape.groups);
  args.items = Tasks(items, vectors);
  args.cols = shape.cols;
  args.activation = p.activation;
  args.aligned_rows = aligned;
  args.overlap = p.overlap;
  return launch(state, kernel, launch_shape, &args);
}

void write_name(const char *direction, const GluProblem &p, const Views &views, char *name) {
  const rmsnorm_dtype_t dtype = common_dtype(views);
  std::snprintf(name, RMSNORM_KERNEL_NAME_SIZE, "cuda_glu_%s_%s_%s", direction,
                activation_name(p.activation),
                dtype == RMSNORM_DTYPE_NONE ? "mixed" : dtype_name(dtype));
}

}  // namespace

size_t workspace_size(const void *, const GluForwardProblem &) { return 0; }
size_t workspace_size(const void *, const GluBackwardProblem &) { return 0; }

void kernel_name(const void *, const GluForwardProblem &p, char *name) {
  write_name("forward", p, views_of(p), name);
}
void kernel_name(const void *, const GluBackwardProblem &p, char *name) {
  write_name("backward", p, views_of(p), name);
}

rmsnorm_status_t run(const void *state, const GluForwardProblem &p, const Launch &call) {
  return launch_glu(*static_cast<const State *>(state), p, views_of(p), false, call.stream);
}
rmsnorm_status_t run(const void *state, const GluBackwardProblem &p, const Launch &call) {
  return launch_glu(*static_cast<const State *>(state), p, views_of(p), true, call.stream);
}

rmsnorm_status_t visit_glu_kernels(const KernelVisitor &visitor) {
  for (const bool backward : {false, true}) {
    for (const rmsnorm_dtype_t dtype : kRowDtypes)
      for (const Layout layout : {Layout::kFlat, Layout::kAligned, Layout::kUnaligned})
        RMSNORM_TRY(visitor.visit(kernel_of(dtype, backward, layout), KernelNeeds::kNothing));
    RMSNORM_TRY(visitor.visit(kernel_of(RMSNORM_DTYPE_F64, backward, Layout::kFlat),
                              KernelNeeds::kNothing));
  }
  return RMSNORM_SUCCESS;
}

}  // namespace rmsnorm::cuda
