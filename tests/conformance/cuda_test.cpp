// What only CUDA has: streams, graphs, the caller's error and device, PRELOAD, CHECK_POINTERS.
#include <gtest/gtest.h>

#include "../support/judge.h"
#include "../support/on_device.h"

#ifdef RMSNORM_TEST_CUDA
#include <cuda_runtime_api.h>
#endif

namespace rmsnorm_test {
namespace {

#ifndef RMSNORM_TEST_CUDA

TEST(Cuda, All) { GTEST_SKIP() << "these tests were built without RMSNORM_TEST_CUDA"; }

#else

class Cuda : public testing::Test {
 protected:
  void SetUp() override { require_device(RMSNORM_DEVICE_CUDA, &device_); }
  Device &device() { return *device_; }
  void *allocate(size_t bytes) { return device_->allocate(bytes); }

 private:
  Device *device_ = nullptr;
};

Case small_case(Direction direction) { return full_case(direction, 70, 1000, RMSNORM_DTYPE_BF16); }

TEST_F(Cuda, EveryKindOfStream) {
  for (const Direction direction : kDirections) {
    cudaStream_t own = nullptr;
    ASSERT_EQ(cudaStreamCreate(&own), cudaSuccess);
    Execution expected(device(), small_case(direction));
    ASSERT_EQ(expected.run(), RMSNORM_SUCCESS) << last_error();
    ASSERT_TRUE(conforms(expected));
    for (void *stream : {static_cast<void *>(nullptr), static_cast<void *>(cudaStreamLegacy),
                         static_cast<void *>(cudaStreamPerThread), static_cast<void *>(own)}) {
      Execution execution(device(), small_case(direction));
      execution.stream = stream;
      execution.upload();
      ASSERT_EQ(execution.prepare_workspace(), RMSNORM_SUCCESS);
      ASSERT_EQ(execution.launch(), RMSNORM_SUCCESS) << last_error();
      ASSERT_EQ(cudaStreamSynchronize(static_cast<cudaStream_t>(stream)), cudaSuccess);
      execution.download();
      EXPECT_TRUE(same_outputs(expected, execution));
    }
    ASSERT_EQ(cudaStreamDestroy(own), cudaSuccess);
  }
}

// Work goes into the caller's stream and no other: while an event holds that stream up, nothing
// runs.
TEST_F(Cuda, RunsInTheCallersStreamOnly) {
  struct Gate {
    static void CUDART_CB wait(void *open) {
      while (!*static_cast<volatile bool *>(open)) {
      }
    }
  };
  for (const Direction direction : kDirections) {
    Execution warm(device(), small_case(direction));  // code is loaded
    ASSERT_EQ(warm.run(), RMSNORM_SUCCESS) << last_error();
    Execution execution(device(), small_case(direction));
    execution.upload();
    ASSERT_EQ(execution.prepare_workspace(), RMSNORM_SUCCESS);
    cudaStream_t held = nullptr, other = nullptr;
    ASSERT_EQ(cudaStreamCreateWithFlags(&held, cudaStreamNonBlocking), cudaSuccess);
    ASSERT_EQ(cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking), cudaSuccess);
    volatile bool open = false;
    ASSERT_EQ(cudaLaunchHostFunc(held, Gate::wait, const_cast<bool *>(&open)), cudaSuccess);
    EXPECT_EQ(execution.launch(held), RMSNORM_SUCCESS)
        << last_error();  // returns: it does not wait
    EXPECT_EQ(cudaStreamQuery(held), cudaErrorNotReady);
    constexpr Name kOutputs[] = {kY, kDx, kY, kDgate};
    const Name output = kOutputs[static_cast<int>(direction)];
    std::vector<uint8_t> seen(64), before(64);
    EXPECT_EQ(cudaMemcpyAsync(seen.data(), execution.params.tensor(output).data, seen.size(),
                              cudaMemcpyDeviceToHost, other),
              cudaSuccess);
    EXPECT_EQ(cudaStreamSynchronize(other), cudaSuccess);
    before.assign(64, seen[0]);
    EXPECT_EQ(seen, before) << "written before its stream came to it";
    open = true;
    EXPECT_EQ(cudaStreamSynchronize(held), cudaSuccess);
    execution.download();
    EXPECT_TRUE(conforms(execution));
    EXPECT_EQ(cudaStreamDestroy(held), cudaSuccess);
    EXPECT_EQ(cudaStreamDestroy(other), cudaSuccess);
  }
}

// Capture, then replay over new data: the graph keeps pointers, not contents.
TEST_F(Cuda, CaptureAndReplay) {
  for (const uint32_t flags : {0, static_cast<int>(RMSNORM_FLAG_OVERLAP)})
    for (const Direction direction : kDirections)
      for (const int64_t cols : {64, 1000, 8192, 40000, 131072}) {
        Case c = full_case(direction, 33, cols, RMSNORM_DTYPE_BF16);
        c.flags = flags;
        c.sampled = 4;
        Execution execution(device(), c);
        ASSERT_EQ(execution.prepare_workspace(), RMSNORM_SUCCESS);
        cudaStream_t stream = nullptr;
        ASSERT_EQ(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
        ASSERT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), cudaSuccess);
        EXPECT_EQ(execution.launch(stream), RMSNORM_SUCCESS) << last_error();
        cudaGraph_t graph = nullptr;
        ASSERT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
        cudaGraphExec_t replay = nullptr;
        ASSERT_EQ(cudaGraphInstantiate(&replay, graph, 0), cudaSuccess);
        // The params may be gone by now.
        const Params kept = execution.params;
        execution.params = Params(direction);
        execution.upload();
        for (int repeat = 0; repeat < 3; ++repeat)
          EXPECT_EQ(cudaGraphLaunch(replay, stream), cudaSuccess);
        EXPECT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
        execution.params = kept;
        execution.download();
        EXPECT_TRUE(conforms(execution));
        Execution direct(device(), c);
        ASSERT_EQ(direct.run(), RMSNORM_SUCCESS) << last_error();
        EXPECT_TRUE(same_outputs(direct, execution));
        EXPECT_EQ(cudaGraphExecDestroy(replay), cudaSuccess);
        EXPECT_EQ(cudaGraphDestroy(graph), cudaSuccess);
        EXPECT_EQ(cudaStreamDestroy(stream), cudaSuccess);
      }
}

