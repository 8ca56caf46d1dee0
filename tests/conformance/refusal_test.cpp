// Bad input through the API, on each backend: every rule of support/refusals.cpp, the workspace and
// the stream. The status is right, the text names argument and value, and no byte of any output was
// written.
#include <gtest/gtest.h>

#include <cstring>

#include "../support/judge.h"
#include "../support/on_device.h"
#include "../support/refusals.h"

namespace rmsnorm_test {
namespace {

class RefusalOf : public OnDevice {
 protected:
  void expect_refused(Execution *execution, const std::string &rule, rmsnorm_status_t expected,
                      const std::vector<std::string> &texts) {
    execution->upload();
    const rmsnorm_status_t status = execution->launch();
    execution->download();
    EXPECT_STREQ(rmsnorm_status_name(status), rmsnorm_status_name(expected))
        << rule << ": " << last_error();
    for (const std::string &text : texts)
      EXPECT_NE(last_error().find(text), std::string::npos)
          << rule << ": no \"" << text << "\" in \"" << last_error() << "\"";
    EXPECT_TRUE(execution->nothing_written()) << rule;
  }

  // The queries answer as the call does, or do not see what is wrong with memory.
  void expect_queries(const Execution &execution, const Refusal &refusal) {
    const rmsnorm_status_t expected = refusal.of_memory ? RMSNORM_SUCCESS : refusal.status;
    size_t size = 12345;
    EXPECT_EQ(query_size(execution.context, execution.params, &size), expected) << refusal.rule;
    char name[RMSNORM_KERNEL_NAME_SIZE] = "untouched";
    EXPECT_EQ(query_name(execution.context, execution.params, name, sizeof name), expected)
        << refusal.rule;
    if (refusal.of_memory) return;
    EXPECT_EQ(size, 12345u) << refusal.rule;
    EXPECT_STREQ(name, "untouched") << refusal.rule;
  }

