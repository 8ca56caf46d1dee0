// The launcher of rmsnorm_backward: a plan (which kernels, how much workspace for what), then the
// launches.
#include <array>
#include <cstdio>

#include "cuda/kernels/backward_exact.cuh"
#include "cuda/kernels/backward_few.cuh"
#include "cuda/kernels/backward_rows.cuh"
#include "cuda/kernels/backward_short.cuh"
#include "cuda/kernels/sum_partials.cuh"
#include "cuda/operations.h"
#include "cuda/tuning.h"

namespace rmsnorm::cuda {
namespace {

// Rows that need 4 vectors are rare: what is not aligned has one kernel.
template <class T, bool kWhole, bool kPlain>
const void *rows_kernel(int vectors) {
  if (vectors == 1) return reinterpret_cast<const void *>(backward_short<T, kWhole, kPlain>);
  if (vectors == 2) return reinterpret_cast<const void *>(backward_rows<T, 2, kWhole, kPlain>);
  constexpr bool kAligned = kWhole && !std::is_same_v<T, AnyElement>, kBoth = kAligned && kPlain;
  return reinterpret_cast<const void *>(backward_rows<T, 4, kAligned, kBoth>);
}

// Mixed dtypes are never plain.
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

const void *few_kernel(rmsnorm_dtype_t dtype) {
  switch (dtype) {
    case RMSNORM_DTYPE_BF16: return reinterpret_cast<const void *>(backward_few<__nv_bfloat16>);
    case RMSNORM_DTYPE_F16: return reinterpret_cast<const void *>(backward_few<__half>);
    default: return reinterpret_cast<const void *>(backward_few<float>);
  }
}

// The tensors of rows x groups x cols.
std::array<const View *, 5> row_views(const BackwardProblem &p) {
  return {&p.dy, &p.x, &p.dresidual_out, &p.dx, &p.dresidual};
}

// The dtype that they share; NONE if they are mixed.
rmsnorm_dtype_t row_dtype(const BackwardProblem &p) {
  for (const View *view : row_views(p))
    if (view->present() && view->dtype != p.x.dtype) return RMSNORM_DTYPE_NONE;
  return p.x.dtype;
}

// Whether every access can be a whole vector of `width` elements.
bool is_whole(const BackwardProblem &p, int width) {
  bool whole = p.cols % width == 0 && rows_aligned(p.weight, 16);
  for (const View *view : row_views(p))
    whole = whole && (!view->present() || rows_aligned(*view, width * element_size(view->dtype)));
  return whole;
}

// Whether the weight is what the plain kernels of 4 vectors keep in registers.
bool has_own_weight(const BackwardProblem &p) {
  return p.weight.dtype == p.x.dtype && p.weight_offset == 0;
}

// What runs, and where its partial sums lie in the workspace (bytes from its aligned start).
struct Plan {
  rmsnorm_dtype_t dtype;  // of backward_rows; NONE: mixed
  int width;              // elements of its vectors
  BackwardConfig config;  // vectors 0: the exact kernels alone
  bool by_group;
  int64_t sums;       // weight gradients: one, or one per group (by_group)
  int64_t sum_tasks;  // rows that share a sum
  FewConfig few;      // groups 0: backward_rows and sum_partials
  // backward_rows
  bool rows_dweight, columns_dweight;  // from backward_rows', backward_columns' partial sums
  int64_t blocks, chunks, pitch;
  // the exact kernels
  bool exact_rows;  // backward_rstd and backward_exact
  bool columns;     // backward_columns
  int64_t column_chunks, column_pitch;
  size_t partial, rstd, row_rstd, dweight, dbias,
      bytes;  // rstd: backward_rows', where none is given
};

constexpr size_t kAlignment = 256;

// The offset of count * size more bytes. A total beyond 2^62 stays there: no workspace is that
// large.
size_t reserve(unsigned __int128 count, size_t size, size_t *total) {
  const size_t at = *total;
  const unsigned __int128 end = at + (count * size + kAlignment - 1) / kAlignment * kAlignment;
  *total = end < (size_t{1} << 62) ? static_cast<size_t>(end) : size_t{1} << 62;
  return at;
}

// by_group: weight, dweight or dbias is per group, so that a block keeps to one group.
bool is_by_group(const BackwardProblem &p) {
  return p.groups > 1 && (p.per_group || p.weight.group_stride != 0);
}

// The shared memory of a block whose ring has `stages`.
BackwardMemory memory_of(const Plan &plan, const BackwardConfig &c, int stages, bool whole,
                         bool dweight) {
  const bool is_short = c.vectors == 1;
  const Ring ring = ring_of(whole, plan.dtype == RMSNORM_DTYPE_NONE, is_short);
  return {c.threads * c.groups,
          c.groups,
          2 * ring_slots(ring, c.vectors, is_short ? kShortBackwardRows : 1),
          stages,
          dweight && !sums_in_partial(c.vectors) ? c.vectors * plan.width : 0,
          sum_slots(c.groups, c.threads, c.cluster)};
}

// The configuration with as many groups as the device has shared memory for, whatever is asked for
// and however it is aligned: neither may decide dweight's tree.
BackwardConfig fit_config(const State &state, BackwardConfig config, const Plan &plan) {
  const auto fits = [&] {
    return memory_of(plan, config, 2, false, true).bytes() <= state.shared_memory;
  };
  while (config.groups > 1 && !fits()) --config.groups;
  return config.vectors != 0 && fits() ? config : BackwardConfig{};
}

Plan plan_of(const State &state, const BackwardProblem &p, bool by_group) {
  Plan plan = {};
  const int64_t tasks = p.rows * p.groups;
  plan.dtype = row_dtype(p);
  plan.by_group = by_group;
  plan.sums = plan.by_group ? p.groups : 1;
  plan.sum_tasks = plan.by_group ? p.rows : tasks;
  const int width = plan.width =
      plan.dtype == RMSNORM_DTYPE_F16 || plan.dtype == RMSNORM_DTYPE_BF16 ? 8 : 4;
  const bool rows_outputs = p.dx.present() || p.dresidual.present() || p.dweight.present();
  if (p.x.dtype != RMSNORM_DTYPE_F64)
    plan.config = fit_config(state,
                             choose_backward(divide_up(p.cols, width), p.cols % width != 0, tasks,
                                             state.multiprocessors, state.cluster_limit),
                             plan);
  const BackwardConfig &config = plan.config;
  if (config.vectors != 0 && rows_outputs) {
    const int64_t wanted = divide_up(config.blocks, plan.sums);
    const int64_t most = divide_up(plan.sum_tasks, config.groups);
    plan.blocks = wanted < most ? wanted : most;
    plan.chunks = 1;
    if (plan.blocks > 0)
      plan.chunks = divide_up(divide_up(plan.sum_tasks, plan.blocks * config.groups), kChunkRows);
    plan.pitch = int64_t(config.cluster) * config.threads * config.vectors * width;
    if (!by_group && p.cols % width == 0)
      plan.few = choose_few(divide_up(p.cols, width), tasks, state.multiprocessors);
    plan.rows_dweight = p.dweight.present() && plan.few.groups == 0;
    if (!p.rstd.present()) plan.rstd = reserve(tasks, sizeof(float), &plan.bytes);
    if (plan.rows_dweight)
      plan.partial = reserve(static_cast<unsigned __int128>(plan.sums) * plan.blocks *
                                 (plan.chunks * plan.pitch),
                             sizeof(float), &plan.bytes);
  }
  plan.exact_rows = config.vectors == 0 && rows_outputs;
  plan.columns_dweight = p.dweight.present() && !plan.rows_dweight && plan.few.groups == 0;
  plan.columns = plan.columns_dweight || p.dbias.present();
  if (plan.exact_rows) plan.row_rstd = reserve(tasks, sizeof(RowRstd), &plan.bytes);
  if (plan.columns) {
    const int64_t tiles = divide_up(p.cols, kColumnThreads) * plan.sums;
    plan.column_pitch = (p.cols + 3) / 4 * 4;  // sum_partials reads fours
    plan.column_chunks = choose_column_chunks(plan.sum_tasks, tiles, state.multiprocessors);
    const unsigned __int128 count =
        static_cast<unsigned __int128>(plan.sums) * plan.column_chunks * plan.column_pitch;
    if (plan.columns_dweight) plan.dweight = reserve(count, sizeof(double), &plan.bytes);
    if (p.dbias.present()) plan.dbias = reserve(count, sizeof(double), &plan.bytes);
  }
  if (plan.bytes > 0) plan.bytes += kAlignment;  // to align a workspace that is not
  return plan;
}

class Run {
 public:
  Run(const State &state, const BackwardProblem &problem, const Launch &call)
      : state_(state),
        p_(problem),
        plan_(plan_of(state, problem, is_by_group(problem))),
        plain_(plan_.dtype != RMSNORM_DTYPE_NONE && problem.dx.present() &&
               !problem.dresidual.present() && !problem.dresidual_out.present() &&
               (plan_.by_group || problem.groups == 1) &&
               (plan_.config.vectors != 4 || has_own_weight(problem))),
        whole_(is_whole(problem, plan_.width)),
        stream_(call.stream) {
    const uintptr_t start = reinterpret_cast<uintptr_t>(call.workspace);
    workspace_ = reinterpret_cast<char *>((start + kAlignment - 1) / kAlignment * kAlignment);
  }

