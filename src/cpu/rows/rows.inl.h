// The functions of an instruction set's table: loops over rows, and the end of the gradient sums.
// The isa file has defined Block, its loads and its stores; this pulls in the algorithms. Included
// inside its namespace.

#include "cpu/rows/elements.inl.h"
#include "cpu/rows/wide.inl.h"

#include "cpu/rows/backward.inl.h"
#include "cpu/rows/exact_rows.inl.h"
#include "cpu/rows/floats.inl.h"
#include "cpu/rows/half_rows.inl.h"
#include "cpu/rows/pair_rows.inl.h"
#include "cpu/rows/forward.inl.h"
#include "cpu/rows/half_gradients.inl.h"
#include "cpu/rows/backward_rows.inl.h"
#include "cpu/rows/wide_rows.inl.h"
#include "cpu/rows/double_rows.inl.h"

#include "cpu/rows/activation.inl.h"
#include "cpu/rows/wide_activation.inl.h"
#include "cpu/rows/glu.inl.h"

void forward(const ForwardProblem &problem, bool streams, int64_t begin, int64_t end) {
  switch (common_dtype(problem)) {
    case RMSNORM_DTYPE_F64: return forward_rows_f64(problem, begin, end);
    case RMSNORM_DTYPE_F32: return forward_rows_of<RMSNORM_DTYPE_F32>(problem, streams, begin, end);
    case RMSNORM_DTYPE_F16: return forward_rows_of<RMSNORM_DTYPE_F16>(problem, streams, begin, end);
    case RMSNORM_DTYPE_BF16:
      return forward_rows_of<RMSNORM_DTYPE_BF16>(problem, streams, begin, end);
    default: return forward_rows_of<kAny>(problem, streams, begin, end);
  }
}

void backward(const BackwardProblem &problem, bool streams, int64_t begin, int64_t end,
              const GradientSums &sums) {
  switch (common_dtype(problem)) {
    case RMSNORM_DTYPE_F64: return backward_rows_f64(problem, sums, begin, end);
    case RMSNORM_DTYPE_F32:
      return backward_rows_of<RMSNORM_DTYPE_F32>(problem, sums, streams, begin, end);
    case RMSNORM_DTYPE_F16:
      return backward_rows_of<RMSNORM_DTYPE_F16>(problem, sums, streams, begin, end);
    case RMSNORM_DTYPE_BF16:
      return backward_rows_of<RMSNORM_DTYPE_BF16>(problem, sums, streams, begin, end);
    default: return backward_rows_of<kAny>(problem, sums, streams, begin, end);
  }
}

double add(double a, double b) { return a + b; }
WideSums add(const WideSums &a, const WideSums &b) {
  WideSums sum;
  for (int64_t i = 0; i < kLanes; ++i) {
    sum.plain[i] = a.plain[i] + b.plain[i];
    sum.wide[i] = add(a.wide[i], b.wide[i]);
  }
  return sum;
}

template <class Sum>
void fold_sums(int64_t count, char *from, char *to) {
  Sum *const sums = reinterpret_cast<Sum *>(from), *const total = reinterpret_cast<Sum *>(to);
  for (int64_t i = 0; i < count; ++i) total[i] = add(total[i], sums[i]);
  __builtin_memset(sums, 0, static_cast<size_t>(count) * sizeof(Sum));
}

void fold(rmsnorm_dtype_t dtype, int64_t count, char *sums, char *total) {
  if (dtype == RMSNORM_DTYPE_F64) fold_sums<WideSums>(count / kLanes, sums, total);
  else fold_sums<double>(count, sums, total);
}

// The 16 sums at `begin`, of all blocks: the plain ones first.
void finish_f64(const char *sums, int64_t stride, int64_t blocks, bool accumulate,
                const Elements &row, int64_t begin, int64_t count) {
  WideSums total = {};
  for (int64_t block = 0; block < blocks; ++block)
    total = add(total, reinterpret_cast<const WideSums *>(sums + block * stride)[begin / kLanes]);
  for (int64_t i = 0; i < count; ++i) {
    Wide sum = add(to_wide(total.plain[i]), total.wide[i]);
    if (accumulate) sum = add(sum, to_wide(load_f64(row, begin + i)));
    store_f64(to_double(sum), row, begin + i);
  }
}

void finish(const char *sums, int64_t stride, int64_t blocks, bool accumulate, char *out,
            rmsnorm_dtype_t dtype, int64_t begin, int64_t end) {
  const int shift = dtype == RMSNORM_DTYPE_F64 ? 3 : dtype == RMSNORM_DTYPE_F32 ? 2 : 1;
  const Elements row = {out, dtype, shift, 0};
  each_block(begin, end, [&](int64_t col, int64_t count) {
    if (dtype == RMSNORM_DTYPE_F64)
      return finish_f64(sums, stride, blocks, accumulate, row, col, count);
    Block sum = broadcast(0);
    for (int64_t block = 0; block < blocks; ++block)
      sum = sum + load_doubles(reinterpret_cast<const double *>(sums + block * stride) + col);
    if (accumulate) sum = sum + load<kAny>(row, col, count);
    store<kAny>(sum, row, col, count);
  });
}
