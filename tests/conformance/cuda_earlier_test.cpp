// Work of the caller's that faults on the device: the next call says that it was earlier work. The
// fault spoils CUDA for the whole process, which is why this is a program of its own.
#include <gtest/gtest.h>

#include "../support/execution.h"
#include "../support/on_device.h"

#ifdef RMSNORM_TEST_CUDA
#include <cuda_runtime_api.h>
#endif

namespace rmsnorm_test {
namespace {

TEST(CudaEarlier, AFaultIsReportedAsWhatItIs) {
#ifndef RMSNORM_TEST_CUDA
  GTEST_SKIP() << "these tests were built without RMSNORM_TEST_CUDA";
#else
  Device *device = nullptr;
  require_device(RMSNORM_DEVICE_CUDA, &device);
  if (IsSkipped()) return;
  // Never freed: CUDA cannot free anything after the fault.
  auto *const execution =
      new Execution(*device, full_case(Direction::kBackward, 70, 1000, RMSNORM_DTYPE_BF16));
  execution->upload();
  ASSERT_EQ(execution->prepare_workspace(), RMSNORM_SUCCESS) << last_error();
  ASSERT_EQ(execution->launch(), RMSNORM_SUCCESS) << last_error();
  ASSERT_EQ(device->synchronize(), "");

  // Pointers are trusted: this one makes the kernel fault.
  Params wrong = execution->params;
  wrong.tensor(kX).data = reinterpret_cast<void *>(uintptr_t{1} << 60);
  ASSERT_EQ(run(execution->context, wrong, execution->workspace, execution->workspace_size,
                execution->stream),
            RMSNORM_SUCCESS)
      << last_error();
  EXPECT_NE(device->synchronize(), "") << "the fault that this test needs has not come";

  const rmsnorm_status_t status = execution->launch();
  EXPECT_STREQ(rmsnorm_status_name(status), "RMSNORM_ERROR_CUDA_EARLIER") << last_error();
  EXPECT_NE(last_error().find("before this call"), std::string::npos) << last_error();
  EXPECT_EQ(cudaPeekAtLastError(), cudaErrorIllegalAddress) << "it is the caller's to find";
  // What needs no device goes on.
  execution->params.edit_norm([](auto *head) { head->eps = -1; });
  EXPECT_EQ(execution->launch(), RMSNORM_ERROR_VALUE) << last_error();
  rmsnorm_context_t *context = nullptr;
  EXPECT_EQ(rmsnorm_context_create(nullptr, &context), RMSNORM_SUCCESS) << last_error();
  rmsnorm_context_destroy(context);
#endif
}

}  // namespace
}  // namespace rmsnorm_test