  rmsnorm_status_t run() {
    if (plan_.columns || plan_.exact_rows) RMSNORM_TRY(run_exact());
    if (plan_.config.vectors != 0 && plan_.blocks > 0) {
      View rstd = p_.rstd;
      if (!rstd.present()) RMSNORM_TRY(find_rstd(&rstd));
      RMSNORM_TRY(plan_.few.groups != 0 ? run_few(rstd) : run_rows(rstd));
    }
    if (!p_.dweight.present() && !p_.dbias.present()) return RMSNORM_SUCCESS;
    if (plan_.rows_dweight)
      RMSNORM_TRY(sum<float>(p_.dweight, plan_.partial, plan_.blocks * plan_.chunks, plan_.pitch));
    else if (plan_.columns_dweight)
      RMSNORM_TRY(sum<double>(p_.dweight, plan_.dweight, plan_.column_chunks, plan_.column_pitch));
    if (p_.dbias.present())
      RMSNORM_TRY(sum<double>(p_.dbias, plan_.dbias, plan_.column_chunks, plan_.column_pitch));
    return RMSNORM_SUCCESS;
  }

 private:
  // A kernel may always overlap the end of one before it that is ours; the first one may overlap
  // the stream's earlier work if the caller asked for it.
  bool overlap() {
    const bool may = launched_ || p_.overlap;
    launched_ = true;
    return may;
  }

