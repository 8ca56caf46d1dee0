// The reference against arithmetic that shares nothing with it: binary128 (113 bits) for rows of
// every dtype, also at the ends of fp64's range; bit patterns for the 16-bit formats, exhaustively;
// the rules for NaN, Inf and zero rows by hand.
#include "reference/reference.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

namespace rmsnorm {
namespace {

#if defined(__x86_64__)
using Quad = __float128;
#else
using Quad = long double;
static_assert(std::numeric_limits<long double>::digits == 113, "binary128");
#endif

using reference::Exact;

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr rmsnorm_dtype_t kDtypes[] = {RMSNORM_DTYPE_F16, RMSNORM_DTYPE_BF16, RMSNORM_DTYPE_F32,
                                       RMSNORM_DTYPE_F64};

Quad quad(const Exact &exact) { return static_cast<Quad>(exact.high) + exact.low; }
Quad absolute(Quad value) { return value < 0 ? -value : value; }

// 1 / sqrt(value) by Newton from a double; value within fp64's range after scaling by powers of
// four.
Quad quad_rstd(Quad value) {
  Quad scale = 1;
  while (value > Quad(0x1p100)) value *= Quad(0x1p-200), scale *= Quad(0x1p-100);
  while (value < Quad(0x1p-100)) value *= Quad(0x1p200), scale *= Quad(0x1p100);
  Quad r = 1 / std::sqrt(static_cast<double>(value));
  for (int i = 0; i < 3; ++i) r += r * (1 - value * r * r) / 2;
  return r * scale;
}

// |got - wanted| below 2^-95 of `size` (or half of the smallest subnormal, where fp64 ends); Inf
// beyond fp64.
void expect_close(const Exact &got, Quad wanted, Quad size, const char *what) {
  if (absolute(wanted) > Quad(std::numeric_limits<double>::max())) {
    EXPECT_EQ(got.high, wanted > 0 ? kInf : -kInf) << what;
    return;
  }
  const Quad error = absolute(quad(got) - wanted);
  const Quad allowed = absolute(size) * Quad(0x1p-95) + Quad(0x1p-1074) / 2;
  EXPECT_TRUE(error <= allowed) << what << ": " << got.high << " error "
                                << static_cast<double>(error) << " allowed "
                                << static_cast<double>(allowed);
}

// A dense tensor that owns its elements.
struct Array {
  std::vector<double> memory;  // aligned for every dtype
  rmsnorm_dtype_t dtype = RMSNORM_DTYPE_NONE;
  int64_t cols = 0, groups = 1;

  Array() = default;
  Array(const std::vector<double> &values, int64_t width, rmsnorm_dtype_t type,
        int64_t group_count = 1)
      : memory(values.size() + 1), dtype(type), cols(width), groups(group_count) {
    for (size_t i = 0; i < values.size(); ++i)
      reference::store(values[i], data() + i * static_cast<size_t>(element_size(type)), type);
  }
  char *data() { return reinterpret_cast<char *>(memory.data()); }
  View view() { return {data(), cols * groups, cols, dtype}; }
  View vector_view() { return {data(), 0, groups > 1 ? cols : 0, dtype}; }
  Quad at(int64_t index) { return reference::load(data() + index * element_size(dtype), dtype); }
};

class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}
  double normal(double scale) { return std::normal_distribution<double>(0, 1)(engine_) * scale; }
  // Any finite value of the dtype, every exponent alike.
  double any(rmsnorm_dtype_t dtype) {
    const double largest = dtype == RMSNORM_DTYPE_F16   ? 15
                           : dtype == RMSNORM_DTYPE_F64 ? 1020
                                                        : 127;
    const double exponent =
        std::uniform_real_distribution<double>(-largest, largest - 0.01)(engine_);
    return (engine_() % 2 != 0 ? -1 : 1) * std::exp2(exponent);
  }
  std::vector<double> row(size_t count, double scale, rmsnorm_dtype_t dtype, bool extreme) {
    std::vector<double> values;
    for (size_t i = 0; i < count; ++i) values.push_back(extreme ? any(dtype) : normal(scale));
    return values;
  }

 private:
  std::mt19937_64 engine_;
};

// ---- Conversions --------------------------------------------------------------------------------

