// Any alignment, the same bits: every misalignment of every tensor against the aligned run, and
// memory that ends, or begins, exactly with the tensor.
#include <gtest/gtest.h>

#include "../support/judge.h"
#include "../support/on_device.h"

namespace rmsnorm_test {
namespace {

constexpr int64_t kBytes = 16;  // misalignments tried: every one below the widest vector load's
constexpr int64_t kWidths[] = {1, 5, 33, 256, 1028};

class Alignment : public OnDevice {
 protected:
  void expect_same(const Execution &aligned, const Case &misaligned) {
    Execution execution(device(), misaligned);
    ASSERT_EQ(execution.run(), RMSNORM_SUCCESS) << last_error() << "\n" << misaligned;
    EXPECT_TRUE(execution.nothing_else_written());
    EXPECT_TRUE(same_outputs(aligned, execution));
  }
};

TEST_P(Alignment, EachTensorByEachElement) {
  for (const rmsnorm_dtype_t dtype : kDtypes)
    for (const Direction direction : kDirections)
      for (const int64_t cols : kWidths) {
        const Case base = full_case(direction, 3, cols, dtype);
        Execution aligned(device(), base);
        ASSERT_EQ(aligned.run(), RMSNORM_SUCCESS) << last_error();
        ASSERT_TRUE(conforms(aligned));
        for (int i = 0; i < kNameCount; ++i) {
          const Name name = static_cast<Name>(i);
          if (!base.has(name)) continue;
          const int64_t size = rmsnorm::element_size(base[name].dtype);
          for (int64_t bytes = size; bytes < kBytes; bytes += size) {
            Case c = base;
            c[name].misalign = bytes;
            expect_same(aligned, c);
          }
        }
      }
}

// dx and dweight alone, which aligned tensors get from one kernel and others from several.
TEST_P(Alignment, PlainBackward) {
  for (const rmsnorm_dtype_t dtype : kDtypes)
    for (const int64_t cols : {264, 1024, 4104})
      for (const int64_t rows : {3, 130, 700}) {
        if (rows * cols > 600000) continue;
        const Case base = backward_case(rows, cols, dtype);
        Execution aligned(device(), base);
        ASSERT_EQ(aligned.run(), RMSNORM_SUCCESS) << last_error();
        ASSERT_TRUE(conforms(aligned));
        for (const Name name : {kX, kDy, kWeight, kDx, kDweight}) {
          Case c = base;
          c[name].misalign = rmsnorm::element_size(dtype);
          expect_same(aligned, c);
        }
        Case strided = base;
        strided[kX].row_stride = cols + 16;
        expect_same(aligned, strided);
      }
}

// All tensors misaligned at once, each differently, with mixed dtypes and strides that keep them
// so.
TEST_P(Alignment, AllTensorsDifferently) {
  for (const rmsnorm_dtype_t dtype : kDtypes)
    for (const Direction direction : kDirections)
      for (const int64_t cols : {64, 257, 2050, 8192}) {
        const Case base = full_case(direction, 4, cols, dtype);
        Execution aligned(device(), base);
        ASSERT_EQ(aligned.run(), RMSNORM_SUCCESS) << last_error();
        ASSERT_TRUE(conforms(aligned));
        for (uint64_t draw = 0; draw < 12; ++draw) {
          Case c = base;
          for (int i = 0; i < kNameCount; ++i) {
            const Name name = static_cast<Name>(i);
            if (!base.has(name)) continue;
            const int64_t size = rmsnorm::element_size(base[name].dtype);
            const uint64_t hash = mix(draw, static_cast<uint64_t>(i));
            c[name].misalign = static_cast<int64_t>(hash % 16) * size;
            if (info(name).extent == Extent::kElements)
              c[name].row_stride = cols + static_cast<int64_t>(hash >> 8) % 9;
          }
          expect_same(aligned, c);
        }
      }
}

TEST_P(Alignment, MixedDtypesMisaligned) {
  for (const int64_t cols : {61, 1024}) {
    Case base = forward_case(3, cols, RMSNORM_DTYPE_F32);
    base[kWeight].dtype = RMSNORM_DTYPE_F16;
    base[kY].dtype = RMSNORM_DTYPE_BF16;
    Execution aligned(device(), base);
    ASSERT_EQ(aligned.run(), RMSNORM_SUCCESS) << last_error();
    ASSERT_TRUE(conforms(aligned));
    for (int64_t step = 1; step < 8; ++step) {
      Case c = base;
      c[kX].misalign = 4 * (step % 4);
      c[kWeight].misalign = 2 * step;
      c[kY].misalign = 2 * (8 - step);
      expect_same(aligned, c);
    }
  }
}

// Nothing before or after a tensor is touched, not even read: on the CPU it would fault.
TEST_P(Alignment, MemoryEndsAndBeginsWithTheTensor) {
  for (const Fence fence : {Fence::kAfter, Fence::kBefore})
    for (const rmsnorm_dtype_t dtype : kDtypes)
      for (const Direction direction : kDirections)
        for (int64_t cols = 1; cols <= 77; ++cols) {
          Case c = full_case(direction, 3, cols, dtype);
          c.fence = fence;
          EXPECT_TRUE(conforms(device(), c));
        }
}

INSTANTIATE_TEST_SUITE_P(All, Alignment, testing::ValuesIn(kBackends), BackendName());

}  // namespace
}  // namespace rmsnorm_test
