// The library in processes: before and after fork, opened and closed a thousand times, and twice in
// one process.
#include <dlfcn.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <thread>

#include "../support/judge.h"
#include "../support/on_device.h"

namespace rmsnorm_test {
namespace {

Device &cpu() {
  std::string why_not;
  return *find_device(RMSNORM_DEVICE_CPU, &why_not);
}

std::string library_path() {
  Dl_info found;
  EXPECT_NE(dladdr(reinterpret_cast<void *>(&rmsnorm_version), &found), 0);
  return found.dli_fname;
}

int64_t resident_kilobytes() {
  std::ifstream status("/proc/self/statm");
  int64_t size = 0, resident = 0;
  status >> size >> resident;
  return resident * sysconf(_SC_PAGESIZE) / 1024;
}

// ---- fork ---------------------------------------------------------------------------------------

// Whether body() holds in a child, which may not hang.
template <class Body>
void expect_in_child(Body body) {
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    alarm(120);
    body();
    _exit(testing::Test::HasFailure() ? 1 : 0);
  }
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
}

void expect_it_works() {
  for (const Direction direction : kDirections)
    EXPECT_TRUE(conforms(cpu(), full_case(direction, 30, 200, RMSNORM_DTYPE_F32)));
}

// The first test of this file: nothing has called the library yet.
TEST(Fork, BeforeAndAfterUse) {
  expect_in_child(expect_it_works);
  expect_it_works();
  expect_in_child(expect_it_works);
  expect_in_child([] { expect_in_child(expect_it_works); });
  expect_it_works();
}

// The child's text is a copy: its failures are its own.
TEST(Fork, KeepsTheErrorText) {
  EXPECT_EQ(rmsnorm_device_count(RMSNORM_DEVICE_CPU, nullptr), RMSNORM_ERROR_NULL);
  expect_in_child([] {
    EXPECT_EQ(last_error(), "count is NULL");
    EXPECT_EQ(rmsnorm_context_create(nullptr, nullptr), RMSNORM_ERROR_NULL);
  });
  EXPECT_EQ(last_error(), "count is NULL");
}

// While other threads are inside calls, and a pool is at work.
TEST(Fork, AmongCallsOfOtherThreads) {
  rmsnorm_context_options_t options = RMSNORM_CONTEXT_OPTIONS_INIT;
  options.cpu_threads = 3;
  const Context context(options);
  ASSERT_EQ(context.status(), RMSNORM_SUCCESS) << last_error();
  std::atomic<bool> stop{false};
  std::atomic<int> failures{0};
  std::vector<std::thread> callers;
  for (int i = 0; i < 3; ++i)
    callers.emplace_back([&, i] {
      Execution execution(cpu(), full_case(kDirections[i % 4], 100, 6000, RMSNORM_DTYPE_BF16));
      execution.context = context.get();
      execution.upload();
      failures += execution.prepare_workspace() != RMSNORM_SUCCESS;
      while (!stop) failures += execution.launch() != RMSNORM_SUCCESS;
    });
  // A child may use what is safe after fork; memory and the library's calls are, here.
  for (int turn = 0; turn < 20; ++turn) {
    const Case c = full_case(Direction::kForward, 100, 6000, RMSNORM_DTYPE_F32);
    Execution execution(cpu(), c);
    execution.context = context.get();
    execution.upload();
    ASSERT_EQ(execution.prepare_workspace(), RMSNORM_SUCCESS) << last_error();
    expect_in_child([&] { EXPECT_EQ(execution.launch(), RMSNORM_SUCCESS); });
  }
  stop = true;
  for (std::thread &caller : callers) caller.join();
  EXPECT_EQ(failures, 0);
}

// ---- dlopen -------------------------------------------------------------------------------------

// One copy of the library, opened by its path.
class Opened {
 public:
  Opened(const std::string &path, int flags) : handle_(dlopen(path.c_str(), flags)) {
    EXPECT_NE(handle_, nullptr) << dlerror();
  }
  ~Opened() {
    if (handle_ == nullptr) return;
    EXPECT_EQ(dlclose(handle_), 0);
  }
  Opened(const Opened &) = delete;
  Opened &operator=(const Opened &) = delete;

  template <class Function>
  Function *find(Function *, const char *name) const {
    return reinterpret_cast<Function *>(dlsym(handle_, name));
  }

 private:
  void *handle_;
};
#define FIND(library, name) (library).find(&name, #name)

// A copy beside the one that this program is linked with.
class Copy {
 public:
  Copy() : path_(testing::TempDir() + "rmsnorm-copy-XXXXXX") {
    const int file = mkstemp(path_.data());
    EXPECT_GE(file, 0);
    close(file);
    std::ifstream from(library_path(), std::ios::binary);
    std::ofstream(path_, std::ios::binary) << from.rdbuf();
  }
  ~Copy() { std::remove(path_.c_str()); }
  const std::string &path() const { return path_; }