double half_by_float(uint16_t bits) {  // the fraction moved into an fp32, the bias by a product
  const uint32_t wide = static_cast<uint32_t>(bits & 0x7fff) << 13;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  value *= 0x1p112f;
  return (bits & 0x8000) != 0 ? -value : value;
}

double bfloat_by_float(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}

TEST(Conversion, EveryHalfAndBfloat) {
  for (const rmsnorm_dtype_t dtype : {RMSNORM_DTYPE_F16, RMSNORM_DTYPE_BF16}) {
    const bool half = dtype == RMSNORM_DTYPE_F16;
    for (uint32_t i = 0; i < 65536; ++i) {
      const uint16_t bits = static_cast<uint16_t>(i);
      const double value = reference::load(&bits, dtype);
      const uint16_t infinity = half ? 0x7c00 : 0x7f80;
      uint16_t back = 0;
      reference::store(value, &back, dtype);
      if ((bits & 0x7fff) > infinity) {
        ASSERT_TRUE(std::isnan(value)) << i;
        ASSERT_GT(back & 0x7fff, infinity) << i;
        continue;
      }
      ASSERT_EQ(back, bits);
      if ((bits & 0x7fff) == infinity) ASSERT_EQ(std::fabs(value), kInf);
      else ASSERT_EQ(value, half ? half_by_float(bits) : bfloat_by_float(bits)) << i;
      ASSERT_EQ(std::signbit(value), (bits & 0x8000) != 0);
    }
  }
}

// Between each two neighbours: the tie goes to the even one, everything else to the nearer one; the
// low part alone decides where high lies at the tie.
TEST(Conversion, EveryTieOfTheShortFormats) {
  for (const rmsnorm_dtype_t dtype : {RMSNORM_DTYPE_F16, RMSNORM_DTYPE_BF16}) {
    const uint16_t infinity = dtype == RMSNORM_DTYPE_F16 ? 0x7c00 : 0x7f80;
    for (uint16_t bits = 0; bits < infinity; ++bits) {
      const uint16_t next = static_cast<uint16_t>(bits + 1);
      const double below = reference::load(&bits, dtype);
      double above = reference::load(&next, dtype);
      const double past =
          std::isinf(above) ? std::exp2(dtype == RMSNORM_DTYPE_F16 ? 16 : 128) : above;
      const double middle = (below + past) / 2, tiny = middle * 0x1p-60;
      const double even = bits % 2 == 0 ? below : above;
      for (const double sign : {1.0, -1.0}) {
        ASSERT_EQ(reference::round_to({sign * middle, 0}, dtype), sign * even) << bits;
        ASSERT_EQ(reference::round_to({sign * middle, sign * tiny}, dtype), sign * above) << bits;
        ASSERT_EQ(reference::round_to({sign * middle, -sign * tiny}, dtype), sign * below) << bits;
        ASSERT_EQ(reference::round_to({sign * std::nextafter(middle, kInf), 0}, dtype),
                  sign * above);
        ASSERT_EQ(reference::round_to({sign * std::nextafter(middle, 0), 0}, dtype), sign * below);
      }
    }
  }
}

TEST(Conversion, SingleAsTheHardwareRounds) {
  std::mt19937_64 engine(1);
  for (int i = 0; i < 300000; ++i) {
    uint64_t bits = engine();
    if (i % 3 == 0) bits &= ~uint64_t(0xfffffff);  // ties are frequent
    if (i % 3 == 1) bits = (bits & 0x801fffffffffffffu) | ((896 - 30 + engine() % 40) << 52);
    double value;
    std::memcpy(&value, &bits, sizeof value);
    if (std::isnan(value)) continue;
    ASSERT_EQ(reference::round_to({value, 0}, RMSNORM_DTYPE_F32), static_cast<float>(value))
        << value;
    float stored;
    reference::store(value, &stored, RMSNORM_DTYPE_F32);
    ASSERT_EQ(stored, static_cast<float>(value));
    ASSERT_EQ(reference::round_to({value, 0}, RMSNORM_DTYPE_F64), value);
  }
}

