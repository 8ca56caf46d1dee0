// Batch invariance and repeatability, bit for bit: one row alone equals that row among 4,096; a
// call split by rows equals the whole; a second run, and OVERLAP, change nothing.
#include <gtest/gtest.h>

#include "../support/judge.h"
#include "../support/on_device.h"

namespace rmsnorm_test {
namespace {

class Invariance : public OnDevice {};

// Copies the inputs of rows `first`, `first + 1`, ... of `from` to all rows of `to`.
void copy_rows(const Execution &from, int64_t first, Execution *to) {
  const Case &c = to->tested();
  for (int i = 0; i < kNameCount; ++i) {
    const Name name = static_cast<Name>(i);
    if (!c.has(name) || is_output(c.direction, name)) continue;
    const bool vector = info(name).extent == Extent::kVector;
    for (int64_t row = 0; row < c.rows_of(name); ++row)
      for (int64_t group = 0; group < c.groups_of(name); ++group)
        for (int64_t col = 0; col < c.cols_of(name); ++col)
          to->set(name, row, group, col, from.input(name, vector ? 0 : first + row, group, col));
  }
}

void expect_same_rows(const Execution &whole, int64_t first, const Execution &part) {
  const Case &c = part.tested();
  for (const Name name : {kY, kResidualOut, kRstd, kDx, kDresidual, kDgate, kDup}) {
    if (!c.has(name) || !is_output(c.direction, name)) continue;
    for (int64_t row = 0; row < c.rows; ++row)
      for (int64_t group = 0; group < c.group_count(); ++group)
        ASSERT_EQ(whole.row_bits(name, first + row, group), part.row_bits(name, row, group))
            << info(name).text << " of row " << first + row << " of\n  " << whole.tested()
            << "\n  kernel " << whole.kernel_name() << "\nis another as row " << row << " of\n  "
            << c << "\n  kernel " << part.kernel_name();
  }
}

TEST_P(Invariance, OneRowAmongMany) {
  for (const rmsnorm_dtype_t dtype : kDtypes)
    for (const Direction direction : kDirections)
      for (const int64_t cols : {1, 31, 64, 127, 256, 1027, 2048}) {
        Case c = full_case(direction, 4096, cols, dtype);
        if (cols == 256) c.weight_offset = 1;
        Execution many(device(), c);
        ASSERT_EQ(many.run(), RMSNORM_SUCCESS) << last_error();
        for (const int64_t row : {0, 1, 777, 2050, 4095}) {
          Case one = c;
          one.rows = 1;
          for (int i = 0; i < kNameCount; ++i)  // another alignment as well
            if (one.has(static_cast<Name>(i)))
              one.tensors[i].misalign = (1 + row % 3) * rmsnorm::element_size(one.tensors[i].dtype);
          Execution alone(device(), one);
          copy_rows(many, row, &alone);
          ASSERT_EQ(alone.run(), RMSNORM_SUCCESS) << last_error();
          expect_same_rows(many, row, alone);
        }
      }
}

TEST_P(Invariance, WideRows) {
  for (const rmsnorm_dtype_t dtype : kDtypes)
    for (const Direction direction : kDirections)
      for (const int64_t cols : {8192, 16385, 65536, 131072}) {
        const int64_t rows = cols > 20000 ? 5 : 40;
        Execution many(device(), full_case(direction, rows, cols, dtype));
        ASSERT_EQ(many.run(), RMSNORM_SUCCESS) << last_error();
        Case one = many.tested();
        one.rows = 1;
        for (const Name name : {kX, kY, kDy, kDx, kGate, kDup}) one[name].misalign = 8;
        Execution alone(device(), one);
        copy_rows(many, rows - 1, &alone);
        ASSERT_EQ(alone.run(), RMSNORM_SUCCESS) << last_error();
        expect_same_rows(many, rows - 1, alone);
      }
}

// A few rows take other kernels than many, and rows shared by fewer or more blocks, where a call
// asks for nothing else too.
void expect_few_as_among_many(Device &device, const Case &many, std::initializer_list<int> few) {
  Execution whole(device, many);
  ASSERT_EQ(whole.run(), RMSNORM_SUCCESS) << last_error();
  for (const int rows : few) {
    Case c = many;
    c.rows = rows;
    Execution part(device, c);
    copy_rows(whole, many.rows - rows, &part);
    ASSERT_EQ(part.run(), RMSNORM_SUCCESS) << last_error();
    expect_same_rows(whole, many.rows - rows, part);
  }
}

TEST_P(Invariance, BackwardOfFewRowsAmongMany) {
  for (const rmsnorm_dtype_t dtype : kDtypes)
    for (const int64_t cols : {272, 1024, 1096, 4096, 5128, 8192}) {
      const int64_t rows = cols > 2000 ? 1100 : 600;
      expect_few_as_among_many(device(), backward_case(rows, cols, dtype), {1, 5});
    }
  if (!on_cuda()) return;
  for (const rmsnorm_dtype_t dtype : {RMSNORM_DTYPE_BF16, RMSNORM_DTYPE_F32})
    expect_few_as_among_many(device(), backward_case(2300, 4096, dtype), {2, 1050});
}

TEST_P(Invariance, ForwardOfFewRowsAmongMany) {
  for (const rmsnorm_dtype_t dtype : kDtypes)
    for (const int64_t cols : {3200, 4096, 6144, 8192, 11008, 16384}) {
      const int64_t rows = on_cuda() ? 300 : 40;
      for (const Case &c : {forward_case(rows, cols, dtype), add_case(rows, cols, dtype)})
        expect_few_as_among_many(device(), c, {1, 33});
    }
}

TEST_P(Invariance, GluOfFewRowsAmongMany) {
  for (const rmsnorm_dtype_t dtype : kDtypes)
    for (const Direction direction : {Direction::kGluForward, Direction::kGluBackward})
      for (const rmsnorm_activation_t activation :
           {RMSNORM_ACTIVATION_SILU, RMSNORM_ACTIVATION_GELU_TANH, RMSNORM_ACTIVATION_GELU_ERF}) {
        Case c = full_case(direction, on_cuda() ? 150 : 10, 8192, dtype);
        c.activation = activation;
        expect_few_as_among_many(device(), c, {1, 9});
      }
}

// Any split of the rows, at strides of its own.
TEST_P(Invariance, SplitByRows) {
  for (const rmsnorm_dtype_t dtype : kDtypes)
    for (const Direction direction : kDirections)
      for (const int64_t cols : {100, 768}) {
        Execution whole(device(), full_case(direction, 100, cols, dtype));
        ASSERT_EQ(whole.run(), RMSNORM_SUCCESS) << last_error();
        int64_t first = 0;
        for (const int64_t rows : {1, 2, 30, 67}) {
          Case c = whole.tested();
          c.rows = rows;
          for (const Name name : {kX, kResidual, kY, kDy, kDx, kGate, kDup})
            c[name].row_stride = cols + rows;
          Execution part(device(), c);
          copy_rows(whole, first, &part);
          ASSERT_EQ(part.run(), RMSNORM_SUCCESS) << last_error();
          expect_same_rows(whole, first, part);
          first += rows;
        }
      }
}

// The same elements as rows, as groups, and as both.
TEST_P(Invariance, RowsOrGroups) {
  for (const rmsnorm_dtype_t dtype : kDtypes)
    for (const Direction direction : kDirections) {
      Execution rows(device(), full_case(direction, 24, 160, dtype));
      ASSERT_EQ(rows.run(), RMSNORM_SUCCESS) << last_error();
      for (const int64_t groups : {24, 6}) {
        Case c = rows.tested();
        c.rows = 24 / groups;
        c.groups = groups;
        Execution grouped(device(), c);
        for (const Name name :
             {kX, kResidual, kRstd, kDy, kDresidualOut, kWeight, kBias, kGate, kUp}) {
          if (!c.has(name) || is_output(direction, name)) continue;
          for (int64_t row = 0; row < c.rows_of(name); ++row)
            for (int64_t group = 0; group < c.groups_of(name); ++group)
              for (int64_t col = 0; col < c.cols_of(name); ++col)
                grouped.set(name, row, group, col, rows.input(name, row * groups + group, 0, col));
        }
        ASSERT_EQ(grouped.run(), RMSNORM_SUCCESS) << last_error();
        for (const Name name : {kY, kResidualOut, kRstd, kDx, kDresidual, kDgate, kDup})
          if (c.has(name) && is_output(direction, name)) {
            EXPECT_TRUE(same_bits(rows, grouped, name));
          }
      }
    }
}

TEST_P(Invariance, RunsRepeat) {
  struct Shape {
    int64_t rows, cols;
  };
  for (const rmsnorm_dtype_t dtype : kDtypes)
    for (const Direction direction : kDirections)
      for (const Shape shape :
           {Shape{5000, 64}, Shape{700, 1027}, Shape{33, 8192}, Shape{3, 70000}}) {
        const Case c = full_case(direction, shape.rows, shape.cols, dtype);
        Execution first(device(), c), second(device(), c);
        second.workspace_poison = 0x3c;
        second.workspace_misalign = 3;
        ASSERT_EQ(first.run(), RMSNORM_SUCCESS) << last_error();
        for (int repeat = 0; repeat < 2; ++repeat) {
          ASSERT_EQ(second.run(), RMSNORM_SUCCESS) << last_error();
          EXPECT_TRUE(same_outputs(first, second));
        }
      }
}

TEST_P(Invariance, OverlapChangesNoBits) {
  for (const rmsnorm_dtype_t dtype : kDtypes)
    for (const Direction direction : kDirections)
      for (const int64_t cols : {33, 512, 4096, 20000, 66000}) {
        Case c = full_case(direction, 40, cols, dtype);
        Execution plain(device(), c);
        ASSERT_EQ(plain.run(), RMSNORM_SUCCESS) << last_error();
        c.flags |= RMSNORM_FLAG_OVERLAP;
        Execution overlapped(device(), c);
        ASSERT_EQ(overlapped.run(), RMSNORM_SUCCESS) << last_error();
        EXPECT_TRUE(overlapped.nothing_else_written());
        EXPECT_TRUE(same_outputs(plain, overlapped));
      }
}

// A chain of calls in one stream without a wait between them: each reads what the one before it
// wrote.
TEST_P(Invariance, OverlappedChain) {
  const struct {
    int64_t rows, cols;
  } shapes[] = {{300, 4096}, {200, 128}, {3, 8192}, {3, 200000}};  // of blocks, warps, clusters
  for (const uint32_t flags : {0, static_cast<int>(RMSNORM_FLAG_OVERLAP)})
    for (const auto &shape : shapes) {
      Case c = forward_case(shape.rows, shape.cols, RMSNORM_DTYPE_F32);
      c[kRstd] = {};
      c[kY].share = kX;  // in place, again and again
      c.flags = flags;
      Execution chained(device(), c), stepwise(device(), c);
      chained.upload();
      ASSERT_EQ(chained.prepare_workspace(), RMSNORM_SUCCESS) << last_error();
      for (int step = 0; step < 8; ++step)
        ASSERT_EQ(chained.launch(), RMSNORM_SUCCESS) << last_error();
      chained.download();
      stepwise.upload();
      ASSERT_EQ(stepwise.prepare_workspace(), RMSNORM_SUCCESS) << last_error();
      for (int step = 0; step < 8; ++step) {
        ASSERT_EQ(stepwise.launch(), RMSNORM_SUCCESS) << last_error();
        ASSERT_EQ(device().synchronize(), "");
      }
      stepwise.download();
      EXPECT_TRUE(same_outputs(chained, stepwise));
    }
}

INSTANTIATE_TEST_SUITE_P(All, Invariance, testing::ValuesIn(kBackends), BackendName());

}  // namespace
}  // namespace rmsnorm_test
