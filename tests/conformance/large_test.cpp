// More elements than 32 bits count: rows that lie far apart, and 2^31 elements in one call. Memory
// is taken from the device directly; rows are sampled, and must have the bits of the same rows in a
// small call, which the reference judges.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "../support/judge.h"
#include "../support/on_device.h"
#include "reference/reference.h"

namespace rmsnorm_test {
namespace {

constexpr rmsnorm_dtype_t kDtype = RMSNORM_DTYPE_BF16;
constexpr int64_t kSize = 2;

class Large : public OnDevice {
 protected:
  void TearDown() override { release_all(); }
  void release_all() {
    for (void *memory : owned_) device().release(memory);
    owned_.clear();
  }
  // NULL where the device has not so much.
  char *allocate(int64_t bytes) {
    void *memory = device().allocate(static_cast<size_t>(bytes));
    if (memory != nullptr) owned_.push_back(memory);
    return static_cast<char *>(memory);
  }
  std::vector<uint8_t> read(const char *from, int64_t bytes) {
    std::vector<uint8_t> to(static_cast<size_t>(bytes));
    device().download(to.data(), from, to.size());
    return to;
  }
  void write(char *to, const std::vector<uint8_t> &from) {
    device().upload(to, from.data(), from.size());
  }
  // `from` again and again until `bytes` are written.
  void write_repeated(char *to, const std::vector<uint8_t> &from, int64_t bytes) {
    std::vector<uint8_t> chunk;
    while (chunk.size() < size_t{1} << 25) chunk.insert(chunk.end(), from.begin(), from.end());
    for (int64_t done = 0; done < bytes; done += static_cast<int64_t>(chunk.size())) {
      chunk.resize(std::min(chunk.size(), static_cast<size_t>(bytes - done)));
      write(to + done, chunk);
    }
  }

