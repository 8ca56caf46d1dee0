// While one of these lives, this thread computes as IEEE 754 says by default: nearest even,
// subnormals kept, no traps. The caller's mode, flush to zero perhaps, comes back with its
// exception flags as they were; on x86-64 underflow is not among them at first.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace rmsnorm::cpu {

class FloatEnvironment {
 public:
#if defined(__x86_64__)
  // Writing the register takes longer than all else here, and is seldom needed.
  FloatEnvironment() : saved_(_mm_getcsr()) {
    if ((saved_ & ~kMayBeSet) != kDefault) _mm_setcsr(kDefault);
  }
  ~FloatEnvironment() {
    if (_mm_getcsr() != saved_) _mm_setcsr(saved_);
  }
#elif defined(__aarch64__)
  FloatEnvironment() {
    __asm__ volatile("mrs %0, fpcr\n\tmrs %1, fpsr" : "=r"(saved_), "=r"(flags_));
    __asm__ volatile("msr fpcr, %0" : : "r"(uint64_t{0}) : "memory");
  }
  ~FloatEnvironment() {
    __asm__ volatile("msr fpcr, %0\n\tmsr fpsr, %1" : : "r"(saved_), "r"(flags_) : "memory");
  }
#endif
  FloatEnvironment(const FloatEnvironment &) = delete;
  FloatEnvironment &operator=(const FloatEnvironment &) = delete;

 private:
#if defined(__x86_64__)
  static constexpr uint32_t kMayBeSet = 0x2f;   // all flags but underflow's: rows/pair_rows.inl.h
  static constexpr uint32_t kDefault = 0x1f80;  // all exceptions masked
  uint32_t saved_;
#elif defined(__aarch64__)
  uint64_t saved_, flags_;
#endif
};

}  // namespace rmsnorm::cpu
