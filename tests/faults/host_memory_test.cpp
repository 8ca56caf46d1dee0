// The library's requests of memory and threads fail, each in turn: a status says so, nothing is
// kept, and the library works afterwards. Forward and backward ask for neither.
#include <gtest/gtest.h>

#include "../support/judge.h"
#include "../support/on_device.h"
#include "allocations.h"

namespace rmsnorm_test {
namespace {

class HostMemory : public testing::Test {
 protected:
  void SetUp() override {
    require_device(RMSNORM_DEVICE_CPU, &device_);
    reset();
    live_ = allocations().live;  // the device's own context
  }
  void TearDown() override { reset(); }
  static void reset() {
    allocations().fails_at = 0;
    allocations().requests = 0;
    allocations().threads = 0;
    allocations().threads_fail_from = 0;
  }
  static rmsnorm_context_options_t options_with(int32_t threads) {
    rmsnorm_context_options_t options = RMSNORM_CONTEXT_OPTIONS_INIT;
    options.cpu_threads = threads;
    return options;
  }
  Device *device_ = nullptr;
  int live_ = 0;
};

TEST_F(HostMemory, EachRequestFails) {
  int injected = 0;
  for (const int32_t threads : {0, 4})
    for (int nth = 1;; ++nth) {
      reset();
      allocations().fails_at = nth;
      const rmsnorm_context_options_t options = options_with(threads);
      rmsnorm_context_t *context = reinterpret_cast<rmsnorm_context_t *>(8);
      const rmsnorm_status_t status = rmsnorm_context_create(&options, &context);
      const int requests = allocations().requests;
      if (requests < nth) {
        ASSERT_EQ(status, RMSNORM_SUCCESS) << last_error();
        EXPECT_EQ(requests, threads > 1 ? 3 : 2) << "a request that this test does not know";
        rmsnorm_context_destroy(context);
        EXPECT_EQ(allocations().live, live_) << "memory is kept";
        break;
      }
      ++injected;
      EXPECT_EQ(status, RMSNORM_ERROR_OUT_OF_MEMORY) << nth;
      EXPECT_EQ(context, nullptr);
      EXPECT_NE(last_error().find("no memory"), std::string::npos) << last_error();
      EXPECT_EQ(allocations().live, live_) << "memory is kept after request " << nth;
      allocations().fails_at = 0;
      const Context again(options);
      EXPECT_EQ(again.status(), RMSNORM_SUCCESS) << last_error();
    }
  EXPECT_EQ(injected, 5);
  std::printf("%d faults injected\n", injected);
}

// Any request would fail, and the calls do not notice.
TEST_F(HostMemory, CallsAskForNone) {
  const Context pooled(options_with(2));
  ASSERT_EQ(pooled.status(), RMSNORM_SUCCESS) << last_error();
  for (const rmsnorm_context_t *context : {device_->context(), pooled.get()})
    for (const Direction direction : kDirections)
      for (const int64_t cols : {100, 120000}) {
        Execution execution(*device_, full_case(direction, 5, cols, RMSNORM_DTYPE_F16));
        execution.context = context;
        execution.upload();
        ASSERT_EQ(execution.prepare_workspace(), RMSNORM_SUCCESS) << last_error();
        allocations().requests = 0;
        EXPECT_EQ(execution.launch(), RMSNORM_SUCCESS) << last_error();
        EXPECT_EQ(allocations().requests, 0);
        execution.params.edit_head([](auto *head) { head->rows = -1; });
        EXPECT_EQ(execution.launch(), RMSNORM_ERROR_SHAPE);
        EXPECT_EQ(allocations().requests, 0);
        execution.params.edit_head([](auto *head) { head->rows = 5; });
        execution.download();
        EXPECT_TRUE(conforms(execution));
      }
}

// A pool that gets fewer threads, or none, does the same work on those that there are.
TEST_F(HostMemory, EachThreadFails) {
  const Case c = full_case(Direction::kBackward, 200, 3000, RMSNORM_DTYPE_F32);
  Execution alone(*device_, c);
  ASSERT_EQ(alone.run(), RMSNORM_SUCCESS) << last_error();
  for (int from = 1; from <= 4; ++from) {
    reset();
    const Context context(options_with(4));
    ASSERT_EQ(context.status(), RMSNORM_SUCCESS) << last_error();
    Execution spread(*device_, c);
    spread.context = context.get();
    allocations().threads_fail_from = from;
    ASSERT_EQ(spread.run(), RMSNORM_SUCCESS) << last_error();
    EXPECT_GE(allocations().threads, from < 4 ? from : 3);
    EXPECT_TRUE(same_outputs(alone, spread));
  }
  reset();
  EXPECT_EQ(allocations().live, live_);
}

}  // namespace
}  // namespace rmsnorm_test
