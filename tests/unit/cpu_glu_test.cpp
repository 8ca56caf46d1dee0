// The gated activations of the CPU backend against themselves: the same bits from every instruction
// set's table, past the cache, for every split of the work, in every floating-point mode of the
// caller, and on every machine. Data are any bits at all, and numbers around 1 among them.
#include "cpu_case.h"

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace rmsnorm {
namespace {

constexpr rmsnorm_activation_t kActivations[] = {RMSNORM_ACTIVATION_SILU,
                                                 RMSNORM_ACTIVATION_GELU_TANH,
                                                 RMSNORM_ACTIVATION_GELU_ERF};
const char *const kInputs[] = {"dy", "gate", "up"};

// dy, gate, up, y, dgate and dup of one shape, for both operations.
struct GluCase {
  int64_t rows, groups, cols;
  rmsnorm_dtype_t dtypes[6];
  rmsnorm_activation_t activation;
  uint64_t seed;
};
std::ostream &operator<<(std::ostream &out, const GluCase &c) {
  out << c.rows << " x " << c.groups << " x " << c.cols << " activation " << c.activation;
  for (const rmsnorm_dtype_t dtype : c.dtypes) out << " " << dtype_name(dtype);
  return out << " seed " << c.seed;
}

Arrays make_arrays(const GluCase &c, const Layout &layout) {
  constexpr const char *kNames[] = {"dy", "gate", "up", "y", "dgate", "dup"};
  Arrays arrays;
  uint64_t next = c.seed;
  const auto random = [&next] {
    return (next = next * 6364136223846793005u + 1442695040888963407u) >> 33;
  };
  for (int i = 0; i < 6; ++i) {
    Array array(c.dtypes[i], c.rows, c.groups, c.cols, layout);
    for (int64_t r = 0; r < c.rows; ++r)
      for (int64_t g = 0; g < c.groups; ++g)
        for (int64_t col = 0; col < c.cols; ++col) {
          if (random() % 4 == 0) {
            const uint64_t bits = random() << 33 | random() << 2;
            const size_t size = static_cast<size_t>(element_size(c.dtypes[i]));
            std::memcpy(array.at(r, g, col), reinterpret_cast<const char *>(&bits) + 8 - size,
                        size);
          } else {
            const double number = (static_cast<double>(random()) - 0x1p30) * 0x1p-27;
            reference::store(number, array.at(r, g, col), c.dtypes[i]);
          }
        }
    arrays.emplace(kNames[i], std::move(array));
  }
  return arrays;
}

void run(const GluCase &c, const State &state, Arrays *arrays) {
  GluForwardProblem forward;
  forward.rows = c.rows, forward.groups = c.groups, forward.cols = c.cols;
  forward.activation = c.activation;
  forward.gate = view_of(arrays, "gate"), forward.up = view_of(arrays, "up");
  forward.y = view_of(arrays, "y");
  ASSERT_EQ(cpu::glu_forward(&state, forward, {nullptr, nullptr}), RMSNORM_SUCCESS);
  GluBackwardProblem backward;
  backward.rows = c.rows, backward.groups = c.groups, backward.cols = c.cols;
  backward.activation = c.activation;
  backward.dy = view_of(arrays, "dy");
  backward.gate = forward.gate, backward.up = forward.up;
  backward.dgate = view_of(arrays, "dgate"), backward.dup = view_of(arrays, "dup");
  ASSERT_EQ(cpu::glu_backward(&state, backward, {nullptr, nullptr}), RMSNORM_SUCCESS);
}

Bits bits_with(const GluCase &c, const State &state, Arrays arrays) {
  Arrays inputs = arrays;
  run(c, state, &arrays);
  Bits bits;
  for (auto &[name, array] : arrays) {
    EXPECT_TRUE(array.outside_intact()) << name << " of " << c;
    bits[name] = array.bits();
  }
  for (const char *name : kInputs) EXPECT_EQ(bits[name], inputs[name].bits()) << name;
  return bits;
}

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
