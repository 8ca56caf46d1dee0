// The CPU backend against itself: the same bits from every instruction set's table, for every split
// of the work over threads, every layout of the tensors, in place, and in every floating-point mode
// of the caller.
#include "cpu_case.h"

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace rmsnorm {
namespace {

TEST(Bits, SameOnEveryInstructionSet) {
  std::vector<Case> cases = various_cases(2, 1, 20000, 16);
  for (const int64_t cols : {1, 3, 15, 16, 17, 100, 1027})
    for (const int64_t groups : {1, 3})
      for (const Case &c : various_cases(3, groups, cols)) cases.push_back(c);
  for (const Case &c : cases) {
    const Arrays arrays = make_arrays(c, {});
    const Bits expected = bits_with(c, kGeneric, arrays);
    for (const RowTable *table : tables_here())
      ASSERT_EQ(bits_with(c, {table, nullptr, nullptr}, arrays), expected)
          << table->isa << " " << c;
  }
}

TEST(Bits, SameForEverySplit) {
  const RowTable &best = cpu::choose_rows(nullptr);
  for (const auto &[rows, groups, cols] :
       {std::array<int64_t, 3>{200, 1, 37}, {37, 5, 64}, {5000, 1, 9}, {3, 2, 3000}})
    for (const Case &c : various_cases(rows, groups, cols, 24)) {
      const Arrays arrays = make_arrays(c, {});
      const Bits expected = bits_with(c, {&best, nullptr, nullptr}, arrays);
      for (int threads = 1; threads <= 16; threads += threads < 4 ? 1 : 6) {
        Pool pool = {threads, c.seed + static_cast<uint64_t>(threads)};
        ASSERT_EQ(bits_with(c, {&best, Pool::run, &pool}, arrays), expected) << threads << " " << c;
      }
    }
}

// Stores past the cache, in rows that allow them, and in rows of 40 columns with their ends.
TEST(Bits, SamePastTheCache) {
  for (const auto &[cols, gap] :
       {std::pair<int64_t, int64_t>{64, 0}, {160, 0}, {1024, 0}, {40, 24}})
    for (Case &c : various_cases(5, 1, cols)) {
      for (const bool bias : {true, false}) {
        if (!bias) c.tensors.erase("bias");
        const Arrays arrays = make_arrays(c, {0, gap, 0});
        const Bits expected = bits_with(c, kGeneric, arrays);
        for (const RowTable *table : tables_here()) {
          const State state = {table, nullptr, nullptr, nullptr, 0};
          ASSERT_EQ(bits_with(c, state, arrays), expected) << table->isa << " " << c;
        }
      }
    }
}

// A fused add gives what its sums give by themselves: in rows short enough for the sums to be kept
// and in longer ones, with both kinds of stores.
TEST(Bits, SameAsOfTheSums) {
  for (const RowTable *table : tables_here())
    for (const rmsnorm_dtype_t dtype : {kF32, kF16, kBf16})
      for (const int64_t cols : {1, 33, 4080, 4096, 4097, 8191, 8192, 8224})
        for (const Values values :
             {Values::kNormal, Values::kMixed, Values::kTiny, Values::kHuge, Values::kSpecial})
          for (const int64_t stream_bytes : {int64_t{0}, INT64_MAX}) {
            Case c = forward_case(dtype, 4, cols);
            c.tensors.erase("bias");
            c.tensors["x"].values = values;
            const State state = {table, nullptr, nullptr, nullptr, stream_bytes};
            Arrays arrays = make_arrays(c, {0, (32 - cols % 32) % 32, 0});
            const Bits added = bits_with(c, state, arrays);
            run(c, state, &arrays);
            arrays["x"] = arrays["residual_out"];
            for (const char *name : {"residual", "residual_out"}) {
              c.tensors.erase(name);
              arrays.erase(name);
            }
            const Bits plain = bits_with(c, state, arrays);
            ASSERT_EQ(added.at("y"), plain.at("y")) << table->isa << " " << c;
            ASSERT_EQ(added.at("rstd"), plain.at("rstd")) << table->isa << " " << c;
          }
}

TEST(Bits, SameForEveryLayout) {
  const Layout layouts[] = {{1, 0, 0}, {3, 5, 0}, {0, 7, 1}, {13, 1, 11}};
  for (const int64_t cols : {1, 5, 16, 33, 257})
    for (const Case &c : various_cases(5, 2, cols)) {
      const Bits expected = bits_with(c, kGeneric, make_arrays(c, {}));
      size_t skew = 1;
      for (const Layout &layout : layouts) {
        const Arrays arrays = make_arrays(c, layout);
        for (const RowTable *table : tables_here())
          ASSERT_EQ(bits_with(c, {table, nullptr, nullptr}, arrays, skew), expected)
              << table->isa << " " << c;
        skew += 3;
      }
    }
}

// Zero and negative strides of inputs: one row for all, and rows from the last to the first.
TEST(Bits, SameForZeroAndNegativeStrides) {
  const State state = {&cpu::choose_rows(nullptr), nullptr, nullptr};
  for (const rmsnorm_dtype_t dtype : kDtypes) {
    const Case c = forward_case(dtype, 4, 50);
    Arrays arrays = make_arrays(c, {});
    Arrays turned = make_arrays(c, {});
    ForwardProblem problem = forward_problem(c, &arrays);
    for (View *view : {&problem.x, &problem.residual}) {
      view->data = view->at(3, 0);
      view->row_stride = -view->row_stride;
    }
    ASSERT_EQ(cpu::forward(&state, problem, {nullptr, nullptr}), RMSNORM_SUCCESS);
    run(c, state, &turned);
    for (int64_t r = 0; r < 4; ++r)
      for (int64_t col = 0; col < 50; ++col)
        ASSERT_EQ(arrays["y"].get(r, 0, col), turned["y"].get(3 - r, 0, col));
    problem = forward_problem(c, &arrays);
    problem.x.row_stride = problem.residual.row_stride = 0;
    ASSERT_EQ(cpu::forward(&state, problem, {nullptr, nullptr}), RMSNORM_SUCCESS);
    for (int64_t r = 0; r < 4; ++r)
      for (int64_t col = 0; col < 50; ++col)
        ASSERT_EQ(arrays["y"].get(r, 0, col), turned["y"].get(0, 0, col));
  }
}

// Each pair that rmsnorm.h allows to be one view.
TEST(Bits, SameInPlace) {
  const std::pair<const char *, const char *> pairs[] = {
      {"y", "x"},  {"residual_out", "residual"}, {"residual_out", "x"}, {"dx", "dy"},
      {"dx", "x"}, {"dx", "dresidual_out"}};
  for (const RowTable *table : tables_here())
    for (const auto &[output, input] : pairs)
      for (const int64_t cols : {1, 50})
        for (Case c : various_cases(20, 2, cols, 32)) {
          if (c.dtype(output) == kNone || c.dtype(input) == kNone) continue;
          c.tensors[output] = c.tensors[input];
          const State state = {table, nullptr, nullptr};
          Arrays arrays = make_arrays(c, {});
          const Bits expected = bits_with(c, state, arrays);
          Case shared = c;
          shared.tensors.erase(output);
          arrays.erase(output);
          if (is_forward(c)) {
            ForwardProblem problem = forward_problem(shared, &arrays);
            View &view = std::string(output) == "y" ? problem.y : problem.residual_out;
            view = view_of(&arrays, input);
            if (std::string(output) == "residual_out") problem.h_dtype = view.dtype;
            ASSERT_EQ(cpu::forward(&state, problem, {nullptr, nullptr}), RMSNORM_SUCCESS);
          } else {
            BackwardProblem problem = backward_problem(shared, &arrays);
            problem.dx = view_of(&arrays, input);
            std::vector<char> workspace(cpu::backward_workspace_size(&state, problem));
            ASSERT_EQ(cpu::backward(&state, problem, {workspace.data(), nullptr}), RMSNORM_SUCCESS);
          }
          arrays[output] = arrays[input];
          ASSERT_EQ(output_bits(c, &arrays), expected) << output << " on " << input << " " << c;
        }
}

// The floating-point control register: flush to zero and rounding modes, and the mask of what is
// not a flag.
#if defined(__x86_64__)
const uint64_t kModes[] = {0x9fc0, 0x7f80, 0x3f80, 0xffc0}, kModeMask = 0xffc0;
uint64_t get_mode() { return _mm_getcsr(); }
void set_mode(uint64_t mode) { _mm_setcsr(static_cast<unsigned>(mode)); }
#elif defined(__aarch64__)
const uint64_t kModes[] = {1u << 24, 3u << 22, 2u << 22, 7u << 23}, kModeMask = ~uint64_t{0};
uint64_t get_mode() {
  uint64_t mode;
  __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
  return mode;
}
void set_mode(uint64_t mode) { __asm__ volatile("msr fpcr, %0" : : "r"(mode)); }
#endif

TEST(Bits, SameUnderTheCallersMode) {
  for (const RowTable *table : tables_here())
    for (const Case &c : various_cases(3, 1, 100)) {
      const State state = {table, nullptr, nullptr};
      const Arrays fresh = make_arrays(c, {});
      const Bits expected = bits_with(c, state, fresh);
      for (const uint64_t mode : kModes) {
        Arrays arrays = fresh;
        const uint64_t before = get_mode();
        set_mode(mode);
        if ((get_mode() & kModeMask) != (mode & kModeMask)) {
          set_mode(before);
          GTEST_SKIP() << "this machine, or what runs on its behalf, has no such modes";
        }
        run(c, state, &arrays);
        const uint64_t after = get_mode();
        set_mode(before);
        ASSERT_EQ(after & kModeMask, mode & kModeMask);
        ASSERT_EQ(output_bits(c, &arrays), expected) << table->isa << " " << c;
      }
    }
}

// Inputs made of integers, outputs as one number: what every processor and compiler must find.
TEST(Bits, SameOnEveryMachine) {
  for (const RowTable *table : tables_here()) {
    uint64_t hash = 1469598103934665603u, next = 1;
    const auto random = [&next] {
      return (next = next * 6364136223846793005u + 1442695040888963407u) >> 33;
    };
    for (const rmsnorm_dtype_t dtype : kDtypes)
      for (const int kind : {0, 1, 2}) {  // forward, forward without a bias, backward
        Case c = kind == 2 ? backward_case(dtype, 70, 133) : forward_case(dtype, 70, 133);
        if (kind == 1) c.tensors.erase("bias");
        c.tensors.erase("rstd");
        Arrays arrays = make_arrays(c, {});
        for (auto &[name, array] : arrays)
          for (int64_t r = 0; r < (is_vector(name) ? 1 : c.rows); ++r)
            for (int64_t col = 0; col < c.cols; ++col) {
              const double fraction = static_cast<double>(random()) - 0x1p30;
              reference::store(std::ldexp(fraction, -25 - static_cast<int>(random() % 16)),
                               array.at(r, 0, col), dtype);
            }
        const Bits bits = bits_with(c, {table, nullptr, nullptr}, arrays);
        for (const auto &[name, elements] : bits)
          for (const uint64_t element : elements) hash = (hash ^ element) * 1099511628211u;
      }
    EXPECT_EQ(hash, 10772912055720929540u)
        << table->isa;  // changes with the trees of the sums alone
  }
}

// ---- Conversions --------------------------------------------------------------------------------

// residual_out of x + (-0) rounds x and nothing else.
std::vector<uint64_t> converted(const RowTable &table, const std::vector<double> &values,
                                rmsnorm_dtype_t from, rmsnorm_dtype_t to) {
  const int64_t cols = static_cast<int64_t>(values.size());
  Array x(from, 1, 1, cols, {}), zero(from, 1, 1, cols, {}), y(kF32, 1, 1, cols, {});
  Array out(to, 1, 1, cols, {});
  for (int64_t c = 0; c < cols; ++c) {
    reference::store(values[static_cast<size_t>(c)], x.at(0, 0, c), from);
    reference::store(-0.0, zero.at(0, 0, c), from);
  }
  ForwardProblem problem;
  problem.rows = 1, problem.cols = cols, problem.h_dtype = to;
  problem.x = x.view(), problem.residual = zero.view(), problem.y = y.view();
  problem.residual_out = out.view();
  const State state = {&table, nullptr, nullptr};
  EXPECT_EQ(cpu::forward(&state, problem, {nullptr, nullptr}), RMSNORM_SUCCESS);
  return out.bits();
}

TEST(Conversion, EveryHalfBothWays) {
  for (const RowTable *table : tables_here())
    for (const rmsnorm_dtype_t dtype : {kF16, kBf16}) {
      std::vector<double> values;
      for (uint32_t bits = 0; bits < 65536; ++bits) {
        const uint16_t half = static_cast<uint16_t>(bits);
        values.push_back(reference::load(&half, dtype));
      }
      const std::vector<uint64_t> same = converted(*table, values, dtype, dtype);
      const std::vector<uint64_t> wide = converted(*table, values, dtype, kF32);
      for (uint32_t bits = 0; bits < 65536; ++bits) {
        if (std::isnan(values[bits])) {
          ASSERT_EQ(same[bits], ~uint64_t{0});
          continue;
        }
        ASSERT_EQ(same[bits], bits) << table->isa << " " << dtype_name(dtype);
        uint32_t single = 0;
        reference::store(values[bits], &single, kF32);
        ASSERT_EQ(wide[bits], single) << table->isa << " " << dtype_name(dtype) << " " << bits;
      }
    }
}

// fp32 values at, just below and just above every tie of a 16-bit format, both signs.
TEST(Conversion, EveryTieFromSingle) {
  for (const RowTable *table : tables_here())
    for (const rmsnorm_dtype_t dtype : {kF16, kBf16}) {
      std::vector<double> values;
      const uint16_t infinity = dtype == kF16 ? 0x7c00 : 0x7f80;
      for (uint16_t bits = 0; bits < infinity; ++bits) {
        const uint16_t next = static_cast<uint16_t>(bits + 1);
        const double below = reference::load(&bits, dtype);
        double above = reference::load(&next, dtype);
        if (std::isinf(above)) above = std::exp2(dtype == kF16 ? 16 : 128);
        const float middle = static_cast<float>((below + above) / 2);
        for (const float value :
             {middle, std::nextafterf(middle, 0), std::nextafterf(middle, HUGE_VALF)})
          values.push_back(value), values.push_back(-value);
      }
      const std::vector<uint64_t> got = converted(*table, values, kF32, dtype);
      for (size_t i = 0; i < values.size(); ++i) {
        uint16_t expected = 0;
        reference::store(values[i], &expected, dtype);
        ASSERT_EQ(got[i], expected) << table->isa << " " << dtype_name(dtype) << " " << values[i];
      }
    }
}

}  // namespace
}  // namespace rmsnorm
