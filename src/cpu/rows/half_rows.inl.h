// Forward for rows that are fp16 or bf16 throughout and have no bias, in fp32: twice as many
// columns a vector, and cheaper conversions, than in fp64 (exact_rows.inl.h), which takes the rows
// that this cannot. Included inside the isa file's namespace.
//
// Why y stays within 0.501 ulp. With u = 2^-24: squares are exact (16 or 22 bits); a lane adds
// eight of them, which costs at most 7u of their sum, before it goes into fp64; so rstd is within
// 3.5u, and rounded to fp32 within 4.5u. h * rstd, weight + offset and their product are rounded
// once each. Together 7.5u or 4.5e-7 of y, and an ulp of fp16 is at least 2^-11 of y: 0.0009 ulp
// before y itself is rounded. bf16's ulp is eight times that.
//
// That wants products that are normal fp32 numbers, or so small that they do not count: squares and
// products below 2^-126 lose at most 2^-150. For the sum that is nothing if mean(h^2) + eps is
// 2^-100 or more. For y = product * weight it is too little to see, as long as the product h * rstd
// itself is normal: of fp16 it always is (2^-24 * 2^-50), of bf16 that depends on the row's
// smallest element other than 0.
constexpr double kLeastMean = 0x1p-100, kLargestMean = 0x1p100;
constexpr double kLargestOffset = 0x1p100;  // the sum of it and a weight stays finite
constexpr double kLeastProduct = 0x1p-126;

template <rmsnorm_dtype_t kTheDtype, Sum kTheSum, bool kStreamsOutput>
struct HalfRows {
  static constexpr rmsnorm_dtype_t kDtype = kTheDtype;
  static constexpr Sum kSum = kTheSum;
  static constexpr bool kStreams = kStreamsOutput, kExact = false;
  static constexpr int64_t kStep = kFloatCols, kRun = 8 * kFloatCols;

  struct Run {
    Floats squares = broadcast_floats(0);
    HalfBits least = largest_bits();  // of order_of
  };
  struct Sums {
    alignas(64) double lane[kFloatCols] = {};
    HalfBits least = largest_bits();
  };
  static HalfBits largest_bits() {
    HalfBits bits;
    fill_bits(&bits);
    return bits;
  }
  struct Constants {
    Floats scale, offset, no_weight;
    Constants(const ForwardProblem &problem, const ForwardRow &, double rstd)
        : scale(broadcast_floats(rstd)),
          offset(broadcast_floats(problem.weight_offset)),
          no_weight(broadcast_floats(1) + offset) {}
  };

  // Whether such a problem's rows may be computed so.
  static bool takes(const ForwardProblem &problem) {
    const double offset = problem.weight_offset;
    return !problem.bias.present() && __builtin_fabs(offset) <= kLargestOffset &&
           static_cast<double>(static_cast<float>(offset)) == offset;
  }

  // x, or the sum of x and residual. Its bits too, but for sums of fp16 that are kept, when read.
  template <bool kWrites>
  [[gnu::always_inline]] static Floats make_h(const ForwardRow &row, int64_t col, int64_t count,
                                              HalfBits *bits) {
    if constexpr (kSum == Sum::kKept && kWrites) {
      load_bits(row.kept + col * 2, bits);
      return load_floats<kDtype>(row.kept + col * 2, *bits);
    }
    const Floats x = load_floats<kDtype>(row.x, col, count, bits);
    if constexpr (kSum == Sum::kNone) return x;
    const Floats sum = x + load_floats<kDtype>(row.residual, col, count, bits);
    Floats h;
    if constexpr (kSum == Sum::kKept && kDtype == RMSNORM_DTYPE_F16) {
      store_halves(sum, row.kept + col * 2);  // and back: cheaper than between registers
      load_halves(row.kept + col * 2, &h);
    } else if constexpr (kSum == Sum::kKept) {
      *bits = narrow_floats<kDtype>(sum);
      store_bits(*bits, row.kept + col * 2);
      widen_bfloats(*bits, &h.low, &h.high);
    } else {
      h = round_floats<kDtype>(sum);
      if constexpr (kDtype == RMSNORM_DTYPE_BF16) join_bfloats(h.low, h.high, bits);
      else *bits = narrow_floats<kDtype>(sum);
    }
    return h;
  }

  [[gnu::always_inline]] static void read(const ForwardProblem &, const ForwardRow &row,
                                          int64_t col, int64_t count, Run *run) {
    HalfBits bits;
    const Floats h = make_h<false>(row, col, count, &bits);
    if constexpr (kDtype == RMSNORM_DTYPE_F16) {
      run->squares = add_product(run->squares, h, h);
    } else {  // whose small squares are rounded
      run->squares = run->squares + h * h;
      run->least = smaller(run->least, order_of(bits));
    }
  }

  [[gnu::always_inline]] static void end_run(const Run &run, Sums *sums) {
    alignas(64) float squares[kFloatCols];
    store_bits(run.squares, reinterpret_cast<char *>(squares));
    for (int i = 0; i < kFloatCols; ++i) sums->lane[i] += static_cast<double>(squares[i]);
    if constexpr (kDtype == RMSNORM_DTYPE_BF16) sums->least = smaller(sums->least, run.least);
  }

  // False: the row is not for fp32.
  static bool rstd(const ForwardProblem &problem, Sums *sums, double *rstd) {
    const Block squares = load_doubles(sums->lane) + load_doubles(sums->lane + kLanes);
    const double mean = sum_lanes(squares) / static_cast<double>(problem.cols) + problem.eps;
    *rstd = 1 / __builtin_sqrt(mean);
    if (!(mean >= kLeastMean && mean <= kLargestMean)) return false;
    return kDtype != RMSNORM_DTYPE_BF16 || least_of(sums->least) * *rstd >= kLeastProduct;
  }

  // The smallest magnitude other than 0, of what order_of made of each.
  static double least_of(const HalfBits &bits) {
    const uint32_t least = least_short(bits);
    if (least == 0xffff) return 1;  // zeros alone
    const uint32_t single = (least + 1) << 16;
    float value;
    __builtin_memcpy(&value, &single, sizeof value);
    return value;
  }

  static bool is_right() { return true; }

  template <bool kPlain>
  [[gnu::always_inline]] static void write(const ForwardProblem &problem, const ForwardRow &row,
                                           const Constants &constants, int64_t col, int64_t count) {
    HalfBits bits;
    const Floats h = make_h<true>(row, col, count, &bits);
    if (kSum != Sum::kNone && row.residual_out.present())
      store_bits<kStreams>(bits, row.residual_out, col, count);
    Floats y = h * constants.scale;
    if constexpr (kPlain) {
      y = y * load_floats<kDtype>(row.weight, col, count, &bits);
    } else {
      if (problem.llama) y = round_floats<kDtype>(y);
      if (row.weight.present())
        y = y * (load_floats<kDtype>(row.weight, col, count, &bits) + constants.offset);
      else y = y * constants.no_weight;
    }
    store_rounded<kDtype, kStreams>(y, row.y, col, count);
  }
};
