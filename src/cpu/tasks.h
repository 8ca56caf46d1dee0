// A CPU context's state, and how an operation's tasks run: through the caller's parallel_for, on
// the library's own threads, or one after another on the calling thread. Tasks write disjoint
// memory and fix their own order of sums, so that no choice changes a bit.
#pragma once

#include <cstdint>

#include "core/backend.h"
#include "cpu/float_environment.h"
#include "cpu/pool.h"
#include "cpu/rows.h"

namespace rmsnorm::cpu {

struct State {
  const RowTable *rows;
  rmsnorm_parallel_for_t parallel_for;  // NULL: none
  void *parallel_for_user;
  Pool *pool = nullptr;              // NULL: none
  int64_t stream_bytes = INT64_MAX;  // of outputs: from here on they go past the cache
};

// Whether tasks may run at once at all.
inline bool is_parallel(const State &state) {
  return state.parallel_for != nullptr || state.pool != nullptr;
}

// Whether outputs of so many elements each are written past the cache. Not in place, where the
// cache has just read what is overwritten.
template <size_t kOutputs, size_t kInputs>
bool streams(const State &state, int64_t elements, const View *const (&outputs)[kOutputs],
             const View *const (&inputs)[kInputs]) {
  int64_t size = 0;
  for (const View *output : outputs) {
    if (!output->present()) continue;
    size += element_size(output->dtype);
    for (const View *input : inputs)
      if (input->data == output->data) return false;
  }
  return size > 0 && elements >= state.stream_bytes / size;
}

inline int64_t saturated_product(int64_t a, int64_t b) {
  int64_t product = 0;
  return __builtin_mul_overflow(a, b, &product) ? INT64_MAX : product;
}

// Part `index` of `parts` parts of [0, count), as equal as may be.
struct Part {
  int64_t begin, end;
};
Part part_of(int64_t count, int64_t parts, int64_t index);

rmsnorm_status_t run_tasks(const State &state, int64_t count, int64_t work, rmsnorm_task_t task,
                           void *arg);

// body(index) for each index in [0, count). `work`: the elements that forward could take in the
// same time, roughly; the library's threads are woken for much work only.
template <class Body>
rmsnorm_status_t each_task(const State &state, int64_t count, int64_t work, const Body &body) {
  const rmsnorm_task_t task = [](void *arg, int64_t index) {
    const FloatEnvironment environment;
    (*static_cast<const Body *>(arg))(index);
  };
  return run_tasks(state, count, work, task, const_cast<Body *>(&body));
}

}  // namespace rmsnorm::cpu
