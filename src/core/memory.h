// Objects on the heap without operator new, which would make a C program link the C++ runtime.
#pragma once

#include <cstdlib>
#include <new>

namespace rmsnorm {

// NULL if there is no memory.
template <class Object>
Object *make_object() {
  void *const memory = std::malloc(sizeof(Object));
  return memory == nullptr ? nullptr : ::new (memory) Object();
}

template <class Object>
void free_object(Object *object) {
  object->~Object();
  std::free(object);
}

}  // namespace rmsnorm