TEST(Ulp, IsTheSpacingAroundTheExactValue) {
  using reference::ulp;
  EXPECT_EQ(ulp({1, 0}, RMSNORM_DTYPE_F32), 0x1p-23);
  EXPECT_EQ(ulp({1, -0x1p-80}, RMSNORM_DTYPE_F32), 0x1p-24);
  EXPECT_EQ(ulp({-1, 0x1p-80}, RMSNORM_DTYPE_F64), 0x1p-53);
  EXPECT_EQ(ulp({1.999, 0}, RMSNORM_DTYPE_F16), 0x1p-10);
  EXPECT_EQ(ulp({0, 0}, RMSNORM_DTYPE_F32), 0x1p-149);
  EXPECT_EQ(ulp({1e-300, 0}, RMSNORM_DTYPE_BF16), 0x1p-133);
  EXPECT_EQ(ulp({0x1p-14, 0}, RMSNORM_DTYPE_F16), 0x1p-24);
  EXPECT_EQ(ulp({5e-324, 0}, RMSNORM_DTYPE_F64), 0x1p-1074);
  EXPECT_EQ(ulp({1e300, 0}, RMSNORM_DTYPE_F32), 0x1p104);
}

TEST(Ulp, ErrorsAreCountedInIt) {
  using reference::error_in_ulps;
  const rmsnorm_dtype_t f32 = RMSNORM_DTYPE_F32, f64 = RMSNORM_DTYPE_F64, f16 = RMSNORM_DTYPE_F16;
  EXPECT_EQ(error_in_ulps(1, {1, 0x1p-24}, f32), 0.5);
  EXPECT_EQ(error_in_ulps(1, {1, 0x1p-54}, f64), 0.25);
  EXPECT_EQ(error_in_ulps(1, {1, -0x1p-54}, f64), 0.5);
  EXPECT_EQ(error_in_ulps(-3, {-3, -0x1p-52}, f64), 0.5);
  EXPECT_EQ(error_in_ulps(0, {0x1p-150, 0}, f32), 0.5);
  EXPECT_EQ(error_in_ulps(kNan, {kNan, 0}, f32), 0);
  EXPECT_EQ(error_in_ulps(kInf, {kInf, 0}, f32), 0);
  EXPECT_EQ(error_in_ulps(-kInf, {kInf, 0}, f32), kInf);
  EXPECT_EQ(error_in_ulps(kNan, {1, 0}, f32), kInf);
  EXPECT_EQ(error_in_ulps(1, {kNan, 0}, f32), kInf);
  EXPECT_EQ(error_in_ulps(1, {kInf, 0}, f64), kInf);
  EXPECT_EQ(error_in_ulps(kInf, {1, 0}, f16), kInf);
  EXPECT_EQ(error_in_ulps(kInf, {65520, 0}, f16), 0);
  EXPECT_EQ(error_in_ulps(-kInf, {-1e30, 0}, f16), 0);
  EXPECT_EQ(error_in_ulps(kInf, {65519.9999, 0}, f16), (65536 - 65519.9999) / 32);
  EXPECT_EQ(error_in_ulps(65504, {65520, 0}, f16), 0.5);
  EXPECT_GT(error_in_ulps(1e308, {-1e308, 0}, f64), 1e15);
}

// ---- Rows against binary128 ---------------------------------------------------------------------

