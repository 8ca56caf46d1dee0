// What the processor remembers of its fp32 arithmetic. Included inside the namespace of the isa
// files whose fast paths ask for it; a FloatEnvironment gives the caller's flags back.
struct RangeFlags {
  // Whether any number below the normal range has been rounded.
  static bool have_underflowed() { return have_raised<kUnderflow>(nullptr); }
  // Whether one has been that is below the normal range, or above it.
  static bool have_left_range(const void *stored) {
    return have_raised<kUnderflow | kOverflow>(stored);
  }

 private:
  static constexpr uint32_t kOverflow = 0x08;   // larger than any number
  static constexpr uint32_t kUnderflow = 0x10;  // below the normal range, and rounded

  // Whether any of kFlags has been raised since the last time, or since the task began. What raises
  // them has been stored by now, at `stored` or where its address is known.
  template <uint32_t kFlags>
  static bool have_raised(const void *stored) {
    uint32_t status;
    __asm__ volatile("stmxcsr %0" : "=m"(status) : "r"(stored) : "memory");
    if (__builtin_expect((status & kFlags) == 0, 1)) return false;
    status &= ~kFlags;
    __asm__ volatile("ldmxcsr %0" : : "m"(status) : "memory");
    return true;
  }
};
