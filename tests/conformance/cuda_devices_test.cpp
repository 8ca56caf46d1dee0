// The second of two GPUs, in a process that has touched neither: a context for device 1 makes none
// on device 0, calls run on device 1 whichever is current, and leave that one current.
#include <gtest/gtest.h>

#include "../support/case.h"
#include "../support/device.h"

#ifdef RMSNORM_TEST_CUDA
#include <cuda.h>
#include <cuda_runtime_api.h>
#endif

namespace rmsnorm_test {
namespace {

#ifndef RMSNORM_TEST_CUDA

TEST(CudaDevices, All) { GTEST_SKIP() << "these tests were built without RMSNORM_TEST_CUDA"; }

#else

template <class Function>
Function *driver(const char *name) {
  void *found = nullptr;
  cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
  EXPECT_EQ(cudaGetDriverEntryPointByVersion(name, &found, 12000, cudaEnableDefault, &result),
            cudaSuccess);
#else
  EXPECT_EQ(cudaGetDriverEntryPoint(name, &found, cudaEnableDefault, &result), cudaSuccess);
#endif
  EXPECT_EQ(result, cudaDriverEntryPointSuccess);
  return reinterpret_cast<Function *>(found);
}

bool has_context(int device) {
  unsigned flags = 0;
  int active = -1;
  EXPECT_EQ(driver<CUresult(CUdevice, unsigned *, int *)>(
                "cuDevicePrimaryCtxGetState")(device, &flags, &active),
            CUDA_SUCCESS);
  return active != 0;
}

CUcontext current_context() {
  CUcontext current = nullptr;
  EXPECT_EQ(driver<CUresult(CUcontext *)>("cuCtxGetCurrent")(&current), CUDA_SUCCESS);
  return current;
}

// x = dy = 3 in each of `rows` x `cols`, without a weight: y is 1 and dx 0, but for roundings.
struct Buffers {
  static constexpr int64_t kRows = 50, kCols = 512;
  void *x = nullptr, *y = nullptr, *dx = nullptr, *workspace = nullptr;
  static constexpr size_t kBytes = kRows * kCols * sizeof(float), kWorkspace = size_t{1} << 24;