void check_forward(Random *random, rmsnorm_dtype_t dtype, bool extreme, bool with_residual,
                   double eps, double offset) {
  const int64_t cols = 1 + static_cast<int64_t>(std::fabs(random->normal(40)));
  const size_t count = static_cast<size_t>(cols);
  Array x(random->row(count, 3, dtype, extreme), cols, dtype);
  Array residual(random->row(count, 3, dtype, extreme), cols, dtype);
  Array weight(random->row(count, 1, dtype, extreme), cols, dtype);
  Array bias(random->row(count, 1, dtype, extreme), cols, dtype);
  ForwardProblem problem;
  problem.rows = 1, problem.cols = cols, problem.eps = eps, problem.weight_offset = offset;
  problem.h_dtype = dtype;
  problem.x = x.view(), problem.weight = weight.vector_view(), problem.bias = bias.vector_view();
  if (with_residual) problem.residual = residual.view();
  const reference::ForwardRow row = reference::forward_row(problem, 0, 0);
  Quad sum = 0;
  for (int64_t c = 0; c < cols; ++c) {
    const double h = row.h[static_cast<size_t>(c)];
    if (std::isinf(h)) return;  // x + residual left the dtype's range
    if (with_residual && dtype == RMSNORM_DTYPE_F64)
      ASSERT_EQ(h, static_cast<double>(x.at(c)) + static_cast<double>(residual.at(c)));
    else if (with_residual)
      ASSERT_LE(absolute(h - (x.at(c) + residual.at(c))) * 2, reference::ulp({h, 0}, dtype));
    else ASSERT_EQ(h, static_cast<double>(x.at(c)));
    sum += static_cast<Quad>(h) * h;
  }
  const Quad rstd = quad_rstd(sum / cols + eps);
  expect_close(row.rstd, rstd, rstd, "rstd");
  for (int64_t c = 0; c < cols; ++c) {
    const size_t i = static_cast<size_t>(c);
    const Quad scaled = row.h[i] * rstd, product = scaled * (weight.at(c) + offset);
    expect_close(row.scaled[i], scaled, scaled, "scaled");
    expect_close(row.y[i], product + bias.at(c), absolute(product) + absolute(bias.at(c)), "y");
    expect_close({row.product[i], 0}, absolute(product), product * Quad(0x1p43), "product");
  }
}

TEST(Forward, MatchesBinary128) {
  Random random(2);
  for (int i = 0; i < 400; ++i)
    for (const rmsnorm_dtype_t dtype : kDtypes)
      check_forward(&random, dtype, i % 2 != 0, i % 3 == 0, i % 5 == 0 ? 0 : 1e-6,
                    i % 4 == 0 ? 1 : 0);
}

TEST(Forward, ExtremeFp64Rows) {
  const rmsnorm_dtype_t f64 = RMSNORM_DTYPE_F64;
  const double huge = std::numeric_limits<double>::max(), tiny = 5e-324;
  const std::vector<double> rows[] = {{huge, huge, huge},     {tiny, tiny, 0},
                                      {tiny, huge, 1},        {1e-200, 0, 1e-170},
                                      {0, 0, tiny},           {1e160, 1e-160, -1e150},
                                      {tiny, 1e-310, -1e-315}};
  for (const std::vector<double> &row : rows) {
    for (const double eps : {0.0, tiny, 1e-6, huge}) {
      Array x(row, 3, f64);
      Array weight({1e300, 1e-300, 1}, 3, f64);
      ForwardProblem problem;
      problem.rows = 1, problem.cols = 3, problem.eps = eps, problem.h_dtype = f64;
      problem.x = x.view(), problem.weight = weight.vector_view();
      const reference::ForwardRow got = reference::forward_row(problem, 0, 0);
      Quad sum = 0;
      for (const double value : row) sum += static_cast<Quad>(value) * value;
      const Quad rstd = quad_rstd(sum / 3 + eps);
      expect_close(got.rstd, rstd, rstd, "rstd");
      for (int64_t c = 0; c < 3; ++c) {
        const Quad y = x.at(c) * rstd * weight.at(c);
        expect_close(got.y[static_cast<size_t>(c)], y, y, "y");
      }
    }
  }
}

