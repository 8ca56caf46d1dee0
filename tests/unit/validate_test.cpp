// Core's rules in isolation: each refusal of support/refusals.cpp, and what a valid problem is
// resolved to. No memory is touched, so the addresses are made up.
#include "core/validate.h"

#include <gtest/gtest.h>

#include <cmath>

#include "../support/refusals.h"

namespace {

using rmsnorm::BackwardProblem;
using rmsnorm::Check;
using rmsnorm::Extent;
using rmsnorm::ForwardProblem;
using rmsnorm::GluBackwardProblem;
using rmsnorm::GluForwardProblem;
using rmsnorm::make_problem;
using namespace rmsnorm_test;

// A case's params; tensors 2^32 bytes apart.
Params params_of(const Case &c) {
  Params params(c.direction);
  params.edit_head([&](auto *head) {
    head->rows = c.rows, head->groups = c.groups, head->cols = c.cols;
    head->flags = c.flags;
  });
  params.edit_norm([&](auto *norm) {
    norm->eps = c.eps, norm->weight_offset = c.weight_offset, norm->rounding = c.rounding;
  });
  params.edit_glu([&](auto *glu) { glu->activation = c.activation; });
  for (int i = 0; i < kNameCount; ++i) {
    const Name name = static_cast<Name>(i);
    if (!c.has(name) || !takes(c.direction, name)) continue;
    params.tensor(name) = {reinterpret_cast<void *>((uintptr_t(i) + 1) << 32),
                           c.resolved_row_stride(name), c.resolved_group_stride(name),
                           c[name].dtype, 0};
  }
  return params;
}

rmsnorm_status_t check(const Params &params, Check how) {
  ForwardProblem forward;
  BackwardProblem backward;
  GluForwardProblem glu_forward;
  GluBackwardProblem glu_backward;
  switch (params.direction) {
    case Direction::kForward: return make_problem(&params.forward, how, &forward);
    case Direction::kBackward: return make_problem(&params.backward, how, &backward);
    case Direction::kGluForward: return make_problem(&params.glu_forward, how, &glu_forward);
    default: return make_problem(&params.glu_backward, how, &glu_backward);
  }
}

rmsnorm_status_t resolve(const Case &c, ForwardProblem *problem) {
  const Params params = params_of(c);
  return make_problem(&params.forward, Check::kMemory, problem);
}
rmsnorm_status_t resolve(const Case &c, BackwardProblem *problem) {
  const Params params = params_of(c);
  return make_problem(&params.backward, Check::kMemory, problem);
}

class Validate : public testing::TestWithParam<Direction> {};

TEST_P(Validate, EveryRule) {
  const Params good = params_of(unbroken_case(GetParam()));
  ASSERT_EQ(check(good, Check::kMemory), RMSNORM_SUCCESS) << last_error();
  const std::vector<Refusal> rules = refusals(GetParam());
  EXPECT_GT(rules.size(), is_glu(GetParam()) ? 70u : 150u);
  for (const Refusal &refusal : rules) {
    Params bad = good;
    refusal.break_rule(&bad);
    EXPECT_STREQ(rmsnorm_status_name(check(bad, Check::kMemory)),
                 rmsnorm_status_name(refusal.status))
        << refusal.rule << ": " << last_error();
    for (const std::string &text : refusal.texts)
      EXPECT_NE(last_error().find(text), std::string::npos)
          << refusal.rule << ": no \"" << text << "\" in \"" << last_error() << "\"";
    EXPECT_EQ(check(bad, Check::kShape), refusal.of_memory ? RMSNORM_SUCCESS : refusal.status)
        << refusal.rule;
  }
}

// Every pair of an output and another tensor on the same data: allowed for the pairs that the
// header lists.
TEST_P(Validate, TheSameView) {
  const Case c = unbroken_case(GetParam());
  std::string allowed;
  for (int i = 0; i < kNameCount; ++i)
    for (int j = 0; j < kNameCount; ++j) {
      const Name output = static_cast<Name>(i), other = static_cast<Name>(j);
      if (i == j || !c.has(output) || !c.has(other) || !is_output(c.direction, output)) continue;
      Params params = params_of(c);
      params.tensor(output).data = params.tensor(other).data;
      if (check(params, Check::kMemory) == RMSNORM_SUCCESS)
        allowed += std::string(info(output).text) + " on " + info(other).text + ", ";
    }
  constexpr const char *kAllowed[] = {"y on x, residual_out on x, residual_out on residual, ",
                                      "dx on x, dx on dy, dx on dresidual_out, ",
                                      "y on gate, y on up, ",
                                      "dgate on dy, dgate on gate, dup on dy, dup on up, "};
  EXPECT_EQ(allowed, kAllowed[static_cast<int>(GetParam())]);
}

// Inputs may share memory in any way.
TEST_P(Validate, InputsMayOverlap) {
  const Case c = unbroken_case(GetParam());
  Params params = params_of(c);
  for (int i = 0; i < kNameCount; ++i) {
    const Name name = static_cast<Name>(i);
    if (c.has(name) && !is_output(c.direction, name))
      params.tensor(name).data = reinterpret_cast<void *>((uintptr_t{50} << 32) + uintptr_t(4 * i));
  }
  EXPECT_EQ(check(params, Check::kMemory), RMSNORM_SUCCESS) << last_error();
}

TEST_P(Validate, EmptyTensorsNeedNoData) {
  Case c = unbroken_case(GetParam());
  c.rows = 0;
  Params params = params_of(c);
  for (int i = 0; i < kNameCount; ++i)
    if (c.has(static_cast<Name>(i)) && info(static_cast<Name>(i)).extent != Extent::kVector)
      params.tensor(static_cast<Name>(i)).data = nullptr;
  EXPECT_EQ(check(params, Check::kMemory), RMSNORM_SUCCESS) << last_error();
  if (is_glu(GetParam())) return;
  params.tensor(kWeight).data = nullptr;  // has elements all the same
  EXPECT_EQ(check(params, Check::kMemory), RMSNORM_ERROR_NULL);
}

INSTANTIATE_TEST_SUITE_P(All, Validate, testing::ValuesIn(kDirections),
                         [](const auto &tested) { return text(tested.param); });

TEST(Problem, ScalarsAndFlags) {
  Case c = unbroken_case(Direction::kForward);
  c.eps = 0.25, c.weight_offset = -0.5;
  c.rounding = RMSNORM_ROUNDING_LLAMA;
  c.flags = RMSNORM_FLAG_OVERLAP;
  ForwardProblem problem;
  ASSERT_EQ(resolve(c, &problem), RMSNORM_SUCCESS);
  EXPECT_EQ(problem.rows, 4);
  EXPECT_EQ(problem.groups, 3);
  EXPECT_EQ(problem.cols, 40);
  EXPECT_EQ(problem.eps, 0.25);
  EXPECT_EQ(problem.weight_offset, -0.5);
  EXPECT_TRUE(problem.llama && problem.overlap);
  c = unbroken_case(Direction::kBackward);
  c.flags = RMSNORM_FLAG_ACCUMULATE;
  BackwardProblem backward;
  ASSERT_EQ(resolve(c, &backward), RMSNORM_SUCCESS);
  EXPECT_TRUE(backward.accumulate && !backward.overlap && !backward.per_group);
}

TEST(Problem, Activations) {
  for (const rmsnorm_activation_t activation : kActivations)
    for (const bool overlap : {false, true}) {
      Case c = glu_case(Direction::kGluForward, activation, 4, 40, RMSNORM_DTYPE_F16);
      c.groups = 3, c.flags = overlap ? RMSNORM_FLAG_OVERLAP : 0;
      const Params forward = params_of(c);
      GluForwardProblem problem;
      ASSERT_EQ(make_problem(&forward.glu_forward, Check::kMemory, &problem), RMSNORM_SUCCESS);
      EXPECT_TRUE(problem.rows == 4 && problem.groups == 3 && problem.cols == 40);
      EXPECT_EQ(problem.activation, activation);
      EXPECT_EQ(problem.overlap, overlap);
      EXPECT_EQ(problem.up.data, forward.glu_forward.up.data);
      c = glu_case(Direction::kGluBackward, activation, 4, 40, RMSNORM_DTYPE_F16);
      c[kDgate] = {};
      const Params backward = params_of(c);
      GluBackwardProblem gradients;
      ASSERT_EQ(make_problem(&backward.glu_backward, Check::kMemory, &gradients), RMSNORM_SUCCESS);
      EXPECT_EQ(gradients.activation, activation);
      EXPECT_TRUE(gradients.dup.present() && !gradients.dgate.present() && !gradients.overlap);
    }
}

TEST(Problem, HDtype) {
  constexpr rmsnorm_dtype_t kF32 = RMSNORM_DTYPE_F32, kF16 = RMSNORM_DTYPE_F16,
                            kBf16 = RMSNORM_DTYPE_BF16, kAbsent = RMSNORM_DTYPE_NONE;
  const struct {
    rmsnorm_dtype_t x, residual, residual_out, h;
  } rows[] = {
      {kBf16, kAbsent, kAbsent, kBf16}, {kF16, kF16, kAbsent, kF16},  {kF16, kBf16, kAbsent, kF32},
      {kBf16, kF32, kAbsent, kF32},     {kF32, kBf16, kAbsent, kF32}, {kF16, kF16, kF32, kF32},
      {kF16, kF32, kBf16, kBf16},       {kF32, kF32, kF16, kF16},
  };
  for (const auto &row : rows) {
    Case c = add_case(3, 8, row.x);
    c[kResidual].dtype = row.residual;
    c[kResidualOut].dtype = row.residual_out;
    ForwardProblem problem;
    ASSERT_EQ(resolve(c, &problem), RMSNORM_SUCCESS) << last_error();
    EXPECT_EQ(problem.h_dtype, row.h) << c;
    EXPECT_EQ(problem.h_dtype, c.h_dtype()) << c;
  }
}

// Strides of a dimension of size 1 become 0, so that nobody multiplies by them.
TEST(Problem, StridesOfOneAreZero) {
  for (const int64_t groups : {0, 1}) {
    Case c = full_case(Direction::kForward, 1, 8, RMSNORM_DTYPE_F32);
    c.groups = groups;
    for (const Name name : {kX, kResidual, kY, kResidualOut, kRstd})
      c[name].row_stride = c[name].group_stride = INT64_MAX;
    c[kWeight].group_stride = c[kBias].group_stride = INT64_MAX;
    ForwardProblem problem;
    ASSERT_EQ(resolve(c, &problem), RMSNORM_SUCCESS) << last_error();
    EXPECT_EQ(problem.groups, 1);
    for (const rmsnorm::View *view : {&problem.x, &problem.residual, &problem.weight, &problem.bias,
                                      &problem.y, &problem.residual_out, &problem.rstd})
      EXPECT_TRUE(view->row_stride == 0 && view->group_stride == 0);
  }
}

TEST(Problem, PerGroup) {
  Case c = unbroken_case(Direction::kBackward);
  for (const Name name : {kWeight, kDweight, kDbias}) c[name].group_stride = 41;
  BackwardProblem problem;
  ASSERT_EQ(resolve(c, &problem), RMSNORM_SUCCESS) << last_error();
  EXPECT_TRUE(problem.per_group);
  c[kDweight] = c[kWeight] = {};
  problem = {};
  ASSERT_EQ(resolve(c, &problem), RMSNORM_SUCCESS) << last_error();
  EXPECT_TRUE(problem.per_group);
  // dx alone: weight's stride is an input's, whatever it is.
  c = unbroken_case(Direction::kBackward);
  c[kDweight] = c[kDbias] = {};
  c[kWeight].group_stride = -3;
  problem = {};
  ASSERT_EQ(resolve(c, &problem), RMSNORM_SUCCESS) << last_error();
  EXPECT_FALSE(problem.per_group);
}

TEST(Problem, QueriesHaveNoData) {
  const Params params = params_of(unbroken_case(Direction::kForward));
  ForwardProblem problem;
  ASSERT_EQ(make_problem(&params.forward, Check::kShape, &problem), RMSNORM_SUCCESS);
  for (const auto &row : rmsnorm::kForwardTensors) EXPECT_EQ((problem.*row.view).data, nullptr);
}

// The tables of tensors are in the params' order and say of each what the header says.
TEST(Problem, Tables) {
  const auto compare = [](const auto &table, Direction direction, size_t size) {
    size_t offset = size - std::size(table) * sizeof(rmsnorm_tensor_t);
    Params params(direction);
    for (const auto &row : table) {
      EXPECT_EQ(row.offset, offset) << row.name;
      offset += sizeof(rmsnorm_tensor_t);
      int matches = 0;
      for (int i = 0; i < kNameCount; ++i) {
        const Name name = static_cast<Name>(i);
        if (std::string(info(name).text) != row.name || !takes(direction, name)) continue;
        ++matches;
        EXPECT_EQ(row.extent, info(name).extent) << row.name;
        EXPECT_EQ(row.output, is_output(direction, name)) << row.name;
      }
      EXPECT_EQ(matches, 1) << row.name;
    }
  };
  compare(rmsnorm::kForwardTensors, Direction::kForward, sizeof(rmsnorm_forward_params_t));
  compare(rmsnorm::kBackwardTensors, Direction::kBackward, sizeof(rmsnorm_backward_params_t));
  compare(rmsnorm::kGluForwardTensors, Direction::kGluForward,
          sizeof(rmsnorm_glu_forward_params_t));
  compare(rmsnorm::kGluBackwardTensors, Direction::kGluBackward,
          sizeof(rmsnorm_glu_backward_params_t));
}

TEST(Workspace, Rules) {
  const Case c = unbroken_case(Direction::kBackward);
  const Params params = params_of(c);
  BackwardProblem problem;
  ASSERT_EQ(make_problem(&params.backward, Check::kMemory, &problem), RMSNORM_SUCCESS);
  char *const apart = reinterpret_cast<char *>(uintptr_t{90} << 32);
  EXPECT_EQ(check_workspace(problem, apart, 100, 100), RMSNORM_SUCCESS);
  EXPECT_EQ(check_workspace(problem, apart + 1, 101, 100), RMSNORM_SUCCESS);
  EXPECT_EQ(check_workspace(problem, nullptr, 0, 0), RMSNORM_SUCCESS);
  EXPECT_EQ(check_workspace(problem, problem.x.data, 5, 0), RMSNORM_SUCCESS);  // not used
  EXPECT_EQ(check_workspace(problem, nullptr, 100, 100), RMSNORM_ERROR_WORKSPACE);
  EXPECT_EQ(last_error(), "workspace is NULL, but this call needs 100 bytes");
  EXPECT_EQ(check_workspace(problem, apart, 99, 100), RMSNORM_ERROR_WORKSPACE);
  EXPECT_EQ(last_error(), "workspace_size = 99, but this call needs 100 bytes");
  for (int i = 0; i < kNameCount; ++i) {
    const Name name = static_cast<Name>(i);
    if (!c.has(name)) continue;
    char *const data = static_cast<char *>(Params(params).tensor(name).data);
    const int64_t bytes = c.rows_of(name) * c.groups_of(name) * c.cols_of(name) * 4;
    EXPECT_EQ(check_workspace(problem, data - 100, 100, 100), RMSNORM_SUCCESS) << last_error();
    EXPECT_EQ(check_workspace(problem, data + bytes, 100, 100), RMSNORM_SUCCESS) << last_error();
    for (char *const at : {data - 99, data, data + bytes - 1}) {
      EXPECT_EQ(check_workspace(problem, at, 100, 100), RMSNORM_ERROR_ALIAS);
      EXPECT_NE(last_error().find(std::string(info(name).text) + ".data"), std::string::npos)
          << last_error();
    }
  }
}

}  // namespace
