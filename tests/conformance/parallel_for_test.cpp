// The caller's parallel_for on the CPU: however it runs the tasks, the same bits; what it returns
// is heard.
#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <thread>

#include "../support/judge.h"
#include "../support/on_device.h"

namespace rmsnorm_test {
namespace {

struct Caller {
  std::atomic<int64_t> calls{0}, tasks{0};
  int threads = 1;
  bool backwards = false;
  int32_t answer = 0;
};

int32_t parallel_for(void *user, int64_t count, rmsnorm_task_t task, void *arg) {
  Caller &caller = *static_cast<Caller *>(user);
  ++caller.calls;
  if (caller.answer != 0) return caller.answer;
  std::atomic<int64_t> next{0};
  const auto work = [&] {
    for (int64_t i = next++; i < count; i = next++) {
      ++caller.tasks;
      task(arg, caller.backwards ? count - 1 - i : i);
    }
  };
  std::vector<std::thread> threads;
  for (int i = 1; i < caller.threads; ++i) threads.emplace_back(work);
  work();
  for (std::thread &thread : threads) thread.join();
  return 0;
}

rmsnorm_context_options_t options_with(Caller *caller) {
  rmsnorm_context_options_t options = RMSNORM_CONTEXT_OPTIONS_INIT;
  options.parallel_for = parallel_for;
  options.parallel_for_user = caller;
  return options;
}

class ParallelFor : public testing::Test {
 protected:
  void SetUp() override { require_device(RMSNORM_DEVICE_CPU, &device_); }
  Device *device_ = nullptr;
};

TEST_F(ParallelFor, ChangesNoBits) {
  struct Shape {
    int64_t rows, groups, cols;
  };
  int64_t tasks = 0;
  for (const Shape shape :
       {Shape{1, 1, 64}, Shape{3, 1, 1000}, Shape{2000, 1, 300}, Shape{37, 1, 8192},
        Shape{50, 12, 96}, Shape{2, 1, 200000}, Shape{100000, 1, 3}})
    for (const rmsnorm_dtype_t dtype : kDtypes)
      for (const Direction direction : kDirections) {
        Case c = full_case(direction, shape.rows, shape.cols, dtype);
        c.groups = shape.groups;
        Execution alone(*device_, c);
        ASSERT_EQ(alone.run(), RMSNORM_SUCCESS) << last_error();
        for (const int threads : {1, 2, 5}) {
          Caller caller;
          caller.threads = threads;
          caller.backwards = threads != 2;
          const Context context(options_with(&caller));
          ASSERT_EQ(context.status(), RMSNORM_SUCCESS) << last_error();
          Execution spread(*device_, c);
          spread.context = context.get();
          ASSERT_EQ(spread.run(), RMSNORM_SUCCESS) << last_error();
          EXPECT_TRUE(spread.nothing_else_written());
          EXPECT_TRUE(same_outputs(alone, spread));
          tasks += caller.tasks;
        }
      }
  EXPECT_GT(tasks, 1000) << "parallel_for is hardly used";
}

TEST_F(ParallelFor, FailureIsReported) {
  for (const Direction direction : kDirections) {
    Caller caller;
    caller.answer = 42;
    const Context context(options_with(&caller));
    ASSERT_EQ(context.status(), RMSNORM_SUCCESS) << last_error();
    Execution execution(*device_, full_case(direction, 3000, 500, RMSNORM_DTYPE_F32));
    execution.context = context.get();
    EXPECT_EQ(execution.run(), RMSNORM_ERROR_CALLBACK);
    EXPECT_NE(last_error().find("42"), std::string::npos) << last_error();
    EXPECT_GT(caller.calls, 0);
  }
}

// Several threads use one context with a parallel_for at once.
TEST_F(ParallelFor, IsCalledFromSeveralThreads) {
  Caller caller;
  caller.threads = 3;
  const Context context(options_with(&caller));
  ASSERT_EQ(context.status(), RMSNORM_SUCCESS) << last_error();
  const Case c = full_case(Direction::kBackward, 800, 400, RMSNORM_DTYPE_BF16);
  Execution alone(*device_, c);
  ASSERT_EQ(alone.run(), RMSNORM_SUCCESS) << last_error();
  std::vector<std::unique_ptr<Execution>> executions;
  for (int i = 0; i < 4; ++i) {
    executions.push_back(std::make_unique<Execution>(*device_, c));
    executions.back()->context = context.get();
  }
  std::atomic<int> failures{0};
  std::vector<std::thread> threads;
  for (auto &execution : executions)
    threads.emplace_back([&failures, &execution] {
      if (execution->run() != RMSNORM_SUCCESS) ++failures;
    });
  for (std::thread &thread : threads) thread.join();
  EXPECT_EQ(failures, 0);
  for (const auto &execution : executions) EXPECT_TRUE(same_outputs(alone, *execution));
}

}  // namespace
}  // namespace rmsnorm_test
