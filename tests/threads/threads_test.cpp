// Many threads: one context for all, contexts that come and go beside each other, and each thread's
// own error text.
#include <gtest/gtest.h>
#include <pthread.h>

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>

#include "../support/judge.h"
#include "../support/on_device.h"

namespace rmsnorm_test {
namespace {

constexpr size_t kThreads = 64;

// All threads go on once all have come.
class Gate {
 public:
  explicit Gate(size_t count) : missing_(count) {}
  void pass() {
    std::unique_lock<std::mutex> lock(mutex_);
    if (--missing_ == 0) opened_.notify_all();
    opened_.wait(lock, [this] { return missing_ == 0; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable opened_;
  size_t missing_;
};

template <class Body>
void on_threads(size_t count, Body body) {
  Gate gate(count);
  std::vector<std::thread> threads;
  for (size_t i = 0; i < count; ++i)
    threads.emplace_back([&, i] {
      gate.pass();
      body(i);
    });
  for (std::thread &thread : threads) thread.join();
}

class Threads : public OnDevice {
 protected:
  static Case case_of(size_t thread) {
    const Direction direction = kDirections[thread % 4];
    return full_case(direction, 20 + static_cast<int64_t>(thread % 3),
                     100 + static_cast<int64_t>(thread), kDtypes[thread / 2 % 4]);
  }
  // Every thread's calls give what a call alone gives.
  void serve(const rmsnorm_context_t *context) {
    std::vector<std::unique_ptr<Execution>> alone, together;
    for (size_t i = 0; i < kThreads; ++i) {
      alone.push_back(std::make_unique<Execution>(device(), case_of(i)));
      ASSERT_EQ(alone[i]->run(), RMSNORM_SUCCESS) << last_error();
      together.push_back(std::make_unique<Execution>(device(), case_of(i)));
      together[i]->context = context;
      together[i]->upload();
      ASSERT_EQ(together[i]->prepare_workspace(), RMSNORM_SUCCESS) << last_error();
    }
    std::atomic<int> failures{0};
    on_threads(kThreads, [&](size_t i) {
      size_t size = 0;
      for (int repeat = 0; repeat < 30; ++repeat) {
        failures += together[i]->launch() != RMSNORM_SUCCESS;
        failures += query_size(context, together[i]->params, &size) != RMSNORM_SUCCESS ||
                    size != together[i]->workspace_size_needed();
        failures += together[i]->kernel_name().empty();
      }
    });
    EXPECT_EQ(failures, 0);
    for (size_t i = 0; i < kThreads; ++i) {
      together[i]->download();
      EXPECT_TRUE(together[i]->nothing_else_written());
      EXPECT_TRUE(same_outputs(*alone[i], *together[i]));
    }
  }
};

TEST_P(Threads, SixtyFourOnOneContext) { serve(device().context()); }

TEST_P(Threads, SixtyFourOnOnePool) {
  rmsnorm_context_options_t options = options_for(GetParam());
  if (on_cuda()) options.flags = RMSNORM_CONTEXT_CHECK_POINTERS;
  else options.cpu_threads = 4;
  const Context context(options);
  ASSERT_EQ(context.status(), RMSNORM_SUCCESS) << last_error();
  serve(context.get());
}

TEST_P(Threads, ContextsComeAndGo) {
  constexpr size_t kCreators = 16;
  const int turns = on_cuda() ? 5 : 50;
  const Case c = full_case(Direction::kBackward, 300, 1800, RMSNORM_DTYPE_F32);  // wakes a pool
  Execution alone(device(), c);
  ASSERT_EQ(alone.run(), RMSNORM_SUCCESS) << last_error();
  std::vector<std::unique_ptr<Execution>> executions;
  for (size_t i = 0; i < kCreators; ++i) {
    executions.push_back(std::make_unique<Execution>(device(), c));
    executions[i]->upload();
    ASSERT_EQ(executions[i]->prepare_workspace(), RMSNORM_SUCCESS) << last_error();
  }
  std::atomic<int> failures{0};
  on_threads(kCreators, [&](size_t i) {
    for (int turn = 0; turn < turns; ++turn) {
      rmsnorm_context_options_t options = options_for(GetParam());
      options.cpu_threads = !on_cuda() && (i + static_cast<size_t>(turn)) % 4 == 0 ? 3 : 0;
      rmsnorm_context_t *context = nullptr;
      failures += rmsnorm_context_create(&options, &context) != RMSNORM_SUCCESS;
      executions[i]->context = context;
      if (turn % 5 == 0) failures += executions[i]->launch() != RMSNORM_SUCCESS;
      rmsnorm_context_destroy(context);
    }
  });
  EXPECT_EQ(failures, 0);
  for (const auto &execution : executions) {
    execution->context = device().context();
    execution->download();
    EXPECT_TRUE(same_outputs(alone, *execution));
  }
}

INSTANTIATE_TEST_SUITE_P(All, Threads, testing::ValuesIn(kBackends), BackendName());

// ---- The error text -----------------------------------------------------------------------------

std::string text_about(int32_t ordinal) {
  return "ordinal = " + std::to_string(ordinal) + " is negative";
}
void fail_with(int32_t ordinal) {
  rmsnorm_device_info_t info = RMSNORM_DEVICE_INFO_INIT;
  ASSERT_EQ(rmsnorm_device_info(RMSNORM_DEVICE_CPU, ordinal, &info), RMSNORM_ERROR_DEVICE);
}

TEST(LastErrors, AreEachThreadsOwn) {
  Gate failed(kThreads);
  std::atomic<int> others{0};
  fail_with(-1000);
  on_threads(kThreads, [&](size_t i) {
    const int32_t own = -1 - static_cast<int32_t>(i);
    others += !last_error().empty();  // a new thread has none
    fail_with(own);
    failed.pass();
    for (int repeat = 0; repeat < 100; ++repeat) others += last_error() != text_about(own);
  });
  EXPECT_EQ(others, 0);
  EXPECT_EQ(last_error(), text_about(-1000));
}

// What a language's finaliser does at any time on any thread: it destroys, and succeeds.
TEST(LastErrors, AreNotWipedByFinalisers) {
  rmsnorm_context_options_t options = RMSNORM_CONTEXT_OPTIONS_INIT;
  options.cpu_threads = 3;
  rmsnorm_context_t *first = nullptr, *second = nullptr;
  ASSERT_EQ(rmsnorm_context_create(&options, &first), RMSNORM_SUCCESS);
  ASSERT_EQ(rmsnorm_context_create(nullptr, &second), RMSNORM_SUCCESS);
  fail_with(-7);
  rmsnorm_context_destroy(first);
  rmsnorm_context_destroy(nullptr);
  std::thread([second] { rmsnorm_context_destroy(second); }).join();
  EXPECT_EQ(last_error(), text_about(-7));
}

// Also from what runs at a thread's end.
TEST(LastErrors, OutliveTheThreadsOwnObjects) {
  static std::string seen_by_object, seen_by_key;
  struct Object {
    ~Object() { seen_by_object = last_error(); }
    int used = 0;
  };
  pthread_key_t key;
  ASSERT_EQ(pthread_key_create(&key, [](void *) { seen_by_key = last_error(); }), 0);
  std::thread([key] {
    thread_local Object object;
    object.used = 1;
    pthread_setspecific(key, &key);
    fail_with(-3);
  }).join();
  pthread_key_delete(key);
  EXPECT_EQ(seen_by_object, text_about(-3));
  EXPECT_EQ(seen_by_key, text_about(-3));
}

}  // namespace
}  // namespace rmsnorm_test