  template <class T>
  T *at(size_t offset) {
    return reinterpret_cast<T *>(workspace_ + offset);
  }

  rmsnorm_status_t launch_tasks(const void *kernel, ExactBackwardArgs args) {
    args.overlap = overlap();
    LaunchShape shape = {0, kExactThreads, 1, 0, stream_, args.overlap, 1};
    for (args.first_task = 0; args.first_task < args.tasks.count; args.first_task += shape.blocks) {
      const int64_t left = args.tasks.count - args.first_task;
      shape.blocks = left < kMostBlocks ? left : kMostBlocks;
      RMSNORM_TRY(launch(state_, kernel, shape, &args));
    }
    return RMSNORM_SUCCESS;
  }

  rmsnorm_status_t run_exact() {
    ExactBackwardArgs args = {};
    args.tasks = Tasks(p_.rows * p_.groups, p_.groups);
    if (args.tasks.count == 0) return zero_partials();
    args.dy = matrix_of(p_.dy);
    args.x = matrix_of(p_.x);
    args.weight = matrix_of(p_.weight);
    args.rstd = matrix_of(p_.rstd);
    args.dresidual_out = matrix_of(p_.dresidual_out);
    args.dx = matrix_of(p_.dx);
    args.dresidual = matrix_of(p_.dresidual);
    args.row_rstd = at<RowRstd>(plan_.row_rstd);
    args.dweight = plan_.columns_dweight ? at<double>(plan_.dweight) : nullptr;
    args.dbias = p_.dbias.present() ? at<double>(plan_.dbias) : nullptr;
    args.rows = plan_.sum_tasks;
    args.cols = p_.cols;
    args.pitch = plan_.column_pitch;
    args.chunks = plan_.column_chunks;
    args.eps = p_.eps;
    args.weight_offset = p_.weight_offset;
    args.by_group = plan_.by_group;
    if (plan_.exact_rows)
      RMSNORM_TRY(launch_tasks(reinterpret_cast<const void *>(backward_rstd), args));
    if (plan_.columns) {
      args.rows_per_chunk = divide_up(plan_.sum_tasks, plan_.column_chunks);
      args.overlap = overlap();
      const int64_t blocks = divide_up(p_.cols, kColumnThreads) * plan_.sums * plan_.column_chunks;
      RMSNORM_TRY(check_blocks(blocks));
      const LaunchShape shape = {blocks, kColumnThreads, 1, 0, stream_, args.overlap, 1};
      RMSNORM_TRY(launch(state_, reinterpret_cast<const void *>(backward_columns), shape, &args));
    }
    if (plan_.exact_rows && (p_.dx.present() || p_.dresidual.present()))
      RMSNORM_TRY(launch_tasks(reinterpret_cast<const void *>(backward_exact), args));
    return RMSNORM_SUCCESS;
  }

