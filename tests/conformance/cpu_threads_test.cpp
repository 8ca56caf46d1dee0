// The library's own threads (cpu_threads): the same bits with any number of them, for calls that
// meet, after fork, and asleep when there is nothing to do.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <ctime>
#include <thread>

#include "../support/judge.h"
#include "../support/on_device.h"

namespace rmsnorm_test {
namespace {

rmsnorm_context_options_t options_with(int32_t threads) {
  rmsnorm_context_options_t options = RMSNORM_CONTEXT_OPTIONS_INIT;
  options.cpu_threads = threads;
  return options;
}

int threads_of_process() {
  int count = 0;
  std::FILE *file = std::fopen("/proc/self/status", "r");
  char line[256];
  while (file != nullptr && std::fgets(line, sizeof line, file) != nullptr)
    std::sscanf(line, "Threads: %d", &count);
  if (file != nullptr) std::fclose(file);
  return count;
}

// A thread that has been joined may be counted for a moment.
bool threads_become(int count) {
  for (int i = 0; i < 1000 && threads_of_process() != count; ++i) usleep(1000);
  return threads_of_process() == count;
}

class CpuThreads : public testing::Test {
 protected:
  void SetUp() override { require_device(RMSNORM_DEVICE_CPU, &device_); }

  Case large(Direction direction, rmsnorm_dtype_t dtype = RMSNORM_DTYPE_F32) const {
    return full_case(direction, 200, 3000, dtype);
  }
  // Whether a run in `context` gives the bits of one on the caller's thread.
  void expect_same(const rmsnorm_context_t *context, const Case &c) {
    Execution alone(*device_, c), spread(*device_, c);
    ASSERT_EQ(alone.run(), RMSNORM_SUCCESS) << last_error();
    spread.context = context;
    ASSERT_EQ(spread.run(), RMSNORM_SUCCESS) << last_error();
    EXPECT_TRUE(spread.nothing_else_written());
    EXPECT_TRUE(same_outputs(alone, spread));
  }

  Device *device_ = nullptr;
};

TEST_F(CpuThreads, ChangeNoBits) {
  for (const int32_t threads : {2, 3, 16}) {
    const Context context(options_with(threads));
    ASSERT_EQ(context.status(), RMSNORM_SUCCESS) << last_error();
    for (const rmsnorm_dtype_t dtype : kDtypes)
      for (const Direction direction : kDirections) {
        expect_same(context.get(), large(direction, dtype));
        expect_same(context.get(), full_case(direction, 3, 200000, dtype));
      }
  }
}

TEST_F(CpuThreads, StartWithTheFirstLargeCallAndEndWithTheContext) {
  const int before = threads_of_process();
  {
    const Context context(options_with(5));
    ASSERT_EQ(context.status(), RMSNORM_SUCCESS) << last_error();
    expect_same(context.get(), full_case(Direction::kForward, 4, 64, RMSNORM_DTYPE_F32));
    EXPECT_EQ(threads_of_process(), before);
    expect_same(context.get(), large(Direction::kForward));
    EXPECT_EQ(threads_of_process(), before + 4);
  }
  EXPECT_TRUE(threads_become(before));
}

TEST_F(CpuThreads, CallsMayMeet) {
  const Context context(options_with(3));
  ASSERT_EQ(context.status(), RMSNORM_SUCCESS) << last_error();
  std::vector<std::thread> callers;
  for (int i = 0; i < 4; ++i)
    callers.emplace_back([&, i] {
      for (int turn = 0; turn < 5; ++turn)
        expect_same(context.get(), large(i % 2 == 0 ? Direction::kForward : Direction::kBackward));
    });
  for (std::thread &caller : callers) caller.join();
}

// A child has the context, but not its threads.
TEST_F(CpuThreads, WorkAfterFork) {
  const Context context(options_with(4));
  ASSERT_EQ(context.status(), RMSNORM_SUCCESS) << last_error();
  Execution execution(*device_, large(Direction::kForward));
  execution.context = context.get();
  ASSERT_EQ(execution.run(), RMSNORM_SUCCESS) << last_error();
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    alarm(60);  // ends a child that hangs
    expect_same(context.get(), large(Direction::kBackward));
    const bool right = !HasFailure() && threads_of_process() == 4;
    rmsnorm_context_destroy(const_cast<rmsnorm_context_t *>(context.get()));
    _exit(right && threads_become(1) ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  expect_same(context.get(), large(Direction::kForward));
}

TEST_F(CpuThreads, SleepBetweenCalls) {
  const Context context(options_with(4));
  ASSERT_EQ(context.status(), RMSNORM_SUCCESS) << last_error();
  expect_same(context.get(), large(Direction::kForward));
  const std::clock_t before = std::clock();  // of all threads
  usleep(200000);
  EXPECT_LT(double(std::clock() - before) / CLOCKS_PER_SEC, 0.05);
}

}  // namespace
}  // namespace rmsnorm_test
