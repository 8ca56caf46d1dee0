// What a context handle points to: the backend's table, its state, and the caller's options.
#pragma once

#include <cstdint>

#include "core/backend.h"

struct rmsnorm_context_t {
  const rmsnorm::Backend *backend;
  void *state;
  uint32_t flags;
  int32_t ordinal;
  rmsnorm_log_t log;
  void *log_user;
};
