#include "kernel_list.h"

namespace rmsnorm_test {
namespace {

// NONE: mixed dtypes. Kernels take 16 bytes of one dtype at a time, and 4 elements of mixed ones.
constexpr rmsnorm_dtype_t kRows[] = {RMSNORM_DTYPE_BF16, RMSNORM_DTYPE_F16, RMSNORM_DTYPE_F32,
                                     RMSNORM_DTYPE_NONE};
int64_t width_of(rmsnorm_dtype_t dtype) {
  return dtype == RMSNORM_DTYPE_BF16 || dtype == RMSNORM_DTYPE_F16 ? 8 : 4;
}

rmsnorm_dtype_t first_of(rmsnorm_dtype_t dtype) {
  return dtype == RMSNORM_DTYPE_NONE ? rmsnorm_dtype_t{RMSNORM_DTYPE_BF16} : dtype;
}

// A row of so many vectors; one that is not whole ends inside its last one.
int64_t cols_of(int64_t vectors, int64_t width, bool whole) {
  return vectors * width - (whole ? 0 : 1);
}

Case finished(Case c, std::vector<Case> *list) {
  c.sampled = 3;
  c.seed = list->size();
  list->push_back(c);
  return c;
}

void add_forward(rmsnorm_dtype_t dtype, bool whole, std::vector<Case> *list) {
  // Vectors of a row: a warp's share, two and three for each lane, rows of a block, rows in shared
  // memory, rows of clusters.
  for (const int64_t vectors : {5, 32, 64, 48, 97, 600, 1500, 2500, 20000})
    // A few rows, and more than a GPU has room for at once, in so far as rows are short.
    for (const int64_t rows : {3, 600}) {
      if (rows > 3 && vectors > 1500) continue;
      const int64_t cols = cols_of(vectors, width_of(dtype), whole);
      Case plain = forward_case(rows, cols, first_of(dtype));
      Case adds = add_case(rows, cols, first_of(dtype));
      Case all = full_case(Direction::kForward, rows, cols, first_of(dtype));
      all.rounding = RMSNORM_ROUNDING_LLAMA;
      all.weight_offset = 1;
      for (Case *c : {&plain, &adds, &all}) {
        if (dtype == RMSNORM_DTYPE_NONE) (*c)[kY].dtype = RMSNORM_DTYPE_F32;
        finished(*c, list);
      }
    }
}

void add_backward(rmsnorm_dtype_t dtype, bool whole, std::vector<Case> *list) {
  // Short rows, rows of a block (few of them, and many), of two, of sixteen.
  const struct {
    int64_t vectors, rows;
  } shapes[] = {{5, 300}, {32, 300}, {40, 1000}, {40, 300}, {1000, 7}, {1500, 7}, {17000, 7}};
  for (const auto &shape : shapes) {
    const int64_t cols = cols_of(shape.vectors, width_of(dtype), whole);
    Case plain = backward_case(shape.rows, cols, first_of(dtype));
    Case all =
        full_case(Direction::kBackward, shape.rows > 300 ? shape.rows : 7, cols, first_of(dtype));
    all.flags = RMSNORM_FLAG_ACCUMULATE;
    for (Case *c : {&plain, &all}) {
      if (dtype == RMSNORM_DTYPE_NONE) (*c)[kDx].dtype = RMSNORM_DTYPE_F32;
      finished(*c, list);
    }
  }
}

// Contiguous rows; aligned ones with gaps; rows that are not aligned.
void add_glu(rmsnorm_dtype_t dtype, std::vector<Case> *list) {
  for (const Direction direction : {Direction::kGluForward, Direction::kGluBackward})
    for (const int64_t gap : {0, 16, 3})
      for (const rmsnorm_activation_t activation :
           {RMSNORM_ACTIVATION_SILU, RMSNORM_ACTIVATION_GELU_TANH, RMSNORM_ACTIVATION_GELU_ERF}) {
        Case c = full_case(direction, 7, 1024, first_of(dtype));
        c.activation = activation;
        for (const Name name : {kGate, kDgate, kY})
          if (gap != 0 && c.has(name)) c[name].row_stride = c.cols + gap;
        if (dtype == RMSNORM_DTYPE_NONE) c[kUp].dtype = RMSNORM_DTYPE_F32;
        finished(c, list);
        c.rows = 1100;  // more than a GPU has in process at once
        if (gap == 0 && dtype != RMSNORM_DTYPE_NONE) finished(c, list);
      }
}

}  // namespace

std::vector<Case> kernel_list() {
  std::vector<Case> list;
  for (const rmsnorm_dtype_t dtype : kRows) {
    for (const bool whole : {true, false}) {
      add_forward(dtype, whole, &list);
      add_backward(dtype, whole, &list);
    }
    add_glu(dtype, &list);
  }
  // fp64, and rows that are too long for every other kernel.
  for (const Direction direction : {Direction::kForward, Direction::kBackward}) {
    finished(full_case(direction, 7, 500, RMSNORM_DTYPE_F64), &list);
    finished(full_case(direction, 2, 300001, RMSNORM_DTYPE_F32), &list);
  }
  add_glu(RMSNORM_DTYPE_F64, &list);
  return list;
}

}  // namespace rmsnorm_test