// A call may read its weight before the one before it has ended: of work further back, all has.
TEST_F(Cuda, OverlapWithAWeightFromTwoBack) {
  for (const int64_t cols : {128, 4096, 16384, 70000}) {
    Case c = forward_case(3, cols, RMSNORM_DTYPE_BF16);
    c.flags = RMSNORM_FLAG_OVERLAP;
    Execution direct(device(), c), between(device(), c), last(device(), c);
    ASSERT_EQ(direct.run(), RMSNORM_SUCCESS) << last_error();
    for (Execution *execution : {&between, &last}) {
      execution->upload();
      ASSERT_EQ(execution->prepare_workspace(), RMSNORM_SUCCESS) << last_error();
    }
    void *const weight = last.params.tensor(kWeight).data;
    const size_t bytes = static_cast<size_t>(cols) * 2;
    void *const right = device().allocate(bytes), *const wrong = device().allocate(bytes);
    ASSERT_EQ(cudaMemcpy(right, weight, bytes, cudaMemcpyDeviceToDevice), cudaSuccess);
    ASSERT_EQ(cudaMemset(wrong, 0x40, bytes), cudaSuccess);
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);  // neither waits for the device itself
    cudaStream_t stream = nullptr;
    ASSERT_EQ(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
    for (int step = 0; step < 20; ++step)
      for (const void *now : {wrong, right}) {
        ASSERT_EQ(cudaMemcpyAsync(weight, now, bytes, cudaMemcpyDeviceToDevice, stream),
                  cudaSuccess);
        ASSERT_EQ(between.launch(stream), RMSNORM_SUCCESS) << last_error();
        ASSERT_EQ(last.launch(stream), RMSNORM_SUCCESS) << last_error();
      }
    ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
    last.download();
    EXPECT_TRUE(same_outputs(direct, last));
    EXPECT_EQ(cudaStreamDestroy(stream), cudaSuccess);
    device().release(right);
    device().release(wrong);
  }
}

// A call that is refused during capture leaves the capture whole.
TEST_F(Cuda, RefusalDuringCapture) {
  Execution execution(device(), small_case(Direction::kForward));
  ASSERT_EQ(execution.prepare_workspace(), RMSNORM_SUCCESS);
  cudaStream_t stream = nullptr;
  ASSERT_EQ(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
  ASSERT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), cudaSuccess);
  execution.params.forward.eps = -1;
  EXPECT_EQ(execution.launch(stream), RMSNORM_ERROR_VALUE);
  execution.params.forward.eps = 1e-6;
  EXPECT_EQ(execution.launch(stream), RMSNORM_SUCCESS) << last_error();
  cudaGraph_t graph = nullptr;
  EXPECT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
  EXPECT_EQ(cudaGraphDestroy(graph), cudaSuccess);
  EXPECT_EQ(cudaStreamDestroy(stream), cudaSuccess);
}

