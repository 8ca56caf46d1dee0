// Identity, devices and contexts: what they tell, every rule about their arguments, and the log.
#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <thread>

#include "../support/judge.h"
#include "../support/on_device.h"

namespace rmsnorm_test {
namespace {

TEST(Identity, VersionsAreTheHeaders) {
  EXPECT_EQ(rmsnorm_version(),
            RMSNORM_VERSION_MAJOR * 10000 + RMSNORM_VERSION_MINOR * 100 + RMSNORM_VERSION_PATCH);
  EXPECT_EQ(rmsnorm_abi_version(), RMSNORM_ABI_VERSION);
}

TEST(Identity, BuildInfoHasItsKeys) {
  const std::string info = rmsnorm_build_info();
  const std::string version = std::to_string(RMSNORM_VERSION_MAJOR) + "." +
                              std::to_string(RMSNORM_VERSION_MINOR) + "." +
                              std::to_string(RMSNORM_VERSION_PATCH);
  for (const std::string &key : {"version=" + version, std::string("cuda="), std::string("isa=")})
    EXPECT_NE(info.find(key), std::string::npos) << info;
  EXPECT_EQ(info.find('@'), std::string::npos) << info;
}

TEST(LastError, StaysThroughSuccess) {
  int32_t count = 0;
  EXPECT_EQ(rmsnorm_device_count(RMSNORM_DEVICE_CPU, nullptr), RMSNORM_ERROR_NULL);
  EXPECT_EQ(rmsnorm_device_count(RMSNORM_DEVICE_CPU, &count), RMSNORM_SUCCESS);
  EXPECT_EQ(last_error(), "count is NULL");
  EXPECT_EQ(rmsnorm_last_error(nullptr, 0), sizeof "count is NULL");
}

TEST(InitFunctions, ZeroExactlyTheirBytes) {
  using Init = void (*)(void *, size_t);
  struct Row {
    Init init;
    size_t size;
  };
  for (const Row &row :
       {Row{rmsnorm_forward_params_init, sizeof(rmsnorm_forward_params_t)},
        Row{rmsnorm_backward_params_init, sizeof(rmsnorm_backward_params_t)},
        Row{rmsnorm_glu_forward_params_init, sizeof(rmsnorm_glu_forward_params_t)},
        Row{rmsnorm_glu_backward_params_init, sizeof(rmsnorm_glu_backward_params_t)},
        Row{rmsnorm_context_options_init, sizeof(rmsnorm_context_options_t)},
        Row{rmsnorm_device_info_init, sizeof(rmsnorm_device_info_t)}}) {
    for (const size_t size : {row.size, row.size + 24, size_t{16}}) {
      std::vector<unsigned char> bytes(size + 8, 0xa5);
      row.init(bytes.data(), size);
      size_t stored = 0;
      std::memcpy(&stored, bytes.data(), sizeof stored);
      EXPECT_EQ(stored, size);
      for (size_t i = sizeof stored; i < bytes.size(); ++i)
        ASSERT_EQ(bytes[i], i < size ? 0 : 0xa5) << i;
    }
    row.init(nullptr, row.size);  // never fails
  }
}

// The _INIT macros and the _init functions make the same struct.
TEST(InitFunctions, AgreeWithTheMacros) {
  rmsnorm_forward_params_t forward, forward_macro = RMSNORM_FORWARD_PARAMS_INIT;
  rmsnorm_forward_params_init(&forward, sizeof forward);
  EXPECT_EQ(std::memcmp(&forward, &forward_macro, sizeof forward), 0);
  rmsnorm_backward_params_t backward, backward_macro = RMSNORM_BACKWARD_PARAMS_INIT;
  rmsnorm_backward_params_init(&backward, sizeof backward);
  EXPECT_EQ(std::memcmp(&backward, &backward_macro, sizeof backward), 0);
  rmsnorm_glu_forward_params_t glu_forward, glu_forward_macro = RMSNORM_GLU_FORWARD_PARAMS_INIT;
  rmsnorm_glu_forward_params_init(&glu_forward, sizeof glu_forward);
  EXPECT_EQ(std::memcmp(&glu_forward, &glu_forward_macro, sizeof glu_forward), 0);
  rmsnorm_glu_backward_params_t glu_backward, glu_backward_macro = RMSNORM_GLU_BACKWARD_PARAMS_INIT;
  rmsnorm_glu_backward_params_init(&glu_backward, sizeof glu_backward);
  EXPECT_EQ(std::memcmp(&glu_backward, &glu_backward_macro, sizeof glu_backward), 0);
  rmsnorm_device_info_t device, device_macro = RMSNORM_DEVICE_INFO_INIT;
  rmsnorm_device_info_init(&device, sizeof device);
  EXPECT_EQ(std::memcmp(&device, &device_macro, sizeof device), 0);
}

TEST(Devices, TheCpuIsThere) {
  int32_t count = -1;
  ASSERT_EQ(rmsnorm_device_count(RMSNORM_DEVICE_CPU, &count), RMSNORM_SUCCESS) << last_error();
  EXPECT_EQ(count, 1);
}

TEST(Devices, BadArguments) {
  int32_t count = 77;
  EXPECT_EQ(rmsnorm_device_count(RMSNORM_DEVICE_CPU, nullptr), RMSNORM_ERROR_NULL);
  EXPECT_EQ(last_error(), "count is NULL");
  EXPECT_EQ(rmsnorm_device_count(7, &count), RMSNORM_ERROR_NEWER_LIBRARY);
  EXPECT_NE(last_error().find("device = 7"), std::string::npos) << last_error();
  EXPECT_EQ(count, 77);
  rmsnorm_device_info_t info = RMSNORM_DEVICE_INFO_INIT;
  EXPECT_EQ(rmsnorm_device_info(RMSNORM_DEVICE_CPU, 0, nullptr), RMSNORM_ERROR_NULL);
  EXPECT_EQ(last_error(), "info is NULL");
  EXPECT_EQ(rmsnorm_device_info(7, 0, &info), RMSNORM_ERROR_NEWER_LIBRARY);
  EXPECT_EQ(rmsnorm_device_info(RMSNORM_DEVICE_CPU, -1, &info), RMSNORM_ERROR_DEVICE);
  EXPECT_NE(last_error().find("ordinal = -1"), std::string::npos) << last_error();
  EXPECT_EQ(rmsnorm_device_info(RMSNORM_DEVICE_CPU, 1, &info), RMSNORM_ERROR_DEVICE);
  EXPECT_NE(last_error().find("ordinal = 1"), std::string::npos) << last_error();
  info.struct_size = sizeof info - 8;
  EXPECT_EQ(rmsnorm_device_info(RMSNORM_DEVICE_CPU, 0, &info), RMSNORM_ERROR_STRUCT_SIZE);
  EXPECT_EQ(info.device, 0) << "a refused call has written";
}

// A larger struct: what this library does not know must be zero, and stays so.
TEST(Devices, LargerInfo) {
  struct {
    rmsnorm_device_info_t info;
    int64_t unknown[3];
  } larger;
  rmsnorm_device_info_init(&larger, sizeof larger);
  ASSERT_EQ(rmsnorm_device_info(RMSNORM_DEVICE_CPU, 0, &larger.info), RMSNORM_SUCCESS)
      << last_error();
  EXPECT_EQ(larger.info.struct_size, sizeof larger);
  EXPECT_EQ(larger.unknown[0], 0);
  larger.unknown[1] = 1;
  EXPECT_EQ(rmsnorm_device_info(RMSNORM_DEVICE_CPU, 0, &larger.info), RMSNORM_ERROR_NEWER_LIBRARY);
}

TEST(Devices, CudaOrWhyNot) {
  int32_t count = -1;
  const rmsnorm_status_t status = rmsnorm_device_count(RMSNORM_DEVICE_CUDA, &count);
  const bool built = std::string(rmsnorm_build_info()).find("cuda=off") == std::string::npos;
  EXPECT_EQ(status, built ? RMSNORM_SUCCESS : RMSNORM_ERROR_BACKEND_NOT_BUILT) << last_error();
  if (status == RMSNORM_SUCCESS && count > 0) return;
  const rmsnorm_context_options_t options = options_for(RMSNORM_DEVICE_CUDA);
  const Context context(options);
  EXPECT_EQ(context.get(), nullptr);
  if (built)
    EXPECT_TRUE(context.status() == RMSNORM_ERROR_NO_DRIVER ||
                context.status() == RMSNORM_ERROR_NO_DEVICE)
        << last_error();
  else EXPECT_EQ(context.status(), RMSNORM_ERROR_BACKEND_NOT_BUILT);
  EXPECT_NE(last_error().find("CUDA"), std::string::npos) << last_error();
}

class OfContext : public OnDevice {
 protected:
  void expect_refused(const rmsnorm_context_options_t &options, rmsnorm_status_t status,
                      const std::string &text) {
    rmsnorm_context_t *context = reinterpret_cast<rmsnorm_context_t *>(8);
    EXPECT_EQ(rmsnorm_context_create(&options, &context), status) << last_error();
    EXPECT_EQ(context, nullptr);
    EXPECT_NE(last_error().find(text), std::string::npos) << last_error();
  }
};

TEST_P(OfContext, DeviceInfo) {
  rmsnorm_device_info_t info = RMSNORM_DEVICE_INFO_INIT;
  ASSERT_EQ(rmsnorm_device_info(GetParam(), 0, &info), RMSNORM_SUCCESS) << last_error();
  EXPECT_EQ(info.device, GetParam());
  EXPECT_EQ(info.ordinal, 0);
  EXPECT_EQ(info.supported, 1);
  EXPECT_EQ(info.reserved, 0);
  EXPECT_GE(info.processors, 1);
  EXPECT_GT(info.memory_bytes, 0);
  EXPECT_GE(info.cache_bytes, 0);
  EXPECT_STRNE(info.name, "");
  EXPECT_EQ(on_cuda(), info.compute_capability > 0);
  const std::string sm = "sm_" + std::to_string(info.compute_capability);
  EXPECT_EQ(info.isa == sm, on_cuda());
  EXPECT_STRNE(info.isa, "");
}

TEST_P(OfContext, EveryRuleOfTheOptions) {
  const rmsnorm_context_options_t good = options_for(GetParam());
  ASSERT_EQ(Context(good).status(), RMSNORM_SUCCESS) << last_error();
  rmsnorm_context_options_t bad = good;
  bad.struct_size = 0;
  expect_refused(bad, RMSNORM_ERROR_STRUCT_SIZE, "options.struct_size = 0");
  bad = good, bad.struct_size -= 8;
  expect_refused(bad, RMSNORM_ERROR_STRUCT_SIZE, "options.struct_size = ");
  bad = good, bad.device = 13;
  expect_refused(bad, RMSNORM_ERROR_NEWER_LIBRARY, "device = 13");
  bad = good, bad.flags = 8;
  expect_refused(bad, RMSNORM_ERROR_NEWER_LIBRARY, "0x8");
  bad = good, bad.cpu_threads = -1;
  expect_refused(bad, RMSNORM_ERROR_VALUE, "cpu_threads = -1");
  bad = good, bad.cpu_threads = 1025;
  expect_refused(bad, RMSNORM_ERROR_VALUE, "cpu_threads = 1025");
  bad = good, bad.cpu_threads = 2;
  bad.parallel_for = [](void *, int64_t, rmsnorm_task_t, void *) -> int32_t { return 1; };
  expect_refused(bad, RMSNORM_ERROR_VALUE, "cpu_threads = 2 beside options.parallel_for");
  bad = good, bad.ordinal = -1;
  expect_refused(bad, RMSNORM_ERROR_DEVICE, "ordinal = -1");
  int32_t count = 0;
  ASSERT_EQ(rmsnorm_device_count(GetParam(), &count), RMSNORM_SUCCESS);
  bad = good, bad.ordinal = count;
  expect_refused(bad, RMSNORM_ERROR_DEVICE, "ordinal = " + std::to_string(count));
  EXPECT_EQ(rmsnorm_context_create(&good, nullptr), RMSNORM_ERROR_NULL);
  EXPECT_EQ(last_error(), "context is NULL");
  rmsnorm_context_destroy(nullptr);
}

TEST_P(OfContext, EveryFlagIsAccepted) {
  for (const uint32_t flags : {0, 1, 2, 3, 4, 7}) {
    rmsnorm_context_options_t options = options_for(GetParam());
    options.flags = flags;
    options.cpu_threads = flags % 2 == 0 ? 0 : 1;
    const Context context(options);
    ASSERT_EQ(context.status(), RMSNORM_SUCCESS) << last_error();
    Execution execution(device(), full_case(Direction::kForward, 5, 100, RMSNORM_DTYPE_F32));
    execution.context = context.get();
    ASSERT_EQ(execution.run(), RMSNORM_SUCCESS) << last_error();
    EXPECT_TRUE(conforms(execution));
  }
}

// A context is a decision, not a state: a second one gives the same bits.
TEST_P(OfContext, ContextsAgree) {
  const Context other(options_for(GetParam()));
  ASSERT_EQ(other.status(), RMSNORM_SUCCESS) << last_error();
  for (const Direction direction : kDirections) {
    const Case c = full_case(direction, 300, 200, RMSNORM_DTYPE_BF16);
    Execution first(device(), c), second(device(), c);
    second.context = other.get();
    ASSERT_EQ(first.run(), RMSNORM_SUCCESS) << last_error();
    ASSERT_EQ(second.run(), RMSNORM_SUCCESS) << last_error();
    EXPECT_TRUE(same_outputs(first, second));
  }
}

struct Log {
  std::vector<std::string> lines;
  std::thread::id thread;
};
void append(void *user, const char *line) {
  static_cast<Log *>(user)->lines.push_back(line);
  static_cast<Log *>(user)->thread = std::this_thread::get_id();
}

// One line for each accepted operation, none for queries or for what is refused.
TEST_P(OfContext, LogsAcceptedCalls) {
  Log log;
  rmsnorm_context_options_t options = options_for(GetParam());
  options.log = append;
  options.log_user = &log;
  const Context context(options);
  ASSERT_EQ(context.status(), RMSNORM_SUCCESS) << last_error();
  Case c = full_case(Direction::kForward, 7, 100, RMSNORM_DTYPE_BF16);
  c.weight_offset = 1;
  Execution forward(device(), c);
  forward.context = context.get();
  ASSERT_EQ(forward.prepare_workspace(), RMSNORM_SUCCESS) << last_error();
  const std::string kernel = forward.kernel_name();
  EXPECT_TRUE(log.lines.empty());
  ASSERT_EQ(forward.run(), RMSNORM_SUCCESS) << last_error();
  ASSERT_EQ(log.lines.size(), 1u);
  EXPECT_EQ(log.thread, std::this_thread::get_id());
  for (const char *part : {"op=forward ", "rows=7 ", "groups=1 ", "cols=100 ", "weight_offset=1 ",
                           "x=bf16:100:0:", "rstd=fp32:", "rounding=once", "kernel="})
    EXPECT_NE(log.lines[0].find(part), std::string::npos) << part << " in " << log.lines[0];
  EXPECT_NE(log.lines[0].find(std::string("device=") + backend_name(GetParam()) + ":0"),
            std::string::npos);
  EXPECT_NE(log.lines[0].find("kernel=" + kernel), std::string::npos) << log.lines[0];
  EXPECT_EQ(log.lines[0].find('\n'), std::string::npos);

  forward.params.forward.eps = -1;
  EXPECT_EQ(forward.launch(), RMSNORM_ERROR_VALUE);
  EXPECT_EQ(log.lines.size(), 1u) << "a refused call was logged";
  if (!on_cuda()) {
    Execution streamed(device(), c);
    streamed.context = context.get();
    ASSERT_EQ(streamed.prepare_workspace(), RMSNORM_SUCCESS);
    EXPECT_EQ(streamed.launch(&log), RMSNORM_ERROR_STREAM);
    EXPECT_EQ(log.lines.size(), 1u) << "a refused call was logged";
  }
  Execution backward(device(), full_case(Direction::kBackward, 7, 100, RMSNORM_DTYPE_F16));
  backward.context = context.get();
  const size_t before = log.lines.size();
  ASSERT_EQ(backward.run(), RMSNORM_SUCCESS) << last_error();
  ASSERT_EQ(log.lines.size(), before + 1);
  EXPECT_NE(log.lines.back().find("op=backward "), std::string::npos) << log.lines.back();
  for (const Direction direction : kGluDirections) {
    Execution gated(device(),
                    glu_case(direction, RMSNORM_ACTIVATION_GELU_TANH, 7, 100, RMSNORM_DTYPE_F16));
    gated.context = context.get();
    ASSERT_EQ(gated.run(), RMSNORM_SUCCESS) << last_error();
    const std::string &line = log.lines.back();
    EXPECT_EQ(line.find(std::string("op=") + text(direction) + " "), 0u) << line;
    EXPECT_NE(line.find(" activation=gelu_tanh overlap=0 "), std::string::npos) << line;
    EXPECT_NE(line.find(" gate=fp16:100:0:"), std::string::npos) << line;
    EXPECT_NE(line.find("kernel=" + gated.kernel_name()), std::string::npos) << line;
  }
  EXPECT_EQ(log.lines.size(), before + 3);
}

// One context, many threads, each with memory of its own.
TEST_P(OfContext, ServesManyThreads) {
  for (const Direction direction : kDirections) {
    const Case c = full_case(direction, 60, 500, RMSNORM_DTYPE_F32);
    Execution alone(device(), c);
    ASSERT_EQ(alone.run(), RMSNORM_SUCCESS) << last_error();
    constexpr size_t kThreads = 8;
    std::vector<std::unique_ptr<Execution>> executions;
    for (size_t i = 0; i < kThreads; ++i) {
      executions.push_back(std::make_unique<Execution>(device(), c));
      executions[i]->upload();
      ASSERT_EQ(executions[i]->prepare_workspace(), RMSNORM_SUCCESS);
    }
    std::vector<rmsnorm_status_t> statuses(kThreads, -1);
    std::vector<std::thread> threads;
    for (size_t i = 0; i < kThreads; ++i)
      threads.emplace_back([&, i] {
        for (int repeat = 0; repeat < 20 && statuses[i] <= 0; ++repeat)
          statuses[i] = executions[i]->launch();
      });
    for (std::thread &thread : threads) thread.join();
    for (size_t i = 0; i < kThreads; ++i) {
      EXPECT_EQ(statuses[i], RMSNORM_SUCCESS);
      executions[i]->download();
      EXPECT_TRUE(same_outputs(alone, *executions[i]));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, OfContext, testing::ValuesIn(kBackends), BackendName());

}  // namespace
}  // namespace rmsnorm_test
