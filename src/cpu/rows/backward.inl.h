// Backward for fp32, fp16 and bf16, in fp64 throughout: the largest number on the way is near
// 2^900, and what is lost below 2^-1022 is far below the smallest result. Two passes over a row
// while it is in cache: sum w * dy * x (and x^2, if rstd has to be computed); then write dx and add
// the row's terms to the gradient sums. Within a block everything is read before dx is written: dx
// may be dy, x or dresidual_out. Included inside the isa file's namespace.

struct BackwardRow {
  Elements dy, x, weight, dresidual_out, dx, dresidual;
};

inline BackwardRow backward_elements(const BackwardProblem &problem, int64_t row, int64_t group) {
  const int64_t groups = problem.groups;
  return {elements(problem.dy, row, group, groups),
          elements(problem.x, row, group, groups),
          elements(problem.weight, 0, group),
          elements(problem.dresidual_out, row, group, groups),
          elements(problem.dx, row, group),
          elements(problem.dresidual, row, group)};
}

// The rstd that was handed in, if it is one.
inline bool given_rstd(const Elements &element, double *rstd) {
  if (!element.present()) return false;
  float value;
  __builtin_memcpy(&value, element.data, sizeof value);
  *rstd = value;
  const double magnitude = __builtin_fabs(*rstd);
  return !(magnitude < 0x1p-126 || magnitude > 0x1.fffffep127);  // a NaN is taken as it is
}

template <rmsnorm_dtype_t kDtype>
void backward_row(const BackwardProblem &problem, const GradientSums &sums, int64_t index_row,
                  int64_t group) {
  const BackwardRow row = backward_elements(problem, index_row, group);
  double *const dweight = sums_of<double>(sums.dweight, problem, group);
  double *const dbias = sums_of<double>(sums.dbias, problem, group);
  double rstd = 0;
  const bool given = given_rstd(elements(problem.rstd, index_row, group), &rstd);
  const Block offset = broadcast(problem.weight_offset), no_weight = broadcast(1);
  const auto weighted_dy = [&](const Block &dy, int64_t col, int64_t count)
      __attribute__((always_inline)) {
    const Block weight = row.weight.present() ? load<kDtype>(row.weight, col, count) : no_weight;
    return (weight + offset) * dy;
  };
  const bool writes_dx = row.dx.present() || row.dresidual.present();

  Block squares = broadcast(0), products = broadcast(0);  // x^2 and w * dy * x
  if (!given || writes_dx) {
    each_run(
        problem.cols, [&](int64_t begin, int64_t end) __attribute__((always_inline)) {
          Block square_sum = broadcast(0), product_sum = broadcast(0);
          each_block(
              begin, end, [&](int64_t col, int64_t count) __attribute__((always_inline)) {
                const Block x = load<kDtype>(row.x, col, count);
                if (!given) square_sum = square_sum + x * x;
                if (writes_dx)
                  product_sum =
                      product_sum + weighted_dy(load<kDtype>(row.dy, col, count), col, count) * x;
              });
          squares = squares + square_sum;
          products = products + product_sum;
        });
  }
  if (!given) rstd = rstd_of(squares, problem.cols, problem.eps);
  const Block scale = broadcast(rstd);
  const Block mean = broadcast(sum_lanes(products) * rstd / static_cast<double>(problem.cols));

  each_block(
      0, problem.cols, [&](int64_t col, int64_t count) __attribute__((always_inline)) {
        prefetch_next<kDtype>(row.dy, col);
        prefetch_next<kDtype>(row.x, col);
        if (row.dresidual_out.present()) prefetch_next<kDtype>(row.dresidual_out, col);
        const Block dy = load<kDtype>(row.dy, col, count);
        const Block xhat = load<kDtype>(row.x, col, count) * scale;
        if (dweight != nullptr)
          store_doubles(load_doubles(dweight + col) + dy * xhat, dweight + col);
        if (dbias != nullptr) store_doubles(load_doubles(dbias + col) + dy, dbias + col);
        if (!writes_dx) return;
        Block dx = scale * (weighted_dy(dy, col, count) - xhat * mean);
        if (row.dresidual_out.present()) dx = dx + load<kDtype>(row.dresidual_out, col, count);
        if (row.dx.present()) store<kDtype>(dx, row.dx, col, count);
        if (row.dresidual.present()) store<kDtype>(dx, row.dresidual, col, count);
      });
}
