// Who this library is, and what its status codes and last failure say.
#include "core/status.h"
#include "core/version.h"

extern "C" {

int32_t rmsnorm_version(void) {
  return RMSNORM_VERSION_MAJOR * 10000 + RMSNORM_VERSION_MINOR * 100 + RMSNORM_VERSION_PATCH;
}

int32_t rmsnorm_abi_version(void) { return RMSNORM_ABI_VERSION; }

const char *rmsnorm_build_info(void) { return RMSNORM_BUILD_INFO; }

const char *rmsnorm_status_name(rmsnorm_status_t status) { return rmsnorm::status_name(status); }

size_t rmsnorm_last_error(char *buf, size_t capacity) {
  return rmsnorm::copy_last_error(buf, capacity);
}

}  // extern "C"