void check_backward(Random *random, rmsnorm_dtype_t dtype, bool extreme, bool give_rstd,
                    bool per_group) {
  const int64_t rows = 3, groups = 2,
                cols = 1 + static_cast<int64_t>(std::fabs(random->normal(20)));
  const size_t count = static_cast<size_t>(rows * groups * cols);
  // The extremes of fp64 would leave its range in products of five: keep to what the test can
  // represent.
  const rmsnorm_dtype_t range = dtype == RMSNORM_DTYPE_F64 ? RMSNORM_DTYPE_F32 : dtype;
  Array dy(random->row(count, 1, range, extreme), cols, dtype, groups);
  Array x(random->row(count, 3, range, extreme), cols, dtype, groups);
  Array arriving(random->row(count, 1, range, extreme), cols, dtype, groups);
  Array weight(random->row(static_cast<size_t>(groups * cols), 1, range, extreme), cols, dtype,
               groups);
  const rmsnorm_dtype_t rstd_dtype = dtype == RMSNORM_DTYPE_F64 ? dtype : RMSNORM_DTYPE_F32;
  Array rstd({0.5, 3, 1e-30, 7, 1e9, 1}, 1, rstd_dtype, groups);
  BackwardProblem problem;
  problem.rows = rows, problem.groups = groups, problem.cols = cols;
  problem.eps = 1e-5, problem.weight_offset = 1, problem.per_group = per_group;
  problem.dy = dy.view(), problem.x = x.view(), problem.dresidual_out = arriving.view();
  problem.weight = weight.vector_view();
  if (give_rstd) problem.rstd = rstd.view();

  std::vector<Quad> dweight(static_cast<size_t>(groups * cols)), dbias(dweight), size(dweight);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t g = 0; g < groups; ++g) {
      const reference::BackwardRow got = reference::backward_row(problem, r, g);
      const int64_t start = (r * groups + g) * cols;
      Quad squares = 0, sum = 0, absolute_sum = 0;
      for (int64_t c = start; c < start + cols; ++c) squares += x.at(c) * x.at(c);
      const Quad k = give_rstd ? rstd.at(r * groups + g) : quad_rstd(squares / cols + problem.eps);
      expect_close(got.rstd, k, k, "rstd");
      for (int64_t c = 0; c < cols; ++c) {
        const Quad term = (weight.at(g * cols + c) + 1) * dy.at(start + c) * x.at(start + c) * k;
        sum += term, absolute_sum += absolute(term);
        const size_t i = static_cast<size_t>((per_group ? g * cols : 0) + c);
        dweight[i] += dy.at(start + c) * x.at(start + c) * k;
        size[i] += absolute(dy.at(start + c) * x.at(start + c) * k);
        dbias[i] += dy.at(start + c);
      }
      for (int64_t c = 0; c < cols; ++c) {
        const Quad xhat = x.at(start + c) * k,
                   wdy = (weight.at(g * cols + c) + 1) * dy.at(start + c);
        const Quad dx = k * (wdy - xhat * sum / cols) + arriving.at(start + c);
        const Quad dx_size = absolute(k) * (absolute(wdy) + absolute(xhat) * absolute_sum / cols) +
                             absolute(arriving.at(start + c));
        expect_close(got.dx[static_cast<size_t>(c)], dx, dx_size, "dx");
        expect_close({got.magnitude[static_cast<size_t>(c)], 0}, dx_size, dx_size * Quad(0x1p43),
                     "|dx|");
      }
    }
  }
  for (int64_t g = 0; g < (per_group ? groups : 1); ++g) {
    const reference::WeightGradients got = reference::weight_gradients(problem, g);
    for (int64_t c = 0; c < cols; ++c) {
      const size_t own = static_cast<size_t>(c), i = static_cast<size_t>(g * cols + c);
      expect_close(got.dweight[own], dweight[i], size[i], "dweight");
      expect_close({got.dweight_magnitude[own], 0}, size[i], size[i] * Quad(0x1p43), "|dweight|");
      expect_close(got.dbias[own], dbias[i], Quad(got.dbias_magnitude[own]) * 2, "dbias");
    }
  }
}

TEST(Backward, MatchesBinary128) {
  Random random(3);
  for (int i = 0; i < 100; ++i)
    for (const rmsnorm_dtype_t dtype : kDtypes)
      check_backward(&random, dtype, i % 2 != 0, i % 3 == 0, i % 5 < 2);
}

// ---- Rules --------------------------------------------------------------------------------------

reference::ForwardRow forward(Array *x, Array *weight, double eps, bool llama = false) {
  ForwardProblem problem;
  problem.rows = 1, problem.cols = x->cols, problem.eps = eps, problem.llama = llama;
  problem.h_dtype = x->dtype, problem.x = x->view();
  if (weight != nullptr) problem.weight = weight->vector_view();
  return reference::forward_row(problem, 0, 0);
}

