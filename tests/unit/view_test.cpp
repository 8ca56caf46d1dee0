// Where views stand in memory, against a brute force over the bytes of all small views.
#include "core/view.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <vector>

namespace {

using rmsnorm::Box;
using rmsnorm::ByteRange;
using rmsnorm::View;

char *address(uintptr_t value) { return reinterpret_cast<char *>(value); }
constexpr uintptr_t kBase = 1 << 20;

View make_view(int64_t row_stride, int64_t group_stride, rmsnorm_dtype_t dtype,
               uintptr_t at = kBase) {
  View view;
  view.data = address(at);
  view.row_stride = row_stride;
  view.group_stride = group_stride;
  view.dtype = dtype;
  return view;
}

// The address of each row of cols elements.
std::vector<int64_t> starts_of(const View &view, const Box &box) {
  std::vector<int64_t> starts;
  for (int64_t row = 0; row < box.rows; ++row)
    for (int64_t group = 0; group < box.groups; ++group)
      starts.push_back(static_cast<int64_t>(reinterpret_cast<uintptr_t>(view.data)) +
                       (row * view.row_stride + group * view.group_stride) *
                           rmsnorm::element_size(view.dtype));
  return starts;
}

int64_t width_of(const View &view, const Box &box) {
  return box.cols * rmsnorm::element_size(view.dtype);
}

bool brute_distinct(const View &view, const Box &box) {
  std::vector<int64_t> starts = starts_of(view, box);
  std::sort(starts.begin(), starts.end());
  for (size_t i = 1; i < starts.size(); ++i)
    if (starts[i] - starts[i - 1] < width_of(view, box)) return false;
  return true;
}

bool brute_meet(const View &a, const View &b, const Box &box) {
  for (const int64_t of_a : starts_of(a, box))
    for (const int64_t of_b : starts_of(b, box))
      if (of_a < of_b + width_of(b, box) && of_b < of_a + width_of(a, box)) return true;
  return false;
}

template <class Body>
void each_small_view(int64_t reach, Body body) {
  for (int64_t row_stride = -reach; row_stride <= reach; ++row_stride)
    for (int64_t group_stride = -reach; group_stride <= reach; ++group_stride)
      for (int64_t rows = 0; rows <= 4; ++rows)
        for (int64_t groups = 0; groups <= 4; ++groups)
          for (int64_t cols = 1; cols <= 3; ++cols)
            body(row_stride, group_stride, Box{rows, groups, cols});
}

TEST(ElementsDistinct, EqualsBruteForceOnSmallViews) {
  for (const rmsnorm_dtype_t dtype : {RMSNORM_DTYPE_BF16, RMSNORM_DTYPE_F32, RMSNORM_DTYPE_F64})
    each_small_view(10, [&](int64_t row_stride, int64_t group_stride, const Box &box) {
      const View view = make_view(row_stride, group_stride, dtype);
      ASSERT_EQ(elements_distinct(view, box), brute_distinct(view, box))
          << "strides " << row_stride << ", " << group_stride << " box " << box.rows << " x "
          << box.groups << " x " << box.cols;
    });
}

TEST(ElementsDistinct, EqualsBruteForceOnRandomViews) {
  std::mt19937_64 random(1);
  const auto draw = [&](int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(random);
  };
  int distinct = 0;
  for (int i = 0; i < 20000; ++i) {
    const Box box = {draw(1, 60), draw(1, 60), draw(1, 20)};
    const View view = make_view(draw(-300, 300), draw(-300, 300), RMSNORM_DTYPE_F32);
    const bool expected = brute_distinct(view, box);
    distinct += expected;
    ASSERT_EQ(elements_distinct(view, box), expected)
        << "strides " << view.row_stride << ", " << view.group_stride << " box " << box.rows
        << " x " << box.groups << " x " << box.cols;
  }
  EXPECT_GT(distinct, 100);
}

TEST(ElementsDistinct, LargeNestedViews) {
  constexpr int64_t kMany = int64_t{1} << 24;
  EXPECT_TRUE(elements_distinct(make_view(64 * 8, 64, RMSNORM_DTYPE_F16), {kMany, 8, 64}));
  EXPECT_TRUE(elements_distinct(make_view(64, 64 * kMany, RMSNORM_DTYPE_F16), {kMany, kMany, 64}));
  EXPECT_TRUE(
      elements_distinct(make_view(-100, 100 * kMany, RMSNORM_DTYPE_F64), {kMany, 100000, 99}));
  EXPECT_FALSE(elements_distinct(make_view(63, 64 * kMany, RMSNORM_DTYPE_F16), {kMany, kMany, 64}));
  EXPECT_FALSE(elements_distinct(make_view(0, 64, RMSNORM_DTYPE_F16), {kMany, kMany, 64}));
  EXPECT_FALSE(elements_distinct(make_view(64, 64 * kMany - 1, RMSNORM_DTYPE_F16), {kMany, 2, 64}));
}

// Two counts above 65,536 and strides that are not nested: refused, as the header of view.h says.
TEST(ElementsDistinct, GivesUpOnHugeUnnestedViews) {
  EXPECT_FALSE(elements_distinct(make_view(3, 2, RMSNORM_DTYPE_F32), {70000, 70000, 1}));
  EXPECT_TRUE(elements_distinct(make_view(70001 * 2, 2, RMSNORM_DTYPE_F32), {70000, 70000, 1}));
}

TEST(Interleave, IsNeverTrueByMistake) {
  int interleaved = 0;
  for (const int64_t distance : {-24, -16, -12, -8, -4, 0, 4, 8, 12, 16, 24})
    each_small_view(7, [&](int64_t row_stride, int64_t group_stride, const Box &box) {
      if (box.empty()) return;
      const View a = make_view(row_stride, group_stride, RMSNORM_DTYPE_F32);
      const View b = make_view(row_stride, group_stride, RMSNORM_DTYPE_F32, kBase + distance);
      if (!interleave(a, b, box)) return;
      ++interleaved;
      ASSERT_FALSE(brute_meet(a, b, box))
          << distance << " strides " << row_stride << ", " << group_stride << " box " << box.rows
          << " x " << box.groups << " x " << box.cols;
    });
  EXPECT_GT(interleaved, 1000);
}

// Equal strides in bytes, elements of two sizes.
TEST(Interleave, IsNeverTrueByMistakeForTwoSizes) {
  int interleaved = 0;
  for (int64_t distance = -40; distance <= 40; distance += 2)
    each_small_view(7, [&](int64_t row_stride, int64_t group_stride, const Box &box) {
      if (box.empty()) return;
      const View a = make_view(2 * row_stride, 2 * group_stride, RMSNORM_DTYPE_F16);
      const View b = make_view(row_stride, group_stride, RMSNORM_DTYPE_F32, kBase + distance);
      EXPECT_EQ(interleave(a, b, box), interleave(b, a, box));
      if (!interleave(a, b, box)) return;
      ++interleaved;
      ASSERT_FALSE(brute_meet(a, b, box)) << distance;
    });
  EXPECT_GT(interleaved, 100);
}

TEST(Interleave, HalvesOfARow) {
  const View gate = make_view(128, 0, RMSNORM_DTYPE_BF16);
  View up = make_view(128, 0, RMSNORM_DTYPE_BF16, kBase + 64 * 2);
  EXPECT_TRUE(interleave(gate, up, {1000, 1, 64}));
  EXPECT_TRUE(interleave(up, gate, {1000, 1, 64}));
  EXPECT_FALSE(interleave(gate, up, {1000, 1, 65}));
  up.row_stride = 129;
  EXPECT_FALSE(interleave(gate, up, {1000, 1, 64}));
  EXPECT_FALSE(interleave(gate, gate, {1000, 1, 64}));
  // q's heads beside k's in [q | k | v].
  const View q = make_view(3 * 512, 64, RMSNORM_DTYPE_F32);
  const View k = make_view(3 * 512, 64, RMSNORM_DTYPE_F32, kBase + 512 * 4);
  EXPECT_TRUE(interleave(q, k, {1000, 8, 64}));
  EXPECT_FALSE(interleave(q, k, {1000, 9, 64}));
}

TEST(ByteRangeOf, EqualsBruteForceOnSmallViews) {
  for (const rmsnorm_dtype_t dtype : {RMSNORM_DTYPE_F16, RMSNORM_DTYPE_F64})
    each_small_view(6, [&](int64_t row_stride, int64_t group_stride, const Box &box) {
      const View view = make_view(row_stride, group_stride, dtype);
      ByteRange range;
      ASSERT_TRUE(byte_range(view, box, &range));
      if (box.empty()) {
        ASSERT_EQ(range.low, range.high);
        return;
      }
      const std::vector<int64_t> starts = starts_of(view, box);
      ASSERT_EQ(static_cast<int64_t>(range.low), *std::min_element(starts.begin(), starts.end()));
      ASSERT_EQ(static_cast<int64_t>(range.high),
                *std::max_element(starts.begin(), starts.end()) + width_of(view, box));
    });
}

TEST(ByteRangeOf, OverflowIsSeen) {
  ByteRange range;
  const auto fits = [&](int64_t row_stride, int64_t group_stride, const Box &box,
                        uintptr_t at = kBase) {
    return byte_range(make_view(row_stride, group_stride, RMSNORM_DTYPE_F32, at), box, &range);
  };
  constexpr int64_t kHuge = INT64_MAX;
  EXPECT_FALSE(fits(kHuge, 0, {2, 1, 1}));
  EXPECT_FALSE(fits(INT64_MIN, 0, {2, 1, 1}));
  EXPECT_FALSE(fits(0, kHuge / 4, {1, 2, 1}));
  EXPECT_FALSE(fits(int64_t{1} << 40, 0, {int64_t{1} << 30, 1, 1}));
  EXPECT_FALSE(fits(int64_t{1} << 58, int64_t{1} << 58, {3, 3, 1}));
  EXPECT_FALSE(fits(0, 0, {1, 1, kHuge}));
  EXPECT_FALSE(fits(0, 0, {1, 1, int64_t{1} << 61}));
  EXPECT_TRUE(fits(0, 0, {kHuge, kHuge, 1}));
  EXPECT_TRUE(fits(kHuge, kHuge, {0, 5, 5}));
  // Below address 0 and beyond the last one.
  EXPECT_FALSE(fits(-(int64_t{1} << 30), 0, {2, 1, 1}));
  EXPECT_FALSE(fits(1, 0, {2, 1, 4}, UINTPTR_MAX - 7));
  EXPECT_TRUE(fits(1, 0, {2, 1, 1}, UINTPTR_MAX - 15));
}

TEST(ByteRangeOf, MeetsWhatItTouches) {
  const ByteRange range = {100, 200};
  EXPECT_TRUE(range.meets({199, 300}));
  EXPECT_TRUE(range.meets({0, 101}));
  EXPECT_TRUE(range.meets({150, 151}));
  EXPECT_FALSE(range.meets({200, 300}));
  EXPECT_FALSE(range.meets({0, 100}));
}

}  // namespace
