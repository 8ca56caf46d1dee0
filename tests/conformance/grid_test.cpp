// The grid: every width that this library's peers test and a few rows of each, and many short rows,
// for each dtype, forward and backward, plain and with every optional tensor, and gated
// activations. Data, and whether rstd is handed to backward, change from width to width.
// RMSNORM_TEST_FULL=1 adds rows and the peers' large shapes, and shows all to the reference.
#include <gtest/gtest.h>

#include <algorithm>
#include <tuple>

#include "../support/judge.h"
#include "../support/on_device.h"

namespace rmsnorm_test {
namespace {

constexpr int64_t kCols[] = {1,    3,     7,     8,     33,    41,    64,     65,    111,
                             123,  128,   192,   229,   256,   273,   431,    500,   511,
                             512,  541,   760,   768,   769,   1023,  1024,   1025,  1027,
                             1029, 1128,  1500,  1536,  1600,  2048,  2050,   2560,  3000,
                             3072, 3584,  4096,  4100,  5120,  5125,  5137,   6144,  7168,
                             8192, 12288, 16384, 16896, 32768, 65536, 131072, 262144};

struct Shape {
  int64_t rows, cols;
};
constexpr Shape kManyRows[] = {{837, 256},  {837, 1027}, {2048, 111}, {2048, 500}, {8192, 64},
                               {8192, 128}, {65536, 8},  {65536, 16}, {131072, 1}, {131072, 8}};
constexpr Shape kPeers[] = {{71, 229},    {29, 541},    {768, 6144},   {2048, 12288},
                            {989, 8192},  {3341, 1024}, {65536, 32},   {175000, 128},
                            {4096, 3000}, {4096, 2560}, {131072, 128}, {32768, 1027},
                            {512, 16384}, {64, 65536},  {16, 262144}};

std::vector<int64_t> rows_for(int64_t cols) {
  if (full_run() && cols <= 4100) return {1, 2, 7, 19, 83, 99, 199};
  if (cols <= 128) return {1, 2, 7, 19, 99};
  if (cols <= 1600) return {1, 7, 19};
  if (cols <= 8192) return {2, 7};
  if (cols <= 32768) return {3};
  return {1, 2};
}

enum class Kind { kForward, kFullForward, kBackward, kFullBackward, kGluForward, kGluBackward };

Case case_of(Kind kind, int64_t rows, int64_t cols, rmsnorm_dtype_t dtype) {
  Case c;
  switch (kind) {
    case Kind::kForward: c = forward_case(rows, cols, dtype); break;
    case Kind::kFullForward: c = full_case(Direction::kForward, rows, cols, dtype); break;
    case Kind::kBackward: c = backward_case(rows, cols, dtype); break;
    case Kind::kFullBackward: c = full_case(Direction::kBackward, rows, cols, dtype); break;
    case Kind::kGluForward: c = full_case(Direction::kGluForward, rows, cols, dtype); break;
    case Kind::kGluBackward: c = full_case(Direction::kGluBackward, rows, cols, dtype); break;
  }
  constexpr Pattern kPatterns[] = {Pattern::kNormal, Pattern::kWide, Pattern::kRows};
  c.seed = mix(static_cast<uint64_t>(rows), static_cast<uint64_t>(cols));
  c[kX].pattern = kPatterns[c.seed % 3];
  c[kDy].pattern = c[kUp].pattern = kPatterns[c.seed / 3 % 3];
  c[kGate].pattern = kPatterns[c.seed / 9 % 3];
  if (c.seed / 9 % 2 == 0) c.weight_offset = 1;
  if (kind == Kind::kFullBackward && c.seed / 18 % 2 == 0) c.flags |= RMSNORM_FLAG_ACCUMULATE;
  return c;
}

using Parameter = std::tuple<rmsnorm_device_t, rmsnorm_dtype_t, Kind>;

class Grid : public testing::TestWithParam<Parameter> {
 protected:
  void SetUp() override { require_device(std::get<0>(GetParam()), &device_); }
  Case shaped(int64_t rows, int64_t cols) const {
    Case c = case_of(std::get<2>(GetParam()), rows, cols, std::get<1>(GetParam()));
    c.estimated = !full_run();
    return c;
  }
  Device *device_ = nullptr;
};

TEST_P(Grid, EveryWidth) {
  for (const int64_t cols : kCols)
    for (const int64_t rows : rows_for(cols)) ASSERT_TRUE(conforms(*device_, shaped(rows, cols)));
}

TEST_P(Grid, NoRows) {
  for (const int64_t cols : {1, 64, 1027, 8192, 65536})
    EXPECT_TRUE(conforms(*device_, shaped(0, cols)));
}

TEST_P(Grid, ManyRows) {
  for (const Shape &shape : kManyRows) {
    Case c = shaped(shape.rows, shape.cols);
    c.sampled = is_glu(c.direction) ? std::max<int64_t>(65536 / shape.cols, 64) : 4096;
    ASSERT_TRUE(conforms(*device_, c));
  }
}

TEST_P(Grid, PeersShapes) {
  if (!full_run()) GTEST_SKIP() << "long: RMSNORM_TEST_FULL is not set";
  for (const Shape &shape : kPeers) {
    Case c = shaped(shape.rows, shape.cols);
    c.sampled = 256;
    // dweight's reference reads every row: on two cores that takes long.
    const int64_t most = device_->is_cuda() ? shape.rows : 4000000 / shape.cols;
    if (c.direction == Direction::kBackward) c.rows = std::min(c.rows, most);
    ASSERT_TRUE(conforms(*device_, c));
  }
}

std::string name_of(const testing::TestParamInfo<Parameter> &tested) {
  const auto &[device, dtype, kind] = tested.param;
  constexpr const char *kKinds[] = {"forward",       "full_forward", "backward",
                                    "full_backward", "glu_forward",  "glu_backward"};
  return std::string(backend_name(device)) + "_" + rmsnorm::dtype_name(dtype) + "_" +
         kKinds[static_cast<int>(kind)];
}

INSTANTIATE_TEST_SUITE_P(All, Grid,
                         testing::Combine(testing::ValuesIn(kBackends), testing::ValuesIn(kDtypes),
                                          testing::Values(Kind::kForward, Kind::kFullForward,
                                                          Kind::kBackward, Kind::kFullBackward,
                                                          Kind::kGluForward, Kind::kGluBackward)),
                         name_of);

}  // namespace
}  // namespace rmsnorm_test
