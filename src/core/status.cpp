#include "core/status.h"

#include <cstdarg>
#include <cstdio>
#include <cstring>

namespace rmsnorm {
namespace {

// Plain bytes: no constructor to run, no destructor that a late call could outlive.
thread_local char last_error[512];

}  // namespace

rmsnorm_status_t fail(rmsnorm_status_t status, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(last_error, sizeof last_error, format, arguments);
  va_end(arguments);
  return status;
}

const char *status_name(rmsnorm_status_t status) {
#define NAME(constant) \
  case constant: return #constant
  switch (status) {
    NAME(RMSNORM_SUCCESS);
    NAME(RMSNORM_ERROR_NULL);
    NAME(RMSNORM_ERROR_VALUE);
    NAME(RMSNORM_ERROR_SHAPE);
    NAME(RMSNORM_ERROR_STRIDE);
    NAME(RMSNORM_ERROR_ALIGNMENT);
    NAME(RMSNORM_ERROR_ALIAS);
    NAME(RMSNORM_ERROR_DTYPE);
    NAME(RMSNORM_ERROR_WORKSPACE);
    NAME(RMSNORM_ERROR_STRUCT_SIZE);
    NAME(RMSNORM_ERROR_DEVICE);
    NAME(RMSNORM_ERROR_POINTER);
    NAME(RMSNORM_ERROR_STREAM);
    NAME(RMSNORM_ERROR_CALLBACK);
    NAME(RMSNORM_ERROR_NOT_SUPPORTED);
    NAME(RMSNORM_ERROR_NEWER_LIBRARY);
    NAME(RMSNORM_ERROR_BACKEND_NOT_BUILT);
    NAME(RMSNORM_ERROR_NO_DRIVER);
    NAME(RMSNORM_ERROR_DRIVER_TOO_OLD);
    NAME(RMSNORM_ERROR_NO_DEVICE);
    NAME(RMSNORM_ERROR_ARCHITECTURE);
    NAME(RMSNORM_ERROR_OUT_OF_MEMORY);
    NAME(RMSNORM_ERROR_CUDA);
    NAME(RMSNORM_ERROR_CUDA_EARLIER);
    NAME(RMSNORM_ERROR_INTERNAL);
    default: return "unknown status";
  }
#undef NAME
}

size_t copy_text(const char *text, char *buf, size_t capacity) {
  const size_t needed = std::strlen(text) + 1;
  if (capacity > 0 && buf != nullptr) {
    const size_t copied = needed < capacity ? needed : capacity;
    std::memcpy(buf, text, copied);
    buf[copied - 1] = '\0';
  }
  return needed;
}

size_t copy_last_error(char *buf, size_t capacity) { return copy_text(last_error, buf, capacity); }

}  // namespace rmsnorm
