// The element types: their codes in the ABI, their sizes, their names in messages and logs.
#pragma once

#include <cstdint>

#include "rmsnorm.h"

namespace rmsnorm {

inline bool is_known_dtype(rmsnorm_dtype_t dtype) {
  return dtype == RMSNORM_DTYPE_F16 || dtype == RMSNORM_DTYPE_BF16 || dtype == RMSNORM_DTYPE_F32 ||
         dtype == RMSNORM_DTYPE_F64;
}

// Bytes of one element: the code's low byte counts its bits.
inline int64_t element_size(rmsnorm_dtype_t dtype) { return (dtype & 0xff) / 8; }

inline const char *dtype_name(rmsnorm_dtype_t dtype) {
  switch (dtype) {
    case RMSNORM_DTYPE_NONE: return "none";
    case RMSNORM_DTYPE_F16: return "fp16";
    case RMSNORM_DTYPE_BF16: return "bf16";
    case RMSNORM_DTYPE_F32: return "fp32";
    case RMSNORM_DTYPE_F64: return "fp64";
    default: return "unknown";
  }
}

}  // namespace rmsnorm
