// Host memory and threads of the library under a test: programs that are linked with
// --wrap=malloc,calloc,free,pthread_create (tests/CMakeLists.txt; operator new is not among them)
// can let a request fail, and see what is still held.
#pragma once

#include <atomic>

namespace rmsnorm_test {

struct Allocations {
  std::atomic<int> requests{0};           // of memory, so far
  std::atomic<int> fails_at{0};           // the n-th of them fails; 0: none
  std::atomic<int> live{0};               // given and not returned
  std::atomic<int> threads{0};            // calls of pthread_create
  std::atomic<int> threads_fail_from{0};  // the n-th and all later ones fail; 0: none
};
Allocations &allocations();

}  // namespace rmsnorm_test
