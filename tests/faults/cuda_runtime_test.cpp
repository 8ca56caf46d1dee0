// The CUDA backend over a runtime that computes nothing: each call that it makes of CUDA fails in
// turn, machines without what it needs, the caller's device and error, and what is launched. Needs
// no GPU.
#include <gtest/gtest.h>

#include <cstring>

#include "../support/case.h"
#include "../support/kernel_list.h"
#include "allocations.h"
#include "fake_runtime.h"

namespace rmsnorm_test {
namespace {

using rmsnorm_fake::Launch;
using rmsnorm_fake::own_context;
using rmsnorm_fake::primary_context;
using rmsnorm_fake::runtime;

constexpr uint32_t kAllFlags = RMSNORM_CONTEXT_PRELOAD | RMSNORM_CONTEXT_CHECK_POINTERS;

std::string last_error() {
  char text[1024];
  rmsnorm_last_error(text, sizeof text);
  return text;
}

rmsnorm_context_options_t options_of(int device, uint32_t flags) {
  rmsnorm_context_options_t options = RMSNORM_CONTEXT_OPTIONS_INIT;
  options.device = RMSNORM_DEVICE_CUDA;
  options.ordinal = device;
  options.flags = flags;
  return options;
}

// Params at addresses that nobody looks at, a tensor of `apart` bytes after another.
Params params_of(const Case &c, uintptr_t apart = uintptr_t{1} << 32) {
  Params params(c.direction);
  uintptr_t next = apart;
  for (int i = 0; i < kNameCount; ++i) {
    const Name name = static_cast<Name>(i);
    if (!takes(c.direction, name) || !c.has(name)) continue;
    params.tensor(name) = {reinterpret_cast<void *>(next), c.resolved_row_stride(name),
                           c.resolved_group_stride(name), c[name].dtype, 0};
    next += apart;
  }
  params.edit_head([&](auto *head) {
    head->rows = c.rows, head->groups = c.groups, head->cols = c.cols;
    head->flags = c.flags;
  });
  params.edit_norm([&](auto *norm) {
    norm->eps = c.eps, norm->weight_offset = c.weight_offset, norm->rounding = c.rounding;
  });
  params.edit_glu([&](auto *glu) { glu->activation = c.activation; });
  return params;
}

rmsnorm_status_t call(const rmsnorm_context_t *context, const Params &params,
                      void *stream = nullptr) {
  size_t size = 0;
  const rmsnorm_status_t status = query_size(context, params, &size);
  void *const workspace = reinterpret_cast<void *>(uintptr_t{1} << 61);
  return status == RMSNORM_SUCCESS ? run(context, params, workspace, size, stream) : status;
}

// A program's life: its status is the first failure.
rmsnorm_status_t life(int device, uint32_t flags) {
  int32_t count = 0;
  rmsnorm_status_t status = rmsnorm_device_count(RMSNORM_DEVICE_CUDA, &count);
  rmsnorm_device_info_t info = RMSNORM_DEVICE_INFO_INIT;
  if (status == RMSNORM_SUCCESS) status = rmsnorm_device_info(RMSNORM_DEVICE_CUDA, device, &info);
  if (status != RMSNORM_SUCCESS) return status;
  const rmsnorm_context_options_t options = options_of(device, flags);
  rmsnorm_context_t *context = nullptr;
  status = rmsnorm_context_create(&options, &context);
  EXPECT_EQ(context != nullptr, status == RMSNORM_SUCCESS);
  for (const Direction direction : kDirections)
    for (const int64_t cols : {100, 70000})
      if (status == RMSNORM_SUCCESS)
        status = call(context, params_of(full_case(direction, 50, cols, RMSNORM_DTYPE_BF16)));
  rmsnorm_context_destroy(context);
  return status;
}

class OnFake : public testing::Test {
 protected:
  void SetUp() override {
    runtime().machine = {};
    runtime().reset();
  }
  // What must hold after any call, whatever failed.
  void expect_clean(cudaError_t callers_error, const std::vector<CUcontext> &stack) {
    EXPECT_EQ(runtime().last_error, callers_error);
    EXPECT_EQ(runtime().stack, stack);
    for (int device = 0; device < rmsnorm_fake::kDevices; ++device)
      EXPECT_EQ(runtime().retained[device], 0) << "primary context " << device << " is kept";
    EXPECT_EQ(runtime().wrong, std::vector<std::string>());
    EXPECT_EQ(allocations().live, 0) << "memory is kept";
  }
};

TEST_F(OnFake, ALifeWithoutFaults) {
  EXPECT_EQ(life(1, kAllFlags), RMSNORM_SUCCESS) << last_error();
  expect_clean(cudaSuccess, {});
  EXPECT_FALSE(runtime().made_for_nothing[0]) << "device 0 was touched for device 1";
  for (const Launch &launch : runtime().launches) EXPECT_EQ(launch.device, 1);
  EXPECT_GT(runtime().launches.size(), 5u);
}

struct Code {
  cudaError_t error;
  CUresult result;
  rmsnorm_status_t status;
};

// The n-th call of CUDA fails, for every n.
TEST_F(OnFake, EachCallFails) {
  const Code codes[] = {
      {cudaErrorUnknown, CUDA_ERROR_UNKNOWN, RMSNORM_ERROR_CUDA},
      {cudaErrorMemoryAllocation, CUDA_ERROR_OUT_OF_MEMORY, RMSNORM_ERROR_OUT_OF_MEMORY},
      {cudaErrorIllegalAddress, CUDA_ERROR_ILLEGAL_ADDRESS, RMSNORM_ERROR_CUDA_EARLIER},
      {cudaErrorNoKernelImageForDevice, CUDA_ERROR_NO_BINARY_FOR_GPU, RMSNORM_ERROR_ARCHITECTURE}};
  int injected = 0;
  std::map<std::string, int> of_function;
  for (const Code &code : codes)
    for (const uint32_t flags : {uint32_t{0}, kAllFlags})
      for (int nth = 1;; ++nth) {
        runtime().reset();
        runtime().fails_at = nth;
        runtime().error = code.error, runtime().result = code.result;
        const rmsnorm_status_t status = life(1, flags);
        const std::string failed = runtime().failed;
        if (failed.empty()) {
          EXPECT_EQ(status, RMSNORM_SUCCESS) << last_error();
          break;
        }
        ++injected, ++of_function[failed];
        // Not knowing these, the library goes on.
        const bool harmless = failed == "cuCtxGetDevice" || failed == "cuCtxPopCurrent" ||
                              failed == "cuDevicePrimaryCtxRelease" ||
                              failed == "cudaDriverGetVersion";
        // The driver's functions all fail as CUDA; memory for a context is told apart.
        const bool driver = failed.compare(0, 4, "cuda") != 0;
        const bool for_context = failed == "cuDeviceGet" || failed == "cuDevicePrimaryCtxRetain";
        const bool as_cuda = driver && !(for_context && code.result == CUDA_ERROR_OUT_OF_MEMORY);
        const rmsnorm_status_t expected = harmless  ? rmsnorm_status_t{RMSNORM_SUCCESS}
                                          : as_cuda ? rmsnorm_status_t{RMSNORM_ERROR_CUDA}
                                                    : code.status;
        EXPECT_EQ(status, expected) << nth << ", " << failed << ": " << last_error();
        EXPECT_TRUE(harmless || !last_error().empty());
        expect_clean(cudaSuccess, {});
        if (HasFailure()) return;
        // Usable afterwards.
        runtime().fails_at = 0;
        ASSERT_EQ(life(1, flags), RMSNORM_SUCCESS) << nth << ", " << failed << ": " << last_error();
      }
  std::printf("%d faults injected:", injected);
  for (const auto &[function, count] : of_function) std::printf(" %s %d", function.c_str(), count);
  std::printf("\n");
  // Every function that can fail did; the guard asks for a context's device under one alone.
  for (const char *function :
       {"cudaGetDeviceCount", "cudaDeviceGetAttribute", "cudaGetDeviceProperties",
        "cudaGetDriverEntryPointByVersion", "cudaFuncGetAttributes", "cudaFuncSetAttribute",
        "cudaPointerGetAttributes", "cudaLaunchKernelExC", "cuDeviceGet",
        "cuDevicePrimaryCtxRetain", "cuCtxGetCurrent", "cuCtxPushCurrent"})
    EXPECT_GT(of_function[function], 0) << function;
}

// So does each request of the host's memory: a context makes two, the calls none.
TEST_F(OnFake, EachHostRequestFails) {
  int injected = 0;
  for (int nth = 1;; ++nth) {
    runtime().reset();
    allocations().requests = 0;
    allocations().fails_at = nth;
    const rmsnorm_status_t status = life(1, kAllFlags);
    allocations().fails_at = 0;
    if (allocations().requests < nth) {
      EXPECT_EQ(status, RMSNORM_SUCCESS) << last_error();
      break;
    }
    ++injected;
    EXPECT_EQ(status, RMSNORM_ERROR_OUT_OF_MEMORY) << nth << ": " << last_error();
    EXPECT_NE(last_error().find("no memory"), std::string::npos) << last_error();
    expect_clean(cudaSuccess, {});
    ASSERT_FALSE(HasFailure()) << nth;
    ASSERT_EQ(life(1, kAllFlags), RMSNORM_SUCCESS) << nth << ": " << last_error();
  }
  EXPECT_EQ(injected, 2);
}

// Also with a context of the caller's current, on either device, and an error of the caller's.
TEST_F(OnFake, EachCallFailsAmongTheCallersOwn) {
  for (const int current : {0, 1})
    for (int nth = 1;; ++nth) {
      runtime().reset();
      runtime().fails_at = nth;
      runtime().last_error = cudaErrorInvalidValue;  // the caller has yet to take it
      runtime().error = cudaErrorUnknown;
      const std::vector<CUcontext> stack = {own_context(current)};
      runtime().stack = stack;
      life(1, kAllFlags);
      if (runtime().failed.empty()) break;
      // The runtime keeps one error, the latest; the caller has one to find as before.
      EXPECT_NE(runtime().last_error, cudaSuccess);
      runtime().last_error = cudaSuccess;
      expect_clean(cudaSuccess, stack);
      ASSERT_FALSE(HasFailure()) << nth << ", " << runtime().failed;
    }
}

// ---- Machines -----------------------------------------------------------------------------------

TEST_F(OnFake, WithoutADriver) {
  runtime().machine.no_devices = cudaErrorInsufficientDriver;
  runtime().machine.driver_version = 0;
  int32_t count = 7;
  EXPECT_EQ(rmsnorm_device_count(RMSNORM_DEVICE_CUDA, &count), RMSNORM_SUCCESS);
  EXPECT_EQ(count, 0);
  EXPECT_EQ(life(0, 0), RMSNORM_ERROR_NO_DRIVER);
  expect_clean(cudaSuccess, {});
}

TEST_F(OnFake, WithADriverThatIsTooOld) {
  runtime().machine.no_devices = cudaErrorInsufficientDriver;
  runtime().machine.driver_version = 11040;
  int32_t count = 7;
  EXPECT_EQ(rmsnorm_device_count(RMSNORM_DEVICE_CUDA, &count), RMSNORM_ERROR_DRIVER_TOO_OLD);
  EXPECT_EQ(count, 7);
  EXPECT_NE(last_error().find("11.4"), std::string::npos) << last_error();
  const rmsnorm_context_options_t options = options_of(0, 0);
  rmsnorm_context_t *context = nullptr;
  EXPECT_EQ(rmsnorm_context_create(&options, &context), RMSNORM_ERROR_DRIVER_TOO_OLD);
  EXPECT_EQ(context, nullptr);
  expect_clean(cudaSuccess, {});
}

TEST_F(OnFake, WithoutADevice) {
  runtime().machine.no_devices = cudaErrorNoDevice;
  int32_t count = 7;
  EXPECT_EQ(rmsnorm_device_count(RMSNORM_DEVICE_CUDA, &count), RMSNORM_SUCCESS);
  EXPECT_EQ(count, 0);
  EXPECT_EQ(life(0, 0), RMSNORM_ERROR_NO_DEVICE);
  expect_clean(cudaSuccess, {});
}

TEST_F(OnFake, WithAnOlderArchitecture) {
  runtime().machine.compute_capability = 50;
  rmsnorm_device_info_t info = RMSNORM_DEVICE_INFO_INIT;
  EXPECT_EQ(rmsnorm_device_info(RMSNORM_DEVICE_CUDA, 0, &info), RMSNORM_SUCCESS) << last_error();
  EXPECT_EQ(info.supported, 0);
  EXPECT_EQ(info.compute_capability, 50);
  EXPECT_EQ(life(0, 0), RMSNORM_ERROR_ARCHITECTURE);
  EXPECT_NE(last_error().find("sm_50"), std::string::npos) << last_error();
  expect_clean(cudaSuccess, {});
  // The machine gets a device that will do, and the library is usable.
  runtime().machine = {};
  EXPECT_EQ(life(0, 0), RMSNORM_SUCCESS) << last_error();
}

// The CPU's contexts need nothing of CUDA.
TEST_F(OnFake, TheCpuGoesWithoutCuda) {
  runtime().machine.no_devices = cudaErrorInsufficientDriver;
  rmsnorm_context_t *context = nullptr;
  ASSERT_EQ(rmsnorm_context_create(nullptr, &context), RMSNORM_SUCCESS) << last_error();
  rmsnorm_context_destroy(context);
  EXPECT_EQ(runtime().calls, 0);
}

// ---- Devices and launches -----------------------------------------------------------------------

// A call acts on its context's device, whichever is current, and leaves that one current.
TEST_F(OnFake, EachCallIsOnItsDevice) {
  const rmsnorm_context_options_t options = options_of(1, kAllFlags);
  rmsnorm_context_t *context = nullptr;
  const std::vector<std::vector<CUcontext>> stacks = {{},
                                                      {primary_context(0)},
                                                      {primary_context(1)},
                                                      {own_context(0)},
                                                      {own_context(1)},
                                                      {primary_context(1), own_context(0)}};
  for (const std::vector<CUcontext> &creating : stacks) {
    runtime().stack = creating;
    ASSERT_EQ(rmsnorm_context_create(&options, &context), RMSNORM_SUCCESS) << last_error();
    EXPECT_EQ(runtime().stack, creating);
    for (const std::vector<CUcontext> &stack : stacks)
      for (const Direction direction : kDirections) {
        runtime().stack = stack;
        runtime().launches.clear();
        ASSERT_EQ(call(context, params_of(full_case(direction, 9, 200, RMSNORM_DTYPE_F32))),
                  RMSNORM_SUCCESS)
            << last_error();
        EXPECT_EQ(runtime().stack, stack);
        EXPECT_FALSE(runtime().launches.empty());
        for (const Launch &launch : runtime().launches)
          EXPECT_EQ(launch.device, 1) << "launched on a device other than the context's";
      }
    rmsnorm_context_destroy(context);
  }
  EXPECT_FALSE(runtime().made_for_nothing[0]) << "device 0 has a context that nobody asked for";
  runtime().stack.clear();
  expect_clean(cudaSuccess, {});
}

// All that a call launches goes into the stream that it was given, CUDA's own handles included.
TEST_F(OnFake, EachCallIsInItsStream) {
  const rmsnorm_context_options_t options = options_of(0, kAllFlags);
  rmsnorm_context_t *context = nullptr;
  ASSERT_EQ(rmsnorm_context_create(&options, &context), RMSNORM_SUCCESS) << last_error();
  for (const uintptr_t handle : {0, 1, 2, 4096})
    for (const Case &c : kernel_list()) {
      void *const stream = reinterpret_cast<void *>(handle);
      runtime().launches.clear();
      ASSERT_EQ(call(context, params_of(c), stream), RMSNORM_SUCCESS) << last_error() << "\n" << c;
      EXPECT_FALSE(runtime().launches.empty());
      for (const Launch &launch : runtime().launches) EXPECT_EQ(launch.stream, stream) << c;
    }
  EXPECT_EQ(runtime().wrong, std::vector<std::string>());
  rmsnorm_context_destroy(context);
}

// A grid has at most 65,535 blocks in y and z, and 2^31 - 1 in x: no number of rows is too many.
TEST_F(OnFake, AnyNumberOfRows) {
  const rmsnorm_context_options_t options = options_of(0, 0);
  rmsnorm_context_t *context = nullptr;
  ASSERT_EQ(rmsnorm_context_create(&options, &context), RMSNORM_SUCCESS) << last_error();
  for (const rmsnorm_dtype_t dtype : kDtypes)
    for (const Direction direction : kDirections)
      for (const int64_t rows : {int64_t{65535}, int64_t{65536}, (int64_t{1} << 31) - 1,
                                 (int64_t{1} << 31) + 7, int64_t{1} << 36})
        for (const int64_t groups : {1, 3, 70000})
          for (const int64_t cols : {1, 100, 128, 4096, 70000, 300000}) {
            if (static_cast<double>(rows) * groups * cols > 0x1p38) continue;  // more than memory
            Case c = full_case(direction, rows, cols, dtype);
            c.groups = groups;
            ASSERT_EQ(call(context, params_of(c, uintptr_t{1} << 44)), RMSNORM_SUCCESS)
                << last_error() << "\n"
                << c;
          }
  EXPECT_EQ(runtime().wrong, std::vector<std::string>());
  rmsnorm_context_destroy(context);
}

TEST_F(OnFake, EveryKernelIsOnTheList) {
  const rmsnorm_context_options_t options = options_of(0, 0);
  rmsnorm_context_t *context = nullptr;
  ASSERT_EQ(rmsnorm_context_create(&options, &context), RMSNORM_SUCCESS) << last_error();
  std::set<const void *> seen;
  for (const Case &c : kernel_list()) {
    runtime().launches.clear();
    ASSERT_EQ(call(context, params_of(c)), RMSNORM_SUCCESS) << last_error() << "\n" << c;
    for (const Launch &launch : runtime().launches) seen.insert(launch.kernel);
  }
  for (const auto &[kernel, name] : rmsnorm_fake::kernels())
    EXPECT_EQ(seen.count(kernel), 1u) << name << ": tests/support/kernel_list.cpp lacks it";
  EXPECT_EQ(runtime().wrong, std::vector<std::string>());
  std::printf("%zu kernels, %zu calls\n", seen.size(), kernel_list().size());
  rmsnorm_context_destroy(context);
}

// The kernels of mixed dtypes are of one kind, which a weight that is absent does not change.
TEST_F(OnFake, MixedDtypesWithoutAWeight) {
  const rmsnorm_context_options_t options = options_of(0, 0);
  rmsnorm_context_t *context = nullptr;
  ASSERT_EQ(rmsnorm_context_create(&options, &context), RMSNORM_SUCCESS) << last_error();
  for (const int64_t rows : {1, 40, 5000})
    for (const int64_t cols : {64, 200, 4096, 6000, 8192, 20000}) {
      Case c = add_case(rows, cols, RMSNORM_DTYPE_BF16);
      c[kResidual].dtype = c[kResidualOut].dtype = RMSNORM_DTYPE_F32;
      std::string names[2];
      for (std::string &name : names) {
        char text[RMSNORM_KERNEL_NAME_SIZE] = "";
        runtime().launches.clear();
        ASSERT_EQ(call(context, params_of(c)), RMSNORM_SUCCESS) << last_error();
        ASSERT_EQ(query_name(context, params_of(c), text, sizeof text), RMSNORM_SUCCESS);
        ASSERT_EQ(runtime().launches.size(), 1u);
        const Launch &launch = runtime().launches[0];
        name = text + (", blocks " + std::to_string(launch.blocks)) + ", of a cluster " +
               std::to_string(launch.cluster);
        c[kWeight].dtype = RMSNORM_DTYPE_NONE;
      }
      EXPECT_EQ(names[0], names[1]) << c;
    }
  rmsnorm_context_destroy(context);
}

// OVERLAP only where the device and the kernels' code have it.
TEST_F(OnFake, OverlapOnlyWhereItIs) {
  for (const auto &[capability, ptx, has] :
       {std::tuple<int, int, bool>{90, 90, true}, {100, 80, false}, {120, 120, true}}) {
    runtime().machine.compute_capability = capability;
    runtime().machine.ptx_version = ptx;
    const rmsnorm_context_options_t options = options_of(0, 0);
    rmsnorm_context_t *context = nullptr;
    ASSERT_EQ(rmsnorm_context_create(&options, &context), RMSNORM_SUCCESS) << last_error();
    for (const uint32_t flags : {uint32_t{0}, uint32_t{RMSNORM_FLAG_OVERLAP}}) {
      Case c = forward_case(5, 3000, RMSNORM_DTYPE_BF16);
      c.flags = flags;
      runtime().launches.clear();
      ASSERT_EQ(call(context, params_of(c)), RMSNORM_SUCCESS) << last_error();
      ASSERT_EQ(runtime().launches.size(), 1u);
      EXPECT_EQ(runtime().launches[0].overlap, has && flags != 0) << capability << " " << ptx;
    }
    rmsnorm_context_destroy(context);
  }
}

}  // namespace
}  // namespace rmsnorm_test
