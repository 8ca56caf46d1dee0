// The one place where the library calls back into the program to compute.
#include "cpu/tasks.h"

#include <algorithm>

#include "core/status.h"

namespace rmsnorm::cpu {
namespace {

// 200 us or more: on a virtual machine a thread may take 50 to wake, and begins with a cold cache.
constexpr int64_t kPoolWork = int64_t{1} << 20;

}  // namespace

Part part_of(int64_t count, int64_t parts, int64_t index) {
  const int64_t each = count / parts, longer = count % parts;
  const int64_t begin = index * each + std::min(index, longer);
  return {begin, begin + each + (index < longer ? 1 : 0)};
}

rmsnorm_status_t run_tasks(const State &state, int64_t count, int64_t work, rmsnorm_task_t task,
                           void *arg) {
  if (count == 0) return RMSNORM_SUCCESS;
  if (state.parallel_for == nullptr) {
    if (state.pool != nullptr && count > 1 && work >= kPoolWork &&
        state.pool->run(count, task, arg))
      return RMSNORM_SUCCESS;
    for (int64_t index = 0; index < count; ++index) task(arg, index);
    return RMSNORM_SUCCESS;
  }
  const int32_t result = state.parallel_for(state.parallel_for_user, count, task, arg);
  if (result == 0) return RMSNORM_SUCCESS;
  return fail(RMSNORM_ERROR_CALLBACK, "parallel_for returned %d", static_cast<int>(result));
}

}  // namespace rmsnorm::cpu
