// Plain rows (dx and dweight, with a weight and perhaps dresidual_out) that are fp16 or bf16
// throughout, on instruction sets that convert halves: what is exact in fp32 is computed there,
// twice as many columns a vector, and widened once instead of three times. The bits are those of
// fp64, backward.inl.h's. Included inside the isa file's namespace.
//
// Sums. dy * x has 16 or 22 bits: exact in fp32, but for bf16's that leave the normal range, where
// the processor raises a flag. In fp64 it goes into both sums: times the weight into the row's, 33
// bits at most, and times rstd into dweight's. That is exact too if rstd is the fp32 number that
// was handed in, so that fused or not makes no difference. What a flag has been raised for is not
// taken: a tile of dweight's sums is written beside them first, and if need be computed again in
// fp64.
//
// dx = rstd * w * dy - x * b, where b = rstd^2 * mean(w * dy * xhat), in fp32 with u = 2^-24. w *
// dy is exact. rstd, as a = rstd (1 + r) with |r| <= u, and b are rounded; so is s = x * b; and so
// is d = a * w * dy - s, once. Then
//   |d - dx| <= u |d| + u |a * w * dy| + 2.01 u |s| <= 2.01 u |d| + 3.02 u |s|,
// or, where rstd was an fp32 number, r = 0, only u |d| + 2.01 u |s|; fp64's own error is less than
// 2^-50 of all these. So dx lies between d - e and d + e, where e = c (|d| + |s|) + tiny and c
// makes up for the rounding of these two, u |d|, and of e: 2.2 u if r = 0, else 3.2 u. Where both
// round to one half, so does dx, by way of fp32 too: rounding keeps order. Elsewhere, one in 2^14
// of bf16 and one in 2^11 of fp16, the 32 columns are computed in fp64, before any of them is
// stored.
//   dresidual_out is added to d: a rounding more, u of the sum, whose magnitude e is given too.
//   What underflows is off by 2^-150, w * dy by a times as much: tiny, 2^-120 * max(a, 1), is more.
// What overflows makes e infinite, and one of d - e and d + e a NaN.
constexpr double kLeastScale = 0x1p-60, kLargestScale = 0x1p60;  // of a and b
constexpr double kTiny = 0x1p-120;
constexpr int64_t kTermTile = 512;  // columns whose flags are looked at together

inline FVec magnitude(const FVec &value) {
  return {reinterpret_cast<NativeFloat>(reinterpret_cast<NativeBits>(value.native) & 0x7fffffffu)};
}
template <class Half>
[[gnu::always_inline]] inline Two<Half> magnitude(const Two<Half> &value) {
  return {magnitude(value.low), magnitude(value.high)};
}

// a * b - c, rounded once.
template <class Ops>
[[gnu::always_inline]] inline FVec subtract_from_product(const FVec &a, const FVec &b,
                                                         const FVec &c) {
  return Ops::subtract_from_product(a, b, c);
}
template <class Ops, class Half>
[[gnu::always_inline]] inline Two<Half> subtract_from_product(const Two<Half> &a,
                                                              const Two<Half> &b,
                                                              const Two<Half> &c) {
  return {subtract_from_product<Ops>(a.low, b.low, c.low),
          subtract_from_product<Ops>(a.high, b.high, c.high)};
}

// A row on its way.
struct GradientRow {
  BackwardRow row;
  double rstd = 0;
  bool given = false;
  Block products = broadcast(0);  // w * dy * x
};

// Of one row, or with kPair of two that have their weight in common.
template <class Ops, rmsnorm_dtype_t kDtype, bool kPair, bool kStreams>
struct HalfGradients {
  // ---- Sums -------------------------------------------------------------------------------------

  static constexpr bool kChecks = kDtype == RMSNORM_DTYPE_BF16;

  // 16 columns of both rows, in floats, and where dweight's sums come from and go.
  using Floats16 = decltype(Ops::template load_lanes<kDtype>(nullptr));
  struct Terms {
    Floats16 weight, term, other_term;
    const double *from;
    double *to;
  };