TEST(Rules, NanInfAndZeroRows) {
  for (const rmsnorm_dtype_t dtype : kDtypes) {
    Array with_nan({1, kNan, 2}, 3, dtype), with_inf({-1, kInf, 2}, 3, dtype),
        zero({0, -0.0, 0}, 3, dtype);
    Array weight({2, 3, -4}, 3, dtype);
    for (const Exact &y : forward(&with_nan, &weight, 1e-6).y) EXPECT_TRUE(std::isnan(y.high));
    const reference::ForwardRow inf = forward(&with_inf, &weight, 1e-6);
    EXPECT_EQ(inf.rstd.high, 0);
    EXPECT_TRUE(std::isnan(inf.y[1].high));
    EXPECT_TRUE(inf.y[0].high == 0 && std::signbit(inf.y[0].high));
    EXPECT_TRUE(inf.y[2].high == 0 && std::signbit(inf.y[2].high));
    const reference::ForwardRow no_eps = forward(&zero, &weight, 0);
    EXPECT_EQ(no_eps.rstd.high, kInf);
    for (const Exact &y : no_eps.y) EXPECT_TRUE(std::isnan(y.high));
    const reference::ForwardRow with_eps = forward(&zero, nullptr, 0.25);
    EXPECT_EQ(with_eps.rstd.high, 2);
    EXPECT_TRUE(with_eps.y[0].high == 0 && !std::signbit(with_eps.y[0].high));
    EXPECT_TRUE(with_eps.y[1].high == 0 && std::signbit(with_eps.y[1].high));
  }
}

TEST(Rules, LlamaRoundsTwice) {
  Array x({1, 2, 3}, 3, RMSNORM_DTYPE_BF16), weight({1.0078125, 3, 5}, 3, RMSNORM_DTYPE_BF16);
  const reference::ForwardRow row = forward(&x, &weight, 0, true);
  ForwardProblem problem;
  problem.weight = weight.vector_view();
  for (size_t c = 0; c < 3; ++c) {
    const double t = reference::round_to(row.scaled[c], RMSNORM_DTYPE_BF16);
    EXPECT_EQ(row.y[c].high, t * static_cast<double>(weight.at(static_cast<int64_t>(c))));
    EXPECT_EQ(row.y[c].high, reference::llama_y(problem, t, 0, static_cast<int64_t>(c)).high);
  }
}

// x + residual lies at a tie of bf16; rounding it in two steps by way of fp32 would be the same, in
// one step to bf16 from 24 bits and more is what is asked.
TEST(Rules, SumIsRoundedOnceToItsDtype) {
  Array x({1, 1, 1}, 3, RMSNORM_DTYPE_F32),
      residual({0x1p-8, 0x1p-8 + 0x1p-31, 3 * 0x1p-8}, 3, RMSNORM_DTYPE_F32);
  ForwardProblem problem;
  problem.rows = 1, problem.cols = 3, problem.h_dtype = RMSNORM_DTYPE_BF16;
  problem.x = x.view(), problem.residual = residual.view();
  const reference::ForwardRow row = reference::forward_row(problem, 0, 0);
  EXPECT_EQ(row.h[0], 1);
  EXPECT_EQ(row.h[1], 1 + 0x1p-7);
  EXPECT_EQ(row.h[2], 1 + 0x1p-6);
}

TEST(Rules, UnusableRstdIsRecomputed) {
  Array x({3, 4}, 2, RMSNORM_DTYPE_F32), dy({1, 2}, 2, RMSNORM_DTYPE_F32);
  BackwardProblem problem;
  problem.rows = 1, problem.cols = 2, problem.x = x.view(), problem.dy = dy.view();
  const double computed = reference::backward_row(problem, 0, 0).rstd.high;
  EXPECT_NEAR(computed, 1 / std::sqrt(12.5), 1e-15);
  for (const double unusable : {0.0, -0.0, kInf, -kInf, 0x1p-127, -0x1p-149}) {
    Array rstd({unusable}, 1, RMSNORM_DTYPE_F32);
    problem.rstd = rstd.view();
    EXPECT_EQ(reference::backward_row(problem, 0, 0).rstd.high, computed) << unusable;
  }
  for (const double usable : {1.0, 0x1p-126, -2.0, 0x1p127}) {
    Array rstd({usable}, 1, RMSNORM_DTYPE_F32);
    problem.rstd = rstd.view();
    EXPECT_EQ(reference::backward_row(problem, 0, 0).rstd.high, usable);
  }
  Array rstd({kNan}, 1, RMSNORM_DTYPE_F32);
  problem.rstd = rstd.view();
  EXPECT_TRUE(std::isnan(reference::backward_row(problem, 0, 0).dx[0].high));
}

}  // namespace
}  // namespace rmsnorm
