// Folded shapes stand for the same elements in the same order, and have no dimension that could go.
#include "core/fold.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

namespace rmsnorm {
namespace {

constexpr rmsnorm_dtype_t kDtypes[] = {RMSNORM_DTYPE_F32, RMSNORM_DTYPE_BF16, RMSNORM_DTYPE_F64};

View make_view(int64_t row_stride, int64_t group_stride, int index, const Problem &shape) {
  View view;
  view.data = reinterpret_cast<char *>(uintptr_t{1} << 30) + 4096 * index;
  view.row_stride = shape.rows == 1 ? 0 : row_stride;
  view.group_stride = shape.groups == 1 ? 0 : group_stride;
  view.dtype = kDtypes[index % 3];
  return view;
}

// The address of every element, in order.
std::vector<const char *> places(const View &view, const Problem &shape) {
  std::vector<const char *> found;
  for (int64_t row = 0; row < shape.rows; ++row)
    for (int64_t group = 0; group < shape.groups; ++group)
      for (int64_t col = 0; col < shape.cols; ++col)
        found.push_back(view.at(row, group) + col * element_size(view.dtype));
  return found;
}

// Whether all views are rows of `cols` elements, and equal steps lead from each to the next.
bool are_rows(const std::vector<View> &views, const Problem &shape, int64_t cols) {
  return std::all_of(views.begin(), views.end(), [&](const View &view) {
    const std::vector<const char *> all = places(view, shape);
    const int64_t size = element_size(view.dtype);
    for (size_t i = 1; i < all.size(); ++i)
      if (static_cast<int64_t>(i) % cols != 0 && all[i] - all[i - 1] != size) return false;
    for (size_t i = 2 * static_cast<size_t>(cols); i < all.size(); i += static_cast<size_t>(cols))
      if (all[i] - all[i - static_cast<size_t>(cols)] != all[static_cast<size_t>(cols)] - all[0])
        return false;
    return true;
  });
}

void check(const GluForwardProblem &given) {
  const GluForwardProblem got = folded(given, kGluForwardTensors);
  const testing::Message text =
      testing::Message() << given.rows << " x " << given.groups << " x " << given.cols << " by "
                         << given.gate.row_stride << " " << given.gate.group_stride << ", "
                         << given.up.row_stride << " " << given.up.group_stride << " became "
                         << got.rows << " x " << got.groups << " x " << got.cols;
  const std::vector<View> before = {given.gate, given.up, given.y};
  const std::vector<View> after = {got.gate, got.up, got.y};
  for (size_t i = 0; i < before.size(); ++i) {
    ASSERT_EQ(places(after[i], got), places(before[i], given)) << text;
    EXPECT_EQ(after[i].dtype, before[i].dtype);
    EXPECT_TRUE(got.rows > 1 || after[i].row_stride == 0) << text;
    EXPECT_TRUE(got.groups > 1 || after[i].group_stride == 0) << text;
  }
  const int64_t elements = given.rows * given.groups * given.cols;
  ASSERT_EQ(got.rows == 1 && got.groups == 1, are_rows(before, given, elements)) << text;
  ASSERT_EQ(got.groups == 1, are_rows(before, given, given.cols)) << text;
}

TEST(Folded, EverySmallShape) {
  int one_row = 0, one_group = 0, left = 0;
  for (int64_t rows = 1; rows <= 3; ++rows)
    for (int64_t groups = 1; groups <= 3; ++groups)
      for (int64_t cols = 1; cols <= 3; ++cols)
        for (int64_t row_stride = -9; row_stride <= 27; ++row_stride)
          for (int64_t group_stride = -3; group_stride <= 9; ++group_stride)
            for (const bool dense : {false, true}) {
              GluForwardProblem p;
              p.rows = rows, p.groups = groups, p.cols = cols;
              p.gate = make_view(row_stride, group_stride, 0, p);
              p.up =
                  make_view(dense ? groups * cols : row_stride, dense ? cols : group_stride, 1, p);
              p.y = make_view(row_stride, group_stride, 2, p);
              check(p);
              const GluForwardProblem got = folded(p, kGluForwardTensors);
              ++(got.groups > 1 ? left : got.rows > 1 ? one_group : one_row);
            }
  EXPECT_GT(one_row, 100);
  EXPECT_GT(one_group, 100);
  EXPECT_GT(left, 100);
}

// An output that nobody wants keeps nothing from being one row.
TEST(Folded, AbsentTensors) {
  GluBackwardProblem p;
  p.rows = 4, p.groups = 2, p.cols = 8;
  p.activation = RMSNORM_ACTIVATION_GELU_ERF;
  p.overlap = true;
  for (View GluBackwardProblem::*view : {&GluBackwardProblem::dy, &GluBackwardProblem::gate,
                                         &GluBackwardProblem::up, &GluBackwardProblem::dup})
    p.*view = make_view(16, 8, 0, p);
  const GluBackwardProblem got = folded(p, kGluBackwardTensors);
  EXPECT_EQ(got.rows, 1);
  EXPECT_EQ(got.groups, 1);
  EXPECT_EQ(got.cols, 64);
  EXPECT_FALSE(got.dgate.present());
  EXPECT_EQ(got.activation, p.activation);
  EXPECT_TRUE(got.overlap);
}

TEST(Folded, NoRows) {
  for (const int64_t groups : {1, 3}) {
    GluForwardProblem p;
    p.rows = 0, p.groups = groups, p.cols = 8;
    p.gate = p.up = p.y = make_view(8 * groups, 8, 0, p);
    const GluForwardProblem got = folded(p, kGluForwardTensors);
    EXPECT_EQ(got.rows, 0);
    EXPECT_EQ(got.cols, 8);
  }
}

}  // namespace
}  // namespace rmsnorm