  // The forward kernels without a y.
  rmsnorm_status_t find_rstd(View *rstd) {
    *rstd = {at<char>(plan_.rstd), p_.groups, 1, RMSNORM_DTYPE_F32};
    ForwardProblem forward;
    static_cast<NormProblem &>(forward) = p_;
    forward.weight_offset = 0;
    forward.overlap = overlap();
    forward.h_dtype = p_.x.dtype;
    forward.x = p_.x;
    forward.rstd = *rstd;
    return cuda::run(&state_, forward, {nullptr, stream_});
  }

  // What backward_rows and backward_few are told of the problem.
  BackwardArgs row_args(const View &rstd) {
    BackwardArgs args = {};
    args.tasks = Tasks(plan_.sum_tasks, p_.groups);
    args.dy = matrix_of(p_.dy);
    args.x = matrix_of(p_.x);
    args.weight = matrix_of(p_.weight);
    args.rstd = matrix_of(rstd);
    args.dresidual_out = matrix_of(p_.dresidual_out);
    args.dx = matrix_of(p_.dx);
    args.dresidual = matrix_of(p_.dresidual);
    args.cols = p_.cols;
    args.eps = p_.eps;
    args.weight_offset = p_.weight_offset;
    args.inverse_cols = float(1.0 / double(p_.cols));
    args.cluster = plan_.config.cluster;
    args.by_group = plan_.by_group;
    return args;
  }