// A pending error of the caller's is neither cleared nor taken for ours.
TEST_F(Cuda, LeavesTheCallersErrorAlone) {
  for (const Direction direction : kDirections) {
    Execution execution(device(), small_case(direction));
    execution.upload();
    ASSERT_EQ(execution.prepare_workspace(), RMSNORM_SUCCESS);
    ASSERT_EQ(cudaSetDevice(12345), cudaErrorInvalidDevice);
    ASSERT_EQ(cudaPeekAtLastError(), cudaErrorInvalidDevice);
    EXPECT_EQ(execution.launch(), RMSNORM_SUCCESS) << last_error();
    EXPECT_EQ(cudaPeekAtLastError(), cudaErrorInvalidDevice);
    int32_t count = 0;
    EXPECT_EQ(rmsnorm_device_count(RMSNORM_DEVICE_CUDA, &count), RMSNORM_SUCCESS);
    const Context context(options_for(RMSNORM_DEVICE_CUDA));
    EXPECT_EQ(context.status(), RMSNORM_SUCCESS) << last_error();
    EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidDevice);
    execution.download();
    EXPECT_TRUE(conforms(execution));
    // Nor does a refused call leave one.
    execution.params.edit_head([](auto *p) { p->rows = -1; });
    EXPECT_EQ(execution.launch(), RMSNORM_ERROR_SHAPE);
    rmsnorm_context_options_t wrong = options_for(RMSNORM_DEVICE_CUDA);
    wrong.ordinal = count;
    EXPECT_EQ(Context(wrong).status(), RMSNORM_ERROR_DEVICE);
    EXPECT_EQ(cudaPeekAtLastError(), cudaSuccess);
  }
}

// Every device of the machine, whichever is current, and the current one stays so.
TEST_F(Cuda, EveryDeviceWhicheverIsCurrent) {
  int32_t count = 0;
  ASSERT_EQ(rmsnorm_device_count(RMSNORM_DEVICE_CUDA, &count), RMSNORM_SUCCESS);
  Execution expected(device(), small_case(Direction::kBackward));
  ASSERT_EQ(expected.run(), RMSNORM_SUCCESS) << last_error();
  for (int32_t ordinal = 0; ordinal < count; ++ordinal) {
    rmsnorm_context_options_t options = options_for(RMSNORM_DEVICE_CUDA);
    options.ordinal = ordinal;
    const Context context(options);
    ASSERT_EQ(context.status(), RMSNORM_SUCCESS) << last_error();
    ASSERT_EQ(cudaSetDevice(ordinal), cudaSuccess);
    Execution execution(device(), small_case(Direction::kBackward));  // its memory is there
    execution.context = context.get();
    execution.stream = nullptr;
    execution.upload();
    ASSERT_EQ(execution.prepare_workspace(), RMSNORM_SUCCESS);
    for (int current = 0; current < count; ++current) {
      ASSERT_EQ(cudaSetDevice(current), cudaSuccess);
      EXPECT_EQ(execution.launch(), RMSNORM_SUCCESS) << last_error();
      int after = -1;
      ASSERT_EQ(cudaGetDevice(&after), cudaSuccess);
      EXPECT_EQ(after, current);
    }
    ASSERT_EQ(cudaSetDevice(ordinal), cudaSuccess);
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    execution.download();
    EXPECT_TRUE(same_outputs(expected, execution));
    ASSERT_EQ(cudaSetDevice(0), cudaSuccess);
  }
}

// With PRELOAD the first call of every kernel may happen inside a capture.
TEST_F(Cuda, Preload) {
  rmsnorm_context_options_t options = options_for(RMSNORM_DEVICE_CUDA);
  options.flags = RMSNORM_CONTEXT_PRELOAD;
  const Context context(options);
  ASSERT_EQ(context.status(), RMSNORM_SUCCESS) << last_error();
  for (const Direction direction : kDirections)
    for (const rmsnorm_dtype_t dtype : kDtypes) {
      Execution execution(device(), full_case(direction, 9, 300, dtype));
      execution.context = context.get();
      ASSERT_EQ(execution.run(), RMSNORM_SUCCESS) << last_error();
      EXPECT_TRUE(conforms(execution));
    }
}

