// CUDA streams at length: a producer that is late, a thousand replays of a graph, a hundred runs
// with equal bits, also while another stream keeps the device busy.
#include <gtest/gtest.h>

#include <memory>

#include "../support/judge.h"
#include "../support/on_device.h"

#ifdef RMSNORM_TEST_CUDA
#include <cuda_runtime_api.h>
#endif

namespace rmsnorm_test {
namespace {

#ifndef RMSNORM_TEST_CUDA

TEST(CudaStreams, All) { GTEST_SKIP() << "these tests were built without RMSNORM_TEST_CUDA"; }

#else

class Stream {
 public:
  Stream() { EXPECT_EQ(cudaStreamCreateWithFlags(&own_, cudaStreamNonBlocking), cudaSuccess); }
  ~Stream() { EXPECT_EQ(cudaStreamDestroy(own_), cudaSuccess); }
  Stream(const Stream &) = delete;
  Stream &operator=(const Stream &) = delete;
  cudaStream_t get() const { return own_; }
  void wait() const { EXPECT_EQ(cudaStreamSynchronize(own_), cudaSuccess); }

 private:
  cudaStream_t own_ = nullptr;
};

class CudaStreams : public testing::Test {
 protected:
  void SetUp() override { require_device(RMSNORM_DEVICE_CUDA, &device_); }
  Device &device() { return *device_; }

 private:
  Device *device_ = nullptr;
};

// What x (or gate) holds comes late, in another stream, and the call waits by an event alone.
TEST_F(CudaStreams, LateProducer) {
  struct Pause {
    static void CUDART_CB half_a_second(void *) {
      const timespec time = {0, 500000000};
      nanosleep(&time, nullptr);
    }
  };
  for (const uint32_t flags : {uint32_t{0}, uint32_t{RMSNORM_FLAG_OVERLAP}})
    for (const Direction direction : kDirections) {
      Case c = full_case(direction, 300, 2000, RMSNORM_DTYPE_BF16);
      c.flags = flags;
      Execution warm(device(), c), execution(device(), c);
      ASSERT_EQ(warm.run(), RMSNORM_SUCCESS) << last_error();  // code is loaded
      execution.upload();
      ASSERT_EQ(execution.prepare_workspace(), RMSNORM_SUCCESS) << last_error();
      const Name late = takes(direction, kX) ? kX : kGate;
      void *const x = execution.params.tensor(late).data;
      const size_t bytes = 300 * 2000 * 2;
      void *kept = device().allocate(bytes);
      ASSERT_EQ(cudaMemcpy(kept, x, bytes, cudaMemcpyDeviceToDevice), cudaSuccess);
      ASSERT_EQ(cudaMemset(x, 0xff, bytes), cudaSuccess);
      ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
      const Stream producer, consumer;
      cudaEvent_t ready = nullptr;
      ASSERT_EQ(cudaEventCreateWithFlags(&ready, cudaEventDisableTiming), cudaSuccess);
      ASSERT_EQ(cudaLaunchHostFunc(producer.get(), Pause::half_a_second, nullptr), cudaSuccess);
      ASSERT_EQ(cudaMemcpyAsync(x, kept, bytes, cudaMemcpyDeviceToDevice, producer.get()),
                cudaSuccess);
      ASSERT_EQ(cudaEventRecord(ready, producer.get()), cudaSuccess);
      ASSERT_EQ(cudaStreamWaitEvent(consumer.get(), ready, 0), cudaSuccess);
      ASSERT_EQ(execution.launch(consumer.get()), RMSNORM_SUCCESS) << last_error();
      EXPECT_EQ(cudaEventQuery(ready), cudaErrorNotReady) << "the call has waited for its input";
      consumer.wait();
      execution.download();
      EXPECT_TRUE(conforms(execution));
      EXPECT_EQ(cudaEventDestroy(ready), cudaSuccess);
      device().release(kept);
    }
}

TEST_F(CudaStreams, AThousandReplays) {
  for (const Direction direction : kDirections)
    for (const int64_t cols : {128, 4096, 70000}) {
      const Case c = full_case(direction, 50, cols, RMSNORM_DTYPE_BF16);
      Execution direct(device(), c), replayed(device(), c);
      ASSERT_EQ(direct.run(), RMSNORM_SUCCESS) << last_error();
      replayed.upload();
      ASSERT_EQ(replayed.prepare_workspace(), RMSNORM_SUCCESS) << last_error();
      const Stream stream;
      cudaGraph_t graph = nullptr;
      cudaGraphExec_t replay = nullptr;
      ASSERT_EQ(cudaStreamBeginCapture(stream.get(), cudaStreamCaptureModeGlobal), cudaSuccess);
      EXPECT_EQ(replayed.launch(stream.get()), RMSNORM_SUCCESS) << last_error();
      ASSERT_EQ(cudaStreamEndCapture(stream.get(), &graph), cudaSuccess);
      ASSERT_EQ(cudaGraphInstantiate(&replay, graph, 0), cudaSuccess);
      for (int turn = 0; turn < 1000; ++turn)
        ASSERT_EQ(cudaGraphLaunch(replay, stream.get()), cudaSuccess);
      stream.wait();
      replayed.download();
      EXPECT_TRUE(replayed.nothing_else_written());
      EXPECT_TRUE(same_outputs(direct, replayed));
      EXPECT_EQ(cudaGraphExecDestroy(replay), cudaSuccess);
      EXPECT_EQ(cudaGraphDestroy(graph), cudaSuccess);
    }
}

// A hundred runs, and a hundred beside another stream's work.
TEST_F(CudaStreams, AHundredRunsHaveEqualBits) {
  Execution load(device(), full_case(Direction::kBackward, 8192, 4096, RMSNORM_DTYPE_BF16));
  load.upload();
  ASSERT_EQ(load.prepare_workspace(), RMSNORM_SUCCESS) << last_error();
  const Stream other;
  for (const rmsnorm_dtype_t dtype : kDtypes)
    for (const Direction direction : kDirections)
      for (const auto &[rows, cols] :
           {std::pair<int64_t, int64_t>{2000, 128}, {300, 1027}, {140, 8192}, {20, 70000}}) {
        const Case c = full_case(direction, rows, cols, dtype);
        Execution first(device(), c), again(device(), c);
        ASSERT_EQ(first.run(), RMSNORM_SUCCESS) << last_error();
        again.upload();
        ASSERT_EQ(again.prepare_workspace(), RMSNORM_SUCCESS) << last_error();
        for (const bool busy : {false, true})
          for (int turn = 0; turn < 100; ++turn) {
            if (busy) {
              ASSERT_EQ(load.launch(other.get()), RMSNORM_SUCCESS) << last_error();
            }
            ASSERT_EQ(again.launch(), RMSNORM_SUCCESS) << last_error();
            ASSERT_EQ(device().synchronize(), "");
            again.download();
            ASSERT_TRUE(same_outputs(first, again)) << "run " << turn << (busy ? ", busy" : "");
          }
        other.wait();
      }
}

#endif

}  // namespace
}  // namespace rmsnorm_test
