#include "allocations.h"

#include <pthread.h>

#include <cerrno>
#include <cstddef>
#include <mutex>
#include <set>

namespace rmsnorm_test {
namespace {

struct Held {
  std::mutex mutex;
  std::set<void *> memory;
};
Held &held() {
  static Held *const only = new Held;  // outlives every thread
  return *only;
}

bool fails() {
  Allocations &all = allocations();
  return ++all.requests == all.fails_at;
}

void *given(void *memory) {
  if (memory == nullptr) return nullptr;
  const std::lock_guard<std::mutex> lock(held().mutex);
  held().memory.insert(memory);
  ++allocations().live;
  return memory;
}

}  // namespace

Allocations &allocations() {
  static Allocations only;
  return only;
}

}  // namespace rmsnorm_test

using namespace rmsnorm_test;

extern "C" {

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void __real_free(void *memory);
int __real_pthread_create(pthread_t *thread, const pthread_attr_t *attributes,
                          void *(*body)(void *), void *argument);

void *__wrap_malloc(size_t size) { return fails() ? nullptr : given(__real_malloc(size)); }

void *__wrap_calloc(size_t count, size_t size) {
  return fails() ? nullptr : given(__real_calloc(count, size));
}

void __wrap_free(void *memory) {
  {
    const std::lock_guard<std::mutex> lock(held().mutex);
    if (held().memory.erase(memory) != 0) --allocations().live;
  }
  __real_free(memory);
}

int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attributes,
                          void *(*body)(void *), void *argument) {
  Allocations &all = allocations();
  const int call = ++all.threads, from = all.threads_fail_from;
  if (from != 0 && call >= from) return EAGAIN;
  return __real_pthread_create(thread, attributes, body, argument);
}

}  // extern "C"
