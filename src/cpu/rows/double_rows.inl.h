// fp64 rows of ordinary numbers: zeros and magnitudes from 2^-200 to 2^200, so that no product and
// no sum on the way leaves fp64's range, or loses bits below it. wide_rows.inl.h takes all others,
// one element at a time. Included inside the isa file's namespace.
//
// Forward: the squares' and the products' rounding errors are carried along in a second double
// (product_error of the isa file, exact on each of them), and rstd is two doubles: y is off by
// 0.501 ulp. Backward is the one of the other dtypes: an error of 2^-43 of the terms.
constexpr double kLeastOrdinary = 0x1p-200, kMostOrdinary = 0x1p200;

inline bool is_ordinary(double value) {
  const double magnitude = __builtin_fabs(value);
  return value == 0 || (magnitude >= kLeastOrdinary && magnitude <= kMostOrdinary);
}

// All ones where a number is not ordinary; NaN is not.
struct Strange {
  NativeLongs native;
};
[[gnu::always_inline]] inline void find_strange(const Vec &value, Strange *found) {
  constexpr uint64_t kMagnitude = ~(uint64_t{1} << 63);
  const Native magnitude =
      reinterpret_cast<Native>(reinterpret_cast<NativeLongs>(value.native) & kMagnitude);
  const auto ordinary =
      (magnitude == 0) | ((magnitude >= kLeastOrdinary) & (magnitude <= kMostOrdinary));
  found->native |= ~reinterpret_cast<NativeLongs>(ordinary);
}
template <class Half, class StrangeHalf>
[[gnu::always_inline]] inline void find_strange(const Two<Half> &value, Two<StrangeHalf> *found) {
  find_strange(value.low, &found->low);
  find_strange(value.high, &found->high);
}

inline bool any(const Strange &found) {
  uint64_t all = 0;
  for (size_t i = 0; i < sizeof(Native) / sizeof(double); ++i) all |= found.native[i];
  return all != 0;
}
template <class Half>
inline bool any(const Two<Half> &found) {
  return any(found.low) || any(found.high);
}

template <class Vector>
struct StrangeOf {
  using Type = Strange;
};
template <class Half>
struct StrangeOf<Two<Half>> {
  using Type = Two<typename StrangeOf<Half>::Type>;
};
using StrangeBlock = StrangeOf<Block>::Type;

inline bool is_ordinary(const Elements &row, int64_t cols) {
  if (!row.present()) return true;
  StrangeBlock strange = {};
  each_block(
      0, cols, [&](int64_t col, int64_t count) __attribute__((always_inline)) {
        find_strange(load<RMSNORM_DTYPE_F64>(row, col, count), &strange);
      });
  return !any(strange);
}

// ---- Forward ------------------------------------------------------------------------------------

// a * b - product, where that is the product rounded.
template <class Half>
[[gnu::always_inline]] inline Two<Half> product_error(const Two<Half> &a, const Two<Half> &b,
                                                      const Two<Half> &product) {
  return {product_error(a.low, b.low, product.low), product_error(a.high, b.high, product.high)};
}

// a + b - sum, where that is the sum rounded.
[[gnu::always_inline]] inline Block sum_error(const Block &a, const Block &b, const Block &sum) {
  const Block b_part = sum - a;
  return (a - (sum - b_part)) + (b - b_part);
}

// value + error, but for zeros, whose sign an error of +0 would take away.
[[gnu::always_inline]] inline Vec add_error(const Vec &value, const Vec &error) {
  return {value.native == 0 ? value.native : value.native + error.native};
}
template <class Half>
[[gnu::always_inline]] inline Two<Half> add_error(const Two<Half> &value, const Two<Half> &error) {
  return {add_error(value.low, error.low), add_error(value.high, error.high)};
}

[[gnu::always_inline]] inline Block double_h(const ForwardRow &row, int64_t col, int64_t count) {
  const Block x = load<RMSNORM_DTYPE_F64>(row.x, col, count);
  return row.residual.present() ? x + load<RMSNORM_DTYPE_F64>(row.residual, col, count) : x;
}