 private:
  std::vector<void *> owned_;
};

// One row of x, dy or gate as it was before the small call.
std::vector<uint8_t> input_bits(const Execution &small, Name name, int64_t row, int64_t group) {
  const bool forward = small.tested().direction == Direction::kForward;
  const rmsnorm::View view = name == kGate ? small.glu_forward_problem().gate
                             : name == kDy ? small.backward_problem().dy
                             : forward     ? small.forward_problem().x
                                           : small.backward_problem().x;
  const char *from = view.at(row, group);
  return {from, from + small.tested().cols * kSize};
}

// Three rows (or groups) 2^31 elements and a bit apart: 32-bit offsets of elements or of bytes
// wrap.
TEST_P(Large, RowsFarApart) {
  constexpr int64_t kStride = (int64_t{1} << 31) + 40;
  for (const bool by_groups : {false, true}) {
    Case c = forward_case(3, 1000, kDtype);
    if (by_groups) c.rows = 1, c.groups = 3;
    Execution small(device(), c);
    ASSERT_EQ(small.run(), RMSNORM_SUCCESS) << last_error();
    ASSERT_TRUE(conforms(small));
    char *const x = allocate((2 * kStride + c.cols) * kSize);
    char *const y = allocate((2 * kStride + c.cols) * kSize);
    if (x == nullptr || y == nullptr) GTEST_SKIP() << "not 17 GB of memory";
    Params params = small.params;
    params.forward.x.data = x;
    params.forward.y.data = y;
    for (const Name name : {kX, kY})
      (by_groups ? params.tensor(name).group_stride : params.tensor(name).row_stride) = kStride;
    for (int64_t i = 0; i < 3; ++i)
      write(x + i * kStride * kSize, input_bits(small, kX, by_groups ? 0 : i, by_groups ? i : 0));
    ASSERT_EQ(run(small.context, params, small.workspace, small.workspace_size, small.stream),
              RMSNORM_SUCCESS)
        << last_error();
    ASSERT_EQ(device().synchronize(), "");
    for (int64_t i = 0; i < 3; ++i)
      EXPECT_EQ(read(y + i * kStride * kSize, c.cols * kSize),
                small.row_bits(kY, by_groups ? 0 : i, by_groups ? i : 0))
          << i;
    release_all();
  }
}

TEST_P(Large, BackwardRowsFarApart) {
  constexpr int64_t kStride = (int64_t{1} << 31) + 8;
  Execution small(device(), backward_case(3, 500, kDtype));
  const Case &c = small.tested();
  ASSERT_EQ(small.run(), RMSNORM_SUCCESS) << last_error();
  ASSERT_TRUE(conforms(small));
  char *const x = allocate((2 * kStride + c.cols) * kSize);
  char *const dy = allocate((2 * kStride + c.cols) * kSize);  // and dx, in place
  if (x == nullptr || dy == nullptr) GTEST_SKIP() << "not 17 GB of memory";
  Params params = small.params;
  params.backward.x.data = x;
  params.backward.dy.data = params.backward.dx.data = dy;
  for (const Name name : {kX, kDy, kDx}) params.tensor(name).row_stride = kStride;
  for (int64_t i = 0; i < 3; ++i) {
    write(x + i * kStride * kSize, input_bits(small, kX, i, 0));
    write(dy + i * kStride * kSize, input_bits(small, kDy, i, 0));
  }
  ASSERT_EQ(run(small.context, params, small.workspace, small.workspace_size, small.stream),
            RMSNORM_SUCCESS)
      << last_error();
  small.download();
  ASSERT_EQ(device().synchronize(), "");
  for (int64_t i = 0; i < 3; ++i)
    EXPECT_EQ(read(dy + i * kStride * kSize, c.cols * kSize), small.row_bits(kDx, i, 0)) << i;
  EXPECT_TRUE(conforms(small)) << "dweight";
}

// y and dgate in place of gate; up and dy are the small call's.
TEST_P(Large, GluRowsFarApart) {
  constexpr int64_t kStride = (int64_t{1} << 31) + 8;
  for (const Direction direction : kGluDirections) {
    Execution small(device(), full_case(direction, 3, 500, kDtype));
    const Case &c = small.tested();
    ASSERT_EQ(small.run(), RMSNORM_SUCCESS) << last_error();
    ASSERT_TRUE(conforms(small));
    char *const gate = allocate((2 * kStride + c.cols) * kSize);
    if (gate == nullptr) GTEST_SKIP() << "not 9 GB of memory";
    Params params = small.params;
    const Name output = direction == Direction::kGluForward ? kY : kDgate;
    for (const Name name : {kGate, output}) {
      params.tensor(name).data = gate;
      params.tensor(name).row_stride = kStride;
    }
    for (int64_t i = 0; i < 3; ++i)
      write(gate + i * kStride * kSize, input_bits(small, kGate, i, 0));
    ASSERT_EQ(run(small.context, params, small.workspace, small.workspace_size, small.stream),
              RMSNORM_SUCCESS)
        << last_error();
    ASSERT_EQ(device().synchronize(), "");
    for (int64_t i = 0; i < 3; ++i)
      EXPECT_EQ(read(gate + i * kStride * kSize, c.cols * kSize), small.row_bits(output, i, 0))
          << text(direction) << " " << i;
    release_all();
  }
}

// 2^31 and more elements that follow one another, in place; up is one row for all.
TEST_P(Large, GluManyElements) {
  if (!on_cuda() && !full_run()) GTEST_SKIP() << "long on the CPU: RMSNORM_TEST_FULL is not set";
  constexpr int64_t kCols = 4099, kRows = (int64_t{1} << 31) / kCols + 70, kTile = 61;
  Case c = glu_case(Direction::kGluForward, RMSNORM_ACTIVATION_SILU, kTile, kCols, kDtype);
  c[kUp].row_stride = 0;
  c.sampled = 4;
  Execution tile(device(), c);
  ASSERT_EQ(tile.run(), RMSNORM_SUCCESS) << last_error();
  ASSERT_TRUE(conforms(tile));
  constexpr int64_t kBytes = kCols * kSize;
  char *const gate = allocate(kRows * kBytes);
  if (gate == nullptr) GTEST_SKIP() << "not 5 GB of memory";
  std::vector<uint8_t> rows;
  for (int64_t row = 0; row < kTile; ++row) {
    const std::vector<uint8_t> one = input_bits(tile, kGate, row, 0);
    rows.insert(rows.end(), one.begin(), one.end());
  }
  write_repeated(gate, rows, kRows * kBytes);
  Params params = tile.params;
  params.glu_forward.rows = kRows;
  params.glu_forward.gate.data = params.glu_forward.y.data = gate;
  ASSERT_EQ(run(tile.context, params, tile.workspace, tile.workspace_size, tile.stream),
            RMSNORM_SUCCESS)
      << last_error();
  ASSERT_EQ(device().synchronize(), "");
  for (const int64_t row : {int64_t{0}, int64_t{1}, kRows / 2, kRows - 70, kRows - 2, kRows - 1})
    ASSERT_EQ(read(gate + row * kBytes, kBytes), tile.row_bits(kY, row % kTile, 0)) << row;
}

// 2^31 and more elements, contiguous: wide rows and narrow ones. The data repeats a tile of rows.
TEST_P(Large, ManyElements) {
  if (!on_cuda() && !full_run()) GTEST_SKIP() << "long on the CPU: RMSNORM_TEST_FULL is not set";
  struct Shape {
    int64_t rows, cols;
  };
  constexpr int64_t kTile = 61;  // rows
  for (const Direction direction : {Direction::kForward, Direction::kBackward})
    for (const Shape shape :
         {Shape{(int64_t{1} << 31) / 4096 + 5, 4096}, Shape{int64_t{1} << 24, 136},
          Shape{16500, 131072}, Shape{(int64_t{1} << 32) / 262144 + 3, 262144}}) {
      // 2^32 elements, which on the CPU the rows far apart have to stand for.
      if (!on_cuda() && shape.cols == 262144) continue;
      Case c = direction == Direction::kForward ? forward_case(kTile, shape.cols, kDtype)
                                                : backward_case(kTile, shape.cols, kDtype);
      c[kRstd] = {};
      if (direction == Direction::kBackward) c[kDweight] = {};
      c.sampled = 4;
      Execution tile(device(), c);
      ASSERT_EQ(tile.run(), RMSNORM_SUCCESS) << last_error();
      ASSERT_TRUE(conforms(tile));
      const int64_t bytes = shape.cols * kSize;
      char *const x = allocate(shape.rows * bytes);
      char *const y = allocate(shape.rows * bytes);  // dy and dx, in place
      if (x == nullptr || y == nullptr) GTEST_SKIP() << "not 9 GB of memory";
      Params params = tile.params;
      params.edit_head([&](auto *p) { p->rows = shape.rows; });
      params.tensor(kX).data = x;
      const Name output = direction == Direction::kForward ? kY : kDx;
      params.tensor(output).data = y;
      if (direction == Direction::kBackward) params.backward.dy.data = y;
      for (const Name name : {kX, kDy}) {
        if (!takes(direction, name)) continue;
        std::vector<uint8_t> rows;
        for (int64_t row = 0; row < kTile; ++row) {
          const std::vector<uint8_t> one = input_bits(tile, name, row, 0);
          rows.insert(rows.end(), one.begin(), one.end());
        }
        write_repeated(name == kX ? x : y, rows, shape.rows * bytes);
      }
      size_t size = 0;
      ASSERT_EQ(query_size(tile.context, params, &size), RMSNORM_SUCCESS) << last_error();
      char *const workspace = size == 0 ? nullptr : allocate(static_cast<int64_t>(size));
      ASSERT_EQ(run(tile.context, params, workspace, size, tile.stream), RMSNORM_SUCCESS)
          << last_error();
      ASSERT_EQ(device().synchronize(), "");
      for (int64_t i = 0; i < 200; ++i) {
        const int64_t row = i < 3   ? i
                            : i < 6 ? shape.rows - 1 - (i - 3)
                                    : static_cast<int64_t>(mix(5, static_cast<uint64_t>(i)) %
                                                           static_cast<uint64_t>(shape.rows));
        ASSERT_EQ(read(y + row * bytes, bytes), tile.row_bits(output, row % kTile, 0))
            << "row " << row << " of " << shape.rows << " x " << shape.cols;
      }
      release_all();
    }
}

// dweight of 2^31 elements: equal rows, so that the exact sum is rows times one row's term.
TEST_P(Large, DweightOfManyElements) {
  if (!on_cuda() && !full_run()) GTEST_SKIP() << "long on the CPU: RMSNORM_TEST_FULL is not set";
  constexpr int64_t kCols = 1024, kRows = (int64_t{1} << 31) / kCols + 3;
  // x and dy have row stride 0 in memory of one row; what counts is the number of rows.
  Case one = backward_case(1, kCols, kDtype);
  one[kDweight].dtype = RMSNORM_DTYPE_F32;
  one[kDx] = {};
  Execution small(device(), one);
  ASSERT_EQ(small.run(), RMSNORM_SUCCESS) << last_error();
  ASSERT_TRUE(conforms(small));
  Params params = small.params;
  params.backward.rows = kRows;
  params.backward.x.row_stride = params.backward.dy.row_stride = 0;
  size_t size = 0;
  ASSERT_EQ(query_size(small.context, params, &size), RMSNORM_SUCCESS) << last_error();
  char *const workspace = size == 0 ? nullptr : allocate(static_cast<int64_t>(size));
  ASSERT_EQ(run(small.context, params, workspace, size, small.stream), RMSNORM_SUCCESS)
      << last_error();
  small.download();
  const rmsnorm::reference::WeightGradients row =
      rmsnorm::reference::weight_gradients(small.backward_problem(), 0);
  const double factor = on_cuda() ? 0x1p-18 : 0x1p-40;
  for (int64_t col = 0; col < kCols; ++col) {
    const rmsnorm::reference::Exact exact = {row.dweight[static_cast<size_t>(col)].high * kRows, 0};
    const double bound =
        (on_cuda() ? 1 : 0.501) * rmsnorm::reference::ulp(exact, RMSNORM_DTYPE_F32) +
        factor * std::fabs(exact.high);
    EXPECT_LE(std::fabs(small.output(kDweight, 0, 0, col) - exact.high), bound) << col;
  }
}

INSTANTIATE_TEST_SUITE_P(All, Large, testing::ValuesIn(kBackends), BackendName());

}  // namespace
}  // namespace rmsnorm_test
