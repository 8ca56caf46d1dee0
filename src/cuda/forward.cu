// The launcher of rmsnorm_forward: which kernel, which configuration, which arguments.
#include <cstdio>

#include "cuda/kernels/forward_exact.cuh"
#include "cuda/kernels/forward_rows.cuh"
#include "cuda/operations.h"
#include "cuda/tuning.h"

namespace rmsnorm::cuda {
namespace {

template <class T, bool kWhole, bool kPlain>
const void *rows_kernel(int vectors) {
  switch (vectors) {
    case 1:
      return reinterpret_cast<const void *>(forward_rows < T, 1, kPlain ? kForwardUnroll : 1,
                                            kWhole, kPlain >);
    case 2: return reinterpret_cast<const void *>(forward_rows<T, 2, 1, kWhole, kPlain>);
    case 4: return reinterpret_cast<const void *>(forward_rows<T, 4, 1, kWhole, kPlain>);
    default: return reinterpret_cast<const void *>(forward_long<T, kWhole, kPlain>);
  }
}

// More than 4 vectors: forward_long. Mixed dtypes are never plain.
template <bool kWhole, bool kPlain>
const void *rows_kernel(rmsnorm_dtype_t dtype, int vectors) {
  switch (dtype) {
    case RMSNORM_DTYPE_BF16: return rows_kernel<__nv_bfloat16, kWhole, kPlain>(vectors);
    case RMSNORM_DTYPE_F16: return rows_kernel<__half, kWhole, kPlain>(vectors);
    case RMSNORM_DTYPE_F32: return rows_kernel<float, kWhole, kPlain>(vectors);
    default: return rows_kernel<AnyElement, kWhole, false>(vectors);
  }
}

const void *rows_kernel(rmsnorm_dtype_t dtype, int vectors, bool whole, bool plain) {
  if (whole)
    return plain ? rows_kernel<true, true>(dtype, vectors)
                 : rows_kernel<true, false>(dtype, vectors);
  return plain ? rows_kernel<false, true>(dtype, vectors)
               : rows_kernel<false, false>(dtype, vectors);
}

// Whether every access can be a whole vector of `width` elements.
bool is_whole(const ForwardProblem &p, int width) {
  bool whole = p.cols % width == 0 && rows_aligned(p.weight, 16) && rows_aligned(p.bias, 16);
  for (const View *view : {&p.x, &p.residual, &p.y, &p.residual_out})
    whole = whole && (!view->present() || rows_aligned(*view, width * element_size(view->dtype)));
  return whole;
}

// The dtype that all of the row's tensors have; NONE if they are mixed.
rmsnorm_dtype_t row_dtype(const ForwardProblem &p) {
  const rmsnorm_dtype_t dtype = p.x.dtype;
  const bool same = p.y.dtype == dtype && p.h_dtype == dtype &&
                    (!p.residual.present() || p.residual.dtype == dtype);
  return same ? dtype : rmsnorm_dtype_t(RMSNORM_DTYPE_NONE);
}

struct Plan {
  rmsnorm_dtype_t dtype;  // of the row's tensors; NONE: mixed
  int width;              // elements of a vector
  ForwardConfig config;   // vectors 0: forward_exact
};

Plan plan_of(const State &state, const ForwardProblem &p) {
  const rmsnorm_dtype_t dtype = row_dtype(p);
  if (dtype == RMSNORM_DTYPE_F64) return {dtype, 1, {0, 0, 1, 1}};
  const int width = dtype == RMSNORM_DTYPE_F16 || dtype == RMSNORM_DTYPE_BF16 ? 8 : 4;
  return {dtype, width,
          choose_forward(divide_up(p.cols, width), p.rows * p.groups, state.multiprocessors,
                         state.cluster_limit, state.shared_memory)};
}

}  // namespace

size_t workspace_size(const void *, const ForwardProblem &) { return 0; }

void kernel_name(const void *state, const ForwardProblem &p, char *name) {
  const Plan plan = plan_of(*static_cast<const State *>(state), p);
  const char *dtype = plan.dtype == RMSNORM_DTYPE_NONE ? "mixed" : dtype_name(plan.dtype);
  const ForwardConfig &c = plan.config;
  if (c.vectors == 0) std::snprintf(name, RMSNORM_KERNEL_NAME_SIZE, "cuda_forward_exact_%s", dtype);
  else
    std::snprintf(name, RMSNORM_KERNEL_NAME_SIZE, "cuda_forward_%s_%s_v%d_t%d_r%d_c%d",
                  c.vectors > 4 ? "long" : "rows", dtype, c.vectors, c.threads, c.rows, c.cluster);
}

rmsnorm_status_t run(const void *opaque, const ForwardProblem &p, const Launch &call) {
  const State &state = *static_cast<const State *>(opaque);
  const int64_t tasks = p.rows * p.groups;
  if (tasks == 0) return RMSNORM_SUCCESS;
  const Plan plan = plan_of(state, p);

  ForwardArgs args = {};
  args.tasks = Tasks(tasks, p.groups);
  args.x = matrix_of(p.x);
  args.residual = matrix_of(p.residual);
  args.weight = matrix_of(p.weight);
  args.bias = matrix_of(p.bias);
  args.y = matrix_of(p.y);
  args.residual_out = matrix_of(p.residual_out);
  args.rstd = matrix_of(p.rstd);
  args.cols = p.cols;
  args.eps = p.eps;
  args.weight_offset = p.weight_offset;
  args.eps_float = float(p.eps);
  args.inverse_cols = float(1.0 / double(p.cols));
  if (p.x.dtype != RMSNORM_DTYPE_F64) {
    args.offset_high = float(p.weight_offset);
    args.offset_low = float(p.weight_offset - double(args.offset_high));
  }
  args.h_dtype = p.h_dtype;
  args.llama = p.llama;
  args.overlap = p.overlap;
  args.cluster = plan.config.cluster;
  args.plain = p.weight.dtype == plan.dtype && p.weight.group_stride == 0 && !p.bias.present() &&
               p.weight_offset == 0 && !p.llama;

  LaunchShape shape = {0, kExactThreads, 1, 0, call.stream, p.overlap, 1};
  const void *kernel = plan.dtype == RMSNORM_DTYPE_F64
                           ? reinterpret_cast<const void *>(forward_exact<true>)
                           : reinterpret_cast<const void *>(forward_exact<false>);
  int64_t rows_per_block = 1;
  const ForwardConfig &config = plan.config;
  if (config.vectors != 0) {
    kernel = rows_kernel(plan.dtype, config.vectors, is_whole(p, plan.width), args.plain);
    shape.threads_x = config.threads;
    shape.threads_y = config.rows;
    shape.cluster = config.cluster;
    args.vectors = config.vectors;
    if (config.vectors > 4)
      shape.shared_memory = size_t(config.threads) * config.vectors * sizeof(uint4);
    rows_per_block = config.rows * (config.vectors == 1 && args.plain ? kForwardUnroll : 1);
  }
  DeviceGuard guard(state);
  RMSNORM_TRY(guard.status());
  while (args.first_task < tasks) {
    const int64_t left = divide_up(tasks - args.first_task, rows_per_block);
    const int64_t now = left < kMostBlocks / shape.cluster ? left : kMostBlocks / shape.cluster;
    shape.blocks = now * shape.cluster;
    RMSNORM_TRY(launch(state, kernel, shape, &args));
    args.first_task += now * rows_per_block;
  }
  return RMSNORM_SUCCESS;
}

const void *any_kernel() { return reinterpret_cast<const void *>(forward_exact<false>); }

rmsnorm_status_t visit_forward_kernels(const KernelVisitor &visitor) {
  for (const rmsnorm_dtype_t dtype : kRowDtypes)
    for (const int vectors : {1, 2, 4, kLongVectors})
      for (const bool whole : {false, true})
        for (const bool plain : {false, true})
          RMSNORM_TRY(visitor.visit(rows_kernel(dtype, vectors, whole, plain),
                                    vectors == kLongVectors
                                        ? KernelNeeds::kSharedMemory | KernelNeeds::kClusters
                                        : KernelNeeds::kNothing));
  RMSNORM_TRY(
      visitor.visit(reinterpret_cast<const void *>(forward_exact<false>), KernelNeeds::kNothing));
  return visitor.visit(reinterpret_cast<const void *>(forward_exact<true>), KernelNeeds::kNothing);
}

}  // namespace rmsnorm::cuda
