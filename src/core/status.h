// How a call fails: a status code, and a text for this thread's rmsnorm_last_error.
#pragma once

#include <cstddef>

#include "rmsnorm.h"

namespace rmsnorm {

// Writes the text (printf's format) for this thread and returns `status`.
__attribute__((format(printf, 2, 3), cold)) rmsnorm_status_t fail(rmsnorm_status_t status,
                                                                  const char *format, ...);

const char *status_name(rmsnorm_status_t status);

// Copies this thread's text; returns the bytes it needs with its NUL.
size_t copy_last_error(char *buf, size_t capacity);

// strlcpy's contract: always terminated where capacity > 0; returns the bytes `text` needs.
size_t copy_text(const char *text, char *buf, size_t capacity);

}  // namespace rmsnorm

// Leaves the calling function with the status of a step that failed.
#define RMSNORM_TRY(expression)                             \
  do {                                                      \
    const rmsnorm_status_t try_status_ = (expression);      \
    if (try_status_ != RMSNORM_SUCCESS) return try_status_; \
  } while (0)
