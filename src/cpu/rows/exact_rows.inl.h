// Forward in fp64 for fp32, fp16, bf16 and any mix of them: no square, sum or product of such
// numbers leaves the normal range there (they lie between 2^-840 and 2^200, whatever eps and
// weight_offset). Included inside the isa file's namespace.

// h * rstd * weight and nothing else: loops of its own, without a branch.
inline bool is_plain(const ForwardProblem &problem) {
  return problem.weight.present() && problem.weight_offset == 0 && !problem.llama &&
         !problem.bias.present();
}

// What h is: x; or x + residual, either kept from the row's reading to its writing, or made twice
// (of long rows, and where the row may be written another way than it was read).
enum class Sum { kNone, kKept, kTwice };

struct ForwardRow {
  Elements x, residual, weight, bias, y, residual_out;
  char *kept = nullptr;  // the sums as h's dtype has them, and zeros up to a multiple of 32 columns
};

inline ForwardRow forward_elements(const ForwardProblem &problem, int64_t row, int64_t group) {
  return {elements(problem.x, row, group),    elements(problem.residual, row, group),
          elements(problem.weight, 0, group), elements(problem.bias, 0, group),
          elements(problem.y, row, group),    elements(problem.residual_out, row, group)};
}

// The row after this one, where there is one group.
inline ForwardRow next_row(ForwardRow row) {
  Elements *const all[] = {&row.x,    &row.residual, &row.weight,
                           &row.bias, &row.y,        &row.residual_out};
  for (Elements *const each : all) each->data += each->next;
  return row;
}

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

template <rmsnorm_dtype_t kTheDtype, Sum kTheSum, bool kStreamsOutput>
struct ExactRows {
  static constexpr rmsnorm_dtype_t kDtype = kTheDtype;
  static constexpr Sum kSum = kTheSum;
  static constexpr bool kStreams = kStreamsOutput, kExact = true;
  static constexpr int64_t kStep = 2 * kLanes, kRun = kSumCols;

  // Two blocks at once: one sum would wait for itself.
  struct Run {
    Block squares = broadcast(0), more_squares = broadcast(0);
  };
  struct Sums {
    Block squares = broadcast(0);
  };
  struct Constants {
    Block scale, offset, no_weight;
    Constants(const ForwardProblem &problem, const ForwardRow &, double rstd)
        : scale(broadcast(rstd)),
          offset(broadcast(problem.weight_offset)),
          no_weight(broadcast(1) + offset) {}
  };

  // x, or the sum of x and residual, which goes to residual_out too where kWrites. The sum of two
  // fp32 rows is made of floats and widened from memory, which is cheaper than from registers.
  template <bool kWrites>
  [[gnu::always_inline]] static Block make_h(const ForwardProblem &problem, const ForwardRow &row,
                                             int64_t col, int64_t count) {
    if constexpr (kSum == Sum::kNone) return load<kDtype>(row.x, col, count);
    if constexpr (kSum == Sum::kKept) return make_kept_h<kWrites>(row, col, count);
    const bool stores = kWrites && row.residual_out.present();
    if constexpr (kDtype == RMSNORM_DTYPE_F32) {
      if (count == kLanes) {
        alignas(64) char sum[kLanes * sizeof(float)];
        add_f32(address<kDtype>(row.x, col), address<kDtype>(row.residual, col), sum);
        if (stores) copy_f32<kStreams>(sum, address<kDtype>(row.residual_out, col));
        return load_f32(sum);
      }
    }
    const Block sum = add_residual<kDtype>(row, problem.h_dtype, col, count);
    if (stores) store<kDtype, kStreams>(sum, row.residual_out, col, count);
    return round_to<kDtype>(sum, problem.h_dtype);
  }

  template <bool kWrites>
  [[gnu::always_inline]] static Block make_kept_h(const ForwardRow &row, int64_t col,
                                                  int64_t count) {
    static_assert(kDtype == RMSNORM_DTYPE_F32, "halves' sums are kept by HalfRows");
    char *const kept = row.kept + col * 4;
    if constexpr (!kWrites) {
      if (count == kLanes)
        add_f32(address<kDtype>(row.x, col), address<kDtype>(row.residual, col), kept);
      else store_f32(add_residual<kDtype>(row, kDtype, col, count), kept);
      return load_f32(kept);
    }
    const Block h = load_f32(kept);
    if (row.residual_out.present()) {
      if (count == kLanes) copy_f32<kStreams>(kept, address<kDtype>(row.residual_out, col));
      else store<kDtype>(h, row.residual_out, col, count);
    }
    return h;
  }

  [[gnu::always_inline]] static void read(const ForwardProblem &problem, const ForwardRow &row,
                                          int64_t col, int64_t count, Run *run) {
    const auto add_squares = [&](int64_t at, int64_t n, Block * to) __attribute__((always_inline)) {
      const Block h = make_h<false>(problem, row, at, n);
      *to = add_product(*to, h, h);
    };
    add_squares(col, count < kLanes ? count : kLanes, &run->squares);
    if (count > kLanes) add_squares(col + kLanes, count - kLanes, &run->more_squares);
  }

  [[gnu::always_inline]] static void end_run(const Run &run, Sums *sums) {
    sums->squares = sums->squares + (run.squares + run.more_squares);
  }

  static bool rstd(const ForwardProblem &problem, Sums *sums, double *rstd) {
    *rstd = rstd_of(sums->squares, problem.cols, problem.eps);
    return true;
  }

  // Whether the row that has been written is to stay so.
  static bool is_right() { return true; }

  template <bool kPlain>
  [[gnu::always_inline]] static void write(const ForwardProblem &problem, const ForwardRow &row,
                                           const Constants &constants, int64_t col, int64_t count) {
    write_block<kPlain>(problem, row, constants, col, count < kLanes ? count : kLanes);
    if (count > kLanes) write_block<kPlain>(problem, row, constants, col + kLanes, count - kLanes);
  }

  template <bool kPlain>
  [[gnu::always_inline]] static void write_block(const ForwardProblem &problem,
                                                 const ForwardRow &row, const Constants &constants,
                                                 int64_t col, int64_t count) {
    Block y = make_h<true>(problem, row, col, count) * constants.scale;
    if constexpr (kPlain) {
      y = y * load<kDtype>(row.weight, col, count);
    } else {
      if (problem.llama) y = round_to<kDtype>(y, problem.h_dtype);
      if (row.weight.present()) y = y * (load<kDtype>(row.weight, col, count) + constants.offset);
      else y = y * constants.no_weight;
      if (row.bias.present()) y = y + load<kDtype>(row.bias, col, count);
    }
    store<kDtype, kStreams>(y, row.y, col, count);
  }
};
