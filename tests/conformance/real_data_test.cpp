// The norms of a trained decoder on its own hidden states and gradients (tests/data/README.md):
// forward with the fused add, backward with the gradient that arrives past the norm, heads as
// groups. Judged by the reference, and dweight also by what PyTorch computed when the data was
// made.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <fstream>
#include <string>
#include <vector>

#include "../support/judge.h"
#include "../support/on_device.h"
#include "reference/reference.h"

namespace rmsnorm_test {
namespace {

// The elements of a C-order .npy file of format 1.0, as doubles. Empty if it cannot be read.
std::vector<double> load_npy(const std::string &name, rmsnorm_dtype_t dtype) {
  const char *folder = std::getenv("RMSNORM_TEST_DATA");
  std::ifstream file(std::string(folder != nullptr ? folder : RMSNORM_TEST_DATA_DIR) + "/" + name +
                         ".npy",
                     std::ios::binary);
  const std::string bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (bytes.size() < 10 || bytes.compare(1, 5, "NUMPY") != 0) return {};
  const size_t header =
      10 + static_cast<unsigned char>(bytes[8]) + 256u * static_cast<unsigned char>(bytes[9]);
  const size_t size = static_cast<size_t>(rmsnorm::element_size(dtype));
  std::vector<double> values;
  for (size_t at = header; at + size <= bytes.size(); at += size)
    values.push_back(rmsnorm::reference::load(bytes.data() + at, dtype));
  return values;
}

struct Norm {
  const char *name;
  rmsnorm_dtype_t dtype;
  int64_t groups, cols;
  bool residual;  // h = x + residual
  bool dh;        // a gradient arrives at h past the norm
};
constexpr int64_t kTokens = 96;
constexpr Norm kNorms[] = {
    {"layer0_attn", RMSNORM_DTYPE_F32, 1, 256, false, false},
    {"layer1_qnorm", RMSNORM_DTYPE_F32, 4, 64, false, false},
    {"layer2_mlp", RMSNORM_DTYPE_F32, 1, 256, true, true},
    {"layer2_mlp_f16", RMSNORM_DTYPE_F16, 1, 256, true, true},
    {"layer2_mlp_bf16", RMSNORM_DTYPE_BF16, 1, 256, true, true},
    {"final", RMSNORM_DTYPE_F32, 1, 256, true, false},
};

class RealData : public OnDevice {
 protected:
  // Fills an input from a file, or from values already there.
  void fill(Execution *execution, Name tensor, const std::vector<double> &values,
            const Norm &norm) {
    const bool vector = tensor == kWeight;
    const size_t expected = static_cast<size_t>((vector ? 1 : kTokens * norm.groups) * norm.cols);
    ASSERT_EQ(values.size(), expected) << norm.name << ": missing or of another shape";
    for (size_t i = 0; i < values.size(); ++i) {
      const int64_t col = static_cast<int64_t>(i) % norm.cols,
                    task = static_cast<int64_t>(i) / norm.cols;
      execution->set(tensor, task / norm.groups, task % norm.groups, col, values[i]);
    }
  }
  std::vector<double> load(const Norm &norm, const char *part) {
    return load_npy(std::string(norm.name) + "." + part, norm.dtype);
  }
};

TEST_P(RealData, Forward) {
  for (const Norm &norm : kNorms) {
    Case c = norm.residual ? add_case(kTokens, norm.cols, norm.dtype)
                           : forward_case(kTokens, norm.cols, norm.dtype);
    c.groups = norm.groups;
    Execution execution(device(), c);
    fill(&execution, kX, load(norm, "x"), norm);
    if (norm.residual) fill(&execution, kResidual, load(norm, "residual"), norm);
    fill(&execution, kWeight, load(norm, "weight"), norm);
    ASSERT_FALSE(HasFatalFailure());
    ASSERT_EQ(execution.run(), RMSNORM_SUCCESS) << last_error();
    EXPECT_TRUE(conforms(execution)) << norm.name;
  }
}

TEST_P(RealData, Backward) {
  for (const Norm &norm : kNorms) {
    Case c = backward_case(kTokens, norm.cols, norm.dtype);
    c.groups = norm.groups;
    if (norm.dh) c[kDresidualOut] = c[kDy];
    Execution execution(device(), c);
    std::vector<double> h = load(norm, "x");
    if (norm.residual) {
      const std::vector<double> residual = load(norm, "residual");
      ASSERT_EQ(residual.size(), h.size());
      for (size_t i = 0; i < h.size(); ++i)
        h[i] = rmsnorm::reference::round_to({h[i] + residual[i], 0}, norm.dtype);
    }
    fill(&execution, kX, h, norm);
    fill(&execution, kDy, load(norm, "dy"), norm);
    if (norm.dh) fill(&execution, kDresidualOut, load(norm, "dh"), norm);
    fill(&execution, kWeight, load(norm, "weight"), norm);
    ASSERT_FALSE(HasFatalFailure());
    ASSERT_EQ(execution.run(), RMSNORM_SUCCESS) << last_error();
    EXPECT_TRUE(conforms(execution)) << norm.name;

    if (norm.dtype != RMSNORM_DTYPE_F32) continue;  // PyTorch's dweight is of the fp32 tensors
    const std::vector<double> torch = load(norm, "dweight");
    ASSERT_EQ(torch.size(), static_cast<size_t>(norm.cols)) << norm.name;
    double difference = 0, size = 0;
    for (int64_t col = 0; col < norm.cols; ++col) {
      difference +=
          std::pow(execution.output(kDweight, 0, 0, col) - torch[static_cast<size_t>(col)], 2);
      size += std::pow(torch[static_cast<size_t>(col)], 2);
    }
    EXPECT_LT(std::sqrt(difference / size), 1e-6) << norm.name;
  }
}

INSTANTIATE_TEST_SUITE_P(All, RealData, testing::ValuesIn(kBackends), BackendName());

}  // namespace
}  // namespace rmsnorm_test
