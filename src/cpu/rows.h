// What src/cpu/isa/*.cpp offer: one table of row functions for each instruction set. The tables
// differ in speed only: every function gives the same bits in each of them. Row (row, group) has
// index row * groups + group.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/problem.h"

namespace rmsnorm::cpu {

constexpr int64_t kLanes = 16;  // columns of a block: sums over columns have this many lanes
constexpr int64_t kTileCols = 64;

// Sums over rows on their way to dweight and dbias: for each group that has a vector of its own (or
// once, where the groups share one), padded_cols(cols) sums of sum_bytes(dtype). A sum is a double;
// in fp64 problems 16 columns have WideSums, what rows of ordinary numbers and what others add.
struct Wide {  // (high + low) * 2^exponent; see rows/wide.inl.h. All zero bytes are 0.
  double high, low;
  int64_t exponent;
};
struct WideSums {
  double plain[kLanes];
  Wide wide[kLanes];
};

static inline constexpr int64_t sum_bytes(rmsnorm_dtype_t dtype) {
  return dtype == RMSNORM_DTYPE_F64 ? sizeof(WideSums) / kLanes : sizeof(double);
}

static inline int64_t padded_cols(int64_t cols) { return (cols + kLanes - 1) / kLanes * kLanes; }

// The dtype that all present tensors have, or NONE if they differ.
static inline rmsnorm_dtype_t common_dtype(const View *const *views, int count) {
  rmsnorm_dtype_t common = RMSNORM_DTYPE_NONE;
  for (int i = 0; i < count; ++i) {
    if (views[i]->dtype == RMSNORM_DTYPE_NONE) continue;
    if (common != RMSNORM_DTYPE_NONE && views[i]->dtype != common) return RMSNORM_DTYPE_NONE;
    common = views[i]->dtype;
  }
  return common;
}

// Of the tensors of elements and the weights: rstd is fp32 beside all others.
static inline rmsnorm_dtype_t common_dtype(const ForwardProblem &problem) {
  const View *const views[] = {&problem.x,    &problem.residual, &problem.weight,
                               &problem.bias, &problem.y,        &problem.residual_out};
  return common_dtype(views, 6);
}

// dweight and dbias are rounded apart, whatever their dtype.
static inline rmsnorm_dtype_t common_dtype(const BackwardProblem &problem) {
  const View *const views[] = {&problem.dy,     &problem.x,
                               &problem.weight, &problem.dresidual_out,
                               &problem.dx,     &problem.dresidual};
  return common_dtype(views, 6);
}

static inline rmsnorm_dtype_t common_dtype(const GluForwardProblem &problem) {
  const View *const views[] = {&problem.gate, &problem.up, &problem.y};
  return common_dtype(views, 3);
}

static inline rmsnorm_dtype_t common_dtype(const GluBackwardProblem &problem) {
  const View *const views[] = {&problem.dy, &problem.gate, &problem.up, &problem.dgate,
                               &problem.dup};
  return common_dtype(views, 5);
}

struct GradientSums {
  char *dweight, *dbias;  // NULL: not asked for
};

// Some of the rows and some of the columns.
struct Tile {
  int64_t row_begin, row_end, col_begin, col_end;
};

struct RowTable {
  const char *isa;
  // y, residual_out and rstd of the rows [begin, end), which are not empty. `streams`: y and
  // residual_out past the cache, where that can be.
  void (*forward)(const ForwardProblem &problem, bool streams, int64_t begin, int64_t end);
  // dx and dresidual of the rows [begin, end), in order; adds their terms to the sums.
  void (*backward)(const BackwardProblem &problem, bool streams, int64_t begin, int64_t end,
                   const GradientSums &sums);
  // Adds `count` sums to those at `total`, and zeroes them.
  void (*fold)(rmsnorm_dtype_t dtype, int64_t count, char *sums, char *total);
  // Columns [begin, end) of one vector: adds up its `blocks` sums, which lie `stride` bytes apart,
  // in order, and (accumulate) what `out` holds, and rounds the result to `out`. begin is a
  // multiple of kLanes.
  void (*finish)(const char *sums, int64_t stride, int64_t blocks, bool accumulate, char *out,
                 rmsnorm_dtype_t dtype, int64_t begin, int64_t end);
  // The outputs of a tile, which is not empty; its first column is a multiple of kTileCols.
  void (*glu_forward)(const GluForwardProblem &problem, bool streams, const Tile &tile);
  void (*glu_backward)(const GluBackwardProblem &problem, bool streams, const Tile &tile);
};

// In a file that is not for the processor that was compiled for, all members are NULL.
extern const RowTable kGenericRows, kAvx2Rows, kAvx512Rows, kNeonRows;

}  // namespace rmsnorm::cpu
