// The launchers of rmsnorm_glu_forward and rmsnorm_glu_backward. Elements stand alone, so rows and
// groups that lie one behind another are one row, whatever its length.
#include <cstdio>

#include "core/fold.h"
#include "cuda/kernels/glu.cuh"
#include "cuda/operations.h"
#include "cuda/tuning.h"

namespace rmsnorm::cuda {
namespace {

// The tensors, in the order of the params.
struct Views {
  const View *of[5];
  int count;
  bool backward;
};
Views views_of(const GluForwardProblem &p) { return {{&p.gate, &p.up, &p.y}, 3, false}; }
Views views_of(const GluBackwardProblem &p) {
  return {{&p.dy, &p.gate, &p.up, &p.dgate, &p.dup}, 5, true};
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

// kNarrow: flat halves, in vectors of 8 bytes.
enum class Layout { kNarrow, kFlat, kAligned, kUnaligned };

template <class T, class Args>
const void *kernel_of(bool backward) {
  return backward ? reinterpret_cast<const void *>(glu_backward<T, Args>)
                  : reinterpret_cast<const void *>(glu_forward<T, Args>);
}

// Halves.
template <class T>
const void *kernel_of(bool backward, Layout layout) {
  if (layout == Layout::kNarrow) return kernel_of<Narrow<T>, FlatGluArgs>(backward);
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
      if (layout == Layout::kFlat || layout == Layout::kNarrow)
        return kernel_of<float, FlatGluArgs>(backward);
      [[fallthrough]];
    default: return kernel_of<AnyElement, GluArgs>(backward);
  }
}

bool has_flat_kernel(rmsnorm_dtype_t dtype) {
  return dtype != RMSNORM_DTYPE_NONE && dtype != RMSNORM_DTYPE_F64;
}

void set_tensor(Matrix *tensor, const View &view) { *tensor = matrix_of(view); }
void set_tensor(FlatTensor *tensor, const View &view) { tensor->data = view.data; }

// What both kinds of arguments have.
template <class Args>
Args args_of(const GluProblem &p, const Views &views) {
  Args args = {};
  typename Args::Tensor *const forward[] = {&args.gate, &args.up, &args.y};
  typename Args::Tensor *const backward[] = {&args.dy, &args.gate, &args.up, &args.dgate,
                                             &args.dup};
  for (int i = 0; i < views.count; ++i)
    set_tensor((views.backward ? backward : forward)[i], *views.of[i]);
  args.activation = decltype(args.activation)(p.activation);
  args.overlap = p.overlap;
  return args;
}

// p: folded.
rmsnorm_status_t launch_glu(const State &state, const GluProblem &p, const Views &views,
                            void *stream) {
  const int64_t rows = p.rows * p.groups;
  if (rows == 0) return RMSNORM_SUCCESS;
  const rmsnorm_dtype_t dtype = common_dtype(views);
  int width = width_of(dtype);  // of a thread's vector
  const bool aligned = all_of(views, [=](const View &view) {
    return rows_aligned(view, width * element_size(view.dtype));
  });
  const bool flat = has_flat_kernel(dtype) && aligned && rows == 1;
  const bool narrow = flat && width == 8 && is_glu_narrow(p.cols / width, state.multiprocessors);
  const Layout layout = narrow    ? Layout::kNarrow
                        : flat    ? Layout::kFlat
                        : aligned ? Layout::kAligned
                                  : Layout::kUnaligned;
  if (narrow) width /= 2;
  int64_t vectors = divide_up(p.cols, width);
  if (!aligned) vectors = divide_up(vectors, 32) * 32;  // a warp is within one row
  const int64_t items = rows * vectors;
  const int threads = choose_glu_threads(items, narrow ? 128 : 64, state.multiprocessors);
  const int64_t blocks = divide_up(items, threads);
  const LaunchShape shape = {blocks, threads, 1, 0, stream, p.overlap, 1};
  const void *kernel = kernel_of(dtype, views.backward, layout);
  DeviceGuard guard(state);
  RMSNORM_TRY(guard.status());
  if (flat) {
    FlatGluArgs args = args_of<FlatGluArgs>(p, views);
    args.last_block = uint32_t(blocks - 1);
    args.last_elements = uint16_t(p.cols - (blocks - 1) * (threads * width));
    return launch(state, kernel, shape, &args);
  }
  GluArgs args = args_of<GluArgs>(p, views);
  args.rows = Tasks(rows, p.groups);
  args.items = Tasks(items, vectors);
  args.cols = p.cols;
  args.aligned_rows = aligned;
  return launch(state, kernel, shape, &args);
}

template <class Problem, size_t kCount>
rmsnorm_status_t run_folded(const void *state, const Problem &given,
                            const Tensor<Problem> (&table)[kCount], void *stream) {
  const Problem problem = folded(given, table);
  return launch_glu(*static_cast<const State *>(state), problem, views_of(problem), stream);
}

void write_name(const GluProblem &p, const Views &views, char *name) {
  const rmsnorm_dtype_t dtype = common_dtype(views);
  std::snprintf(name, RMSNORM_KERNEL_NAME_SIZE, "cuda_glu_%s_%s_%s",
                views.backward ? "backward" : "forward", activation_name(p.activation),
                dtype == RMSNORM_DTYPE_NONE ? "mixed" : dtype_name(dtype));
}

}  // namespace

size_t workspace_size(const void *, const GluForwardProblem &) { return 0; }
size_t workspace_size(const void *, const GluBackwardProblem &) { return 0; }

void kernel_name(const void *, const GluForwardProblem &p, char *name) {
  write_name(p, views_of(p), name);
}
void kernel_name(const void *, const GluBackwardProblem &p, char *name) {
  write_name(p, views_of(p), name);
}

rmsnorm_status_t run(const void *state, const GluForwardProblem &p, const Launch &call) {
  return run_folded(state, p, kGluForwardTensors, call.stream);
}
rmsnorm_status_t run(const void *state, const GluBackwardProblem &p, const Launch &call) {
  return run_folded(state, p, kGluBackwardTensors, call.stream);
}

rmsnorm_status_t visit_glu_kernels(const KernelVisitor &visitor) {
  for (const bool backward : {false, true}) {
    for (const rmsnorm_dtype_t dtype : kRowDtypes)
      for (const Layout layout :
           {Layout::kNarrow, Layout::kFlat, Layout::kAligned, Layout::kUnaligned})
        RMSNORM_TRY(visitor.visit(kernel_of(dtype, backward, layout), KernelNeeds::kNothing));
    RMSNORM_TRY(visitor.visit(kernel_of(RMSNORM_DTYPE_F64, backward, Layout::kFlat),
                              KernelNeeds::kNothing));
  }
  return RMSNORM_SUCCESS;
}

}  // namespace rmsnorm::cuda
