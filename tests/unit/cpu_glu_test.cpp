// The gated activations of the CPU backend against themselves: the same bits from every instruction
// set's table, past the cache, for every split of the work, in every floating-point mode of the
// caller, and on every machine. Data are any bits at all, and numbers around 1 among them.
#include "cpu_glu_case.h"

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace rmsnorm {
namespace {

std::vector<GluCase> cases_of(int64_t rows, int64_t groups, int64_t cols) {
  std::vector<GluCase> cases;
  uint64_t seed = static_cast<uint64_t>(rows * 131 + groups * 17 + cols);
  for (const rmsnorm_activation_t activation : kActivations) {
    for (const rmsnorm_dtype_t d : kDtypes)
      cases.push_back({rows, groups, cols, {d, d, d, d, d, d}, activation, ++seed});
    cases.push_back(
        {rows, groups, cols, {kF16, kF32, kBf16, kF16, kBf16, kF32}, activation, ++seed});
  }
  return cases;
}

TEST(GluBits, SameOnEveryInstructionSetAndLayout) {
  for (const int64_t cols : {1, 3, 15, 16, 17, 100, 1027})
    for (const GluCase &c : cases_of(3, cols % 2 + 1, cols)) {
      const Bits expected = bits_with(c, kGeneric, make_arrays(c, {}));
      for (const Layout &layout : {Layout{0, 0, 0}, {1, 0, 0}, {3, 5, 0}, {0, 7, 1}, {0, 24, 0}})
        for (const RowTable *table : tables_here())
          ASSERT_EQ(bits_with(c, {table, nullptr, nullptr}, make_arrays(c, layout)), expected)
              << table->isa << " " << c;
    }
}

// Whole lines, rows with ends, and rows that begin off a line, where such stores cannot be.
TEST(GluBits, SamePastTheCache) {
  for (const auto &[cols, gap] :
       {std::pair<int64_t, int64_t>{64, 0}, {160, 0}, {1024, 0}, {40, 24}, {77, 3}})
    for (const GluCase &c : cases_of(5, 1, cols)) {
      const Arrays arrays = make_arrays(c, {0, gap, 0});
      const Bits expected = bits_with(c, kGeneric, arrays);
      for (const RowTable *table : tables_here())
        ASSERT_EQ(bits_with(c, {table, nullptr, nullptr, nullptr, 0}, arrays), expected)
            << table->isa << " " << c;
    }
}

// By rows, and long rows (or tensors without gaps) by columns.
TEST(GluBits, SameForEverySplit) {
  const RowTable &best = cpu::choose_rows(nullptr);
  for (const auto &[rows, groups, cols] :
       {std::array<int64_t, 3>{1, 1, 100001}, {700, 1, 97}, {20, 3, 2000}, {3, 1, 40000}})
    for (const GluCase &c : cases_of(rows, groups, cols)) {
      if (c.dtypes[0] == kF64 && cols > 50000) continue;
      for (const int64_t gap : {0, 1}) {
        const Arrays arrays = make_arrays(c, {0, gap, 0});
        const Bits expected = bits_with(c, {&best, nullptr, nullptr}, arrays);
        for (const int threads : {1, 3}) {
          Pool pool = {threads, c.seed + static_cast<uint64_t>(threads)};
          ASSERT_EQ(bits_with(c, {&best, Pool::run, &pool}, arrays), expected)
              << threads << " " << c;
          const State streaming = {&best, Pool::run, &pool, nullptr, 0};
          ASSERT_EQ(bits_with(c, streaming, arrays), expected) << threads << " " << c;
        }
      }
    }
}

#if defined(__x86_64__)
TEST(GluBits, SameUnderTheCallersMode) {
  for (const RowTable *table : tables_here())
    for (const GluCase &c : cases_of(3, 1, 100)) {
      const State state = {table, nullptr, nullptr};
      const Arrays fresh = make_arrays(c, {});
      const Bits expected = bits_with(c, state, fresh);
      for (const unsigned mode : {0x9fc0u, 0x7f80u, 0x3f80u, 0xffc0u}) {  // flush to zero, rounding
        Arrays arrays = fresh;
        const unsigned before = _mm_getcsr();
        _mm_setcsr(mode);
        run(c, state, &arrays);
        const unsigned after = _mm_getcsr();
        _mm_setcsr(before);
        ASSERT_EQ(after & 0xffc0u, mode & 0xffc0u);
        for (auto &[name, array] : arrays) ASSERT_EQ(array.bits(), expected.at(name)) << name;
      }
    }
}
#endif

// What every processor and compiler must find, as one number.
TEST(GluBits, SameOnEveryMachine) {
  for (const RowTable *table : tables_here()) {
    uint64_t hash = 1469598103934665603u;
    for (const GluCase &c : cases_of(70, 1, 133))
      for (const auto &[name, elements] :
           bits_with(c, {table, nullptr, nullptr}, make_arrays(c, {})))
        for (const uint64_t element : elements) hash = (hash ^ element) * 1099511628211u;
    EXPECT_EQ(hash, 17699622800815135598u) << table->isa;  // changes with the algorithms alone
  }
}

TEST(GluName, SaysWhatRuns) {
  for (const RowTable *table : tables_here()) {
    const State state = {table, nullptr, nullptr};
    GluForwardProblem forward;
    forward.activation = RMSNORM_ACTIVATION_GELU_ERF;
    forward.gate.dtype = forward.up.dtype = forward.y.dtype = kBf16;
    char name[RMSNORM_KERNEL_NAME_SIZE];
    cpu::glu_forward_kernel_name(&state, forward, name);
    EXPECT_EQ(name, std::string("cpu_") + table->isa + "_glu_forward_gelu_erf_bf16");
    EXPECT_EQ(cpu::glu_forward_workspace_size(&state, forward), 0u);
    GluBackwardProblem backward;
    backward.gate.dtype = backward.up.dtype = backward.dy.dtype = kF32;
    backward.dup.dtype = kF16;
    cpu::glu_backward_kernel_name(&state, backward, name);
    EXPECT_EQ(name, std::string("cpu_") + table->isa + "_glu_backward_silu_mixed");
    EXPECT_EQ(cpu::glu_backward_workspace_size(&state, backward), 0u);
  }
}

}  // namespace
}  // namespace rmsnorm
