// Reads a caller's struct of any published size into today's: a smaller, known size is filled with
// zeros; a larger one is accepted if all that this library does not know is zero.
#pragma once

#include <cstddef>
#include <cstring>

#include "core/status.h"

namespace rmsnorm {

constexpr size_t kLargestStruct = 4096;

// `name` for messages. Published sizes so far: sizeof(Struct) alone for each struct.
template <class Struct>
rmsnorm_status_t read_struct(const char *name, const Struct *given, Struct *out) {
  if (given == nullptr) return fail(RMSNORM_ERROR_NULL, "%s is NULL", name);
  const size_t size = given->struct_size;
  if (size < sizeof(Struct) || size > kLargestStruct)
    return fail(
        RMSNORM_ERROR_STRUCT_SIZE,
        "%s.struct_size = %zu, but this library's is %zu: set it with the _INIT macro or the "
        "_init function",
        name, size, sizeof(Struct));
  const unsigned char *bytes = reinterpret_cast<const unsigned char *>(given);
  for (size_t i = sizeof(Struct); i < size; ++i)
    if (bytes[i] != 0)
      return fail(
          RMSNORM_ERROR_NEWER_LIBRARY,
          "%s has a field at byte %zu that is set but unknown here: it needs a newer library", name,
          i);
  std::memcpy(out, given, sizeof(Struct));
  return RMSNORM_SUCCESS;
}

// The _init functions.
inline void init_struct(void *given, size_t size) {
  if (given == nullptr) return;
  std::memset(given, 0, size);
  if (size >= sizeof size) std::memcpy(given, &size, sizeof size);
}

}  // namespace rmsnorm
