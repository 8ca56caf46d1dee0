// rmsnorm_backward on the CPU. Rows are split into blocks by the shape alone: a block is a task,
// which writes its rows' dx and sums their terms of dweight and dbias into memory of its own, in
// order. Then tasks over columns add up the blocks' sums, in order. So the bits do not depend on
// threads.
//
// The workspace: for each block its sums, and where a block has many rows, a second level beside
// them, from which the sums are folded into the first every kFoldRows rows: errors stay small at
// any number of rows.
#include <algorithm>
#include <cstdio>
#include <cstring>

#include "core/status.h"
#include "cpu/operations.h"
#include "cpu/tasks.h"

namespace rmsnorm::cpu {
namespace {

constexpr int64_t kMostBlocks = 64;
constexpr int64_t kBlockRows = 16;  // or more: the sums are then at most an eighth of the inputs
constexpr int64_t kFoldRows = 1024;
constexpr int64_t kFinishCols = 1024;     // of a task that adds up the blocks
constexpr int64_t kTaskElements = 16384;  // of a task without gradient sums
constexpr int64_t kMostTasks = 1024;
constexpr int64_t kAlignment = 64;

// What follows from the shape, the dtypes and the outputs that are asked for.
struct Plan {
  int64_t steps;        // rows; or rows x groups, where the groups share one vector
  int64_t rows_a_step;  // (row, group) pairs
  int64_t blocks;
  int64_t outputs;  // dweight, dbias, both or neither
  int64_t vectors;  // of an output: one, or one per group
  bool two_levels;
  int64_t sums;          // of an output: vectors * padded columns
  int64_t vector_bytes;  // of the sums of one vector
  int64_t output_bytes;  // of one output
  int64_t block_bytes;   // of all outputs and levels
  size_t workspace;      // SIZE_MAX where there cannot be that much
};

int64_t divide_up(int64_t a, int64_t b) { return a / b + (a % b != 0 ? 1 : 0); }

Plan make_plan(const BackwardProblem &problem) {
  Plan plan = {};
  plan.outputs = (problem.dweight.present() ? 1 : 0) + (problem.dbias.present() ? 1 : 0);
  plan.vectors = problem.per_group ? problem.groups : 1;
  plan.rows_a_step = plan.vectors;
  plan.steps = problem.per_group ? problem.rows : problem.rows * problem.groups;
  if (plan.outputs == 0) {
    const int64_t rows_a_task = std::max<int64_t>(1, kTaskElements / problem.cols);
    plan.blocks = std::min(divide_up(plan.steps, rows_a_task), kMostTasks);
    return plan;
  }
  plan.blocks = std::min(divide_up(plan.steps, kBlockRows), kMostBlocks);
  if (plan.blocks == 0) return plan;
  plan.two_levels = divide_up(plan.steps, plan.blocks) > kFoldRows;
  const int64_t cols = problem.cols > INT64_MAX - kLanes ? problem.cols : padded_cols(problem.cols);
  const int64_t bytes_a_sum = sum_bytes(problem.x.dtype);
  plan.sums = saturated_product(plan.vectors, cols);
  plan.vector_bytes = saturated_product(cols, bytes_a_sum);
  plan.output_bytes = saturated_product(plan.sums, bytes_a_sum);
  plan.block_bytes = saturated_product(plan.output_bytes, plan.outputs * (plan.two_levels ? 2 : 1));
  const int64_t bytes = saturated_product(plan.block_bytes, plan.blocks);
  plan.workspace = bytes == INT64_MAX ? SIZE_MAX : static_cast<size_t>(bytes + (kAlignment - 1));
  return plan;
}

char *align_up(char *memory) {
  const uintptr_t past = reinterpret_cast<uintptr_t>(memory) % kAlignment;
  return memory + (past == 0 ? 0 : kAlignment - past);
}

// One level of a block's sums.
GradientSums sums_at(const BackwardProblem &problem, const Plan &plan, char *memory) {
  const bool both = plan.outputs == 2;
  return {problem.dweight.present() ? memory : nullptr,
          problem.dbias.present() ? memory + (both ? plan.output_bytes : 0) : nullptr};
}

void run_block(const RowTable &rows, const BackwardProblem &problem, const Plan &plan,
               bool past_cache, int64_t index, char *memory) {
  const Part part = part_of(plan.steps, plan.blocks, index);
  if (plan.outputs > 0) std::memset(memory, 0, static_cast<size_t>(plan.block_bytes));
  char *const second = plan.two_levels ? memory + plan.outputs * plan.output_bytes : memory;
  const GradientSums sums = sums_at(problem, plan, second);
  for (int64_t begin = part.begin; begin < part.end; begin += kFoldRows) {
    const int64_t end = std::min(part.end, begin + kFoldRows);
    rows.backward(problem, past_cache, begin * plan.rows_a_step, end * plan.rows_a_step, sums);
    if (plan.two_levels) rows.fold(problem.x.dtype, plan.outputs * plan.sums, second, memory);
  }
}

// Adds up the blocks' sums into dweight and dbias.
rmsnorm_status_t finish(const State &state, const BackwardProblem &problem, const Plan &plan,
                        char *memory) {
  if (plan.steps == 0 && problem.accumulate) return RMSNORM_SUCCESS;
  const GradientSums sums = sums_at(problem, plan, memory);
  const int64_t chunks = divide_up(problem.cols, kFinishCols);
  const int64_t tasks = plan.vectors * chunks;  // of an output
  const int64_t elements = saturated_product(plan.outputs * plan.blocks, plan.sums);
  return each_task(state, plan.outputs * tasks, elements, [&](int64_t index) {
    const bool dweight = problem.dweight.present() && index < tasks;
    const View &out = dweight ? problem.dweight : problem.dbias;
    const char *from = dweight ? sums.dweight : sums.dbias;
    const int64_t vector = index % tasks / chunks, begin = index % chunks * kFinishCols;
    const int64_t end = std::min(problem.cols, begin + kFinishCols);
    state.rows->finish(from + vector * plan.vector_bytes, plan.block_bytes, plan.blocks,
                       problem.accumulate, out.at(0, vector), out.dtype, begin, end);
  });
}

}  // namespace

size_t backward_workspace_size(const void *, const BackwardProblem &problem) {
  // The larger of both: whether dweight is per group is told by a stride, and the size must not be.
  BackwardProblem other = problem;
  other.per_group = !problem.per_group;
  return std::max(make_plan(problem).workspace, make_plan(other).workspace);
}

void backward_kernel_name(const void *state, const BackwardProblem &problem, char *name) {
  const rmsnorm_dtype_t dtype = common_dtype(problem);
  std::snprintf(name, RMSNORM_KERNEL_NAME_SIZE, "cpu_%s_backward_%s_b%lld",
                static_cast<const State *>(state)->rows->isa,
                dtype == RMSNORM_DTYPE_NONE ? "mixed" : dtype_name(dtype),
                static_cast<long long>(make_plan(problem).blocks));
}

rmsnorm_status_t backward(const void *opaque, const BackwardProblem &problem,
                          const Launch &launch) {
  const State &state = *static_cast<const State *>(opaque);
  const Plan plan = make_plan(problem);
  char *const memory = plan.workspace == 0 ? nullptr : align_up(launch.workspace);
  const int64_t elements = saturated_product(plan.steps * plan.rows_a_step, problem.cols);
  const bool past_cache = streams(state, elements, {&problem.dx, &problem.dresidual},
                                  {&problem.dy, &problem.x, &problem.dresidual_out});
  const int64_t work = saturated_product(elements, 2);  // dy and x
  RMSNORM_TRY(each_task(state, plan.blocks, work, [&](int64_t index) {
    run_block(*state.rows, problem, plan, past_cache, index, memory + index * plan.block_bytes);
  }));
  return finish(state, problem, plan, memory);
}

}  // namespace rmsnorm::cpu
