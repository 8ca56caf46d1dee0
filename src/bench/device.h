// Where a call runs: memory, a stream, passes to time, and the ceiling. The CPU's is in
// cpu_device.cpp; CUDA's, through the static CUDA runtime, in cuda_*. A failure ends the program.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <utility>

#include "rmsnorm.h"

namespace bench {

// What one launch of the ceiling reads and writes, element by element, from aligned memory.
struct Move {
  struct Span {
    void *data = nullptr;
    int64_t bytes = 0;  // a multiple of 16
  };
  Span in[3], out[2];
  void *sink = nullptr;  // 16 bytes that count as written, so that no read can be left out
};

// Calls that are timed together.
class Pass {
 public:
  virtual ~Pass() = default;
  virtual double microseconds() = 0;  // runs them once
};

struct HostTime {
  double call_us = 0, bare_us = 0;  // medians
  int launches = 0;                 // kernels that a call launches; as many bare ones beside it
  size_t argument_bytes = 0;        // of the largest
};

class Device {
 public:
  virtual ~Device() = default;

  virtual double free_bytes() = 0;           // that an allocation may take
  virtual char *allocate(size_t bytes) = 0;  // aligned to 256 bytes
  virtual void release(char *memory) = 0;
  virtual void upload(void *to, const void *from, size_t bytes) = 0;
  virtual void download(void *to, const void *from, size_t bytes) = 0;
  virtual void copy(void *to, const void *from, size_t bytes) = 0;
  virtual void fill(void *memory, int byte, size_t bytes) = 0;
  virtual void *stream() const = 0;
  virtual void synchronize() = 0;

  // The ceiling, in one of `ways` ways: which is fastest is for the clock to say.
  virtual int ways() const { return 1; }
  virtual void move(const Move &move, int way) = 0;
  // `calls` submits to stream(). Prepared once, run often; `graph` (CUDA) captures them.
  virtual std::unique_ptr<Pass> prepare(std::function<void()> calls, bool graph) = 0;
  // CUDA: what a call costs the host. `call` submits one call; overlap is its flag.
  virtual HostTime host_time(const std::function<void()> &call, bool overlap) = 0;
};

std::unique_ptr<Device> make_cpu_device(int threads);
std::unique_ptr<Device> make_cuda_device(int32_t ordinal);  // of a device that is there

// Memory that is released with its scope.
class Memory {
 public:
  Memory() = default;
  Memory(Device &device, size_t bytes)
      : device_(&device), data_(bytes == 0 ? nullptr : device.allocate(bytes)), bytes_(bytes) {}
  ~Memory() {
    if (data_ != nullptr) device_->release(data_);
  }
  Memory(Memory &&other) noexcept { swap(other); }
  Memory &operator=(Memory &&other) noexcept {
    swap(other);
    return *this;
  }
  char *data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  void swap(Memory &other) {
    std::swap(device_, other.device_);
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
  }
  Device *device_ = nullptr;
  char *data_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace bench
