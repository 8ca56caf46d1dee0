// Memory that a call of the fuzzer may point into: regions with a page that faults before and after
// each, snapshots of them, and what each byte is to the call.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace rmsnorm_fuzz {

// kBoth: an output in an input's place, or one that is added to.
enum class Role : uint8_t { kNothing, kInput, kOutput, kBoth };

class Memory {
 public:
  static constexpr size_t kRegionBytes = 8192, kRegions = 12, kLargeBytes = 32768;

  Memory();
  // Region `index`, or the large one at kRegions.
  char *begin(size_t index) const { return base_ + offset(index); }
  char *end(size_t index) const { return begin(index) + size(index); }
  static size_t size(size_t index) { return index == kRegions ? kLargeBytes : kRegionBytes; }
  // Whether [low, high) lies in one region.
  bool holds(__int128 low, __int128 high) const;

  // Every byte from a generator; `moderate`: numbers about 1 in every dtype, else any bits.
  void fill(uint64_t seed, bool moderate);
  // Roles of bytes, reset by fill.
  void mark(const void *from, size_t bytes, Role role);
  // Flips every byte that the call does not read; the roles stay.
  void flip_all_but_inputs();

  void save();  // what the next checks compare with, and restore() brings back
  void restore();
  // NULL, or the first byte that has changed since save(). Outputs may have with `outputs_may`, and
  // so may the bytes [scratch, scratch + scratch_bytes).
  const char *changed(bool outputs_may, const char *scratch, size_t scratch_bytes) const;
  // The bytes of outputs, in order.
  std::vector<char> outputs() const;

 private:
  static size_t offset(size_t index);
  char *base_;
  size_t mapped_;
  std::vector<char> saved_;
  std::vector<Role> roles_;
};

}  // namespace rmsnorm_fuzz
