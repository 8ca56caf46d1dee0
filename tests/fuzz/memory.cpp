#include "memory.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>

#include "bytes.h"

namespace rmsnorm_fuzz {
namespace {

constexpr size_t kPage = 4096;  // of the processors that run this

}  // namespace

size_t Memory::offset(size_t index) { return kPage + index * (kRegionBytes + kPage); }

Memory::Memory() : mapped_(offset(kRegions) + kLargeBytes + kPage) {
  void *const map =
      mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (map == MAP_FAILED) std::abort();
  base_ = static_cast<char *>(map);
  for (size_t i = 0; i <= kRegions; ++i) mprotect(begin(i) - kPage, kPage, PROT_NONE);
  mprotect(end(kRegions), kPage, PROT_NONE);
  saved_.resize(mapped_);
  roles_.assign(mapped_, Role::kNothing);
}

bool Memory::holds(__int128 low, __int128 high) const {
  for (size_t i = 0; i <= kRegions; ++i)
    if (low >= static_cast<__int128>(reinterpret_cast<uintptr_t>(begin(i))) &&
        high <= static_cast<__int128>(reinterpret_cast<uintptr_t>(end(i))))
      return true;
  return false;
}

void Memory::fill(uint64_t seed, bool moderate) {
  Stream stream(seed);
  for (size_t i = 0; i <= kRegions; ++i)
    for (char *at = begin(i); at < end(i); at += 8) {
      uint64_t word = stream.next();
      // The upper two bytes of every dtype: 1.75 to 2 as fp16, 1 to 2 as bf16 and fp32, about 2^-8
      // as fp64.
      if (moderate) word = (word & 0x807f807f807f807fu) | 0x3f803f803f803f80u;
      std::memcpy(at, &word, sizeof word);
    }
  std::memset(roles_.data(), 0, roles_.size());
}

void Memory::mark(const void *from, size_t bytes, Role role) {
  const size_t at = static_cast<size_t>(static_cast<const char *>(from) - base_);
  for (size_t i = at; i < at + bytes; ++i)
    roles_[i] = roles_[i] == Role::kNothing || roles_[i] == role ? role : Role::kBoth;
}

void Memory::flip_all_but_inputs() {
  for (size_t i = 0; i <= kRegions; ++i)
    for (char *at = begin(i); at < end(i); ++at)
      if (roles_[static_cast<size_t>(at - base_)] == Role::kNothing ||
          roles_[static_cast<size_t>(at - base_)] == Role::kOutput)
        *at = static_cast<char>(*at ^ 0x5a);
}

void Memory::save() {
  for (size_t i = 0; i <= kRegions; ++i) std::memcpy(saved_.data() + offset(i), begin(i), size(i));
}

void Memory::restore() {
  for (size_t i = 0; i <= kRegions; ++i) std::memcpy(begin(i), saved_.data() + offset(i), size(i));
}

const char *Memory::changed(bool outputs_may, const char *scratch, size_t scratch_bytes) const {
  for (size_t i = 0; i <= kRegions; ++i) {
    const char *const was = saved_.data() + offset(i);
    if (std::memcmp(was, begin(i), size(i)) == 0) continue;
    for (size_t byte = 0; byte < size(i); ++byte) {
      const char *const at = begin(i) + byte;
      if (*at == was[byte]) continue;
      if (outputs_may && roles_[offset(i) + byte] >= Role::kOutput) continue;
      if (at >= scratch && at < scratch + scratch_bytes) continue;
      return at;
    }
  }
  return nullptr;
}

std::vector<char> Memory::outputs() const {
  std::vector<char> bytes;
  for (size_t i = 0; i <= kRegions; ++i)
    for (const char *at = begin(i); at < end(i); ++at)
      if (roles_[static_cast<size_t>(at - base_)] >= Role::kOutput) bytes.push_back(*at);
  return bytes;
}

}  // namespace rmsnorm_fuzz
