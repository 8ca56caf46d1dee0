// In place is allowed where rmsnorm.h says so, and gives the bits of the same call out of place.
// Outputs whose columns do not meet may interleave in one allocation.
#include <gtest/gtest.h>

#include "../support/judge.h"
#include "../support/on_device.h"

namespace rmsnorm_test {
namespace {

struct Pair {
  Name output, input;
};
using Pairs = std::vector<Pair>;

// One call's aliases: none of them makes two outputs share memory.
const Pairs kForwardAliases[] = {
    {{kY, kX}},
    {{kResidualOut, kResidual}},
    {{kResidualOut, kX}},
    {{kY, kX}, {kResidualOut, kResidual}},
};
const Pairs kBackwardAliases[] = {{{kDx, kDy}}, {{kDx, kX}}, {{kDx, kDresidualOut}}};
const Pairs kGluForwardAliases[] = {{{kY, kGate}}, {{kY, kUp}}};
const Pairs kGluBackwardAliases[] = {
    {{kDgate, kGate}},
    {{kDgate, kDy}},
    {{kDup, kUp}},
    {{kDup, kDy}},
    {{kDgate, kGate}, {kDup, kUp}},
    {{kDgate, kDy}, {kDup, kUp}},
    {{kDgate, kGate}, {kDup, kDy}},
};
constexpr int64_t kWidths[] = {1, 7, 64, 333, 1024, 4100, 8192, 33000};

class Aliasing : public OnDevice {
 protected:
  void expect_same_in_place(const Case &apart, const Pairs &pairs) {
    Execution out_of_place(device(), apart);
    ASSERT_EQ(out_of_place.run(), RMSNORM_SUCCESS) << last_error();
    ASSERT_TRUE(conforms(out_of_place));
    Case c = apart;
    for (const Pair &pair : pairs) {
      c[pair.output] = c[pair.input];
      c[pair.output].share = pair.input;
      c[pair.output].shift = 0;
    }
    Execution in_place(device(), c);
    ASSERT_EQ(in_place.run(), RMSNORM_SUCCESS) << last_error() << "\n" << c;
    EXPECT_TRUE(in_place.nothing_else_written());
    EXPECT_TRUE(same_outputs(out_of_place, in_place));
  }
};

TEST_P(Aliasing, ForwardInPlace) {
  for (const rmsnorm_dtype_t dtype : kDtypes)
    for (const Pairs &pairs : kForwardAliases)
      for (const int64_t cols : kWidths)
        expect_same_in_place(full_case(Direction::kForward, 5, cols, dtype), pairs);
}

TEST_P(Aliasing, BackwardInPlace) {
  for (const rmsnorm_dtype_t dtype : kDtypes)
    for (const Pairs &pairs : kBackwardAliases)
      for (const int64_t cols : kWidths)
        for (const int64_t rows : {5, 150})
          if (rows * cols < 200000) {
            expect_same_in_place(full_case(Direction::kBackward, rows, cols, dtype), pairs);
            if (pairs[0].input != kDresidualOut)
              expect_same_in_place(backward_case(rows, cols, dtype), pairs);
          }
}

TEST_P(Aliasing, GluInPlace) {
  for (const rmsnorm_dtype_t dtype : kDtypes)
    for (const int64_t cols : kWidths) {
      for (const Pairs &pairs : kGluForwardAliases)
        expect_same_in_place(full_case(Direction::kGluForward, 5, cols, dtype), pairs);
      for (const Pairs &pairs : kGluBackwardAliases)
        expect_same_in_place(full_case(Direction::kGluBackward, 5, cols, dtype), pairs);
    }
}

// [gate | up] rows: y in either half, gradients in place or as [dgate | dup] rows of their own, in
// either order. The halves' alignments differ.
TEST_P(Aliasing, PackedGateAndUp) {
  for (const rmsnorm_dtype_t dtype : kDtypes)
    for (const int64_t cols : {1, 64, 77, 1030, 4096}) {
      const int64_t bytes = cols * rmsnorm::element_size(dtype);
      const auto pack = [&](Case *c, Name first, Name second) {
        (*c)[first].row_stride = (*c)[second].row_stride = 2 * cols;
        (*c)[second].share = first;
        (*c)[second].shift = bytes;
      };
      for (const bool swapped : {false, true}) {
        const Name first = swapped ? kUp : kGate, second = swapped ? kGate : kUp;
        Case c = full_case(Direction::kGluForward, 7, cols, dtype);
        pack(&c, first, second);
        EXPECT_TRUE(conforms(device(), c));
        for (const Name half : {first, second}) {
          c[kY].row_stride = 2 * cols;
          c[kY].share = half;
          EXPECT_TRUE(conforms(device(), c));
        }
        c = full_case(Direction::kGluBackward, 7, cols, dtype);
        pack(&c, first, second);
        pack(&c, swapped ? kDup : kDgate, swapped ? kDgate : kDup);
        EXPECT_TRUE(conforms(device(), c));
        for (const Name name : {kDgate, kDup}) {
          c[name].share = name == kDgate ? kGate : kUp;
          c[name].shift = 0;
        }
        EXPECT_TRUE(conforms(device(), c));
      }
    }
}

// Strided and misaligned in place.
TEST_P(Aliasing, InPlaceWithGaps) {
  for (const rmsnorm_dtype_t dtype : kDtypes) {
    for (const Pairs &pairs : kForwardAliases) {
      Case c = full_case(Direction::kForward, 7, 130, dtype);
      for (const Name name : {kX, kResidual, kY, kResidualOut}) {
        c[name].row_stride = 137;
        c[name].misalign = rmsnorm::element_size(dtype);
      }
      expect_same_in_place(c, pairs);
    }
    for (const Pairs &pairs : kBackwardAliases) {
      Case c = full_case(Direction::kBackward, 7, 130, dtype);
      for (const Name name : {kX, kDy, kDresidualOut, kDx}) c[name].row_stride = -137;
      expect_same_in_place(c, pairs);
    }
    for (const Pairs &pairs : kGluBackwardAliases) {
      Case c = full_case(Direction::kGluBackward, 7, 130, dtype);
      for (const Name name : {kDy, kGate, kUp, kDgate, kDup}) {
        c[name].row_stride = 137;
        c[name].misalign = rmsnorm::element_size(dtype);
      }
      expect_same_in_place(c, pairs);
    }
  }
}

// The dtypes of the pair are equal, those of the other tensors are not.
TEST_P(Aliasing, InPlaceAmongMixedDtypes) {
  for (const rmsnorm_dtype_t other : kMixable) {
    Case c = full_case(Direction::kForward, 6, 200, RMSNORM_DTYPE_BF16);
    c[kWeight].dtype = c[kBias].dtype = other;
    c[kResidual].dtype = c[kResidualOut].dtype = other;
    for (const Pairs &pairs : {kForwardAliases[0], kForwardAliases[1], kForwardAliases[3]})
      expect_same_in_place(c, pairs);
    c = full_case(Direction::kBackward, 60, 200, RMSNORM_DTYPE_F16);
    c[kWeight].dtype = c[kDweight].dtype = other;
    c[kX].dtype = other;
    expect_same_in_place(c, kBackwardAliases[0]);
    expect_same_in_place(c, kBackwardAliases[2]);
  }
}

// x and residual, or dy and x, may be the very same memory: both are read.
TEST_P(Aliasing, InputsMayOverlapFreely) {
  for (const rmsnorm_dtype_t dtype : kDtypes) {
    Case c = full_case(Direction::kForward, 6, 120, dtype);
    c[kResidual].share = kX;
    EXPECT_TRUE(conforms(device(), c));
    c[kResidual].shift = 3 * rmsnorm::element_size(dtype);
    EXPECT_TRUE(conforms(device(), c));
    c = full_case(Direction::kBackward, 6, 120, dtype);
    c[kX].share = kDy;
    EXPECT_TRUE(conforms(device(), c));
    c[kDx].share = kDy;
    EXPECT_TRUE(conforms(device(), c));
  }
}

// [y | residual_out] and [dx | dresidual] rows in one allocation, and an output beside its input.
TEST_P(Aliasing, InterleavedColumns) {
  for (const rmsnorm_dtype_t dtype : kDtypes)
    for (const int64_t cols : {64, 77, 1030}) {
      const int64_t bytes = cols * rmsnorm::element_size(dtype);
      Case c = full_case(Direction::kForward, 5, cols, dtype);
      for (const Name name : {kY, kResidualOut}) c[name].row_stride = 2 * cols;
      c[kResidualOut].share = kY;
      c[kResidualOut].shift = bytes;
      EXPECT_TRUE(conforms(device(), c));
      c = full_case(Direction::kForward, 5, cols, dtype);
      for (const Name name : {kX, kY}) c[name].row_stride = 2 * cols + 1;
      c[kY].share = kX;
      c[kY].shift = bytes;
      EXPECT_TRUE(conforms(device(), c));
      c = full_case(Direction::kBackward, 5, cols, dtype);
      for (const Name name : {kDx, kDresidual}) c[name].row_stride = 2 * cols;
      c[kDresidual].share = kDx;
      c[kDresidual].shift = bytes;
      EXPECT_TRUE(conforms(device(), c));
      c = full_case(Direction::kBackward, 5, cols, dtype);
      for (const Name name : {kDy, kDx}) c[name].row_stride = 3 * cols;
      c[kDx].share = kDy;
      c[kDx].shift = 2 * bytes;
      EXPECT_TRUE(conforms(device(), c));
    }
}

// dweight and dbias one after the other in one vector.
TEST_P(Aliasing, AdjacentGradients) {
  for (const rmsnorm_dtype_t dtype : kDtypes) {
    Case c = full_case(Direction::kBackward, 70, 129, dtype);
    c[kDbias].share = kDweight;
    c[kDbias].shift = 129 * rmsnorm::element_size(dtype);
    EXPECT_TRUE(conforms(device(), c));
    c.groups = 3;
    for (const Name name : {kWeight, kDweight, kDbias}) c[name].group_stride = 2 * 129;
    EXPECT_TRUE(conforms(device(), c));
  }
}

INSTANTIATE_TEST_SUITE_P(All, Aliasing, testing::ValuesIn(kBackends), BackendName());

}  // namespace
}  // namespace rmsnorm_test