  // A call that needs a workspace, if this backend has one.
  Case case_with_workspace(Direction direction) {
    for (const int64_t rows : {4, 5000}) {
      const Case c = full_case(direction, rows, 64, RMSNORM_DTYPE_F32);
      Execution execution(device(), c);
      EXPECT_EQ(execution.prepare_workspace(), RMSNORM_SUCCESS) << last_error();
      if (execution.workspace_size_needed() > 0) return c;
    }
    return {};
  }
};

TEST_P(RefusalOf, EveryRuleOfTheParams) {
  for (const Direction direction : kDirections) {
    const Case c = unbroken_case(direction);
    ASSERT_TRUE(conforms(device(), c));
    for (const Refusal &refusal : refusals(direction)) {
      Execution execution(device(), c);
      ASSERT_EQ(execution.prepare_workspace(), RMSNORM_SUCCESS) << last_error();
      refusal.break_rule(&execution.params);
      expect_refused(&execution, refusal.rule, refusal.status, refusal.texts);
      expect_queries(execution, refusal);
    }
  }
}

TEST_P(RefusalOf, NullArguments) {
  for (const Direction direction : kDirections) {
    Execution execution(device(), unbroken_case(direction));
    ASSERT_EQ(execution.prepare_workspace(), RMSNORM_SUCCESS) << last_error();
    size_t size = 0;
    char name[RMSNORM_KERNEL_NAME_SIZE];
    const rmsnorm_context_t *const context = execution.context;
    EXPECT_EQ(query_size(context, execution.params, nullptr), RMSNORM_ERROR_NULL);
    EXPECT_EQ(last_error(), "size is NULL");
    EXPECT_EQ(query_name(context, execution.params, nullptr, sizeof name), RMSNORM_ERROR_NULL);
    EXPECT_EQ(last_error(), "name is NULL");
    EXPECT_EQ(query_size(nullptr, execution.params, &size), RMSNORM_ERROR_NULL);
    EXPECT_EQ(query_name(nullptr, execution.params, name, sizeof name), RMSNORM_ERROR_NULL);
    execution.context = nullptr;
    expect_refused(&execution, "no context", RMSNORM_ERROR_NULL, {"context is NULL"});
  }
  const rmsnorm_context_t *const context = device().context();
  size_t size = 0;
  EXPECT_EQ(rmsnorm_forward(context, nullptr, nullptr, 0, nullptr), RMSNORM_ERROR_NULL);
  EXPECT_EQ(last_error(), "params is NULL");
  EXPECT_EQ(rmsnorm_backward(context, nullptr, nullptr, 0, nullptr), RMSNORM_ERROR_NULL);
  EXPECT_EQ(rmsnorm_forward_workspace_size(context, nullptr, &size), RMSNORM_ERROR_NULL);
  EXPECT_EQ(rmsnorm_backward_workspace_size(context, nullptr, &size), RMSNORM_ERROR_NULL);
  EXPECT_EQ(rmsnorm_glu_forward(context, nullptr, nullptr, 0, nullptr), RMSNORM_ERROR_NULL);
  EXPECT_EQ(rmsnorm_glu_backward(context, nullptr, nullptr, 0, nullptr), RMSNORM_ERROR_NULL);
  EXPECT_EQ(rmsnorm_glu_forward_workspace_size(context, nullptr, &size), RMSNORM_ERROR_NULL);
  EXPECT_EQ(rmsnorm_glu_backward_workspace_size(context, nullptr, &size), RMSNORM_ERROR_NULL);
}

// A struct of a newer library: accepted while what this one lacks is zero.
TEST_P(RefusalOf, LargerStructs) {
  struct {
    rmsnorm_forward_params_t params;
    unsigned char tail[64];
  } larger;
  Execution execution(device(), forward_case(3, 50, RMSNORM_DTYPE_F32));
  execution.upload();
  std::memset(&larger, 0, sizeof larger);
  larger.params = execution.params.forward;
  larger.params.struct_size = sizeof larger;
  for (const size_t byte : {size_t{0}, sizeof larger.tail - 1}) {
    larger.tail[byte] = 1;
    EXPECT_EQ(rmsnorm_forward(execution.context, &larger.params, nullptr, 0, execution.stream),
              RMSNORM_ERROR_NEWER_LIBRARY);
    const std::string at = std::to_string(sizeof larger.params + byte);
    EXPECT_NE(last_error().find("byte " + at + " "), std::string::npos) << last_error();
    larger.tail[byte] = 0;
  }
  execution.download();
  EXPECT_TRUE(execution.nothing_written());
  ASSERT_EQ(execution.prepare_workspace(), RMSNORM_SUCCESS);
  EXPECT_EQ(rmsnorm_forward(execution.context, &larger.params, execution.workspace,
                            execution.workspace_size, execution.stream),
            RMSNORM_SUCCESS);
  execution.download();
  EXPECT_TRUE(conforms(execution));
}

TEST_P(RefusalOf, WorkspaceTooSmallOrNull) {
  bool any = false;
  for (const Direction direction : kDirections) {
    const Case c = case_with_workspace(direction);
    if (c.cols == 0) continue;
    any = true;
    Execution execution(device(), c);
    ASSERT_EQ(execution.prepare_workspace(), RMSNORM_SUCCESS) << last_error();
    const size_t needed = execution.workspace_size_needed();
    void *const workspace = execution.workspace;
    execution.workspace_size = needed - 1;
    expect_refused(&execution, "workspace too small", RMSNORM_ERROR_WORKSPACE,
                   {"workspace_size = " + std::to_string(needed - 1),
                    std::to_string(needed) + " bytes"});
    execution.workspace_size = 0;
    expect_refused(&execution, "workspace empty", RMSNORM_ERROR_WORKSPACE, {"workspace_size = 0"});
    execution.workspace = nullptr;
    execution.workspace_size = needed;
    expect_refused(&execution, "workspace NULL", RMSNORM_ERROR_WORKSPACE, {"workspace is NULL"});
    execution.workspace = workspace;
    EXPECT_EQ(execution.launch(), RMSNORM_SUCCESS) << last_error();
    execution.download();
    EXPECT_TRUE(conforms(execution));
  }
  if (!any) GTEST_SKIP() << "no call needs a workspace on this backend";
}

TEST_P(RefusalOf, WorkspaceOverlaps) {
  bool any = false;
  for (const Direction direction : kDirections) {
    const Case c = case_with_workspace(direction);
    if (c.cols == 0) continue;
    any = true;
    for (int i = 0; i < kNameCount; ++i) {
      const Name name = static_cast<Name>(i);
      if (!c.has(name)) continue;
      Execution execution(device(), c);
      ASSERT_EQ(execution.prepare_workspace(), RMSNORM_SUCCESS) << last_error();
      char *const data = static_cast<char *>(execution.params.tensor(name).data);
      const size_t needed = execution.workspace_size_needed();
      for (char *const at : {data, data + 4, data - needed + 1}) {
        execution.workspace = at;
        expect_refused(&execution, info(name).text, RMSNORM_ERROR_ALIAS,
                       {"workspace = 0x", ".data"});
      }
    }
  }
  if (!any) GTEST_SKIP() << "no call needs a workspace on this backend";
}

// Where no memory is needed none is looked at: NULL data with no rows, and any pointer as a
// workspace of size 0.
TEST_P(RefusalOf, NothingIsNeededForNoRows) {
  for (const Direction direction : kDirections) {
    Case c = unbroken_case(direction);
    c.rows = 0;
    Execution execution(device(), c);
    execution.upload();
    ASSERT_EQ(execution.prepare_workspace(), RMSNORM_SUCCESS) << last_error();
    for (int i = 0; i < kNameCount; ++i) {
      const Name name = static_cast<Name>(i);
      if (c.has(name) && info(name).extent != Extent::kVector)
        execution.params.tensor(name).data = nullptr;
    }
    EXPECT_EQ(execution.launch(), RMSNORM_SUCCESS) << last_error();
    execution.download();
    EXPECT_TRUE(conforms(execution));
  }
}

// An offset that fp32 lacks is a number of fp64.
TEST_P(RefusalOf, Fp64TakesAnyFiniteOffset) {
  for (const double offset : {1e39, 1e-39, 5e-324}) {
    Case c = forward_case(3, 50, RMSNORM_DTYPE_F64);
    c.weight_offset = offset;
    EXPECT_TRUE(conforms(device(), c));
  }
}

TEST_P(RefusalOf, AStreamOnTheCpu) {
  if (on_cuda()) GTEST_SKIP() << "CUDA takes a stream";
  for (const Direction direction : kDirections) {
    Execution execution(device(), unbroken_case(direction));
    ASSERT_EQ(execution.prepare_workspace(), RMSNORM_SUCCESS) << last_error();
    int something = 0;
    execution.stream = &something;
    expect_refused(&execution, "a stream on the CPU", RMSNORM_ERROR_STREAM, {"stream"});
  }
}

INSTANTIATE_TEST_SUITE_P(All, RefusalOf, testing::ValuesIn(kBackends), BackendName());

}  // namespace
}  // namespace rmsnorm_test
