// rows x groups: heads inside a packed QKV tensor, batch x sequence with a gap, either order of
// strides, and weights per group or shared.
#include <gtest/gtest.h>

#include "../support/judge.h"
#include "../support/on_device.h"

namespace rmsnorm_test {
namespace {

constexpr Name kElementTensors[] = {kX,  kResidual,  kY,    kResidualOut, kDy,    kDresidualOut,
                                    kDx, kDresidual, kGate, kUp,          kDgate, kDup};
constexpr Name kVectors[] = {kWeight, kBias, kDweight, kDbias};

void set_strides(Case *c, int64_t row_stride, int64_t group_stride) {
  for (const Name name : kElementTensors) {
    (*c)[name].row_stride = row_stride;
    (*c)[name].group_stride = group_stride;
  }
}

class Groups : public OnDevice {};

TEST_P(Groups, PackedHeads) {
  for (const rmsnorm_dtype_t dtype : kDtypes)
    for (const Direction direction : kDirections)
      for (const int64_t head : {64, 128, 96, 33}) {
        Case c = full_case(direction, 13, head, dtype);
        c.groups = 5;
        EXPECT_TRUE(conforms(device(), c));
      }
}

// QK norm: q's heads in [q | k | v] of each token, in place; the rest of the token stays.
TEST_P(Groups, QueriesInPlaceInPackedQkv) {
  for (const rmsnorm_dtype_t dtype : kDtypes)
    for (const int64_t heads : {4, 7, 16})
      for (const int64_t head : {64, 128, 256}) {
        Case c = forward_case(11, head, dtype);
        c.groups = heads;
        set_strides(&c, 3 * heads * head, head);
        c[kY].share = kX;
        EXPECT_TRUE(conforms(device(), c));
        c = backward_case(11, head, dtype);
        c.groups = heads;
        set_strides(&c, 3 * heads * head, head);
        c[kDx].share = kDy;
        EXPECT_TRUE(conforms(device(), c));
      }
}

// The shapes (tokens, heads, head_dim) that peers single out.
TEST_P(Groups, PeersHeads) {
  struct Shape {
    int64_t rows, groups, cols;
  };
  for (const Shape shape :
       {Shape{2 * 16, 4, 64}, Shape{1, 32, 128}, Shape{19, 7, 512}, Shape{989, 4, 64}})
    for (const Direction direction : kDirections) {
      Case c = full_case(direction, shape.rows, shape.cols, RMSNORM_DTYPE_BF16);
      c.groups = shape.groups;
      EXPECT_TRUE(conforms(device(), c));
    }
}

// Groups outermost in memory: (groups, rows, cols).
TEST_P(Groups, GroupMajor) {
  for (const rmsnorm_dtype_t dtype : kDtypes)
    for (const Direction direction : kDirections) {
      Case c = full_case(direction, 9, 72, dtype);
      c.groups = 4;
      set_strides(&c, 72, 9 * 72);
      c[kRstd].row_stride = 1;
      c[kRstd].group_stride = 9;
      EXPECT_TRUE(conforms(device(), c));
    }
}

// rows = batch, groups = sequence, with a gap after each sequence and after each row.
TEST_P(Groups, BatchBySequenceWithGaps) {
  for (const Direction direction : kDirections) {
    Case c = full_case(direction, 3, 200, RMSNORM_DTYPE_F16);
    c.groups = 17;
    set_strides(&c, 20 * 208 + 3, 208);
    EXPECT_TRUE(conforms(device(), c));
  }
}

TEST_P(Groups, NegativeAndZeroGroupStrides) {
  for (const Direction direction : kDirections) {
    Case c = full_case(direction, 4, 65, RMSNORM_DTYPE_F32);
    c.groups = 6;
    set_strides(&c, 500, -70);
    EXPECT_TRUE(conforms(device(), c));
    for (const Name name : {kX, kResidual, kDy, kDresidualOut, kGate, kUp})
      c[name].group_stride = 0;
    EXPECT_TRUE(conforms(device(), c));
  }
}

// Layouts whose strides are not nested: distinct all the same.
TEST_P(Groups, InterleavedRowsAndGroups) {
  for (const Direction direction : kDirections) {
    Case c = full_case(direction, 2, 8, RMSNORM_DTYPE_F32);
    c.groups = 3;
    set_strides(&c, 24, 16);  // rows at 0, 24; groups at 0, 16, 32
    EXPECT_TRUE(conforms(device(), c));
  }
}

TEST_P(Groups, WeightPerGroup) {
  for (const rmsnorm_dtype_t dtype : kDtypes)
    for (const Direction direction : kNormDirections)
      for (const int64_t group_stride : {120, 121, -128}) {
        Case c = full_case(direction, 21, 120, dtype);
        c.groups = 5;
        for (const Name name : kVectors) c[name].group_stride = group_stride;
        EXPECT_TRUE(conforms(device(), c));
        c.flags = direction == Direction::kBackward ? RMSNORM_FLAG_ACCUMULATE : 0;
        c[kWeight] = {};
        EXPECT_TRUE(conforms(device(), c));
      }
}

// weight per group, bias shared, and the other way round.
TEST_P(Groups, OneVectorPerGroup) {
  for (const Name per_group : {kWeight, kBias}) {
    Case c = full_case(Direction::kForward, 7, 96, RMSNORM_DTYPE_BF16);
    c.groups = 3;
    c[per_group].group_stride = 96;
    EXPECT_TRUE(conforms(device(), c));
  }
}

// A shared weight's gradient is summed over groups too, however many rows and groups there are.
TEST_P(Groups, SharedGradientsAreSummedOverGroups) {
  struct Shape {
    int64_t rows, groups, cols;
  };
  for (const Shape shape : {Shape{1, 300, 64}, Shape{300, 1, 64}, Shape{50, 6, 64},
                            Shape{1000, 16, 24}, Shape{2, 5000, 8}, Shape{6, 3, 4100}})
    for (const rmsnorm_dtype_t dtype : kDtypes) {
      Case c = full_case(Direction::kBackward, shape.rows, shape.cols, dtype);
      c.groups = shape.groups;
      c.sampled = 500;
      EXPECT_TRUE(conforms(device(), c));
    }
}

TEST_P(Groups, GradientsPerGroupOfManyRows) {
  for (const rmsnorm_dtype_t dtype : kDtypes) {
    Case c = full_case(Direction::kBackward, 1500, 40, dtype);
    c.groups = 8;
    c.sampled = 500;
    for (const Name name : kVectors) c[name].group_stride = 40;
    EXPECT_TRUE(conforms(device(), c));
  }
}

TEST_P(Groups, ManyGroups) {
  for (const Direction direction : kDirections) {
    Case c = full_case(direction, 2, 4, RMSNORM_DTYPE_F16);
    c.groups = 70000;  // more than a grid's second dimension has
    c.sampled = 2000;
    EXPECT_TRUE(conforms(device(), c));
    if (direction == Direction::kBackward)
      for (const Name name : kVectors) c[name].group_stride = 4;
    EXPECT_TRUE(conforms(device(), c));
  }
}

TEST_P(Groups, NoRowsWithGroups) {
  Case c = full_case(Direction::kBackward, 0, 40, RMSNORM_DTYPE_F32);
  c.groups = 3;
  for (const Name name : kVectors) c[name].group_stride = 44;
  EXPECT_TRUE(conforms(device(), c));
  c.flags = RMSNORM_FLAG_ACCUMULATE;
  EXPECT_TRUE(conforms(device(), c));
}

INSTANTIATE_TEST_SUITE_P(All, Groups, testing::ValuesIn(kBackends), BackendName());

}  // namespace
}  // namespace rmsnorm_test
