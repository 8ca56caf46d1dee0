// rmsnorm_forward on the CPU: tasks of a few rows each. A row is independent of all others and
// needs no workspace.
#include <algorithm>
#include <cstdio>

#include "core/status.h"
#include "cpu/operations.h"
#include "cpu/tasks.h"

namespace rmsnorm::cpu {
namespace {

// A task costs far less than its work, which is about 20 us or more. But its first row is read and
// its last one written alone: tasks of 16 rows of 4096 take 3 to 5% longer than one task does, of
// 64 rows 1.5%. So tasks grow once there are enough of them for many threads.
constexpr int64_t kTaskElements = 65536, kLargeTaskElements = 262144;
constexpr int64_t kManyTasks = 64, kMostTasks = 1024;

int64_t tasks_of(int64_t rows, int64_t cols) {
  const int64_t small = kTaskElements / cols, large = kLargeTaskElements / cols;
  const int64_t rows_a_task = std::max({int64_t{1}, small, std::min(large, rows / kManyTasks)});
  return std::min((rows - 1) / rows_a_task + 1, kMostTasks);
}

}  // namespace

size_t forward_workspace_size(const void *, const ForwardProblem &) { return 0; }

void forward_kernel_name(const void *state, const ForwardProblem &problem, char *name) {
  const rmsnorm_dtype_t dtype = common_dtype(problem);
  std::snprintf(name, RMSNORM_KERNEL_NAME_SIZE, "cpu_%s_forward_%s",
                static_cast<const State *>(state)->rows->isa,
                dtype == RMSNORM_DTYPE_NONE ? "mixed" : dtype_name(dtype));
}

rmsnorm_status_t forward(const void *opaque, const ForwardProblem &problem, const Launch &) {
  const State &state = *static_cast<const State *>(opaque);
  const int64_t rows = problem.rows * problem.groups;
  if (rows == 0) return RMSNORM_SUCCESS;
  const int64_t tasks = is_parallel(state) ? tasks_of(rows, problem.cols) : 1;
  const bool past_cache = streams(state, rows * problem.cols, {&problem.y, &problem.residual_out},
                                  {&problem.x, &problem.residual});
  const int64_t work = saturated_product(rows * problem.cols, problem.residual.present() ? 2 : 1);
  return each_task(state, tasks, work, [&](int64_t index) {
    const Part part = part_of(rows, tasks, index);
    state.rows->forward(problem, past_cache, part.begin, part.end);
  });
}

}  // namespace rmsnorm::cpu
