// The fixture of tests that run on both backends: TEST_P(OnDevice, ...) has device(), and is
// skipped with the reason where there is no CUDA device.
#pragma once

#include <gtest/gtest.h>

#include "device.h"

namespace rmsnorm_test {

constexpr rmsnorm_device_t kBackends[] = {RMSNORM_DEVICE_CPU, RMSNORM_DEVICE_CUDA};

inline const char *backend_name(rmsnorm_device_t type) {
  return type == RMSNORM_DEVICE_CPU ? "cpu" : "cuda";
}

// Any fixture: finds the device or skips the test.
inline void require_device(rmsnorm_device_t type, Device **device) {
  std::string why_not;
  *device = find_device(type, &why_not);
  if (*device == nullptr) GTEST_SKIP() << why_not;
  ASSERT_NE((*device)->context(), nullptr);
}

class OnDevice : public testing::TestWithParam<rmsnorm_device_t> {
 protected:
  void SetUp() override { require_device(GetParam(), &device_); }
  Device &device() { return *device_; }
  bool on_cuda() const { return GetParam() == RMSNORM_DEVICE_CUDA; }

 private:
  Device *device_ = nullptr;
};

struct BackendName {
  std::string operator()(const testing::TestParamInfo<rmsnorm_device_t> &tested) const {
    return backend_name(tested.param);
  }
};

}  // namespace rmsnorm_test
