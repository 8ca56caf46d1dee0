// Backward in fp64 for fp32, fp16 and bf16: the largest number on the way is near 2^900, and what
// is lost below 2^-1022 is far below the smallest result; and for ordinary rows of fp64
// (double_rows.inl.h), where nothing leaves fp64's range either. Two passes over a row, or over two
// at once, while they are in cache: sum w * dy * x (and x^2, if rstd has to be computed); then
// write dx and add the row's terms to the gradient sums. Within a block everything is read before
// dx is written: dx may be dy, x or dresidual_out. Included inside the isa file's namespace.

struct BackwardRow {
  Elements dy, x, weight, dresidual_out, dx, dresidual;
};

// `pairs`: of rows, of which one is read while one is written.
inline BackwardRow backward_elements(const BackwardProblem &problem, int64_t row, int64_t group,
                                     bool pairs) {
  const int64_t groups = problem.groups, ahead = pairs ? 2 : 1;
  return {elements(problem.dy, row, group, groups, ahead),
          elements(problem.x, row, group, groups, ahead),
          elements(problem.weight, 0, group),
          elements(problem.dresidual_out, row, group, groups, ahead),
          elements(problem.dx, row, group),
          elements(problem.dresidual, row, group)};
}

// The rstd that was handed in, if it is one.
inline bool given_rstd(const Elements &element, double *rstd) {
  if (!element.present()) return false;
  const bool is_double = element.dtype == RMSNORM_DTYPE_F64;
  float single = 0;
  if (is_double) __builtin_memcpy(rstd, element.data, sizeof *rstd);
  else __builtin_memcpy(&single, element.data, sizeof single), *rstd = single;
  const double magnitude = __builtin_fabs(*rstd);
  const double least = is_double ? 0x1p-1022 : 0x1p-126;
  return !(magnitude < least || magnitude > (is_double ? __DBL_MAX__ : __FLT_MAX__));  // NaN: as is
}

// What a row needs to be written, once its sums are known.
struct BackwardScales {
  Block scale, mean;
};

// mean(w * dy * xhat) of a row whose sums of w * dy * x are `products`.
inline double gradient_mean(const Block &products, double rstd, int64_t cols) {
  return sum_lanes(products) * rstd / static_cast<double>(cols);
}

inline BackwardScales backward_scales(const BackwardProblem &problem, bool given, double rstd,
                                      const Block &squares, const Block &products) {
  if (!given) rstd = rstd_of(squares, problem.cols, problem.eps);
  return {broadcast(rstd), broadcast(gradient_mean(products, rstd, problem.cols))};
}

// dx, but for dresidual_out.
[[gnu::always_inline]] inline Block plain_dx(const BackwardScales &by, const Block &weight,
                                             const Block &dy, const Block &xhat) {
  return by.scale * (weight * dy - xhat * by.mean);
}

// What training asks for: dx and dweight, with a weight alone. Loops of its own, without a branch.
inline bool is_plain(const BackwardProblem &problem) {
  return problem.dx.present() && problem.dweight.present() && problem.weight.present() &&
         problem.weight_offset == 0 && !problem.dbias.present() && !problem.dresidual.present();
}