// CHECK_POINTERS refuses memory that the device cannot use and names the argument; memory that it
// can use, pinned and managed too, is accepted.
TEST_F(Cuda, CheckPointers) {
  int pageable = 0;
  ASSERT_EQ(cudaDeviceGetAttribute(&pageable, cudaDevAttrPageableMemoryAccess, 0), cudaSuccess);
  rmsnorm_context_options_t options = options_for(RMSNORM_DEVICE_CUDA);
  options.flags = RMSNORM_CONTEXT_CHECK_POINTERS;
  const Context context(options);
  ASSERT_EQ(context.status(), RMSNORM_SUCCESS) << last_error();
  for (const Direction direction : kDirections) {
    Execution execution(device(), small_case(direction));
    execution.context = context.get();
    ASSERT_EQ(execution.run(), RMSNORM_SUCCESS) << last_error();
    EXPECT_TRUE(conforms(execution));
    if (pageable != 0) continue;  // this device reads any host memory
    std::vector<char> host(70 * 1000 * 4);
    for (int i = 0; i < kNameCount; ++i) {
      const Name name = static_cast<Name>(i);
      if (!execution.tested().has(name)) continue;
      Execution refused(device(), small_case(direction));
      refused.context = context.get();
      ASSERT_EQ(refused.prepare_workspace(), RMSNORM_SUCCESS) << last_error();
      refused.params.tensor(name).data = host.data();
      refused.upload();
      EXPECT_EQ(refused.launch(), RMSNORM_ERROR_POINTER) << info(name).text;
      EXPECT_EQ(last_error().find(std::string(info(name).text) + " = 0x"), 0u) << last_error();
      refused.download();
      EXPECT_TRUE(refused.nothing_written());
    }
    if (execution.workspace_size_needed() == 0) continue;
    std::vector<char> host_workspace(execution.workspace_size_needed());
    execution.workspace = host_workspace.data();
    EXPECT_EQ(execution.launch(), RMSNORM_ERROR_POINTER);
    EXPECT_EQ(last_error().find("workspace = 0x"), 0u) << last_error();
  }
  EXPECT_EQ(cudaPeekAtLastError(), cudaSuccess);
}

TEST_F(Cuda, PinnedMemoryIsDeviceMemory) {
  rmsnorm_context_options_t options = options_for(RMSNORM_DEVICE_CUDA);
  options.flags = RMSNORM_CONTEXT_CHECK_POINTERS;
  const Context context(options);
  ASSERT_EQ(context.status(), RMSNORM_SUCCESS) << last_error();
  Execution execution(device(), forward_case(3, 100, RMSNORM_DTYPE_F32));
  execution.context = context.get();
  ASSERT_EQ(execution.run(), RMSNORM_SUCCESS) << last_error();
  void *pinned = nullptr;
  ASSERT_EQ(cudaMallocHost(&pinned, 3 * 100 * 4), cudaSuccess);
  execution.params.forward.y.data = pinned;
  EXPECT_EQ(execution.launch(), RMSNORM_SUCCESS) << last_error();
  ASSERT_EQ(device().synchronize(), "");
  const std::vector<uint8_t> expected = execution.bits(kY);
  const uint8_t *const got = static_cast<const uint8_t *>(pinned);
  EXPECT_EQ(std::vector<uint8_t>(got, got + expected.size()), expected);
  ASSERT_EQ(cudaFreeHost(pinned), cudaSuccess);
}

// A context lives as long as its work's launch: destroyed while the stream still has it to do.
TEST_F(Cuda, ContextMayGoBeforeItsWorkIsDone) {
  const Case c = full_case(Direction::kBackward, 3000, 1000, RMSNORM_DTYPE_F32);
  Execution execution(device(), c);
  execution.upload();
  {
    const Context context(options_for(RMSNORM_DEVICE_CUDA));
    ASSERT_EQ(context.status(), RMSNORM_SUCCESS) << last_error();
    execution.context = context.get();
    ASSERT_EQ(execution.prepare_workspace(), RMSNORM_SUCCESS);
    ASSERT_EQ(execution.launch(), RMSNORM_SUCCESS) << last_error();
  }
  execution.context = device().context();
  execution.download();
  Execution expected(device(), c);
  ASSERT_EQ(expected.run(), RMSNORM_SUCCESS) << last_error();
  EXPECT_TRUE(same_outputs(expected, execution));
}

#endif

}  // namespace
}  // namespace rmsnorm_test