  template <bool kGiven, class Doubles>
  [[gnu::always_inline]] static void add_term(const Doubles &term, const Doubles &weight,
                                              const Doubles &scale, Doubles *products,
                                              Doubles *dweight) {
    *products = add_product(*products, weight, term);
    *dweight = kGiven ? add_product(*dweight, term, scale) : *dweight + term * scale;
  }

  // Two vectors of doubles, the first two or those after kPart others: one pair after another, so
  // that all sums stay in registers.
  template <bool kGiven, int kPart>
  [[gnu::always_inline]] static void add_part(const Terms &terms, const Two<Vec> &scale,
                                              const Two<Vec> &other_scale, Two<Vec> *products,
                                              Two<Vec> *other_products) {
    constexpr int64_t kCol = kPart * static_cast<int64_t>(sizeof(Two<Vec>) / sizeof(double));
    const auto wide = [](const Floats16 &floats) __attribute__((always_inline)) {
      return Ops::template widen<kDtype, kPart>(floats);
    };
    const Two<Vec> weight = wide(terms.weight);
    Two<Vec> dweight;
    load_doubles(terms.from + kCol, &dweight);
    add_term<kGiven>(wide(terms.term), weight, scale, products, &dweight);
    if constexpr (kPair)
      add_term<kGiven>(wide(terms.other_term), weight, other_scale, other_products, &dweight);
    store_doubles(dweight, terms.to + kCol);
  }
  template <bool kGiven, int kPart, class Half>
  [[gnu::always_inline]] static void add_part(const Terms &terms, const Two<Half> &scale,
                                              const Two<Half> &other_scale, Two<Half> *products,
                                              Two<Half> *other_products) {
    add_part<kGiven, 0>(terms, scale.low, other_scale.low, &products->low, &other_products->low);
    add_part<kGiven, 1>(terms, scale.high, other_scale.high, &products->high,
                        &other_products->high);
  }

  // Adds the terms of columns [begin, end), 16 or a multiple, to the rows' sums, and to dweight's:
  // those at `from` belong to the columns from `begin` on and go to `to`.
  template <bool kGiven>
  [[gnu::always_inline]] static void add_terms(int64_t begin, int64_t end, GradientRow *first,
                                               GradientRow *second, const double *from,
                                               double *to) {
    const BackwardRow row = first->row, other = second->row;
    const Block scale = broadcast(first->rstd), other_scale = broadcast(second->rstd);
    Block products = first->products, other_products = second->products;
    const auto floats = [](const Elements &elements, int64_t col) __attribute__((always_inline)) {
      return Ops::template load_lanes<kDtype>(address<kDtype>(elements, col));
    };
    for (int64_t col = begin; col < end; col += kLanes) {
      Terms terms;
      terms.from = from + (col - begin), terms.to = to + (col - begin);
      terms.weight = Ops::template sort<kDtype>(floats(row.weight, col));
      terms.term = Ops::template sort<kDtype>(floats(row.dy, col) * floats(row.x, col));
      if constexpr (kPair)
        terms.other_term = Ops::template sort<kDtype>(floats(other.dy, col) * floats(other.x, col));
      add_part<kGiven, 0>(terms, scale, other_scale, &products, &other_products);
    }
    first->products = products;
    if constexpr (kPair) second->products = other_products;
  }

  // The same in fp64, for any numbers and any end.
  template <bool kGiven>
  [[gnu::noinline]] static void add_terms_wide(int64_t begin, int64_t end, GradientRow *first,
                                               GradientRow *second, double *dweight) {
    each_block(
        begin, end, [&](int64_t col, int64_t count) __attribute__((always_inline)) {
          double *const sums = dweight + (col - begin);
          const Block weight = load<kDtype>(first->row.weight, col, count);
          Block dweight_sum = load_doubles(sums);
          const auto add = [&](GradientRow * row) __attribute__((always_inline)) {
            const Block term =
                load<kDtype>(row->row.dy, col, count) * load<kDtype>(row->row.x, col, count);
            add_term<kGiven>(term, weight, broadcast(row->rstd), &row->products, &dweight_sum);
          };
          add(first);
          if constexpr (kPair) add(second);
          store_doubles(dweight_sum, sums);
        });
  }

