// Devices and contexts: choose the backend's table, read the options, keep them with the backend's
// state.
#include "core/memory.h"
#include "core/context.h"

#include <cstring>
#include <new>

#include "core/params.h"
#include "core/status.h"

namespace rmsnorm {
namespace {

rmsnorm_status_t find_backend(rmsnorm_device_t device, const Backend **backend) {
  if (device == RMSNORM_DEVICE_CPU) *backend = &kCpuBackend;
  else if (device == RMSNORM_DEVICE_CUDA) *backend = &kCudaBackend;
  else
    return fail(RMSNORM_ERROR_NEWER_LIBRARY,
                "device = %d is unknown here: it needs a newer library", (int)device);
  return RMSNORM_SUCCESS;
}

constexpr int kMostThreads = 1024;

rmsnorm_status_t check_ordinal(int32_t ordinal) {
  if (ordinal >= 0) return RMSNORM_SUCCESS;
  return fail(RMSNORM_ERROR_DEVICE, "ordinal = %d is negative", (int)ordinal);
}

rmsnorm_status_t read_options(const rmsnorm_context_options_t *given,
                              rmsnorm_context_options_t *options) {
  *options = RMSNORM_CONTEXT_OPTIONS_INIT;
  if (given == nullptr) return RMSNORM_SUCCESS;
  RMSNORM_TRY(read_struct("options", given, options));
  if (options->device == 0) options->device = RMSNORM_DEVICE_CPU;
  const uint32_t known =
      RMSNORM_CONTEXT_PRELOAD | RMSNORM_CONTEXT_CHECK_POINTERS | RMSNORM_CONTEXT_KEEP_CACHED;
  if (const uint32_t unknown = options->flags & ~known)
    return fail(RMSNORM_ERROR_NEWER_LIBRARY,
                "options.flags has unknown bits 0x%x: they need a newer library", unknown);
  if (options->cpu_threads < 0)
    return fail(RMSNORM_ERROR_VALUE, "options.cpu_threads = %d is negative",
                (int)options->cpu_threads);
  if (options->cpu_threads > kMostThreads)
    return fail(RMSNORM_ERROR_VALUE, "options.cpu_threads = %d is more than %d",
                (int)options->cpu_threads, kMostThreads);
  if (options->cpu_threads > 1 && options->parallel_for != nullptr)
    return fail(RMSNORM_ERROR_VALUE,
                "options.cpu_threads = %d beside options.parallel_for: work goes one way only",
                (int)options->cpu_threads);
  return check_ordinal(options->ordinal);
}

}  // namespace
}  // namespace rmsnorm

using namespace rmsnorm;

extern "C" {

void rmsnorm_device_info_init(void *info, size_t struct_size) { init_struct(info, struct_size); }

rmsnorm_status_t rmsnorm_device_count(rmsnorm_device_t device, int32_t *count) {
  if (count == nullptr) return fail(RMSNORM_ERROR_NULL, "count is NULL");
  const Backend *backend = nullptr;
  RMSNORM_TRY(find_backend(device, &backend));
  int32_t found = 0;
  RMSNORM_TRY(backend->device_count(&found));
  *count = found;
  return RMSNORM_SUCCESS;
}

rmsnorm_status_t rmsnorm_device_info(rmsnorm_device_t device, int32_t ordinal,
                                     rmsnorm_device_info_t *info) {
  rmsnorm_device_info_t read;
  RMSNORM_TRY(read_struct("info", info, &read));
  const Backend *backend = nullptr;
  RMSNORM_TRY(find_backend(device, &backend));
  RMSNORM_TRY(check_ordinal(ordinal));
  rmsnorm_device_info_t found = RMSNORM_DEVICE_INFO_INIT;
  found.device = device;
  found.ordinal = ordinal;
  RMSNORM_TRY(backend->device_info(ordinal, &found));
  found.struct_size = info->struct_size;
  std::memcpy(info, &found, sizeof found);
  return RMSNORM_SUCCESS;
}

void rmsnorm_context_options_init(void *options, size_t struct_size) {
  init_struct(options, struct_size);
}

rmsnorm_status_t rmsnorm_context_create(const rmsnorm_context_options_t *given,
                                        rmsnorm_context_t **context) {
  if (context == nullptr) return fail(RMSNORM_ERROR_NULL, "context is NULL");
  *context = nullptr;
  rmsnorm_context_options_t options;
  RMSNORM_TRY(read_options(given, &options));
  const Backend *backend = nullptr;
  RMSNORM_TRY(find_backend(options.device, &backend));
  rmsnorm_context_t *created = make_object<rmsnorm_context_t>();
  if (created == nullptr) return fail(RMSNORM_ERROR_OUT_OF_MEMORY, "no memory for a context");
  const rmsnorm_status_t status = backend->create(options, &created->state);
  if (status != RMSNORM_SUCCESS) {
    free_object(created);
    return status;
  }
  created->backend = backend;
  created->flags = options.flags;
  created->ordinal = options.ordinal;
  created->log = options.log;
  created->log_user = options.log_user;
  *context = created;
  return RMSNORM_SUCCESS;
}

void rmsnorm_context_destroy(rmsnorm_context_t *context) {
  if (context == nullptr) return;
  context->backend->destroy(context->state);
  free_object(context);
}

}  // extern "C"