// One row, or with kPair two that have their weight in common: then weight and gradient sums pass
// through the registers once for both. The terms are added row by row either way.
template <rmsnorm_dtype_t kDtype, bool kPair, bool kStreams, bool kPlain>
void backward_rows(const BackwardProblem &problem, const GradientSums &sums, int64_t group,
                   const BackwardRow first, const Elements first_rstd, const BackwardRow second,
                   const Elements second_rstd) {
  char *const dweight = sums_of(sums.dweight, problem, group);
  char *const dbias = sums_of(sums.dbias, problem, group);
  const auto at = [](char *vector, int64_t col) __attribute__((always_inline)) {
    return reinterpret_cast<double *>(vector + col * sum_bytes(kDtype));
  };
  double rstd = 0, other_rstd = 0;
  const bool given = given_rstd(first_rstd, &rstd);
  const bool other_given = !kPair || given_rstd(second_rstd, &other_rstd);
  const bool has_dx = kPlain || first.dx.present();
  const bool has_dresidual = !kPlain && first.dresidual.present();
  const bool has_dweight = kPlain || dweight != nullptr, has_dbias = !kPlain && dbias != nullptr;
  const bool writes_dx = has_dx || has_dresidual;
  // A product of three halves is exact, and one of two numbers that were fp32.
  constexpr bool kExactTerms = kPlain && is_half(kDtype);
  const auto add_square = [](const Block &sum, const Block &x) __attribute__((always_inline)) {
    return kDtype == RMSNORM_DTYPE_F64 ? sum + x * x : add_product(sum, x, x);
  };
  // -0 for 0: it leaves a weight of -0 as it is, as where there is no offset.
  const Block offset = broadcast(problem.weight_offset == 0 ? -0.0 : problem.weight_offset);
  const Block no_weight = broadcast(1);
  const auto load_weight = [&](int64_t col, int64_t count) __attribute__((always_inline)) {
    if constexpr (kPlain) return load<kDtype>(first.weight, col, count);
    return (first.weight.present() ? load<kDtype>(first.weight, col, count) : no_weight) + offset;
  };

  struct Sums {
    Block squares = broadcast(0), products = broadcast(0);  // x^2 and w * dy * x
  };
  Sums total, other_total;
  const auto add_up = [&](auto adds_squares) __attribute__((always_inline)) {
    each_run(
        problem.cols, [&](int64_t begin, int64_t end) __attribute__((always_inline)) {
          Sums run, other_run;
          each_block(
              begin, end, [&](int64_t col, int64_t count) __attribute__((always_inline)) {
                const Block weight = load_weight(col, count);
                const auto read = [&](const BackwardRow &row, Sums *to)
                    __attribute__((always_inline)) {
                  const Block x = load<kDtype>(row.x, col, count);
                  if constexpr (adds_squares.value) to->squares = add_square(to->squares, x);
                  if (!writes_dx) return;
                  const Block wdy = weight * load<kDtype>(row.dy, col, count);
                  to->products =
                      kExactTerms ? add_product(to->products, wdy, x) : to->products + wdy * x;
                };
                read(first, &run);
                if constexpr (kPair) read(second, &other_run);
              });
          total.squares = total.squares + run.squares;
          total.products = total.products + run.products;
          other_total.squares = other_total.squares + other_run.squares;
          other_total.products = other_total.products + other_run.products;
        });
  };
  if (!given || !other_given) add_up(Constant<true>());
  else if (writes_dx) add_up(Constant<false>());
  const BackwardScales scales =
      backward_scales(problem, given, rstd, total.squares, total.products);
  BackwardScales other_scales = scales;
  if (kPair)
    other_scales = backward_scales(problem, other_given, other_rstd, other_total.squares,
                                   other_total.products);

  each_block(
      0, problem.cols, [&](int64_t col, int64_t count) __attribute__((always_inline)) {
        Block dweight_sum, dbias_sum;
        if (has_dweight) dweight_sum = load_doubles(at(dweight, col));
        if (has_dbias) dbias_sum = load_doubles(at(dbias, col));
        const Block weight = load_weight(col, count);
        const auto write = [&](const BackwardRow &row, const BackwardScales &by)
            __attribute__((always_inline)) {
          prefetch_next<kDtype>(row.dy, col);
          prefetch_next<kDtype>(row.x, col);
          if (row.dresidual_out.present()) prefetch_next<kDtype>(row.dresidual_out, col);
          const Block dy = load<kDtype>(row.dy, col, count);
          const Block x = load<kDtype>(row.x, col, count), xhat = x * by.scale;
          // Of halves in the order of half_gradients.inl.h.
          if (has_dweight)
            dweight_sum = dweight_sum + (is_half(kDtype) ? dy * x * by.scale : dy * xhat);
          if (has_dbias) dbias_sum = dbias_sum + dy;
          if (!writes_dx) return;
          Block dx = plain_dx(by, weight, dy, xhat);
          if (row.dresidual_out.present()) dx = dx + load<kDtype>(row.dresidual_out, col, count);
          if (has_dx) store<kDtype, kStreams>(dx, row.dx, col, count);
          if (has_dresidual) store<kDtype, kStreams>(dx, row.dresidual, col, count);
        };
        write(first, scales);
        if constexpr (kPair) write(second, other_scales);
        if (has_dweight) store_doubles(dweight_sum, at(dweight, col));
        if (has_dbias) store_doubles(dbias_sum, at(dbias, col));
      });
}
