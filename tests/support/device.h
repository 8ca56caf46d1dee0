// Where a test runs: memory, a stream and a context of the CPU or of one CUDA device. One test body
// serves both. CUDA is compiled in with RMSNORM_TEST_CUDA, through the runtime.
#pragma once

#include <cstddef>
#include <string>

#include "rmsnorm.h"

namespace rmsnorm_test {

// Where memory borders on bytes that fault (CPU) or that compute-sanitizer reports (CUDA, kAfter).
enum class Fence { kNone, kBefore, kAfter };

class Device {
 public:
  virtual ~Device() = default;

  virtual rmsnorm_device_t type() const = 0;
  virtual const char *name() const = 0;
  // 256-byte aligned, but for Fence::kAfter; NULL if there is not so much.
  virtual void *allocate(size_t bytes, Fence fence = Fence::kNone) = 0;
  virtual void release(void *memory) = 0;
  virtual void upload(void *to, const void *from, size_t bytes) = 0;
  virtual void download(void *to, const void *from, size_t bytes) = 0;
  virtual void fill(void *memory, int byte, size_t bytes) = 0;
  virtual void *stream() const = 0;  // one that does not wait for the legacy stream
  // Waits for the stream; the device's error text, "" if all went well.
  virtual std::string synchronize() = 0;

  bool is_cuda() const { return type() == RMSNORM_DEVICE_CUDA; }
  // A context without options, made once. NULL and a test failure if it cannot be made.
  const rmsnorm_context_t *context();

 private:
  rmsnorm_context_t *context_ = nullptr;  // lives as long as the process
};

// The device, or NULL and why there is none. `ordinal` is for CUDA.
Device *find_device(rmsnorm_device_t type, std::string *why_not);

// A context that is destroyed with its scope; `status` is what rmsnorm_context_create returned.
class Context {
 public:
  explicit Context(const rmsnorm_context_options_t &options);
  ~Context() { rmsnorm_context_destroy(context_); }
  Context(const Context &) = delete;
  Context &operator=(const Context &) = delete;
  rmsnorm_status_t status() const { return status_; }
  const rmsnorm_context_t *get() const { return context_; }

 private:
  rmsnorm_context_t *context_ = nullptr;
  rmsnorm_status_t status_;
};
rmsnorm_context_options_t options_for(rmsnorm_device_t type);

// This thread's last error.
std::string last_error();

// RMSNORM_TEST_FULL is set and not "0".
bool full_run();

}  // namespace rmsnorm_test
