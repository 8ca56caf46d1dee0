#include "device.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <utility>

namespace rmsnorm_test {

#ifdef RMSNORM_TEST_CUDA
Device *make_cuda_device(std::string *why_not);  // cuda_device.cpp
#endif

namespace {

// Memory is mapped a page at a time, so that huge and mostly untouched views cost nothing, and so
// that fenced memory can end at a page that faults.
class CpuDevice final : public Device {
 public:
  rmsnorm_device_t type() const override { return RMSNORM_DEVICE_CPU; }
  const char *name() const override { return "cpu"; }
  void *allocate(size_t bytes, Fence fence) override {
    if (fence == Fence::kNone && bytes < kMapped) {
      void *memory = nullptr;
      return posix_memalign(&memory, 256, bytes + 1) == 0 ? memory : nullptr;
    }
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t size = (bytes + page - 1) / page * page;
    char *map = static_cast<char *>(mmap(nullptr, size + 2 * page, PROT_READ | PROT_WRITE,
                                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (map == MAP_FAILED) return nullptr;
    mprotect(map, page, PROT_NONE);
    mprotect(map + page + size, page, PROT_NONE);
    char *memory = map + page + (fence == Fence::kAfter ? size - bytes : 0);
    maps_[memory] = {map, size + 2 * page};
    return memory;
  }
  void release(void *memory) override {
    const auto found = maps_.find(memory);
    if (found == maps_.end()) return std::free(memory);
    munmap(found->second.first, found->second.second);
    maps_.erase(found);
  }
  void upload(void *to, const void *from, size_t bytes) override { std::memcpy(to, from, bytes); }
  void download(void *to, const void *from, size_t bytes) override { std::memcpy(to, from, bytes); }
  void fill(void *memory, int byte, size_t bytes) override { std::memset(memory, byte, bytes); }
  void *stream() const override { return nullptr; }
  std::string synchronize() override { return ""; }

 private:
  static constexpr size_t kMapped = size_t{1} << 28;
  std::map<void *, std::pair<void *, size_t>> maps_;
};

Device *find_cuda_device(std::string *why_not) {
  int32_t count = 0;
  const rmsnorm_status_t status = rmsnorm_device_count(RMSNORM_DEVICE_CUDA, &count);
  if (status == RMSNORM_ERROR_BACKEND_NOT_BUILT) {
    *why_not = "the library was built without CUDA";
    return nullptr;
  }
  if (status == RMSNORM_SUCCESS && count == 0) {
    *why_not = "rmsnorm_device_count finds no CUDA device";
    return nullptr;
  }
  if (status != RMSNORM_SUCCESS) {
    ADD_FAILURE() << rmsnorm_status_name(status) << ": " << last_error();
    *why_not = "rmsnorm_device_count failed";
    return nullptr;
  }
#ifdef RMSNORM_TEST_CUDA
  return make_cuda_device(why_not);
#else
  *why_not = "these tests were built without RMSNORM_TEST_CUDA";
  return nullptr;
#endif
}

}  // namespace

const rmsnorm_context_t *Device::context() {
  if (context_ != nullptr) return context_;
  const rmsnorm_context_options_t options = options_for(type());
  const rmsnorm_status_t status = rmsnorm_context_create(&options, &context_);
  EXPECT_EQ(status, RMSNORM_SUCCESS) << last_error();
  return context_;
}

Device *find_device(rmsnorm_device_t type, std::string *why_not) {
  if (type == RMSNORM_DEVICE_CPU) {
    static CpuDevice cpu;
    return &cpu;
  }
  static std::string reason;
  static Device *const cuda = find_cuda_device(&reason);
  *why_not = reason;
  return cuda;
}

Context::Context(const rmsnorm_context_options_t &options)
    : status_(rmsnorm_context_create(&options, &context_)) {}

rmsnorm_context_options_t options_for(rmsnorm_device_t type) {
  rmsnorm_context_options_t options = RMSNORM_CONTEXT_OPTIONS_INIT;
  options.device = type;
  return options;
}

std::string last_error() {
  char text[1024];
  rmsnorm_last_error(text, sizeof text);
  return text;
}

bool full_run() {
  const char *value = std::getenv("RMSNORM_TEST_FULL");
  return value != nullptr && std::strcmp(value, "0") != 0 && value[0] != '\0';
}

}  // namespace rmsnorm_test
