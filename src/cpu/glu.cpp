// rmsnorm_glu_forward and rmsnorm_glu_backward on the CPU. Every element is independent of all
// others: tensors without gaps are one long row, and long rows are split into columns.
#include <algorithm>
#include <cstdio>

#include "core/fold.h"
#include "core/status.h"
#include "cpu/operations.h"
#include "cpu/tasks.h"

namespace rmsnorm::cpu {
namespace {

constexpr int64_t kTaskElements = 32768;  // 30 us or more
constexpr int64_t kMostTasks = 1024;
static_assert(kTaskElements % kTileCols == 0);

template <class Problem>
void write_name(const void *state, const char *operation, const Problem &problem, char *name) {
  const rmsnorm_dtype_t dtype = common_dtype(problem);
  std::snprintf(name, RMSNORM_KERNEL_NAME_SIZE, "cpu_%s_%s_%s_%s",
                static_cast<const State *>(state)->rows->isa, operation,
                activation_name(problem.activation),
                dtype == RMSNORM_DTYPE_NONE ? "mixed" : dtype_name(dtype));
}

// rows(problem, streams, tile) for tiles that make up all of it.
template <class Problem, class Rows>
rmsnorm_status_t run_tiles(const State &state, const Problem &problem, bool past_cache,
                           const Rows &rows) {
  const int64_t count = problem.rows * problem.groups;
  const int64_t work = saturated_product(count * problem.cols, 8);  // exp
  if (!is_parallel(state))
    return each_task(state, 1, work, [&](int64_t) {
      rows(problem, past_cache, Tile{0, count, 0, problem.cols});
    });
  // A row is so many pieces; a task is some pieces of one row after another.
  const int64_t pieces = (problem.cols - 1) / kTaskElements + 1;
  const int64_t rows_a_task = std::max<int64_t>(1, kTaskElements / problem.cols);
  const int64_t tasks = std::min((count * pieces - 1) / rows_a_task + 1, kMostTasks);
  return each_task(state, tasks, work, [&](int64_t index) {
    const Part part = part_of(count * pieces, tasks, index);
    if (pieces == 1) return rows(problem, past_cache, Tile{part.begin, part.end, 0, problem.cols});
    for (int64_t piece = part.begin; piece < part.end; ++piece) {
      const int64_t row = piece / pieces, begin = piece % pieces * kTaskElements;
      const int64_t end = std::min(begin + kTaskElements, problem.cols);
      rows(problem, past_cache, Tile{row, row + 1, begin, end});
    }
  });
}

}  // namespace

size_t glu_forward_workspace_size(const void *, const GluForwardProblem &) { return 0; }

void glu_forward_kernel_name(const void *state, const GluForwardProblem &problem, char *name) {
  write_name(state, "glu_forward", problem, name);
}

rmsnorm_status_t glu_forward(const void *opaque, const GluForwardProblem &given, const Launch &) {
  const State &state = *static_cast<const State *>(opaque);
  if (given.rows == 0) return RMSNORM_SUCCESS;
  const GluForwardProblem problem = folded(given, kGluForwardTensors);
  const bool past_cache = streams(state, problem.rows * problem.groups * problem.cols, {&problem.y},
                                  {&problem.gate, &problem.up});
  return run_tiles(state, problem, past_cache, state.rows->glu_forward);
}

size_t glu_backward_workspace_size(const void *, const GluBackwardProblem &) { return 0; }

void glu_backward_kernel_name(const void *state, const GluBackwardProblem &problem, char *name) {
  write_name(state, "glu_backward", problem, name);
}

rmsnorm_status_t glu_backward(const void *opaque, const GluBackwardProblem &given, const Launch &) {
  const State &state = *static_cast<const State *>(opaque);
  if (given.rows == 0) return RMSNORM_SUCCESS;
  const GluBackwardProblem problem = folded(given, kGluBackwardTensors);
  const bool past_cache =
      streams(state, problem.rows * problem.groups * problem.cols, {&problem.dgate, &problem.dup},
              {&problem.dy, &problem.gate, &problem.up});
  return run_tiles(state, problem, past_cache, state.rows->glu_backward);
}

}  // namespace rmsnorm::cpu