 private:
  std::string path_;
};

// The same memory as the program's library sees, through another copy's functions.
rmsnorm_status_t run_in(const Opened &library, const rmsnorm_context_t *context,
                        const Execution &execution) {
  const Params &params = execution.params;
  const auto run = [&](auto function, const auto &of_direction) {
    return function(context, &of_direction, execution.workspace, execution.workspace_size,
                    execution.stream);
  };
  switch (params.direction) {
    case Direction::kForward: return run(FIND(library, rmsnorm_forward), params.forward);
    case Direction::kBackward: return run(FIND(library, rmsnorm_backward), params.backward);
    case Direction::kGluForward: return run(FIND(library, rmsnorm_glu_forward), params.glu_forward);
    default: return run(FIND(library, rmsnorm_glu_backward), params.glu_backward);
  }
}

TEST(Dlopen, AThousandTimes) {
  const Copy copy;
  rmsnorm_context_t *first = nullptr;
  const void *address = nullptr;
  int64_t settled = 0;
  for (int turn = 0; turn < 1000; ++turn) {
    const Opened library(copy.path(), RTLD_NOW | RTLD_LOCAL);
    const auto version = FIND(library, rmsnorm_version);
    ASSERT_NE(version, nullptr);
    if (turn == 0) {
      address = reinterpret_cast<const void *>(version);
      EXPECT_NE(version, &rmsnorm_version) << "the copy is not one";
      ASSERT_EQ(FIND(library, rmsnorm_context_create)(nullptr, &first), RMSNORM_SUCCESS);
    }
    ASSERT_EQ(reinterpret_cast<const void *>(version), address) << "it has been unloaded";
    ASSERT_EQ(version(), rmsnorm_version());
    rmsnorm_context_t *context = nullptr;
    ASSERT_EQ(FIND(library, rmsnorm_context_create)(nullptr, &context), RMSNORM_SUCCESS);
    FIND(library, rmsnorm_context_destroy)(context);
    int32_t count = -1;
    FIND(library, rmsnorm_device_count)(RMSNORM_DEVICE_CUDA, &count);
    if (turn == 100) settled = resident_kilobytes();
  }
  EXPECT_LT(resident_kilobytes() - settled, 1024) << "KB more than after 100 turns";
  // What was made before is good after.
  const Opened library(copy.path(), RTLD_NOW | RTLD_LOCAL);
  Execution execution(cpu(), full_case(Direction::kForward, 9, 100, RMSNORM_DTYPE_F32));
  execution.upload();
  ASSERT_EQ(execution.prepare_workspace(), RMSNORM_SUCCESS);
  EXPECT_EQ(run_in(library, first, execution), RMSNORM_SUCCESS);
  execution.download();
  EXPECT_TRUE(conforms(execution));
  FIND(library, rmsnorm_context_destroy)(first);
}

class TwoCopies : public OnDevice {};

// Each has its own contexts and error text, and the same bits.
TEST_P(TwoCopies, InOneProcess) {
  for (const int scope : {RTLD_LOCAL, RTLD_GLOBAL}) {
    const Copy copy;
    const Opened library(copy.path(), RTLD_NOW | scope);
    const auto other_error = [&] {
      char text[512];
      FIND(library, rmsnorm_last_error)(text, sizeof text);
      return std::string(text);
    };
    EXPECT_EQ(FIND(library, rmsnorm_device_count)(GetParam(), nullptr), RMSNORM_ERROR_NULL);
    EXPECT_EQ(rmsnorm_context_create(nullptr, nullptr), RMSNORM_ERROR_NULL);
    EXPECT_EQ(other_error(), "count is NULL");
    EXPECT_EQ(last_error(), "context is NULL");
    const rmsnorm_context_options_t options = options_for(GetParam());
    rmsnorm_context_t *context = nullptr;
    ASSERT_EQ(FIND(library, rmsnorm_context_create)(&options, &context), RMSNORM_SUCCESS)
        << other_error();
    for (const Direction direction : kDirections)
      for (const int64_t cols : {100, 20000}) {
        const Case c = full_case(direction, 40, cols, RMSNORM_DTYPE_BF16);
        Execution own(device(), c), other(device(), c);
        ASSERT_EQ(own.run(), RMSNORM_SUCCESS) << last_error();
        other.upload();
        ASSERT_EQ(other.prepare_workspace(), RMSNORM_SUCCESS);
        ASSERT_EQ(run_in(library, context, other), RMSNORM_SUCCESS) << other_error();
        other.download();
        EXPECT_TRUE(other.nothing_else_written());
        EXPECT_TRUE(same_outputs(own, other));
      }
    FIND(library, rmsnorm_context_destroy)(context);
  }
}

INSTANTIATE_TEST_SUITE_P(All, TwoCopies, testing::ValuesIn(kBackends), BackendName());

}  // namespace
}  // namespace rmsnorm_test
