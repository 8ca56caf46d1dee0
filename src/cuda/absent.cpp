// The CUDA backend of a build without CUDA: the same table, every function answers
// BACKEND_NOT_BUILT.
#include "core/backend.h"
#include "core/status.h"

namespace rmsnorm {
namespace {

rmsnorm_status_t absent() {
  return fail(RMSNORM_ERROR_BACKEND_NOT_BUILT,
              "device is CUDA, but this library was built without CUDA");
}

rmsnorm_status_t device_count(int32_t *) { return absent(); }
rmsnorm_status_t device_info(int32_t, rmsnorm_device_info_t *) { return absent(); }
rmsnorm_status_t create(const rmsnorm_context_options_t &, void **) { return absent(); }
void destroy(void *) {}  // never reached: no context is created

}  // namespace

const Backend kCudaBackend = {"cuda", device_count, device_info, create, destroy, nullptr,
                              {},     {},           {},          {},     true};

}  // namespace rmsnorm
