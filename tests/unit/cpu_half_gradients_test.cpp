// Plain backward rows of fp16 and bf16 that go by floats (rows/half_gradients.inl.h) have fp64's
// bits: numbers of any size, zeros, ties, gradients that all but vanish, in place, at any width.
#include "cpu_check.h"

namespace rmsnorm {
namespace {

constexpr rmsnorm_dtype_t kHalves[] = {kF16, kBf16};

Case plain_case(rmsnorm_dtype_t dtype, int64_t rows, int64_t cols, bool gives_rstd = true) {
  Case c;
  c.rows = rows, c.cols = cols;
  for (const char *name : {"dy", "x", "weight", "dx"}) c.tensors[name] = {dtype};
  c.tensors["dweight"] = {kF32};
  if (gives_rstd) c.tensors["rstd"] = {kF32};
  return c;
}

void expect_same(const Case &c, const Arrays &arrays, const std::string &what = "") {
  const Bits expected = bits_with(c, kGeneric, arrays);
  for (const RowTable *table : tables_here())
    for (const int64_t stream_bytes : {INT64_MAX, int64_t{0}})
      ASSERT_EQ(bits_with(c, {table, nullptr, nullptr, nullptr, stream_bytes}, arrays), expected)
          << table->isa << " " << what << " " << c;
}

template <class Value>
void fill(Array *array, rmsnorm_dtype_t dtype, const Value &value) {
  int64_t index = 0;
  array->each([&](char *at, int64_t col) { reference::store(value(index++, col), at, dtype); });
}

TEST(HalfGradients, EveryWidth) {
  for (const rmsnorm_dtype_t dtype : kHalves)
    for (const bool gives_rstd : {true, false})
      for (const int64_t cols : {1, 15, 16, 31, 32, 33, 47, 48, 512, 528, 545, 1061, 4096, 33000})
        for (const int64_t rows : {1, 2, 5}) {
          Case c = plain_case(dtype, rows, cols, gives_rstd);
          if (cols % 2 == 0 && rows > 1) c.tensors["dresidual_out"] = {dtype};
          ASSERT_NO_FATAL_FAILURE(expect_same(c, make_arrays(c, {})));
          ASSERT_NO_FATAL_FAILURE(expect_same(c, make_arrays(c, {3, 5, 0})));
          if (cols > 10000) continue;
          ASSERT_NO_FATAL_FAILURE(check(c, {&cpu::choose_rows(nullptr), nullptr, nullptr}));
        }
}

// Many of the numbers on the way are not fp32's, or round where fp32 alone does.
TEST(HalfGradients, EveryKindOfValues) {
  const Values kinds[] = {Values::kNormal, Values::kMixed, Values::kFaint, Values::kAnyExponent,
                          Values::kTiny,   Values::kHuge,  Values::kZero,  Values::kSpecial};
  std::mt19937_64 engine(3);
  for (const rmsnorm_dtype_t dtype : kHalves)
    for (const Values x : kinds)
      for (const Values dy : kinds)
        for (const Values weight : kinds)
          for (const int64_t cols : {64, 1100}) {
            Case c = plain_case(dtype, 3, cols, engine() % 2 == 0);
            c.seed = engine(), c.eps = engine() % 2 == 0 ? 0 : 1e-5;
            c.accumulate = engine() % 4 == 0;
            c.tensors["x"].values = x, c.tensors["dy"].values = dy;
            c.tensors["weight"].values = weight;
            if (engine() % 2 == 0) c.tensors["dweight"].dtype = dtype;
            if (engine() % 2 == 0)
              c.tensors["dresidual_out"] = {dtype, kinds[engine() % std::size(kinds)]};
            if (engine() % 4 == 0) c.groups = 2, c.per_group = engine() % 2 == 0;
            const Arrays arrays = make_arrays(c, {});
            ASSERT_NO_FATAL_FAILURE(expect_same(c, arrays));
            ASSERT_NO_FATAL_FAILURE(
                check(c, {&cpu::choose_rows(nullptr), nullptr, nullptr}, arrays));
          }
}

TEST(HalfGradients, EveryScaleOfRstd) {
  std::mt19937_64 engine(5);
  for (const rmsnorm_dtype_t dtype : kHalves)
    for (int exponent = -126; exponent <= 127; ++exponent)
      for (const int size : {-100, -40, 0, 40, 100}) {  // of dy, and of x the opposite
        Case c = plain_case(dtype, 2, 96);
        c.seed = engine();
        Arrays arrays = make_arrays(c, {});
        const auto scaled = [&](int by) {
          return [&engine, by](int64_t, int64_t) {
            return std::ldexp(std::normal_distribution<double>(0, 1)(engine), by);
          };
        };
        fill(&arrays["dy"], dtype, scaled(dtype == kBf16 ? size : size / 8));
        fill(&arrays["x"], dtype, scaled(dtype == kBf16 ? -size : -size / 8));
        const double sign = engine() % 8 == 0 ? -1 : 1;
        fill(&arrays["rstd"], kF32,
             [&](int64_t row, int64_t) { return sign * std::ldexp(row ? 1.0 : 1.37, exponent); });
        ASSERT_NO_FATAL_FAILURE(expect_same(c, arrays, "2^" + std::to_string(exponent)));
      }
}

// rstd is a power of two and the sum of w * dy * x is 0, or all but 0: dx is w * dy, of which many
// are ties, or what lies just beside them, which fp64 alone can see.
TEST(HalfGradients, Ties) {
  for (const rmsnorm_dtype_t dtype : kHalves)
    for (const double rest : {0.0, 0x1p-12, 0x1p-6, -0x1p-9})
      for (const int exponent : {0, -3, -17}) {  // -17: fp16's subnormals
        const Case c = plain_case(dtype, 2, 1024);
        Arrays arrays = make_arrays(c, {});
        const double last = dtype == kF16 ? 0x1p-10 : 0x1p-7;  // of 1
        fill(&arrays["weight"], dtype, [&](int64_t, int64_t col) {
          return 1 + last * static_cast<double>(col / 2 % 61 + 1);
        });
        fill(&arrays["dy"], dtype, [&](int64_t, int64_t col) {
          return 1 + last * static_cast<double>(col / 2 % 53 + 1);
        });
        fill(&arrays["x"], dtype, [&](int64_t index, int64_t col) {
          return index == 7 ? 1 + rest : col % 2 == 0 ? 1.0 : -1.0;
        });
        fill(&arrays["rstd"], kF32, [&](int64_t, int64_t) { return std::ldexp(1.0, exponent); });
        ASSERT_NO_FATAL_FAILURE(expect_same(c, arrays));
        ASSERT_NO_FATAL_FAILURE(check(c, {&cpu::choose_rows(nullptr), nullptr, nullptr}, arrays));
      }
}

// dy = x / w: w * dy - xhat * mean(w * dy * xhat) is nothing but roundings and eps.
TEST(HalfGradients, Cancellation) {
  for (const rmsnorm_dtype_t dtype : kHalves)
    for (const bool gives_rstd : {true, false})
      for (const double power : {0x1p-10, 1.0, 0x1p7}) {
        Case c = plain_case(dtype, 3, 640, gives_rstd);
        c.eps = 0;
        Arrays arrays = make_arrays(c, {});
        fill(&arrays["weight"], dtype,
             [&](int64_t, int64_t col) { return std::ldexp(1.0, static_cast<int>(col % 3)); });
        for (int64_t row = 0; row < 3; ++row) {
          double squares = 0;
          for (int64_t col = 0; col < 640; ++col) {
            const double x = arrays["x"].get(row, 0, col);
            squares += x * x;
            const double other = row == 1 && col % 5 == 0 ? 1 + 0x1p-6 : 1;
            reference::store(other * power * x / std::ldexp(1.0, static_cast<int>(col % 3)),
                             arrays["dy"].at(row, 0, col), dtype);
          }
          if (gives_rstd)
            reference::store(1 / std::sqrt(squares / 640), arrays["rstd"].at(row, 0, 0), kF32);
        }
        ASSERT_NO_FATAL_FAILURE(expect_same(c, arrays));
        ASSERT_NO_FATAL_FAILURE(check(c, {&cpu::choose_rows(nullptr), nullptr, nullptr}, arrays));
      }
}

// dresidual_out is -dx as rounded, and what is left its error.
TEST(HalfGradients, NothingLeft) {
  for (const rmsnorm_dtype_t dtype : kHalves)
    for (const bool gives_rstd : {true, false}) {
      Case c = plain_case(dtype, 4, 1061, gives_rstd);
      Arrays arrays = make_arrays(c, {});
      Arrays done = arrays;
      run(c, kGeneric, &done);
      c.tensors["dresidual_out"] = {dtype};
      Array &other = arrays["dresidual_out"] = arrays["dx"];
      for (int64_t row = 0; row < 4; ++row)
        for (int64_t col = 0; col < 1061; ++col)
          reference::store(-done["dx"].get(row, 0, col), other.at(row, 0, col), dtype);
      ASSERT_NO_FATAL_FAILURE(expect_same(c, arrays));
      ASSERT_NO_FATAL_FAILURE(check(c, {&cpu::choose_rows(nullptr), nullptr, nullptr}, arrays));
    }
}

// Rows of zeros of either sign, and single numbers that leave fp32's range in rows of ordinary
// ones.
TEST(HalfGradients, OddNumbersAmongOrdinaryOnes) {
  for (const rmsnorm_dtype_t dtype : kHalves)
    for (const double odd :
         {0.0, -0.0, 0x1p-133, -0x1p-70, 0x1p-24, 65504.0, 0x1.fep127, kInf, std::nan("")})
      for (const char *where : {"dy", "x", "weight"})
        for (const double other : {0x1p-60, 1.0, 0x1p60}) {
          const Case c = plain_case(dtype, 5, 1061);
          Arrays arrays = make_arrays(c, {});
          fill(&arrays[where], dtype, [&](int64_t index, int64_t col) {
            if (index / 1061 == 2) return odd;
            return col % 97 == 11 ? odd : static_cast<double>(index % 11) - 5.3;
          });
          if (dtype == kBf16)
            for (const char *name : {"dy", "x", "weight"})
              if (std::string(name) != where)
                arrays[name].each([&](char *at, int64_t) {
                  reference::store(other * reference::load(at, dtype), at, dtype);
                });
          ASSERT_NO_FATAL_FAILURE(expect_same(c, arrays, where));
        }
}

TEST(HalfGradients, InPlace) {
  for (const rmsnorm_dtype_t dtype : kHalves)
    for (const Values values : {Values::kNormal, Values::kMixed, Values::kAnyExponent})
      for (const char *input : {"dy", "x", "dresidual_out"})
        for (const int64_t cols : {33, 1061, 2048}) {
          Case c = plain_case(dtype, 20, cols);
          c.tensors["x"].values = c.tensors["dy"].values = values;
          if (input[1] == 'r') c.tensors[input] = {dtype, values};
          const Arrays arrays = make_arrays(c, {});
          const Bits expected = bits_with(c, kGeneric, arrays);
          for (const RowTable *table : tables_here()) {
            Arrays own = arrays;
            BackwardProblem problem = backward_problem(c, &own);
            problem.dx = view_of(&own, input);
            const State state = {table, nullptr, nullptr};
            std::vector<char> workspace(cpu::backward_workspace_size(&state, problem));
            ASSERT_EQ(cpu::backward(&state, problem, {workspace.data(), nullptr}), RMSNORM_SUCCESS);
            EXPECT_EQ(own.at(input).bits(), expected.at("dx")) << table->isa << " " << c;
            EXPECT_EQ(own.at("dweight").bits(), expected.at("dweight")) << table->isa << " " << c;
          }
        }
}

}  // namespace
}  // namespace rmsnorm