  // The same of a tile: in fp64 only where that is needed.
  template <bool kGiven>
  [[gnu::always_inline]] static void add_tile(int64_t begin, int64_t end, GradientRow *first,
                                              GradientRow *second, double *dweight) {
    if constexpr (!kChecks) {
      add_terms<kGiven>(begin, end, first, second, dweight, dweight);
    } else {
      alignas(64) double tile[kTermTile];
      const Block products = first->products, other_products = second->products;
      add_terms<kGiven>(begin, end, first, second, dweight, tile);
      if (!Ops::have_left_range(tile)) {
        for (int64_t i = 0; i < end - begin; i += kLanes)
          store_doubles(load_doubles(tile + i), dweight + i);
      } else {
        first->products = products, second->products = other_products;
        add_terms_wide<kGiven>(begin, end, first, second, dweight);
      }
    }
  }

  template <bool kGiven>
  static void add_all_terms(int64_t cols, GradientRow *first, GradientRow *second,
                            double *dweight) {
    if constexpr (kChecks) Ops::have_left_range(nullptr);
    Block total = broadcast(0), other_total = total;
    each_run(cols, [&](int64_t begin, int64_t end) {
      first->products = second->products = broadcast(0);
      const int64_t whole = end - end % kLanes;
      for (int64_t col = begin; col < whole; col += kTermTile)
        add_tile<kGiven>(col, whole - col < kTermTile ? whole : col + kTermTile, first, second,
                         dweight + col);
      if (whole < end) add_terms_wide<kGiven>(whole, end, first, second, dweight + whole);
      total = total + first->products, other_total = other_total + second->products;
    });
    first->products = total, second->products = other_total;
  }

  // ---- dx ---------------------------------------------------------------------------------------

  struct Scales {
    Floats scale, mean, share, least;  // a, b, c and tiny
    double rstd, wide_mean;
    bool taken;  // else fp64 writes the row

    Scales(const GradientRow &row, int64_t cols)
        : rstd(row.rstd), wide_mean(gradient_mean(row.products, row.rstd, cols)) {
      const double by = rstd * rstd * wide_mean, size = __builtin_fabs(by);
      taken = rstd >= kLeastScale && rstd <= kLargestScale &&
              ((size >= kLeastScale && size <= kLargestScale) || by == 0);
      scale = broadcast_floats(rstd), mean = broadcast_floats(by);
      share = broadcast_floats((row.given ? 2.2 : 3.2) * 0x1p-24);
      least = broadcast_floats(kTiny * (rstd > 1 ? rstd : 1));
    }
  };

  // Whether every number from `below` to `above` has one rounding to a half, which goes to `bits`.
  [[gnu::always_inline]] static bool round_alike(const Floats &below, const Floats &above,
                                                 HalfBits *bits) {
    if constexpr (kDtype == RMSNORM_DTYPE_BF16) {
      const auto raised = raise_bfloat(above);
      join_bfloats(raised.low, raised.high, bits);
      return !Ops::any(differences(raise_bfloat(below), raised) & 0xffff0000u);
    } else {
      *bits = narrow_floats<kDtype>(above);
      return !Ops::any(differences(narrow_floats<kDtype>(below), *bits));
    }
  }

