// Every vector through the C interface, on the code that the CPU chooses: the bits are those of the
// generic one. And the files are what their maker makes.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>

#include "device.h"
#include "vector.h"

namespace rmsnorm_test {
namespace {

std::string folder() {
  const char *data = std::getenv("RMSNORM_TEST_DATA");
  return std::string(data != nullptr ? data : RMSNORM_TEST_DATA_DIR) + "/../vectors";
}

const std::vector<Vector> &all_vectors() {
  static std::string problem;
  static const std::vector<Vector> vectors = read_vectors(folder(), &problem);
  EXPECT_EQ(problem, "");
  return vectors;
}

class Vectors : public testing::TestWithParam<size_t> {};

TEST_P(Vectors, GivesTheseBits) {
  std::string why_not;
  Device *cpu = find_device(RMSNORM_DEVICE_CPU, &why_not);
  EXPECT_EQ(check_vector(cpu->context(), all_vectors()[GetParam()]), "");
}

INSTANTIATE_TEST_SUITE_P(All, Vectors, testing::Range(size_t{0}, all_vectors().size()),
                         [](const testing::TestParamInfo<size_t> &tested) {
                           return all_vectors()[tested.param].name;
                         });

// A judge that passes everything would not be noticed otherwise.
TEST(VectorsJudge, SeesOneBit) {
  std::string why_not;
  Device *cpu = find_device(RMSNORM_DEVICE_CPU, &why_not);
  size_t changed = 0;
  for (Vector vector : all_vectors()) {
    for (VectorTensor &tensor : vector.tensors) {
      if (tensor.after.empty()) continue;
      // Of the last element, which is in no row of NaN.
      uint8_t &byte = tensor.after[tensor.after.size() -
                                   static_cast<size_t>(rmsnorm::element_size(tensor.dtype))];
      byte ^= 1;
      EXPECT_NE(check_vector(cpu->context(), vector), "") << vector.name;
      byte ^= 1;
      ++changed;
    }
  }
  EXPECT_GT(changed, 100u);
}

TEST(VectorsMaker, MakesTheseFiles) {
  char self[4096];
  const ssize_t length = readlink("/proc/self/exe", self, sizeof self);
  ASSERT_GT(length, 0);
  const std::string program(self, static_cast<size_t>(length));
  const std::string make = program.substr(0, program.rfind('/')) + "/make";
  if (access(make.c_str(), X_OK) != 0) GTEST_SKIP() << "the maker is not beside this program";
  EXPECT_EQ(std::system(("\"" + make + "\" --check \"" + folder() + "\"").c_str()), 0);
}

}  // namespace
}  // namespace rmsnorm_test