// The sum of the row's squares. False: the row is not ordinary.
inline bool ordinary_squares(const ForwardRow &row, int64_t cols, Wide *squares) {
  Block sum = broadcast(0), error = broadcast(0);
  StrangeBlock strange = {};
  each_block(
      0, cols, [&](int64_t col, int64_t count) __attribute__((always_inline)) {
        prefetch_ahead<RMSNORM_DTYPE_F64>(row.x, col);
        const Block h = double_h(row, col, count);
        find_strange(h, &strange);
        const Block square = h * h, next = sum + square;
        error = error + (sum_error(sum, square, next) + product_error(h, h, square));
        sum = next;
      });
  double lane[kLanes];
  store_doubles(sum, lane);
  Pair total = {0, sum_lanes(error)};
  for (const double part : lane) {
    const Pair next = two_sum(total.high, part);
    total = {next.high, total.low + next.low};
  }
  total = fast_two_sum(total.high, total.low);
  *squares = make_wide(total.high, total.low, 0);
  return !any(strange);
}

inline void write_ordinary(const ForwardProblem &problem, const ForwardRow &row, double rstd,
                           double rstd_error) {
  const Block scale = broadcast(rstd), scale_error = broadcast(rstd_error);
  const Block offset = broadcast(problem.weight_offset), one = broadcast(1);
  const ForwardRow written = row;  // no store changes it
  each_block(
      0, problem.cols, [&](int64_t col, int64_t count) __attribute__((always_inline)) {
        const Block h = double_h(written, col, count);
        const Block given =
            written.weight.present() ? load<RMSNORM_DTYPE_F64>(written.weight, col, count) : one;
        const Block weight = given + offset;
        const Block scaled = h * scale, y = scaled * weight;
        const Block scaled_error = product_error(h, scale, scaled) + h * scale_error;
        const Block error = product_error(scaled, weight, y) +
                            (scaled_error * weight + scaled * sum_error(given, offset, weight));
        if (written.residual_out.present())
          store<RMSNORM_DTYPE_F64>(h, written.residual_out, col, count);
        store<RMSNORM_DTYPE_F64>(add_error(y, error), written.y, col, count);
      });
}

// False, and nothing is written: the row is not ordinary.
inline bool forward_ordinary(const ForwardProblem &problem, int64_t index, int64_t group) {
  const ForwardRow row = forward_elements(problem, index, group);
  Wide squares;
  if (!ordinary_squares(row, problem.cols, &squares)) return false;
  const Wide rstd = wide_rstd(squares, problem.cols, problem.eps);
  const double rounded = to_double(rstd);
  if (rounded == 0 || !is_ordinary(rounded)) return false;
  if (problem.rstd.present()) store_f64(rounded, elements(problem.rstd, index, group), 0);
  write_ordinary(problem, row, rounded, scale_by(rstd.low, rstd.exponent));
  return true;
}

// Rows [begin, end), each by what it needs.
void forward_rows_f64(const ForwardProblem &problem, int64_t begin, int64_t end) {
  const bool may_be_ordinary =
      !problem.llama && !problem.bias.present() && is_ordinary(problem.weight_offset);
  const char *known = nullptr;  // a weight vector, and whether it is ordinary
  bool weight_ordinary = !problem.weight.present();
  each_row(begin, end, problem.groups, [&](int64_t row, int64_t group) {
    const Elements weight = elements(problem.weight, 0, group);
    if (may_be_ordinary && weight.present() && weight.data != known) {
      weight_ordinary = is_ordinary(weight, problem.cols);
      known = weight.data;
    }
    if (!may_be_ordinary || !weight_ordinary || !forward_ordinary(problem, row, group))
      forward_row_f64(problem, row, group);
  });
}

// ---- Backward -----------------------------------------------------------------------------------

void backward_rows_f64(const BackwardProblem &problem, const GradientSums &sums, int64_t begin,
                       int64_t end) {
  const bool may_be_ordinary = problem.eps <= kMostOrdinary && is_ordinary(problem.weight_offset);
  each_row(begin, end, problem.groups, [&](int64_t index, int64_t group) {
    const BackwardRow row = backward_elements(problem, index, group, false);
    const Elements rstd = elements(problem.rstd, index, group);
    double value = 1;
    if (may_be_ordinary && (!given_rstd(rstd, &value) || is_ordinary(value)) &&
        is_ordinary(row.weight, problem.cols) && is_ordinary(row.x, problem.cols) &&
        is_ordinary(row.dy, problem.cols))
      backward_rows<RMSNORM_DTYPE_F64, false, false, false>(problem, sums, group, row, rstd, row,
                                                            rstd);
    else backward_row_f64(problem, sums, index, group);
  });
}
