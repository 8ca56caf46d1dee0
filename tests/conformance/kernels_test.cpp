// Every CUDA kernel once, in memory between guard bands: what compute-sanitizer runs
// (tests/sanitize/run device).
#include <gtest/gtest.h>

#include "../support/judge.h"
#include "../support/kernel_list.h"
#include "../support/on_device.h"

namespace rmsnorm_test {
namespace {

TEST(Kernels, EveryOneOnTheList) {
  Device *device = nullptr;
  require_device(RMSNORM_DEVICE_CUDA, &device);
  if (IsSkipped()) return;
  for (const Case &c : kernel_list()) ASSERT_TRUE(conforms(*device, c));
}

}  // namespace
}  // namespace rmsnorm_test
