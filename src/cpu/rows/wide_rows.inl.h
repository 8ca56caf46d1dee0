// Forward and backward for fp64, one element at a time in Wide arithmetic: at most 2 ulp (in fact
// 0.51, but for subnormal results) whatever the range of the elements. For the rows that
// double_rows.inl.h cannot take. Included inside the isa
// file's namespace.

inline double load_f64(const Elements &row, int64_t col) {
  double value;
  __builtin_memcpy(&value, address<RMSNORM_DTYPE_F64>(row, col), sizeof value);
  return value;
}

inline void store_f64(double value, const Elements &row, int64_t col) {
  __builtin_memcpy(address<RMSNORM_DTYPE_F64>(row, col), &value, sizeof value);
}

// weight + weight_offset
inline Wide wide_weight(const Elements &weight, const Wide &offset, int64_t col) {
  return add(to_wide(weight.present() ? load_f64(weight, col) : 1), offset);
}

inline Wide wide_rstd(const Wide &squares, int64_t cols, double eps) {
  return reciprocal_sqrt(add(divide(squares, static_cast<double>(cols)), to_wide(eps)));
}

// The sum of the squares of value(col): scaled by the largest, so that squares neither overflow nor
// vanish where they count, then compensated sums.
template <class Value>
[[gnu::always_inline]] inline Wide sum_of_squares(int64_t cols, const Value &value) {
  double largest = 0, plain_sum = 0;
  for (int64_t col = 0; col < cols; ++col) {
    const double magnitude = __builtin_fabs(value(col));
    largest = magnitude > largest ? magnitude : largest;
    plain_sum += magnitude;
  }
  if (plain_sum != plain_sum || largest > 0x1.fffffffffffffp1023) return {plain_sum, 0, 0};
  if (largest == 0) return {0, 0, 0};
  const int64_t exponent = exponent_of(largest);
  double sum = 0, low = 0;
  for (int64_t col = 0; col < cols; ++col) {
    const double scaled = scale_by(value(col), -exponent);
    const Pair square = two_prod(scaled, scaled);
    const Pair next = two_sum(sum, square.high);
    sum = next.high;
    low += next.low + square.low;
  }
  const Pair total = fast_two_sum(sum, low);
  return make_wide(total.high, total.low, 2 * exponent);
}

void forward_row_f64(const ForwardProblem &problem, int64_t index_row, int64_t group) {
  const Elements x = elements(problem.x, index_row, group);
  const Elements residual = elements(problem.residual, index_row, group);
  const Elements weight = elements(problem.weight, 0, group);
  const Elements bias = elements(problem.bias, 0, group);
  const Elements y = elements(problem.y, index_row, group);
  const Elements residual_out = elements(problem.residual_out, index_row, group);
  const auto sum = [&](int64_t col) __attribute__((always_inline)) {
    return residual.present() ? load_f64(x, col) + load_f64(residual, col) : load_f64(x, col);
  };
  if (residual_out.present())
    for (int64_t col = 0; col < problem.cols; ++col) store_f64(sum(col), residual_out, col);
  const auto h = [&](int64_t col) __attribute__((always_inline)) {
    return residual_out.present() ? load_f64(residual_out, col) : sum(col);
  };
  const Wide rstd = wide_rstd(sum_of_squares(problem.cols, h), problem.cols, problem.eps);
  if (problem.rstd.present())
    store_f64(to_double(rstd), elements(problem.rstd, index_row, group), 0);
  const Wide offset = to_wide(problem.weight_offset);
  for (int64_t col = 0; col < problem.cols; ++col) {
    Wide scaled = multiply(to_wide(h(col)), rstd);
    if (problem.llama) scaled = to_wide(to_double(scaled));
    Wide result = multiply(scaled, wide_weight(weight, offset, col));
    if (bias.present()) result = add(result, to_wide(load_f64(bias, col)));
    store_f64(to_double(result), y, col);
  }
}

void backward_row_f64(const BackwardProblem &problem, const GradientSums &sums, int64_t index_row,
                      int64_t group) {
  const BackwardRow row = backward_elements(problem, index_row, group, false);
  WideSums *const dweight = reinterpret_cast<WideSums *>(sums_of(sums.dweight, problem, group));
  WideSums *const dbias = reinterpret_cast<WideSums *>(sums_of(sums.dbias, problem, group));
  const auto add_term = [](WideSums *vector, int64_t col, const Wide &term) {
    Wide *const sum = &vector[col / kLanes].wide[col % kLanes];
    *sum = add(*sum, term);
  };
  double given_value = 0;
  const bool given = given_rstd(elements(problem.rstd, index_row, group), &given_value);
  const auto x = [&](int64_t col) __attribute__((always_inline)) { return load_f64(row.x, col); };
  const Wide rstd = given ? to_wide(given_value)
                          : wide_rstd(sum_of_squares(problem.cols, x), problem.cols, problem.eps);
  const Wide offset = to_wide(problem.weight_offset);
  const bool writes_dx = row.dx.present() || row.dresidual.present();
  Wide mean = {0, 0, 0};
  if (writes_dx) {
    for (int64_t col = 0; col < problem.cols; ++col) {
      const Wide wdy =
          multiply(wide_weight(row.weight, offset, col), to_wide(load_f64(row.dy, col)));
      mean = add(mean, multiply(wdy, multiply(to_wide(x(col)), rstd)));
    }
    mean = divide(mean, static_cast<double>(problem.cols));
  }
  for (int64_t col = 0; col < problem.cols; ++col) {
    const Wide dy = to_wide(load_f64(row.dy, col));
    const Wide xhat = multiply(to_wide(x(col)), rstd);
    if (dweight != nullptr) add_term(dweight, col, multiply(dy, xhat));
    if (dbias != nullptr) add_term(dbias, col, dy);
    if (!writes_dx) continue;
    const Wide wdy = multiply(wide_weight(row.weight, offset, col), dy);
    Wide dx = multiply(rstd, add(wdy, negate(multiply(xhat, mean))));
    if (row.dresidual_out.present()) dx = add(dx, to_wide(load_f64(row.dresidual_out, col)));
    const double rounded = to_double(dx);
    if (row.dx.present()) store_f64(rounded, row.dx, col);
    if (row.dresidual.present()) store_f64(rounded, row.dresidual, col);
  }
}