  // dx by rows, and the partial sums of dweight unless strips have it.
  rmsnorm_status_t run_rows(const View &rstd) {
    BackwardArgs args = row_args(rstd);
    args.partial = plan_.rows_dweight ? at<float>(plan_.partial) : nullptr;
    args.stride = plan_.blocks * plan_.config.groups;
    args.rows_each = int(plan_.sum_tasks / args.stride);
    args.rows_more = uint32_t(plan_.sum_tasks % args.stride);
    args.dy_step = args.stride * args.dy.row_stride;
    args.x_step = args.stride * args.x.row_stride;
    args.dx_step = args.stride * args.dx.row_stride;
    args.rstd_step = args.stride * args.rstd.row_stride;
    args.blocks = int(plan_.blocks);
    args.chunks = int(plan_.chunks);
    args.pitch = plan_.pitch;
    const BackwardConfig &config = plan_.config;
    args.stages = config.stages;
    while (memory_of(plan_, config, args.stages, whole_, plan_.rows_dweight).bytes() >
           state_.shared_memory)
      --args.stages;
    const BackwardMemory memory = memory_of(plan_, config, args.stages, whole_, plan_.rows_dweight);
    args.sum_slots = memory.sum_slots;
    args.overlap = overlap();
    args.paced = config.paced;
    const int64_t blocks = plan_.blocks * plan_.sums * config.cluster;
    RMSNORM_TRY(check_blocks(blocks));
    const LaunchShape shape = {blocks,  config.threads, config.groups, memory.bytes(),
                               stream_, args.overlap,   config.cluster};
    return launch(state_, rows_kernel(plan_.dtype, config.vectors, whole_, plain_), shape, &args);
  }

  // dweight by strips and dx by rows: in one kernel if the rows are aligned and alike, the strips
  // first if dx may take the place of what they read.
  rmsnorm_status_t run_few(const View &rstd) {
    const bool one_kernel = whole_ && plan_.dtype != RMSNORM_DTYPE_NONE && p_.groups == 1;
    const void *const kernel =
        one_kernel ? few_kernel(plan_.dtype) : reinterpret_cast<const void *>(backward_few_columns);
    const int64_t strip = int64_t(plan_.few.strip_vectors) * plan_.width;
    const int strips = p_.dweight.present() ? int(divide_up(p_.cols, strip)) : 0;
    const bool by_rows = p_.dx.present() || p_.dresidual.present();
    const int64_t rows = by_rows ? divide_up(plan_.sum_tasks, plan_.few.groups) : 0;
    bool in_place = false;
    for (const View *view : {&p_.dx, &p_.dresidual})
      in_place =
          in_place || (view->present() && (view->data == p_.x.data || view->data == p_.dy.data));
    if (one_kernel && !in_place) return launch_few(rstd, kernel, strips, rows);
    if (strips > 0) RMSNORM_TRY(launch_few(rstd, kernel, strips, 0));
    if (!by_rows) return RMSNORM_SUCCESS;
    return one_kernel ? launch_few(rstd, kernel, 0, rows) : run_rows(rstd);
  }

  rmsnorm_status_t launch_few(const View &rstd, const void *kernel, int strips, int64_t rows) {
    FewArgs args = {};
    static_cast<BackwardArgs &>(args) = row_args(rstd);
    args.cluster = 1;
    args.sum_slots = kBackwardWarps;
    args.dweight = p_.dweight.data;
    args.dweight_dtype = p_.dweight.dtype;
    args.accumulate = p_.accumulate;
    args.strips = strips;
    args.strip_vectors = plan_.few.strip_vectors;
    args.lanes = plan_.few.lanes;
    args.width = plan_.width;
    args.mixed = plan_.dtype == RMSNORM_DTYPE_NONE;
    args.overlap = overlap();
    const LaunchShape shape = {
        strips + rows, plan_.few.threads, plan_.few.groups, 0, stream_, args.overlap, 1};
    return launch(state_, kernel, shape, &args);
  }

  template <class Real>
  rmsnorm_status_t sum(const View &out, size_t partial, int64_t count, int64_t pitch) {
    SumArgs args = {};
    args.partial = at<void>(partial);
    args.count = count;
    args.pitch = pitch;
    args.cols = p_.cols;
    args.out = out.data;
    args.out_group_stride = matrix_of(out).group_stride;
    args.dtype = out.dtype;
    args.accumulate = p_.accumulate;
    args.overlap = overlap();
    args.tiles = uint32_t(divide_up(p_.cols, kSumColumns));
    const int64_t blocks = args.tiles * plan_.sums;
    RMSNORM_TRY(check_blocks(blocks));
    const LaunchShape shape = {blocks, kSumThreads, 1, 0, stream_, args.overlap, 1};
    return launch(state_, reinterpret_cast<const void *>(sum_partials<Real>), shape, &args);
  }

