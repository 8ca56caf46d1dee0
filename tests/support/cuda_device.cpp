// Device 0 through the CUDA runtime.
#ifdef RMSNORM_TEST_CUDA
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include "device.h"

namespace rmsnorm_test {
namespace {

void expect(cudaError_t error, const char *what) {
  EXPECT_EQ(error, cudaSuccess) << what << ": " << cudaGetErrorString(error);
}

class CudaDevice final : public Device {
 public:
  CudaDevice() {
    expect(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
  }
  rmsnorm_device_t type() const override { return RMSNORM_DEVICE_CUDA; }
  const char *name() const override { return "cuda"; }
  void *allocate(size_t bytes, Fence) override {
    void *memory = nullptr;
    const cudaError_t error = cudaMalloc(&memory, bytes == 0 ? 1 : bytes);
    if (error == cudaErrorMemoryAllocation) {
      cudaGetLastError();
      return nullptr;
    }
    expect(error, "cudaMalloc");
    return memory;
  }
  void release(void *memory) override { expect(cudaFree(memory), "cudaFree"); }
  void upload(void *to, const void *from, size_t bytes) override {
    expect(cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice), "cudaMemcpy to the device");
    settle();
  }
  void download(void *to, const void *from, size_t bytes) override {
    expect(cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost), "cudaMemcpy to the host");
  }
  void fill(void *memory, int byte, size_t bytes) override {
    expect(cudaMemset(memory, byte, bytes), "cudaMemset");
    settle();
  }
  void *stream() const override { return stream_; }
  std::string synchronize() override {
    const cudaError_t error = cudaStreamSynchronize(stream_);
    return error == cudaSuccess ? "" : cudaGetErrorString(error);
  }

 private:
  // Copies and fills run in the legacy stream, which the tests' stream does not wait for.
  static void settle() { expect(cudaStreamSynchronize(cudaStreamLegacy), "cudaStreamSynchronize"); }
  cudaStream_t stream_ = nullptr;
};

}  // namespace

Device *make_cuda_device(std::string *why_not) {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) {
    *why_not = "the CUDA runtime finds no device";
    return nullptr;
  }
  static CudaDevice device;
  return &device;
}

}  // namespace rmsnorm_test
#endif
