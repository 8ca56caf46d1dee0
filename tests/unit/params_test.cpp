// struct_size: which sizes are accepted, what of a larger struct is looked at, and that _init
// zeroes exactly its bytes.
#include "core/params.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

namespace {

using Struct = rmsnorm_forward_params_t;

std::string last_error() {
  char text[512];
  rmsnorm::copy_last_error(text, sizeof text);
  return text;
}

// A struct followed by zeros, `size` bytes in all.
class Given {
 public:
  explicit Given(size_t size) : bytes_(std::max(size, sizeof(Struct)) / 8 + 1) {
    get()->struct_size = size;
    get()->cols = 77;
  }
  Struct *get() { return reinterpret_cast<Struct *>(bytes_.data()); }
  unsigned char *byte(size_t index) {
    return reinterpret_cast<unsigned char *>(bytes_.data()) + index;
  }

 private:
  std::vector<uint64_t> bytes_;
};

TEST(ReadStruct, Null) {
  Struct out;
  EXPECT_EQ(rmsnorm::read_struct<Struct>("params", nullptr, &out), RMSNORM_ERROR_NULL);
  EXPECT_EQ(last_error(), "params is NULL");
}

TEST(ReadStruct, EverySize) {
  for (size_t size = 0; size <= rmsnorm::kLargestStruct + 16; ++size) {
    Given given(size);
    Struct out;
    const bool accepted = size >= sizeof(Struct) && size <= rmsnorm::kLargestStruct;
    EXPECT_EQ(rmsnorm::read_struct("params", given.get(), &out),
              accepted ? RMSNORM_SUCCESS : RMSNORM_ERROR_STRUCT_SIZE)
        << size;
    if (accepted) {
      EXPECT_EQ(out.cols, 77);
      continue;
    }
    const std::string value = "params.struct_size = " + std::to_string(size) + ",";
    EXPECT_EQ(last_error().find(value), 0u) << last_error();
    EXPECT_NE(last_error().find(std::to_string(sizeof(Struct))), std::string::npos) << last_error();
  }
}

TEST(ReadStruct, TheUnknownTailMustBeZero) {
  constexpr size_t kSize = sizeof(Struct) + 40;
  for (size_t index = sizeof(Struct); index < kSize; ++index) {
    Given given(kSize);
    *given.byte(index) = 0x80;
    Struct out;
    EXPECT_EQ(rmsnorm::read_struct("params", given.get(), &out), RMSNORM_ERROR_NEWER_LIBRARY);
    EXPECT_NE(last_error().find("byte " + std::to_string(index) + " "), std::string::npos)
        << last_error();
  }
  Given given(kSize);
  *given.byte(kSize) = 1;  // not part of the struct
  Struct out;
  EXPECT_EQ(rmsnorm::read_struct("params", given.get(), &out), RMSNORM_SUCCESS) << last_error();
}

TEST(InitStruct, ZeroesExactlyItsBytes) {
  for (size_t size = 0; size <= 64; ++size) {
    std::vector<unsigned char> bytes(80, 0xa5);
    rmsnorm::init_struct(bytes.data(), size);
    size_t stored = size;
    if (size >= sizeof stored) std::memcpy(&stored, bytes.data(), sizeof stored);
    EXPECT_EQ(stored, size);
    for (size_t i = size < sizeof stored ? 0 : sizeof stored; i < bytes.size(); ++i)
      EXPECT_EQ(bytes[i], i < size ? 0 : 0xa5) << i << " of " << size;
  }
  rmsnorm::init_struct(nullptr, 64);
}

// Published sizes are distinct multiples of 8, and no struct has padding: all-zero bytes are
// all-zero fields.
TEST(PublicStructs, SizesAndOffsets) {
  EXPECT_EQ(sizeof(rmsnorm_tensor_t), 32u);
  EXPECT_EQ(sizeof(rmsnorm_input_t), sizeof(rmsnorm_tensor_t));
  EXPECT_EQ(offsetof(rmsnorm_input_t, dtype), offsetof(rmsnorm_tensor_t, dtype));
  EXPECT_EQ(offsetof(rmsnorm_input_t, group_stride), offsetof(rmsnorm_tensor_t, group_stride));
  EXPECT_EQ(sizeof(rmsnorm_forward_params_t), 8 + 3 * 8 + 2 * 8 + 2 * 4 + 7 * 32u);
  EXPECT_EQ(sizeof(rmsnorm_backward_params_t), 8 + 3 * 8 + 2 * 8 + 2 * 4 + 9 * 32u);
  EXPECT_EQ(sizeof(rmsnorm_glu_forward_params_t), 8 + 3 * 8 + 2 * 4 + 3 * 32u);
  EXPECT_EQ(sizeof(rmsnorm_glu_backward_params_t), 8 + 3 * 8 + 2 * 4 + 5 * 32u);
  EXPECT_EQ(sizeof(rmsnorm_context_options_t), 8 + 4 * 4 + 4 * 8u);
  EXPECT_EQ(sizeof(rmsnorm_device_info_t), 8 + 6 * 4 + 2 * 8 + 128 + 32u);
}

}  // namespace