  // No rows: sum_partials adds nothing.
  rmsnorm_status_t zero_partials() {
    plan_.column_chunks = 0;
    return RMSNORM_SUCCESS;
  }

  rmsnorm_status_t check_blocks(int64_t blocks) {
    if (blocks <= kMostBlocks) return RMSNORM_SUCCESS;
    return fail(RMSNORM_ERROR_NOT_SUPPORTED,
                "groups = %lld of cols = %lld: too many weight gradients", (long long)p_.groups,
                (long long)p_.cols);
  }

  const State &state_;
  const BackwardProblem &p_;
  Plan plan_;
  bool plain_, whole_;
  void *stream_;
  char *workspace_;
  bool launched_ = false;
};

}  // namespace

size_t workspace_size(const void *state, const BackwardProblem &p) {
  const State &own = *static_cast<const State *>(state);
  const size_t together = plan_of(own, p, false).bytes;
  if (p.groups == 1) return together;
  // The larger of both: the size must not depend on strides.
  const size_t by_group = plan_of(own, p, true).bytes;
  return together > by_group ? together : by_group;
}

void kernel_name(const void *state, const BackwardProblem &p, char *name) {
  const Plan plan = plan_of(*static_cast<const State *>(state), p, is_by_group(p));
  if (plan.config.vectors == 0) {
    std::snprintf(name, RMSNORM_KERNEL_NAME_SIZE, "cuda_backward_exact");
    return;
  }
  const BackwardConfig &c = plan.config;
  const FewConfig &few = plan.few;
  const char *dtype = plan.dtype == RMSNORM_DTYPE_NONE ? "mixed" : dtype_name(plan.dtype);
  if (few.groups != 0)
    std::snprintf(name, RMSNORM_KERNEL_NAME_SIZE, "cuda_backward_few_%s_t%d_g%d_s%d", dtype,
                  few.threads, few.groups, few.strip_vectors);
  else
    std::snprintf(name, RMSNORM_KERNEL_NAME_SIZE, "cuda_backward_rows_%s_v%d_t%d_g%d_c%d", dtype,
                  c.vectors, c.threads, c.groups, c.cluster);
}

rmsnorm_status_t run(const void *state, const BackwardProblem &p, const Launch &call) {
  DeviceGuard guard(*static_cast<const State *>(state));
  RMSNORM_TRY(guard.status());
  return Run(*static_cast<const State *>(state), p, call).run();
}

rmsnorm_status_t visit_backward_kernels(const KernelVisitor &visitor) {
  for (const rmsnorm_dtype_t dtype : kRowDtypes)
    for (const int vectors : {1, 2, 4})
      for (const bool whole : {false, true})
        for (const bool plain : {false, true})
          RMSNORM_TRY(visitor.visit(rows_kernel(dtype, vectors, whole, plain),
                                    KernelNeeds::kSharedMemory | KernelNeeds::kClusters));
  for (const rmsnorm_dtype_t dtype : {RMSNORM_DTYPE_BF16, RMSNORM_DTYPE_F16, RMSNORM_DTYPE_F32})
    RMSNORM_TRY(visitor.visit(few_kernel(dtype), KernelNeeds::kNothing));
  // sum_partials starts beside backward_rows: a multiprocessor need not be reconfigured for it.
  RMSNORM_TRY(visitor.visit(reinterpret_cast<const void *>(sum_partials<float>),
                            KernelNeeds::kSharedMemory));
  for (const void *kernel : {reinterpret_cast<const void *>(backward_rstd),
                             reinterpret_cast<const void *>(backward_columns),
                             reinterpret_cast<const void *>(backward_exact),
                             reinterpret_cast<const void *>(backward_few_columns),
                             reinterpret_cast<const void *>(sum_partials<double>)})
    RMSNORM_TRY(visitor.visit(kernel, KernelNeeds::kNothing));
  return RMSNORM_SUCCESS;
}

}  // namespace rmsnorm::cuda
