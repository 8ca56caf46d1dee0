// Reads choices from a fuzzer's bytes. Past their end every choice is 0, so that short inputs are
// whole programs too.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace rmsnorm_fuzz {

class Bytes {
 public:
  Bytes(const uint8_t *data, size_t size) : data_(data), left_(size) {}

  template <class Number>
  Number take() {
    Number number = {};
    const size_t bytes = left_ < sizeof number ? left_ : sizeof number;
    if (bytes > 0) std::memcpy(&number, data_, bytes);
    data_ += bytes, left_ -= bytes;
    return number;
  }
  // One of [0, count).
  size_t below(size_t count) {
    return count <= 256 ? take<uint8_t>() % count : take<uint16_t>() % count;
  }
  bool chance(size_t one_in) { return below(one_in) == 1; }
  template <class Value, size_t kCount>
  const Value &pick(const Value (&values)[kCount]) {
    return values[below(kCount)];
  }
  bool empty() const { return left_ == 0; }

 private:
  const uint8_t *data_;
  size_t left_;
};

// A fast generator for what the input does not spell out.
class Stream {
 public:
  explicit Stream(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15u + 0x7f4a7c15u) {}
  uint64_t next() {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return state_;
  }

 private:
  uint64_t state_;
};

}  // namespace rmsnorm_fuzz
