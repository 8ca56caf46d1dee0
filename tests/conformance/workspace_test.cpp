// The workspace's contract: one query for the largest batch serves every smaller one; any alignment
// and any larger size; contents do not matter; queries never look at addresses or strides.
#include <gtest/gtest.h>

#include "../support/judge.h"
#include "../support/on_device.h"

namespace rmsnorm_test {
namespace {

class Workspace : public OnDevice {
 protected:
  size_t size_of(const Params &params) {
    size_t size = 0;
    EXPECT_EQ(query_size(device().context(), params, &size), RMSNORM_SUCCESS) << last_error();
    return size;
  }
  std::string name_of(const Params &params) {
    char name[RMSNORM_KERNEL_NAME_SIZE] = "";
    EXPECT_EQ(query_name(device().context(), params, name, sizeof name), RMSNORM_SUCCESS)
        << last_error();
    return name;
  }
};

TEST_P(Workspace, DoesNotDecreaseAsRowsGrow) {
  for (const rmsnorm_dtype_t dtype : kDtypes)
    for (const Direction direction : kDirections)
      for (const int64_t groups : {1, 8})
        for (const int64_t cols : {1, 64, 1000, 4096, 8192, 20000, 131072}) {
          Case c = full_case(direction, 1, cols, dtype);
          c.groups = groups;
          Params params = Execution(device(), c).params;
          for (const bool per_group : {false, true}) {
            if (per_group)
              for (const Name name : {kWeight, kBias, kDweight, kDbias})
                if (takes(direction, name)) params.tensor(name).group_stride = cols;
            size_t largest = 0;
            for (int64_t rows = 0; rows < int64_t{1} << 24;
                 rows = rows < 300 ? rows + 1 : rows * 5 / 4) {
              params.edit_head([rows](auto *p) { p->rows = rows; });
              const size_t size = size_of(params);
              ASSERT_GE(size, largest) << "rows = " << rows << "\n" << c;
              largest = size;
            }
          }
        }
}

// A small call in the workspace of a large one.
TEST_P(Workspace, OneQueryServesSmallerBatches) {
  for (const rmsnorm_dtype_t dtype : kDtypes)
    for (const Direction direction : kDirections) {
      Execution large(device(), full_case(direction, 3000, 100, dtype));
      const size_t size = size_of(large.params);
      for (const int64_t rows : {0, 1, 2, 63, 500, 2999}) {
        Case c = large.tested();
        c.rows = rows;
        c.sampled = 100;
        Execution small(device(), c);
        ASSERT_GE(size, size_of(small.params));
        small.workspace_extra = size - size_of(small.params);
        ASSERT_EQ(small.run(), RMSNORM_SUCCESS) << last_error();
        EXPECT_TRUE(conforms(small));
      }
    }
}

// Exactly the size that the query tells, at every alignment, full of NaN or of anything else.
TEST_P(Workspace, AnyAlignmentAndAnyContents) {
  for (const rmsnorm_dtype_t dtype : kDtypes)
    for (const Direction direction : kDirections) {
      Execution reference(device(), full_case(direction, 400, 130, dtype));
      ASSERT_EQ(reference.run(), RMSNORM_SUCCESS) << last_error();
      ASSERT_TRUE(conforms(reference));
      for (size_t misalign = 0; misalign < 16; ++misalign) {
        Execution execution(device(), reference.tested());
        execution.workspace_misalign = misalign;
        execution.workspace_poison = misalign % 2 == 0 ? 0xff : 0x5a;
        ASSERT_EQ(execution.run(), RMSNORM_SUCCESS) << last_error();
        EXPECT_TRUE(execution.nothing_else_written());
        EXPECT_TRUE(same_outputs(reference, execution));
      }
    }
}

// Several calls in one stream share a workspace, with nothing between them.
TEST_P(Workspace, IsSharedByCallsOfOneStream) {
  const Case large = full_case(Direction::kBackward, 900, 300, RMSNORM_DTYPE_BF16);
  Case small = full_case(Direction::kBackward, 70, 1030, RMSNORM_DTYPE_F32);
  small.sampled = 20;
  Execution first(device(), large), second(device(), small), third(device(), large);
  for (Execution *execution : {&first, &second, &third}) {
    execution->upload();
    ASSERT_EQ(execution->prepare_workspace(), RMSNORM_SUCCESS) << last_error();
  }
  Execution &owner =
      first.workspace_size_needed() >= second.workspace_size_needed() ? first : second;
  for (Execution *execution : {&first, &second, &third})
    ASSERT_EQ(run(execution->context, execution->params, owner.workspace, owner.workspace_size,
                  execution->stream),
              RMSNORM_SUCCESS)
        << last_error();
  for (Execution *execution : {&first, &second, &third}) {
    execution->download();
    EXPECT_TRUE(conforms(*execution));
  }
}

// NULL data, other addresses and other strides: the same size and, without data, the same name.
TEST_P(Workspace, QueriesLookAtNeitherDataNorStrides) {
  for (const rmsnorm_dtype_t dtype : kDtypes)
    for (const Direction direction : kDirections)
      for (const int64_t cols : {33, 4096, 70000}) {
        Execution execution(device(), full_case(direction, 3, cols, dtype));
        const size_t size = size_of(execution.params);
        const std::string name = name_of(execution.params);
        EXPECT_NE(name, "");
        Params params = execution.params;
        for (int i = 0; i < kNameCount; ++i)
          if (takes(direction, static_cast<Name>(i)))
            params.tensor(static_cast<Name>(i)).data = nullptr;
        EXPECT_EQ(size_of(params), size);
        EXPECT_EQ(name_of(params), name);
        for (const Name tensor : {kX, kResidual, kY, kDy, kDx, kGate, kUp, kDgate})
          if (takes(direction, tensor)) params.tensor(tensor).row_stride = -cols - 7;
        EXPECT_EQ(size_of(params), size);
      }
}

TEST_P(Workspace, KernelNameFitsItsBuffer) {
  for (const rmsnorm_dtype_t dtype : kDtypes)
    for (const Direction direction : kDirections) {
      Execution execution(device(), full_case(direction, 3, 1024, dtype));
      const std::string name = name_of(execution.params);
      EXPECT_LT(name.size(), size_t{RMSNORM_KERNEL_NAME_SIZE});
      char small[RMSNORM_KERNEL_NAME_SIZE] = "untouched";
      EXPECT_EQ(query_name(execution.context, execution.params, small, name.size()),
                RMSNORM_ERROR_VALUE);
      EXPECT_NE(last_error().find("capacity = " + std::to_string(name.size())), std::string::npos)
          << last_error();
      EXPECT_STREQ(small, "untouched");
      EXPECT_EQ(query_name(execution.context, execution.params, small, name.size() + 1),
                RMSNORM_SUCCESS);
      EXPECT_EQ(small, name);
    }
}

INSTANTIATE_TEST_SUITE_P(All, Workspace, testing::ValuesIn(kBackends), BackendName());

}  // namespace
}  // namespace rmsnorm_test