  // 32 columns. False: nothing is written.
  [[gnu::always_inline]] static bool write_floats(const BackwardRow &row, const Floats &weight,
                                                  const Scales &by, int64_t col) {
    HalfBits bits;
    const Floats dy = load_floats<kDtype>(row.dy, col, kFloatCols, &bits);
    const Floats x = load_floats<kDtype>(row.x, col, kFloatCols, &bits);
    const Floats part = x * by.mean;
    Floats dx = subtract_from_product<Ops>(by.scale, weight * dy, part);
    Floats size = magnitude(dx) + magnitude(part);
    if (row.dresidual_out.present()) {
      dx = dx + load_floats<kDtype>(row.dresidual_out, col, kFloatCols, &bits);
      size = size + magnitude(dx);
    }
    const Floats error = add_product(by.least, size, by.share);
    if (!round_alike(dx - error, dx + error, &bits)) return false;
    store_bits<kStreams>(bits, row.dx, col, kFloatCols);
    return true;
  }

  [[gnu::noinline]] static void write_wide(const BackwardRow row, double rstd, double mean,
                                           int64_t begin, int64_t end) {
    const BackwardScales by = {broadcast(rstd), broadcast(mean)};
    each_block(
        begin, end, [&](int64_t col, int64_t count) __attribute__((always_inline)) {
          const Block weight = load<kDtype>(row.weight, col, count);
          const Block dy = load<kDtype>(row.dy, col, count);
          Block dx = plain_dx(by, weight, dy, load<kDtype>(row.x, col, count) * by.scale);
          if (row.dresidual_out.present()) dx = dx + load<kDtype>(row.dresidual_out, col, count);
          store<kDtype, kStreams>(dx, row.dx, col, count);
        });
  }

  static void write_all(int64_t cols, const GradientRow &first, const GradientRow &second) {
    const Scales scales(first, cols), other_scales(second, cols);
    const BackwardRow row = first.row, other = second.row;
    const int64_t whole = cols - cols % kFloatCols;
    const auto write = [&](const BackwardRow &one, const Floats &weight, const Scales &by,
                           int64_t col) __attribute__((always_inline)) {
      prefetch_next<kDtype>(one.dy, col);
      prefetch_next<kDtype>(one.x, col);
      if (one.dresidual_out.present()) prefetch_next<kDtype>(one.dresidual_out, col);
      if (!by.taken || !write_floats(one, weight, by, col))
        write_wide(one, by.rstd, by.wide_mean, col, col + kFloatCols);
    };
    for (int64_t col = 0; col < whole; col += kFloatCols) {
      HalfBits bits;
      const Floats weight = load_floats<kDtype>(row.weight, col, kFloatCols, &bits);
      write(row, weight, scales, col);
      if constexpr (kPair) write(other, weight, other_scales, col);
    }
    if (whole == cols) return;
    write_wide(row, scales.rstd, scales.wide_mean, whole, cols);
    if constexpr (kPair) write_wide(other, other_scales.rstd, other_scales.wide_mean, whole, cols);
  }

  // -----------------------------------------------------------------------------------------------

  static GradientRow start(const BackwardProblem &problem, const BackwardRow &elements,
                           const Elements &rstd) {
    GradientRow row;
    row.row = elements;
    row.given = given_rstd(rstd, &row.rstd);
    if (row.given) return row;
    Block squares = broadcast(0);
    each_run(problem.cols, [&](int64_t begin, int64_t end) {
      Block run = broadcast(0);
      each_block(
          begin, end, [&](int64_t col, int64_t count) __attribute__((always_inline)) {
            const Block x = load<kDtype>(elements.x, col, count);
            run = add_product(run, x, x);
          });
      squares = squares + run;
    });
    row.rstd = rstd_of(squares, problem.cols, problem.eps);
    return row;
  }

  static void run(const BackwardProblem &problem, char *dweight, const BackwardRow &first,
                  const Elements &first_rstd, const BackwardRow &second,
                  const Elements &second_rstd) {
    GradientRow row = start(problem, first, first_rstd);
    GradientRow other = kPair ? start(problem, second, second_rstd) : row;
    double *const sums = reinterpret_cast<double *>(dweight);
    if (row.given && other.given) add_all_terms<true>(problem.cols, &row, &other, sums);
    else add_all_terms<false>(problem.cols, &row, &other, sums);
    write_all(problem.cols, row, other);
  }
};
