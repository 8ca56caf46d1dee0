// A fuzz target as a test, without a fuzzer: over its saved corpus, and over bytes of a generator.
// What a target finds aborts the program, which has then failed.
//
// A corpus is one file, tests/fuzz/NAME.corpus: each input as its size, two bytes with the low one
// first, and its bytes. tests/fuzz/run packs it.
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "bytes.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

namespace rmsnorm_fuzz {
namespace {

std::string corpus_path() {
  const char *folder = std::getenv("RMSNORM_TEST_DATA");
  return std::string(folder != nullptr ? folder : RMSNORM_TEST_DATA_DIR) +
         "/../fuzz/" RMSNORM_FUZZ_TARGET ".corpus";
}

TEST(Replay, Corpus) {
  std::ifstream file(corpus_path(), std::ios::binary);
  ASSERT_TRUE(file.good()) << corpus_path();
  const std::vector<char> packed{std::istreambuf_iterator<char>(file), {}};
  const uint8_t *const bytes = reinterpret_cast<const uint8_t *>(packed.data());
  size_t inputs = 0;
  for (size_t at = 0; at < packed.size(); ++inputs) {
    ASSERT_LE(at + 2, packed.size());
    const size_t size = bytes[at] + size_t{256} * bytes[at + 1];
    ASSERT_LE(at + 2 + size, packed.size());
    LLVMFuzzerTestOneInput(bytes + at + 2, size);
    at += 2 + size;
  }
  EXPECT_GT(inputs, 100u);
  std::printf("%zu inputs replayed\n", inputs);
}

TEST(Replay, Generated) {
  Stream stream(20);
  for (int input = 0; input < RMSNORM_FUZZ_GENERATED; ++input) {
    std::vector<uint8_t> bytes(stream.next() % 200);
    for (uint8_t &byte : bytes) byte = static_cast<uint8_t>(stream.next() >> 32);
    LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
  }
}

}  // namespace
}  // namespace rmsnorm_fuzz
