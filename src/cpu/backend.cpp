// The CPU backend's table, and what it says about the machine.
#include "core/memory.h"
#include "core/backend.h"

#include <unistd.h>

#include <cstring>
#include <new>

#include "core/status.h"
#include "cpu/dispatch.h"
#include "cpu/operations.h"
#include "cpu/tasks.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace rmsnorm {
namespace cpu {
namespace {

rmsnorm_status_t check_ordinal(int32_t ordinal) {
  if (ordinal == 0) return RMSNORM_SUCCESS;
  return fail(RMSNORM_ERROR_DEVICE, "ordinal = %d, but the CPU is one device, number 0",
              static_cast<int>(ordinal));
}

rmsnorm_status_t device_count(int32_t *count) {
  *count = 1;
  return RMSNORM_SUCCESS;
}

void processor_name(char *name, size_t capacity) {
#if defined(__x86_64__)
  // The brand string, 16 bytes a leaf; some processors pad it with blanks in front.
  unsigned words[12];
  char brand[sizeof words + 1] = {};
  bool known = true;
  for (unsigned i = 0; i < 3; ++i)
    known = known && __get_cpuid(0x80000002u + i, &words[4 * i], &words[4 * i + 1],
                                 &words[4 * i + 2], &words[4 * i + 3]) != 0;
  if (known) {
    std::memcpy(brand, words, sizeof words);
    copy_text(brand + std::strspn(brand, " "), name, capacity);
    return;
  }
  copy_text("x86-64", name, capacity);
#elif defined(__aarch64__)
  copy_text("aarch64", name, capacity);
#else
  copy_text("CPU", name, capacity);
#endif
}

int64_t last_level_cache() {
#if defined(_SC_LEVEL3_CACHE_SIZE)
  if (const long bytes = sysconf(_SC_LEVEL3_CACHE_SIZE); bytes > 0) return bytes;
  if (const long bytes = sysconf(_SC_LEVEL2_CACHE_SIZE); bytes > 0) return bytes;
#endif
  return 0;
}

// Outputs of so many bytes are written past the cache: that takes a third less time where they
// would only pass through it, even if they are read soon after; and up to a fifth more, reading
// included, where input and output would have stayed. On a machine whose cache many others share,
// what it says of its size is no measure of what is there.
int64_t stream_bytes() {
  constexpr int64_t kMost = int64_t{16} << 20;
  const int64_t cache = last_level_cache();
  return cache > 0 && cache < kMost ? cache : kMost;
}

rmsnorm_status_t device_info(int32_t ordinal, rmsnorm_device_info_t *info) {
  RMSNORM_TRY(check_ordinal(ordinal));
  info->processors = static_cast<int32_t>(sysconf(_SC_NPROCESSORS_ONLN));
  info->supported = 1;
  info->memory_bytes = static_cast<int64_t>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGESIZE);
  info->cache_bytes = last_level_cache();
  processor_name(info->name, sizeof info->name);
  copy_text(chosen_rows().isa, info->isa, sizeof info->isa);
  return RMSNORM_SUCCESS;
}

rmsnorm_status_t create(const rmsnorm_context_options_t &options, void **state) {
  RMSNORM_TRY(check_ordinal(options.ordinal));
  State *made = make_object<State>();
  if (made == nullptr) return fail(RMSNORM_ERROR_OUT_OF_MEMORY, "no memory for a context");
  *made = {&chosen_rows(), options.parallel_for, options.parallel_for_user};
  if ((options.flags & RMSNORM_CONTEXT_KEEP_CACHED) == 0) made->stream_bytes = stream_bytes();
  if (options.cpu_threads > 1) {
    made->pool = Pool::create(options.cpu_threads);
    if (made->pool == nullptr) {
      free_object(made);
      return fail(RMSNORM_ERROR_OUT_OF_MEMORY, "no memory for cpu_threads = %d",
                  static_cast<int>(options.cpu_threads));
    }
  }
  *state = made;
  return RMSNORM_SUCCESS;
}

void destroy(void *opaque) {
  State *const state = static_cast<State *>(opaque);
  Pool::destroy(state->pool);
  free_object(state);
}

}  // namespace

}  // namespace cpu

const Backend kCpuBackend = {
    "cpu",
    cpu::device_count,
    cpu::device_info,
    cpu::create,
    cpu::destroy,
    nullptr,
    {cpu::forward_workspace_size, cpu::forward_kernel_name, cpu::forward},
    {cpu::backward_workspace_size, cpu::backward_kernel_name, cpu::backward},
    {cpu::glu_forward_workspace_size, cpu::glu_forward_kernel_name, cpu::glu_forward},
    {cpu::glu_backward_workspace_size, cpu::glu_backward_kernel_name, cpu::glu_backward},
};

}  // namespace rmsnorm
