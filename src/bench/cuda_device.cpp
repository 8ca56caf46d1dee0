// A CUDA device: device memory, a stream of its own, graphs and events.
#include "bench/cuda_device.h"

#include "bench/cuda_kernels.h"
#include "bench/text.h"

namespace bench {
namespace {

// Runs between two events: a graph, or the calls themselves.
class CudaPass final : public Pass {
 public:
  CudaPass(cudaStream_t stream, std::function<void()> calls, bool graph)
      : stream_(stream), calls_(std::move(calls)) {
    require(cudaEventCreate(&start_), "cudaEventCreate");
    require(cudaEventCreate(&end_), "cudaEventCreate");
    if (!graph) return;
    const cudaGraph_t captured = capture(stream, calls_);
    require(cudaGraphInstantiate(&graph_, captured, 0), "cudaGraphInstantiate");
    require(cudaGraphDestroy(captured), "cudaGraphDestroy");
    require(cudaGraphUpload(graph_, stream), "cudaGraphUpload");
  }
  ~CudaPass() override {
    if (graph_ != nullptr) require(cudaGraphExecDestroy(graph_), "cudaGraphExecDestroy");
    require(cudaEventDestroy(start_), "cudaEventDestroy");
    require(cudaEventDestroy(end_), "cudaEventDestroy");
  }
  double microseconds() override {
    require(cudaEventRecord(start_, stream_), "cudaEventRecord");
    if (graph_ == nullptr) calls_();
    else require(cudaGraphLaunch(graph_, stream_), "cudaGraphLaunch");
    require(cudaEventRecord(end_, stream_), "cudaEventRecord");
    require(cudaEventSynchronize(end_), "a timed pass");
    float milliseconds = 0;
    require(cudaEventElapsedTime(&milliseconds, start_, end_), "cudaEventElapsedTime");
    return 1e3 * static_cast<double>(milliseconds);
  }

 private:
  cudaStream_t stream_;
  std::function<void()> calls_;
  cudaEvent_t start_ = nullptr, end_ = nullptr;
  cudaGraphExec_t graph_ = nullptr;
};

// Copies and fills are in the stream, in order with the calls, and waited for: a plain cudaMemcpy
// would not wait for this stream.
class CudaDevice final : public Device {
 public:
  explicit CudaDevice(int32_t ordinal) {
    require(cudaSetDevice(ordinal), "cudaSetDevice");
    require(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate");
  }
  ~CudaDevice() override { require(cudaStreamDestroy(stream_), "cudaStreamDestroy"); }

  double free_bytes() override {
    size_t free = 0, total = 0;
    require(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
    return static_cast<double>(free);
  }
  char *allocate(size_t bytes) override {
    void *memory = nullptr;
    require(cudaMalloc(&memory, bytes), "cudaMalloc");
    return static_cast<char *>(memory);
  }
  void release(char *memory) override { require(cudaFree(memory), "cudaFree"); }
  void upload(void *to, const void *from, size_t bytes) override {
    transfer(to, from, bytes, cudaMemcpyHostToDevice);
  }
  void download(void *to, const void *from, size_t bytes) override {
    transfer(to, from, bytes, cudaMemcpyDeviceToHost);
  }
  void copy(void *to, const void *from, size_t bytes) override {
    transfer(to, from, bytes, cudaMemcpyDeviceToDevice);
  }
  void fill(void *memory, int byte, size_t bytes) override {
    require(cudaMemsetAsync(memory, byte, bytes, stream_), "cudaMemsetAsync");
    synchronize();
  }
  void *stream() const override { return stream_; }
  void synchronize() override { require(cudaStreamSynchronize(stream_), "the stream"); }

  void move(const Move &move, int) override { require(launch_move(move, stream_), "the ceiling"); }
  std::unique_ptr<Pass> prepare(std::function<void()> calls, bool graph) override {
    return std::unique_ptr<Pass>(new CudaPass(stream_, std::move(calls), graph));
  }
  HostTime host_time(const std::function<void()> &call, bool overlap) override {
    return cuda_host_time(stream_, call, overlap);
  }

 private:
  void transfer(void *to, const void *from, size_t bytes, cudaMemcpyKind kind) {
    require(cudaMemcpyAsync(to, from, bytes, kind, stream_), "cudaMemcpyAsync");
    synchronize();
  }
  cudaStream_t stream_ = nullptr;
};

}  // namespace

void require(cudaError_t error, const char *what) {
  if (error != cudaSuccess)
    fail(kBroken, "CUDA: %s: %s (%s)", what, cudaGetErrorName(error), cudaGetErrorString(error));
}

cudaGraph_t capture(cudaStream_t stream, const std::function<void()> &calls) {
  cudaGraph_t graph = nullptr;
  require(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal),
          "cudaStreamBeginCapture");
  calls();
  require(cudaStreamEndCapture(stream, &graph), "cudaStreamEndCapture");
  return graph;
}

std::unique_ptr<Device> make_cuda_device(int32_t ordinal) {
  return std::unique_ptr<Device>(new CudaDevice(ordinal));
}

}  // namespace bench
