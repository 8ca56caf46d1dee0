// What the fast formulas of normalise.cuh are not for: rows and weights outside their range.
#pragma once

#include "cuda/kernels/forward_row.cuh"

namespace rmsnorm::cuda {
namespace {

// The sums of squares of a thread's U rows.
template <class T, int U>
struct Squares {
  SquareSum<T> of[U];
};

// The thread's part of y for such rows and weights: what a warp with any of them does instead of
// the rest of the kernel, reading h again from memory. A vector gets the same bits from here as
// from the kernel if both are right for it. A call, and the last thing that its kernel does:
// inlined or before other work it would cost the fast path registers.
//
// Tree::rare_sum adds the row's vectors: V of a thread, or (V = 1) what it has added up of all of
// its. A block of a cluster has `block_columns` of the row.
template <class T, int V, int U, class Tree>
__device__ __noinline__ void finish_rare(const ForwardArgs &a, int64_t task, int first, int vectors,
                                         Team team, int block_columns, Squares<T, U> squares,
                                         double *slots) {
  constexpr int W = kWidth<T>;
  __syncwarp();  // residual_out may have been stored by another lane
#pragma unroll 1
  for (int u = 0; u < U; ++u, task += blockDim.y) {
    const bool active = task < a.task_count;
    int64_t r = 0, g = 0;
    if (active) a.tasks.locate(task, &r, &g);
    const Part part = {
        r, g, first, (team.threads < 32 ? team.threads : 32) * W, active ? vectors : 0, W};
    RowScale scale = scale_of_row<T>(a, squares.of[u]);
    double rstd = kDoubleFloat<T> ? scale.exact : double(scale.high);
    const bool redo = !kDoubleFloat<T> && !scale.fast;
    if (team.threads < 32 ? __any_sync(0xffffffffu, redo) : redo) {
      const auto add_squares = [&](int ahead, double(&sums)[V]) {
        Part there = part;
        there.first += ahead * block_columns;
        there.each_column(a.cols, [&](int64_t c, int v, int) {
          const double h = exact_h(a, there, c);
          double &sum = sums[V == 1 ? 0 : v];
          sum = fma(h, h, sum);
        });
      };
      const double sum = Tree::rare_sum(team, slots, add_squares);
      if (redo) rstd = 1.0 / sqrt(sum / double(a.cols) + a.eps);
      if (redo && active && first == 0 && a.rstd().data != nullptr)
        *reinterpret_cast<float *>(a.rstd().at(r, g)) = float(rstd);
    }
    if (a.y().data == nullptr) continue;
    const auto parameter = [&](const Matrix &matrix, int64_t c, double absent) {
      return matrix.data == nullptr
                 ? absent
                 : load_double(matrix.data + g * matrix.group_stride, c, matrix.dtype);
    };
    for (int v = 0; v < part.vectors; ++v) {
      const int column = first + v * part.step, left = int(a.cols) - column;
      float h[W], w[W], bias[W], y[W];
#pragma unroll 1
      for (int i = 0; i < W; ++i) {
        h[i] = i < left ? float(exact_h(a, part, column + i)) : 0;
        w[i] = i < left ? float(parameter(a.weight(), column + i, 1)) : 0;
        bias[i] = i < left ? float(parameter(a.bias, column + i, 0)) : 0;
      }
      const bool fast = scale.fast && weights_are_small<T>(w, a.offset_high);
      normalise<T>(a, scale, h, w, bias, y);
#pragma unroll 1
      for (int i = 0; i < W && i < left; ++i) {
        double exact = h[i] * rstd;
        if (a.llama) exact = round_double_to(exact, a.h_dtype);
        exact *= double(w[i]) + a.weight_offset;
        if (a.bias.data != nullptr) exact += bias[i];
        store_double(a.y().at(r, g), column + i, a.y().dtype, fast ? double(y[i]) : exact);
      }
    }
  }
}

}  // namespace
}  // namespace rmsnorm::cuda
