// The CPU backend against the reference, within the bounds that rmsnorm.h promises, and its own
// interface: dispatch, workspace, errors.
#include <cstdio>
#include <memory>

#include "core/status.h"
#include "cpu_check.h"

namespace rmsnorm {
namespace {

void print_worst() {
  for (const auto &[what, error] : worst)
    std::printf("[   worst  ] %-14s %.6f ulp, %.3f of the bound\n", what.c_str(), error.ulps,
                error.share);
  worst.clear();
}

TEST(Accuracy, EveryWidth) {
  const State state = {&cpu::choose_rows(nullptr), nullptr, nullptr};
  for (const int64_t cols : kCols)
    for (const rmsnorm_dtype_t dtype : kDtypes)
      for (const bool plain : {false, true}) {
        Case forward = forward_case(dtype, 2, cols), backward = backward_case(dtype, 3, cols);
        if (plain) {
          for (const char *name : {"residual", "residual_out", "bias"}) forward.tensors.erase(name);
          for (const char *name : {"rstd", "dresidual_out"}) backward.tensors.erase(name);
        }
        ASSERT_NO_FATAL_FAILURE(check(forward, state));
        ASSERT_NO_FATAL_FAILURE(check(backward, state));
        forward.llama = true;
        forward.tensors.erase("bias");
        ASSERT_NO_FATAL_FAILURE(check(forward, state));
      }
  print_worst();
}

TEST(Accuracy, EveryKindOfValues) {
  const State state = {&cpu::choose_rows(nullptr), nullptr, nullptr};
  for (const int64_t cols : {1, 5, 16, 40, 700})
    for (const int64_t groups : {1, 3})
      for (const Case &c : various_cases(4, groups, cols)) ASSERT_NO_FATAL_FAILURE(check(c, state));
  print_worst();
}

// More rows than one level of sums holds.
TEST(Accuracy, ManyRows) {
  const State state = {&cpu::choose_rows(nullptr), nullptr, nullptr};
  for (const rmsnorm_dtype_t dtype : {kF32, kF64}) {
    Case c = backward_case(dtype, 70000, 3);
    c.tensors.erase("dx"), c.tensors.erase("dresidual");
    ASSERT_NO_FATAL_FAILURE(check(c, state));
    c.rows = 140, c.groups = 1000;
    ASSERT_NO_FATAL_FAILURE(check(c, state));
  }
  print_worst();
}

// dy is x, so that the exact gradient is 0, with terms up to 10^36 times the dtype's range: what
// the bound allows may then round to Inf, and a number comes back where it does not reach so far.
TEST(Accuracy, TermsBeyondTheRange) {
  int infinite = 0, finite = 0;
  for (const RowTable *table : tables_here())
    for (const int64_t cols : {1, 2, 9, 70})
      for (const float size : {1e19f, 1e22f, 1e25f, 1e28f, 1e36f}) {
        Case c = backward_case(kF32, 2, cols);
        c.eps = 0;
        c.tensors.erase("rstd"), c.tensors.erase("dresidual_out");
        Arrays arrays = make_arrays(c, {});
        for (const char *name : {"x", "dy", "weight"})
          arrays[name].each([&](char *at, int64_t col) {
            const float value = static_cast<float>(col % 7 + 1);
            const float element = name[0] == 'x' ? value : name[0] == 'd' ? size * value : size;
            std::memcpy(at, &element, sizeof element);
          });
        const State state = {table, nullptr, nullptr};
        ASSERT_NO_FATAL_FAILURE(check(c, state, arrays));
        Arrays after = arrays;
        run(c, state, &after);
        bool any = false;
        after["dx"].each([&](char *at, int64_t) { any |= std::isinf(reference::load(at, kF32)); });
        ++(any ? infinite : finite);
        EXPECT_FALSE(any && size < 1e25f) << "the bound does not reach beyond the range";
      }
  EXPECT_GT(finite, 0);
  EXPECT_GT(infinite, 0) << "nothing here comes near it";
}

// ---- Halves in fp32 -----------------------------------------------------------------------------

// Rows without a bias, around the limits of what half_rows.inl.h computes in fp32.
TEST(Halves, WithinTheBoundAroundTheLimits) {
  std::mt19937_64 engine(7);
  const Values kinds[] = {Values::kNormal, Values::kMixed, Values::kFaint, Values::kAnyExponent,
                          Values::kHuge};
  for (const RowTable *table : tables_here())
    for (const rmsnorm_dtype_t dtype : {kF16, kBf16})
      for (const Values x : kinds)
        for (const Values weight : kinds)
          for (const int64_t cols : {1, 31, 33, 256, 300, 1061}) {
            Case c = forward_case(dtype, 2, cols);
            constexpr double kEps[] = {1e-6, 0, 1e30, 0x1p-100}, kOffsets[] = {0, 1, -1, 0.1, 3e38};
            c.seed = engine(), c.eps = kEps[engine() % 4], c.offset = kOffsets[engine() % 5];
            c.llama = engine() % 3 == 0;
            c.tensors.erase("bias");
            c.tensors["x"].values = c.tensors["residual"].values = x;
            c.tensors["weight"].values = weight;
            if (engine() % 2 == 0) c.tensors.erase("residual_out");
            if (engine() % 2 == 0) c.tensors.erase("residual"), c.tensors.erase("residual_out");
            if (engine() % 2 == 0) c.tensors.erase("rstd");
            check(c, {table, nullptr, nullptr});
            if (HasFatalFailure()) return;
          }
  print_worst();
}

// Rows of one number again and again: every addition to a sum of squares is rounded the same way.
TEST(Halves, WithinTheBoundWhereRoundingAddsUp) {
  constexpr int64_t kRows = 1024, kRowCols = 264;
  for (const RowTable *table : tables_here())
    for (const rmsnorm_dtype_t dtype : {kF16, kBf16}) {
      Case c = forward_case(dtype, kRows, kRowCols);
      c.eps = 0, c.offset = 1;
      for (const char *name : {"bias", "residual", "residual_out", "rstd"}) c.tensors.erase(name);
      Arrays arrays = make_arrays(c, {});
      for (int64_t r = 0; r < kRows; ++r)
        for (int64_t col = 0; col < kRowCols; ++col)
          reference::store(1 + static_cast<double>(r) / kRows, arrays["x"].at(r, 0, col), dtype);
      run(c, {table, nullptr, nullptr}, &arrays);
      const ForwardProblem problem = forward_problem(c, &arrays);
      for (int64_t r = 0; r < kRows; ++r) {
        const reference::ForwardRow row = reference::forward_row(problem, r, 0);
        for (int64_t col = 0; col < kRowCols; ++col)
          expect_within(arrays["y"].get(r, 0, col), row.y[static_cast<size_t>(col)], 0, dtype, "y",
                        c);
        if (HasFatalFailure()) return;
      }
    }
  print_worst();
}

// ---- fp64 ---------------------------------------------------------------------------------------

// Rows around the limits of what double_rows.inl.h computes without exponents of their own.
TEST(Doubles, WithinTheBoundAroundTheLimits) {
  std::mt19937_64 engine(11);
  const Values kinds[] = {Values::kNormal, Values::kEdge, Values::kZero};
  for (const RowTable *table : tables_here())
    for (const Values x : kinds)
      for (const Values other : kinds)
        for (const Values weight : kinds)
          for (const int64_t cols : {1, 5, 33, 300})
            for (Case c : {forward_case(kF64, 3, cols), backward_case(kF64, 3, cols)}) {
              constexpr double kEps[] = {1e-6, 0, 0x1p201, 0x1p-500};
              constexpr double kOffsets[] = {0, 1, -1, 0.1, 0x1p-201};
              c.seed = engine(), c.eps = kEps[engine() % 4], c.offset = kOffsets[engine() % 5];
              c.tensors.erase("bias");
              c.tensors["x"].values = x;
              c.tensors["weight"].values = weight;
              for (const char *name : {"residual", "dy"})
                if (c.dtype(name) != kNone) c.tensors[name].values = other;
              if (engine() % 2 == 0) c.tensors.erase("rstd");
              if (engine() % 2 == 0) c.tensors.erase("residual_out"), c.tensors.erase("residual");
              if (engine() % 4 == 0) c.tensors.erase("weight");
              check(c, {table, nullptr, nullptr});
              if (HasFatalFailure()) return;
            }
  print_worst();
}

// ---- The interface ------------------------------------------------------------------------------

TEST(Dispatch, CapsAndIgnoresUnknownNames) {
  const RowTable &best = cpu::choose_rows(nullptr);
  EXPECT_EQ(&cpu::choose_rows("none such"), &best);
  EXPECT_EQ(&cpu::choose_rows(""), &best);
  EXPECT_EQ(&cpu::choose_rows("generic"), &cpu::kGenericRows);
  for (const RowTable *table : tables_here()) EXPECT_EQ(&cpu::choose_rows(table->isa), table);
}

struct ContextDeleter {
  void operator()(rmsnorm_context_t *context) const { rmsnorm_context_destroy(context); }
};
using Context = std::unique_ptr<rmsnorm_context_t, ContextDeleter>;

Context make_context(rmsnorm_parallel_for_t parallel_for, void *user) {
  rmsnorm_context_options_t options = RMSNORM_CONTEXT_OPTIONS_INIT;
  options.parallel_for = parallel_for, options.parallel_for_user = user;
  rmsnorm_context_t *context = nullptr;
  EXPECT_EQ(rmsnorm_context_create(&options, &context), RMSNORM_SUCCESS);
  return Context(context);
}

std::string last_error() {
  char text[512];
  rmsnorm_last_error(text, sizeof text);
  return text;
}

TEST(Abi, ForwardAndItsErrors) {
  Pool pool = {3, 7};
  const Context context = make_context(Pool::run, &pool);
  std::vector<float> x(20 * 33, 2.0f), y(x.size());
  rmsnorm_forward_params_t params = RMSNORM_FORWARD_PARAMS_INIT;
  params.rows = 20, params.cols = 33;
  params.x.data = x.data(), params.x.row_stride = 33, params.x.dtype = kF32;
  params.y.data = y.data(), params.y.row_stride = 33, params.y.dtype = kF32;
  ASSERT_EQ(rmsnorm_forward(context.get(), &params, nullptr, 0, nullptr), RMSNORM_SUCCESS);
  for (const float value : y) ASSERT_EQ(value, 1.0f);

  size_t size = 1;
  ASSERT_EQ(rmsnorm_forward_workspace_size(context.get(), &params, &size), RMSNORM_SUCCESS);
  EXPECT_EQ(size, 0u);
  char name[RMSNORM_KERNEL_NAME_SIZE];
  ASSERT_EQ(rmsnorm_forward_kernel_name(context.get(), &params, name, sizeof name),
            RMSNORM_SUCCESS);
  EXPECT_EQ(name, std::string("cpu_") + cpu::chosen_rows().isa + "_forward_fp32");

  std::fill(y.begin(), y.end(), 5.0f);
  EXPECT_EQ(rmsnorm_forward(context.get(), &params, nullptr, 0, &size), RMSNORM_ERROR_STREAM);
  EXPECT_EQ(last_error().rfind("stream = 0x", 0), 0u) << last_error();
  EXPECT_EQ(y[0], 5.0f);

  const auto refuses = [](void *, int64_t, rmsnorm_task_t, void *) -> int32_t { return -7; };
  const Context broken = make_context(refuses, nullptr);
  EXPECT_EQ(rmsnorm_forward(broken.get(), &params, nullptr, 0, nullptr), RMSNORM_ERROR_CALLBACK);
  EXPECT_EQ(last_error(), "parallel_for returned -7");
}

TEST(Abi, DeviceInfo) {
  rmsnorm_device_info_t info = RMSNORM_DEVICE_INFO_INIT;
  ASSERT_EQ(rmsnorm_device_info(RMSNORM_DEVICE_CPU, 0, &info), RMSNORM_SUCCESS);
  EXPECT_EQ(info.supported, 1);
  EXPECT_GE(info.processors, 1);
  EXPECT_GT(info.memory_bytes, 0);
  EXPECT_STREQ(info.isa, cpu::chosen_rows().isa);
  EXPECT_NE(info.name[0], 0);
  EXPECT_EQ(rmsnorm_device_info(RMSNORM_DEVICE_CPU, 1, &info), RMSNORM_ERROR_DEVICE);
  rmsnorm_context_options_t options = RMSNORM_CONTEXT_OPTIONS_INIT;
  options.ordinal = 2;
  rmsnorm_context_t *context = nullptr;
  EXPECT_EQ(rmsnorm_context_create(&options, &context), RMSNORM_ERROR_DEVICE);
}

TEST(Workspace, GrowsWithRowsAndSaturates) {
  for (const rmsnorm_dtype_t dtype : kDtypes)
    for (const bool per_group : {false, true}) {
      Case c = backward_case(dtype, 0, 100);
      c.groups = 4, c.per_group = per_group;
      size_t before = 0;
      for (int64_t rows = 0; rows < 200000; rows += 1 + rows / 7) {
        Arrays arrays =
            make_arrays(Case{0, c.groups, 1, 0, 0, false, false, per_group, 1, c.tensors}, {});
        c.rows = rows;
        BackwardProblem problem = backward_problem(c, &arrays);
        const size_t size = cpu::backward_workspace_size(&kGeneric, problem);
        ASSERT_GE(size, before) << rows;
        before = size;
      }
    }
  BackwardProblem problem;
  problem.rows = 1, problem.cols = int64_t{1} << 61;
  problem.x.dtype = problem.dy.dtype = problem.dweight.dtype = kF32;
  EXPECT_EQ(cpu::backward_workspace_size(&kGeneric, problem), SIZE_MAX);
}

TEST(NoRows, ZeroGradientsUnlessAccumulating) {
  for (const rmsnorm_dtype_t dtype : kDtypes)
    for (const bool accumulate : {false, true}) {
      Case c = backward_case(dtype, 0, 21);
      c.accumulate = accumulate;
      Arrays arrays = make_arrays(c, {}), before = make_arrays(c, {});
      run(c, kGeneric, &arrays);
      for (const char *name : {"dweight", "dbias"})
        for (int64_t col = 0; col < 21; ++col)
          ASSERT_EQ(arrays[name].get(0, 0, col), accumulate ? before[name].get(0, 0, col) : 0);
    }
}

}  // namespace
}  // namespace rmsnorm