  void allocate() {  // on the current device
    const std::vector<float> threes(kRows * kCols, 3.0f);
    for (void **each : {&x, &y, &dx}) ASSERT_EQ(cudaMalloc(each, kBytes), cudaSuccess);
    ASSERT_EQ(cudaMalloc(&workspace, kWorkspace), cudaSuccess);
    ASSERT_EQ(cudaMemcpy(x, threes.data(), kBytes, cudaMemcpyHostToDevice), cudaSuccess);
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  }
  static void expect_near(const void *from, float value) {
    std::vector<float> read(kRows * kCols);
    ASSERT_EQ(cudaMemcpy(read.data(), from, kBytes, cudaMemcpyDeviceToHost), cudaSuccess);
    for (const float element : read) ASSERT_NEAR(element, value, 1e-5);
  }
};

rmsnorm_tensor_t packed(void *data) { return {data, Buffers::kCols, 0, RMSNORM_DTYPE_F32, 0}; }
rmsnorm_input_t packed_input(const void *data) {
  return {data, Buffers::kCols, 0, RMSNORM_DTYPE_F32, 0};
}

void run_both(const rmsnorm_context_t *context, const Buffers &of, cudaStream_t stream) {
  rmsnorm_forward_params_t f = RMSNORM_FORWARD_PARAMS_INIT;
  f.rows = Buffers::kRows, f.cols = Buffers::kCols;
  f.x = packed_input(of.x), f.y = packed(of.y);
  EXPECT_EQ(rmsnorm_forward(context, &f, of.workspace, of.kWorkspace, stream), RMSNORM_SUCCESS)
      << last_error();
  rmsnorm_backward_params_t b = RMSNORM_BACKWARD_PARAMS_INIT;
  b.rows = Buffers::kRows, b.cols = Buffers::kCols;
  b.x = b.dy = packed_input(of.x), b.dx = packed(of.dx);
  EXPECT_EQ(rmsnorm_backward(context, &b, of.workspace, of.kWorkspace, stream), RMSNORM_SUCCESS)
      << last_error();
}

// One test, in this order: what it sees of device 0 depends on nobody having used it before.
TEST(CudaDevices, TheSecondOfTwo) {
  int32_t count = 0;
  const rmsnorm_status_t counted = rmsnorm_device_count(RMSNORM_DEVICE_CUDA, &count);
  if (counted != RMSNORM_SUCCESS || count < 2) GTEST_SKIP() << "there are no two CUDA devices";
  rmsnorm_device_info_t info = RMSNORM_DEVICE_INFO_INIT;
  for (int32_t device = 0; device < 2; ++device)
    ASSERT_EQ(rmsnorm_device_info(RMSNORM_DEVICE_CUDA, device, &info), RMSNORM_SUCCESS)
        << last_error();
  EXPECT_FALSE(has_context(0) || has_context(1)) << "asking about devices made a context";

  rmsnorm_context_options_t options = options_for(RMSNORM_DEVICE_CUDA);
  options.ordinal = 1;
  options.flags = RMSNORM_CONTEXT_PRELOAD | RMSNORM_CONTEXT_CHECK_POINTERS;
  rmsnorm_context_t *context = nullptr;
  ASSERT_EQ(rmsnorm_context_create(&options, &context), RMSNORM_SUCCESS) << last_error();
  EXPECT_TRUE(has_context(1));
  EXPECT_FALSE(has_context(0)) << "a context for device 1 made one on device 0";
  EXPECT_EQ(current_context(), nullptr) << "no device was current before";

  ASSERT_EQ(cudaSetDevice(1), cudaSuccess);
  Buffers second;
  second.allocate();
  cudaStream_t stream = nullptr;
  ASSERT_EQ(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
  run_both(context, second, stream);
  ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  Buffers::expect_near(second.y, 1);
  Buffers::expect_near(second.dx, 0);
  EXPECT_FALSE(has_context(0)) << "calls on device 1 made a context on device 0";

  // Now with device 0 current, whose memory the context refuses.
  for (void *each : {second.y, second.dx}) ASSERT_EQ(cudaMemset(each, 0xff, 4), cudaSuccess);
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  ASSERT_EQ(cudaSetDevice(0), cudaSuccess);
  Buffers first;
  first.allocate();
  const CUcontext before = current_context();
  for (cudaStream_t in : {stream, cudaStream_t{nullptr}, cudaStreamPerThread}) {
    run_both(context, second, in);
    int current = -1;
    ASSERT_EQ(cudaGetDevice(&current), cudaSuccess);
    EXPECT_EQ(current, 0);
    EXPECT_EQ(current_context(), before);
  }
  ASSERT_EQ(cudaSetDevice(1), cudaSuccess);
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  ASSERT_EQ(cudaSetDevice(0), cudaSuccess);
  Buffers::expect_near(second.y, 1);
  Buffers::expect_near(second.dx, 0);
  rmsnorm_forward_params_t f = RMSNORM_FORWARD_PARAMS_INIT;
  f.rows = Buffers::kRows, f.cols = Buffers::kCols;
  f.x = packed_input(first.x), f.y = packed(second.y);
  EXPECT_EQ(rmsnorm_forward(context, &f, nullptr, 0, stream), RMSNORM_ERROR_POINTER);
  EXPECT_NE(last_error().find("x = 0x"), std::string::npos) << last_error();
  EXPECT_EQ(cudaPeekAtLastError(), cudaSuccess);
  rmsnorm_context_destroy(context);
  EXPECT_EQ(current_context(), before);
}

#endif

}  // namespace
}  // namespace rmsnorm_test
