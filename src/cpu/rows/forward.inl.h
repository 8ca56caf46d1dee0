// Forward for fp32, fp16 and bf16: everything in fp64, where no square, sum or product of such
// numbers leaves the normal range (they lie between 2^-840 and 2^200, whatever eps and
// weight_offset). Two passes over a row while it is in cache: read, add the residual, sum the
// squares; then read again, scale and write. Included inside the isa file's namespace.

struct ForwardRow {
  Elements x, residual, weight, bias, y, residual_out;
};

// x + residual as floats rounded to odd (the exact sum cut, its last bit set if anything was cut):
// rounding these to 16 bits is rounding the exact sum once.
[[gnu::noinline]] inline Block add_to_odd(const Block &x, const Block &residual) {
  double a[kLanes], b[kLanes];
  store_doubles(x, a);
  store_doubles(residual, b);
  for (int i = 0; i < kLanes; ++i) {
    const double sum = a[i] + b[i];
    const double b_part = sum - a[i];
    const double lost = (a[i] - (sum - b_part)) + (b[i] - b_part);  // a + b = sum + lost
    float rounded = static_cast<float>(sum);
    const double above = (static_cast<double>(rounded) - sum) - lost;
    uint32_t bits;
    __builtin_memcpy(&bits, &rounded, sizeof bits);
    if ((bits & 1) == 0 && (above > 0 || above < 0)) {
      bits += (above < 0) == (rounded > 0) ? 1u : ~0u;  // towards the exact sum
      __builtin_memcpy(&rounded, &bits, sizeof bits);
    }
    a[i] = rounded;
  }
  return load_doubles(a);
}

// x + residual, to be rounded to h's dtype. That is rounding the exact sum once: with x and
// residual of h's dtype, or an fp32 h, the way through fp64 and fp32 changes nothing (a sum of two
// p-bit numbers, rounded to 2p + 2 bits on the way).
template <rmsnorm_dtype_t kDtype>
[[gnu::always_inline]] inline Block add_residual(const ForwardRow &row, rmsnorm_dtype_t h_dtype,
                                                 int64_t col, int64_t count) {
  const Block x = load<kDtype>(row.x, col, count);
  const Block residual = load<kDtype>(row.residual, col, count);
  const bool plain = kDtype != kAny || h_dtype == RMSNORM_DTYPE_F32 ||
                     (row.x.dtype == h_dtype && row.residual.dtype == h_dtype);
  return plain ? x + residual : add_to_odd(x, residual);
}

// h; with kAdds and residual_out, stores it there.
template <rmsnorm_dtype_t kDtype, bool kAdds>
[[gnu::always_inline]] inline Block make_h(const ForwardRow &row, rmsnorm_dtype_t h_dtype,
                                           int64_t col, int64_t count) {
  if constexpr (!kAdds) return load<kDtype>(row.x, col, count);
  const Block sum = add_residual<kDtype>(row, h_dtype, col, count);
  if (!row.residual_out.present()) return round_to<kDtype>(sum, h_dtype);
  store<kDtype>(sum, row.residual_out, col, count);
  return load<kDtype>(row.residual_out, col, count);
}

template <rmsnorm_dtype_t kDtype, bool kAdds>
double forward_rstd(const ForwardProblem &problem, const ForwardRow row) {
  const rmsnorm_dtype_t h_dtype = problem.h_dtype;
  Block squares = broadcast(0);
  each_run(
      problem.cols, [&](int64_t begin, int64_t end) __attribute__((always_inline)) {
        Block sum = broadcast(0);
        each_block(
            begin, end, [&](int64_t col, int64_t count) __attribute__((always_inline)) {
              const Block h = make_h<kDtype, kAdds>(row, h_dtype, col, count);
              sum = sum + h * h;
            });
        squares = squares + sum;
      });
  return rstd_of(squares, problem.cols, problem.eps);
}

// `inputs`: the row as it was read first, x and residual.
template <rmsnorm_dtype_t kDtype, bool kAdds>
void write_y(const ForwardProblem &problem, const ForwardRow row, const ForwardRow inputs,
             double rstd) {
  const rmsnorm_dtype_t h_dtype = problem.h_dtype;
  const bool llama = problem.llama;
  const Block scale = broadcast(rstd), offset = broadcast(problem.weight_offset);
  const Block no_weight = broadcast(1) + offset;
  each_block(
      0, problem.cols, [&](int64_t col, int64_t count) __attribute__((always_inline)) {
        prefetch_next<kDtype>(inputs.x, col);
        if (inputs.residual.present()) prefetch_next<kDtype>(inputs.residual, col);
        Block y = make_h<kDtype, kAdds>(row, h_dtype, col, count) * scale;
        if (llama) y = round_to<kDtype>(y, h_dtype);
        if (row.weight.present()) y = y * (load<kDtype>(row.weight, col, count) + offset);
        else y = y * no_weight;
        if (row.bias.present()) y = y + load<kDtype>(row.bias, col, count);
        store<kDtype>(y, row.y, col, count);
      });
}

template <rmsnorm_dtype_t kDtype>
void forward_row(const ForwardProblem &problem, int64_t index_row, int64_t group) {
  ForwardRow row = {elements(problem.x, index_row, group, problem.groups),
                    elements(problem.residual, index_row, group, problem.groups),
                    elements(problem.weight, 0, group),
                    elements(problem.bias, 0, group),
                    elements(problem.y, index_row, group),
                    elements(problem.residual_out, index_row, group)};
  const bool adds = row.residual.present();
  const double rstd =
      adds ? forward_rstd<kDtype, true>(problem, row) : forward_rstd<kDtype, false>(problem, row);
  if (problem.rstd.present()) {
    const float rounded = static_cast<float>(rstd);
    __builtin_memcpy(elements(problem.rstd, index_row, group).data, &rounded, sizeof rounded);
  }
  const ForwardRow inputs = row;
  if (adds && !row.residual_out.present()) return write_y<kDtype, true>(problem, row, inputs, rstd);
  if (adds) row.x = row.residual_out;  // which holds h
  write_y<kDtype, false>(problem, row, inputs, rstd);
}
