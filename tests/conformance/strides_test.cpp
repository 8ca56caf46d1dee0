// Rows that do not follow one another: gaps, odd strides, zero and negative ones. The gaps are
// guarded by Execution: they must come out as they went in.
#include <gtest/gtest.h>

#include "../support/judge.h"
#include "../support/on_device.h"

namespace rmsnorm_test {
namespace {

constexpr Name kElementTensors[] = {kX,  kResidual,  kY,    kResidualOut, kDy,    kDresidualOut,
                                    kDx, kDresidual, kGate, kUp,          kDgate, kDup};

class Strides : public OnDevice {
 protected:
  // Every element tensor of a full case with this row stride.
  void check_all(int64_t rows, int64_t cols, int64_t row_stride) {
    for (const rmsnorm_dtype_t dtype : kDtypes)
      for (const Direction direction : kDirections) {
        Case c = full_case(direction, rows, cols, dtype);
        for (const Name name : kElementTensors) c[name].row_stride = row_stride;
        EXPECT_TRUE(conforms(device(), c));
      }
  }
};

TEST_P(Strides, RowsWithGaps) {
  check_all(7, 128, 129);
  check_all(7, 128, 192);  // 1.5 times
  check_all(7, 255, 256);
  check_all(5, 769, 1537);
  check_all(19, 64, 1000);
  check_all(3, 4096, 4099);
  check_all(3, 5125, 5128);
  for (const int64_t cols : {8, 768, 769, 5120, 8192}) check_all(7, cols, 2 * cols);
  check_all(83, 8, 16);
}

TEST_P(Strides, NegativeStrides) {
  check_all(7, 128, -128);
  check_all(6, 123, -200);
  check_all(4, 1027, -1029);
}

// Each tensor in turn has a stride of its own.
TEST_P(Strides, OneTensorStrided) {
  for (const rmsnorm_dtype_t dtype : {RMSNORM_DTYPE_F32, RMSNORM_DTYPE_BF16})
    for (const Direction direction : kDirections)
      for (const Name name : kElementTensors)
        for (const int64_t row_stride : {261, 384, -260}) {
          Case c = full_case(direction, 6, 260, dtype);
          if (!takes(direction, name)) continue;
          c[name].row_stride = row_stride;
          EXPECT_TRUE(conforms(device(), c));
        }
}

TEST_P(Strides, RstdStrided) {
  for (const int64_t row_stride : {2, 7, -1, -3})
    for (const Direction direction : kNormDirections) {
      Case c = full_case(direction, 9, 100, RMSNORM_DTYPE_F16);
      c[kRstd].row_stride = row_stride;
      EXPECT_TRUE(conforms(device(), c));
    }
}

// An input whose rows are all the same memory, or overlap.
TEST_P(Strides, BroadcastInputs) {
  for (const rmsnorm_dtype_t dtype : kDtypes)
    for (const Direction direction : kDirections)
      for (const Name name : {kX, kResidual, kDy, kDresidualOut, kGate, kUp})
        for (const int64_t row_stride : {0, 1, 64, -5}) {
          Case c = full_case(direction, 9, 300, dtype);
          if (!takes(direction, name)) continue;
          c[name].row_stride = row_stride;
          EXPECT_TRUE(conforms(device(), c));
        }
}

TEST_P(Strides, BroadcastRstd) {
  Case c = full_case(Direction::kBackward, 9, 300, RMSNORM_DTYPE_F32);
  c[kRstd].row_stride = 0;
  EXPECT_TRUE(conforms(device(), c));
}

// With one row and one group, strides are not read.
TEST_P(Strides, IgnoredWhereTheDimensionIsOne) {
  for (const int64_t garbage : {INT64_MAX, INT64_MIN + 1, int64_t{-1}, int64_t{12345678901}})
    for (const Direction direction : kDirections) {
      Case c = full_case(direction, 1, 333, RMSNORM_DTYPE_BF16);
      for (int i = 0; i < kNameCount; ++i) {
        const Name name = static_cast<Name>(i);
        if (info(name).extent != Extent::kVector) c[name].row_stride = garbage;
        c[name].group_stride = garbage;
      }
      EXPECT_TRUE(conforms(device(), c));
    }
}

// groups = 1 and several rows: group_stride is ignored, row_stride is not.
TEST_P(Strides, GroupStrideIgnoredForOneGroup) {
  for (const int64_t groups : {0, 1})
    for (const Direction direction : kDirections) {
      Case c = full_case(direction, 5, 333, RMSNORM_DTYPE_F16);
      c.groups = groups;
      for (int i = 0; i < kNameCount; ++i) c.tensors[i].group_stride = INT64_MAX - 3;
      EXPECT_TRUE(conforms(device(), c));
    }
}

// A slice of a wider tensor: (8, 4096, 576)[:, :, :512], as flashinfer's and quack's users have it.
TEST_P(Strides, SliceOfAWiderTensor) {
  for (const Direction direction : kDirections) {
    Case c = direction == Direction::kForward ? forward_case(8 * 4096, 512, RMSNORM_DTYPE_BF16)
             : direction == Direction::kBackward
                 ? backward_case(8 * 512, 512, RMSNORM_DTYPE_BF16)
                 : full_case(direction, 8 * 512, 512, RMSNORM_DTYPE_BF16);
    c.sampled = 512;
    for (const Name name : {kX, kY, kDy, kDx, kGate, kUp, kDgate}) c[name].row_stride = 576;
    EXPECT_TRUE(conforms(device(), c));
  }
}

INSTANTIATE_TEST_SUITE_P(All, Strides, testing::ValuesIn(kBackends), BackendName());

}  // namespace
}  // namespace rmsnorm_test
