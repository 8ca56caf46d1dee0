// Plain rows of fp32, h * rstd * weight, in floats and the errors of their products: nine
// operations on a vector of floats take the place of sixteen in fp64, of which ten are
// conversions'. The bits are those of fp64: a block whose rounding could be decided by what is left
// out is written by ExactRows, and so is the whole row if anything in it has underflowed. For isa
// files with FusedFloats. Included inside the isa file's namespace.
//
// Why the bits are the same. u = 2^-24; nothing has underflowed, and what has overflowed ends as a
// NaN, which is not taken. rstd = s * (1 + r), where s is its float and |r| <= u. The errors of the
// products p = h * s and q = p * weight, e = p - h * s and l = q - p * weight, are floats, so that
//   h * rstd * weight = (q - l - e * weight) * (1 + r).
// m = l + e * weight is rounded once, which costs 2 u^2 |q|, and r * m is left out, as much. So is
// t = m - r * q, where r has two roundings: 5 u^2 |q|. Then q - t is what fp64 rounds to fp32 but
// for less than 10 u^2 |q|, its own errors included.
//   If |t| >= 2^-27 |q|, that number is between q - t (1 + 2^-16) and q - t (1 - 2^-16): rounding
// keeps order, and where both give one float, that is it. If |t| is less, all of them are closer to
// q than half the way to the next float, which is 2^-25 |q| or more, and become q.
//   A product 0 keeps its sign: e, l, m and t are then +0, which is subtracted.

template <class Ops>
struct FloatPairs {
  Floats scale, rest, more, less;

  explicit FloatPairs(double rstd) {
    const float single = static_cast<float>(rstd);
    float beside = static_cast<float>(rstd - static_cast<double>(single)) / single;
    if (!(rstd >= 0x1p-60 && rstd <= 0x1p60)) beside = __builtin_nanf("");  // no block is taken
    broadcast(single, &scale);
    broadcast(beside, &rest);
    broadcast(1 + 0x1p-16f, &more);
    broadcast(1 - 0x1p-16f, &less);
  }

  template <class Half>
  [[gnu::always_inline]] static Two<Half> subtract_product(const Two<Half> &from,
                                                           const Two<Half> &a, const Two<Half> &b) {
    return {Ops::subtract_product(from.low, a.low, b.low),
            Ops::subtract_product(from.high, a.high, b.high)};
  }
  template <class Half>
  [[gnu::always_inline]] static Two<Half> add_product(const Two<Half> &sum, const Two<Half> &a,
                                                      const Two<Half> &b) {
    return {Ops::add_product(sum.low, a.low, b.low), Ops::add_product(sum.high, a.high, b.high)};
  }

  // False: y is not to be taken.
  [[gnu::always_inline]] bool multiply(const Floats &h, const Floats &weight, Floats *y) const {
    const Floats scaled = h * scale, product = scaled * weight;
    const Floats scaled_error = subtract_product(scaled, h, scale);
    const Floats product_error = subtract_product(product, scaled, weight);
    const Floats error =
        subtract_product(add_product(product_error, scaled_error, weight), product, rest);
    *y = subtract_product(product, error, more);
    return Ops::are_same(*y, subtract_product(product, error, less));
  }
};

// Whether an fp32 problem's rows are to be written so. Not in place: a row may have to be written
// twice. In shorter rows the constants take more time than is won (rows of 256 columns: none).
inline bool takes_pairs(const ForwardProblem &problem) {
  constexpr int64_t kLeastCols = 512;
  const char *const x = problem.x.data, *const h = problem.residual_out.data;
  return problem.cols >= kLeastCols && is_plain(problem) && problem.y.data != x &&
         (h == nullptr || (h != x && h != problem.residual.data));
}

template <class Ops, Sum kTheSum, bool kStreamsOutput>
struct PairRows : ExactRows<RMSNORM_DTYPE_F32, kTheSum, kStreamsOutput> {
  using Exact = ExactRows<RMSNORM_DTYPE_F32, kTheSum, kStreamsOutput>;
  using Exact::kSum, Exact::kDtype, Exact::kStep, Exact::kStreams;
  static_assert(kStep == kFloatCols, "what is written at once is one Floats");

  struct Constants {
    FloatPairs<Ops> pairs;
    const ForwardRow *row;
    double rstd;
    Constants(const ForwardProblem &, const ForwardRow &done, double the_rstd)
        : pairs(the_rstd), row(&done), rstd(the_rstd) {}
  };

  template <bool>
  [[gnu::always_inline]] static void write(const ForwardProblem &problem, const ForwardRow &row,
                                           const Constants &constants, int64_t col, int64_t count) {
    if (count != kStep || !write_pairs(row, constants, col))
      write_exact(problem, *constants.row, constants.rstd, col, count);
  }

  // False: nothing is written.
  [[gnu::always_inline]] static bool write_pairs(const ForwardRow &row, const Constants &constants,
                                                 int64_t col) {
    Floats h, weight, y;
    load_bits(kSum == Sum::kKept ? row.kept + col * 4 : address<kDtype>(row.x, col), &h);
    if constexpr (kSum == Sum::kTwice) {
      Floats residual;
      load_bits(address<kDtype>(row.residual, col), &residual);
      h = h + residual;
    }
    load_bits(address<kDtype>(row.weight, col), &weight);
    if (!constants.pairs.multiply(h, weight, &y)) return false;
    if (kSum != Sum::kNone && row.residual_out.present())
      store_floats<kStreams>(h, address<kDtype>(row.residual_out, col));
    store_floats<kStreams>(y, address<kDtype>(row.y, col));
    return true;
  }

  // Not inlined, and not with the row that write() has: its address is not taken, so that it stays
  // in registers.
  [[gnu::noinline]] static void write_exact(const ForwardProblem &problem, const ForwardRow &row,
                                            double rstd, int64_t col, int64_t count) {
    const typename Exact::Constants constants(problem, row, rstd);
    Exact::template write<true>(problem, row, constants, col, count);
  }

  static bool is_right() { return !Ops::have_underflowed(); }
};
