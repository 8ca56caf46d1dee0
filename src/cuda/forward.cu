// The launcher of rmsnorm_forward: which kernel, which configuration, which arguments.
#include <cstdio>

#include "cuda/kernels/forward_exact.cuh"
#include "cuda/kernels/forward_long.cuh"
#include "cuda/kernels/forward_rows.cuh"
#include "cuda/kernels/forward_short.cuh"
#include "cuda/operations.h"
#include "cuda/tuning.h"

namespace rmsnorm::cuda {
namespace {

template <class T, bool kWhole, Asked kAsked>
const void *kernel_of(const ForwardConfig &config) {
  const int vectors = config.vectors;
  switch (config.kernel) {
    case ForwardKernel::kShort:
      if (vectors == 1) return reinterpret_cast<const void *>(forward_short<T, 1, kWhole, kAsked>);
      // Unaligned rows that are not plain are rare: one of 3 vectors takes them, the third idle.
      if constexpr (kWhole || kAsked != Asked::kAll)
        if (vectors == 2)
          return reinterpret_cast<const void *>(forward_short<T, 2, kWhole, kAsked>);
      return reinterpret_cast<const void *>(forward_short<T, 3, kWhole, kAsked>);
    case ForwardKernel::kRows:
      if constexpr (kAsked == Asked::kAll) {
        return reinterpret_cast<const void *>(forward_rows<T, 4, kWhole, Asked::kAll>);
      } else {
        constexpr Asked kAdd = Asked::kPlainAdd;
        if constexpr (kWhole) {  // for_unaligned
          if (config.cluster > 1)
            return reinterpret_cast<const void *>(
                forward_rows<T, 2, true, kAdd, RowBlocks::kCluster>);
          if (config.dense)
            return reinterpret_cast<const void *>(
                forward_rows<T, 4, true, kAdd, RowBlocks::kDense>);
        }
        if (vectors < 4) return reinterpret_cast<const void *>(forward_rows<T, 2, kWhole, kAdd>);
        return reinterpret_cast<const void *>(forward_rows<T, 4, kWhole, Asked::kPlain>);
      }
    case ForwardKernel::kLong:
      return reinterpret_cast<const void *>(forward_long<T, kWhole, kAsked>);
    case ForwardKernel::kExact: break;
  }
  return reinterpret_cast<const void *>(forward_exact<false>);
}

// Mixed dtypes (NONE) are never plain.
template <bool kWhole, Asked kAsked>
const void *kernel_of(rmsnorm_dtype_t dtype, const ForwardConfig &config) {
  switch (dtype) {
    case RMSNORM_DTYPE_BF16: return kernel_of<__nv_bfloat16, kWhole, kAsked>(config);
    case RMSNORM_DTYPE_F16: return kernel_of<__half, kWhole, kAsked>(config);
    case RMSNORM_DTYPE_F32: return kernel_of<float, kWhole, kAsked>(config);
    case RMSNORM_DTYPE_F64: return reinterpret_cast<const void *>(forward_exact<true>);
    default: return kernel_of<AnyElement, kWhole, Asked::kAll>(config);
  }
}

const void *kernel_of(rmsnorm_dtype_t dtype, const ForwardConfig &config, bool whole, bool plain) {
  constexpr Asked kPlain = Asked::kPlainAdd;
  if (whole)
    return plain ? kernel_of<true, kPlain>(dtype, config)
                 : kernel_of<true, Asked::kAll>(dtype, config);
  return plain ? kernel_of<false, kPlain>(dtype, config)
               : kernel_of<false, Asked::kAll>(dtype, config);
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
  const bool same = p.h_dtype == dtype && (!p.y.present() || p.y.dtype == dtype) &&
                    (!p.residual.present() || p.residual.dtype == dtype);
  return same ? dtype : rmsnorm_dtype_t(RMSNORM_DTYPE_NONE);
}

struct Plan {
  rmsnorm_dtype_t dtype;  // of the row's tensors; NONE: mixed
  int width;              // elements of a vector
  bool plain;             // the kernels of Asked::kPlainAdd will do
  ForwardConfig config;
};

Plan plan_of(const State &state, const ForwardProblem &p) {
  Plan plan = {row_dtype(p), 1, false, {ForwardKernel::kExact, 0, 0, 1, 1, false}};
  if (plan.dtype == RMSNORM_DTYPE_F64) return plan;
  plan.width = plan.dtype == RMSNORM_DTYPE_F16 || plan.dtype == RMSNORM_DTYPE_BF16 ? 8 : 4;
  plan.plain = plan.dtype != RMSNORM_DTYPE_NONE && p.weight.dtype == plan.dtype &&
               p.weight.group_stride == 0 && !p.bias.present() && p.weight_offset == 0 && !p.llama;
  if (p.groups > 1)
    for (const View *view : {&p.x, &p.residual, &p.y, &p.residual_out, &p.rstd})
      plan.plain = plan.plain && is_one_stride(*view, p.groups);
  const int64_t tasks = p.rows * p.groups, vectors = divide_up(p.cols, plan.width);
  const bool adds = p.residual.present();
  plan.config = choose_forward(vectors, tasks, adds, plan.plain, state.multiprocessors,
                               state.cluster_limit, state.shared_memory);
  return plan;
}

// `groups` > 1: the view has that one stride, and is taken as rows alone.
Matrix rows_of(const View &view, int64_t groups) {
  Matrix matrix = matrix_of(view);
  if (groups > 1) matrix.row_stride = matrix.group_stride;
  return matrix;
}

}  // namespace

size_t workspace_size(const void *, const ForwardProblem &) { return 0; }

void kernel_name(const void *state, const ForwardProblem &p, char *name) {
  const Plan plan = plan_of(*static_cast<const State *>(state), p);
  const char *dtype = plan.dtype == RMSNORM_DTYPE_NONE ? "mixed" : dtype_name(plan.dtype);
  const ForwardConfig &c = plan.config;
  if (c.kernel == ForwardKernel::kExact) {
    std::snprintf(name, RMSNORM_KERNEL_NAME_SIZE, "cuda_forward_exact_%s", dtype);
    return;
  }
  const char *kernel = c.kernel == ForwardKernel::kShort  ? "short"
                       : c.kernel == ForwardKernel::kRows ? "rows"
                                                          : "long";
  std::snprintf(name, RMSNORM_KERNEL_NAME_SIZE, "cuda_forward_%s_%s_v%d_t%d_r%d_c%d", kernel, dtype,
                c.vectors, c.threads, c.rows, c.cluster);
}

rmsnorm_status_t run(const void *opaque, const ForwardProblem &p, const Launch &call) {
  const State &state = *static_cast<const State *>(opaque);
  const int64_t tasks = p.rows * p.groups;
  if (tasks == 0) return RMSNORM_SUCCESS;
  const Plan plan = plan_of(state, p);
  const bool whole = is_whole(p, plan.width);
  const ForwardConfig config =
      whole || !plan.plain
          ? plan.config
          : for_unaligned(plan.config, divide_up(p.cols, plan.width), p.residual.present());

  ForwardArgs args = {};
  const int64_t one_stride_groups = plan.plain ? p.groups : 1;
  args.tasks = Tasks(tasks, plan.plain ? 1 : p.groups);
  args.task_count = tasks;
  args.set(RowTensor::kX, rows_of(p.x, one_stride_groups));
  args.set(RowTensor::kY, rows_of(p.y, one_stride_groups));
  args.set(RowTensor::kRstd, rows_of(p.rstd, one_stride_groups));
  args.set(RowTensor::kResidual, rows_of(p.residual, one_stride_groups));
  args.set(RowTensor::kResidualOut, rows_of(p.residual_out, one_stride_groups));
  const Matrix weight = matrix_of(p.weight);
  args.weight_data = weight.data;
  args.weight_rest = {weight.group_stride, weight.dtype};
  args.bias = matrix_of(p.bias);
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
  const int64_t x_bytes = tasks * p.cols * element_size(p.x.dtype);
  args.policy = keeps_inputs(x_bytes, state.l2_bytes) ? InputPolicy::kKeep : InputPolicy::kNone;
  args.overlap = p.overlap;
  args.cluster = uint16_t(config.cluster);
  args.vectors = config.vectors;

  LaunchShape shape = {0, config.threads, config.rows, 0, call.stream, p.overlap, config.cluster};
  int64_t rows_per_block = config.rows;
  if (config.kernel == ForwardKernel::kExact) shape.threads_x = kExactThreads;
  if (config.kernel == ForwardKernel::kShort && plan.plain)
    rows_per_block *=
        config.vectors == 1 ? kShortRows<1, Asked::kPlainAdd> : kShortRows<2, Asked::kPlainAdd>;
  if (config.kernel == ForwardKernel::kLong)
    shape.shared_memory = (size_t(config.threads) * config.vectors + kLongWarps) * sizeof(uint4);
  const void *kernel = kernel_of(plan.dtype, config, whole, plan.plain);
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
  const struct {
    ForwardKernel kernel;
    int vectors, cluster;
    bool dense;
  } variants[] = {{ForwardKernel::kShort, 1, 1, false}, {ForwardKernel::kShort, 2, 1, false},
                  {ForwardKernel::kShort, 3, 1, false}, {ForwardKernel::kRows, 2, 1, false},
                  {ForwardKernel::kRows, 2, 2, false},  {ForwardKernel::kRows, 4, 1, false},
                  {ForwardKernel::kRows, 4, 1, true},   {ForwardKernel::kLong, 0, 1, false}};
  for (const rmsnorm_dtype_t dtype : kRowDtypes)
    for (const auto &variant : variants)
      for (const bool whole : {false, true})
        for (const bool plain : {false, true}) {
          const ForwardConfig config = {variant.kernel,  variant.vectors, 0, 1,
                                        variant.cluster, variant.dense};
          RMSNORM_TRY(visitor.visit(kernel_of(dtype, config, whole, plain),
                                    variant.kernel == ForwardKernel::kLong
                                        ? KernelNeeds::kSharedMemory | KernelNeeds::kClusters
                                        : KernelNeeds::kNothing));
        }
  RMSNORM_TRY(
      visitor.visit(reinterpret_cast<const void *>(forward_exact<false>), KernelNeeds::kNothing));
  return visitor.visit(reinterpret_cast<const void *>(forward_exact<true>), KernelNeeds::kNothing);
}

}  // namespace rmsnorm::cuda
