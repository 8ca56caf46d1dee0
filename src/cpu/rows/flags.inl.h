// What the processor remembers of its fp32 arithmetic. Included inside the namespace of the isa
// files whose fast paths ask for it; a FloatEnvironment gives the caller's flags back.
constexpr uint32_t kOverflow = 0x08;   // larger than any number
constexpr uint32_t kUnderflow = 0x10;  // below the normal range, and rounded

// Whether any of kFlags has been raised since the last time, or since the task began. What raises
// them has been stored by now, at `stored` or where its address is known.
template <uint32_t kFlags>
inline bool have_raised(const void *stored = nullptr) {
  uint32_t status;
  __asm__ volatile("stmxcsr %0" : "=m"(status) : "r"(stored) : "memory");
  if (__builtin_expect((status & kFlags) == 0, 1)) return false;
  status &= ~kFlags;
  __asm__ volatile("ldmxcsr %0" : : "m"(status) : "memory");
  return true;
}
