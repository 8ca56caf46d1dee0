// The log line: everything needed to run the call again, in one line, never cut.
#include "core/log.h"

#include <gtest/gtest.h>

#include <cstring>
#include <string>

namespace {

using rmsnorm::BackwardProblem;
using rmsnorm::ForwardProblem;
using rmsnorm::GluBackwardProblem;
using rmsnorm::GluForwardProblem;
using rmsnorm::View;

void store_line(void *user, const char *line) { *static_cast<std::string *>(user) = line; }

rmsnorm::Backend fake_backend() {
  rmsnorm::Backend backend = {};
  backend.name = "fake";
  backend.forward.kernel_name = [](const void *, const ForwardProblem &, char *name) {
    std::strcpy(name, "fake_forward threads=3");
  };
  backend.backward.kernel_name = [](const void *, const BackwardProblem &, char *name) {
    std::memset(name, 'k', RMSNORM_KERNEL_NAME_SIZE - 1);
    name[RMSNORM_KERNEL_NAME_SIZE - 1] = '\0';
  };
  backend.glu_forward.kernel_name = [](const void *, const GluForwardProblem &, char *name) {
    std::strcpy(name, "fake_glu_forward");
  };
  backend.glu_backward.kernel_name = [](const void *, const GluBackwardProblem &, char *name) {
    std::strcpy(name, "fake_glu_backward");
  };
  return backend;
}

View make_view(uintptr_t at, int64_t row_stride, int64_t group_stride, rmsnorm_dtype_t dtype) {
  View view;
  view.data = reinterpret_cast<char *>(at);
  view.row_stride = row_stride;
  view.group_stride = group_stride;
  view.dtype = dtype;
  return view;
}

TEST(Log, ForwardLine) {
  const rmsnorm::Backend backend = fake_backend();
  std::string line;
  const rmsnorm_context_t context = {&backend, nullptr, 0, 2, store_line, &line};
  ForwardProblem problem;
  problem.rows = 7, problem.groups = 2, problem.cols = 100;
  problem.eps = 1e-6, problem.weight_offset = 1;
  problem.llama = true;
  problem.x = make_view(0x10010, 200, 100, RMSNORM_DTYPE_BF16);
  problem.y = problem.x;
  problem.weight = make_view(0x20000, 0, 0, RMSNORM_DTYPE_F32);
  log_call(context, problem);
  EXPECT_EQ(line,
            "op=forward device=fake:2 rows=7 groups=2 cols=100 eps=9.9999999999999995e-07 "
            "weight_offset=1 "
            "overlap=0 rounding=llama x=bf16:200:100:16 weight=fp32:0:0:0 y=bf16:200:100:16@x "
            "kernel=fake_forward threads=3");
}

TEST(Log, BackwardLine) {
  const rmsnorm::Backend backend = fake_backend();
  std::string line;
  const rmsnorm_context_t context = {&backend, nullptr, 0, 0, store_line, &line};
  BackwardProblem problem;
  problem.rows = 7, problem.cols = 100;
  problem.accumulate = problem.overlap = true;
  problem.dy = make_view(0x10000, -100, 0, RMSNORM_DTYPE_F16);
  problem.x = make_view(0x20002, 100, 0, RMSNORM_DTYPE_F16);
  problem.dx = make_view(0x20002, 100, 0, RMSNORM_DTYPE_F16);
  log_call(context, problem);
  EXPECT_EQ(
      line.find(
          "op=backward device=fake:0 rows=7 groups=1 cols=100 eps=0 weight_offset=0 overlap=1 "
          "accumulate=1 dy=fp16:-100:0:0 x=fp16:100:0:2 dx=fp16:100:0:2@x kernel=kkk"),
      0u)
      << line;
}

// Packed [gate | up] rows, y in place; then gradients.
TEST(Log, GluLines) {
  const rmsnorm::Backend backend = fake_backend();
  std::string line;
  const rmsnorm_context_t context = {&backend, nullptr, 0, 1, store_line, &line};
  GluForwardProblem forward;
  forward.rows = 7, forward.groups = 2, forward.cols = 100;
  forward.activation = RMSNORM_ACTIVATION_GELU_TANH;
  forward.gate = make_view(0x10000, 400, 200, RMSNORM_DTYPE_BF16);
  forward.up = make_view(0x100c8, 400, 200, RMSNORM_DTYPE_BF16);
  forward.y = forward.up;
  log_call(context, forward);
  EXPECT_EQ(line,
            "op=glu_forward device=fake:1 rows=7 groups=2 cols=100 activation=gelu_tanh overlap=0 "
            "gate=bf16:400:200:0 up=bf16:400:200:200 y=bf16:400:200:200@up "
            "kernel=fake_glu_forward");
  GluBackwardProblem backward;
  backward.rows = 3, backward.cols = 8, backward.overlap = true;
  backward.dy = make_view(0x10000, 8, 0, RMSNORM_DTYPE_F32);
  backward.gate = make_view(0x20010, 8, 0, RMSNORM_DTYPE_F16);
  backward.up = make_view(0x30000, -8, 0, RMSNORM_DTYPE_F16);
  backward.dup = backward.dy;
  for (const auto &[activation, name] :
       {std::pair<rmsnorm_activation_t, const char *>{RMSNORM_ACTIVATION_SILU, "silu"},
        {RMSNORM_ACTIVATION_GELU_ERF, "gelu_erf"}}) {
    backward.activation = activation;
    log_call(context, backward);
    EXPECT_EQ(line,
              std::string("op=glu_backward device=fake:1 rows=3 groups=1 cols=8 activation=") +
                  name +
                  " overlap=1 dy=fp32:8:0:0 gate=fp16:8:0:16 up=fp16:-8:0:0 "
                  "dup=fp32:8:0:0@dy kernel=fake_glu_backward");
  }
}

// The longest line there is: all tensors, every number at its widest, the longest kernel name.
TEST(Log, TheLongestLineIsWhole) {
  const rmsnorm::Backend backend = fake_backend();
  std::string line;
  const rmsnorm_context_t context = {&backend, nullptr, 0, INT32_MIN, store_line, &line};
  BackwardProblem problem;
  problem.rows = problem.groups = problem.cols = INT64_MIN;
  problem.eps = problem.weight_offset = -2.2250738585072014e-308;
  const View widest = make_view(0x100ff, INT64_MIN, INT64_MIN, RMSNORM_DTYPE_BF16);
  problem.dy = problem.x = problem.weight = problem.rstd = problem.dresidual_out = widest;
  problem.dx = problem.dresidual = problem.dweight = problem.dbias = widest;
  log_call(context, problem);
  EXPECT_EQ(line.find('\n'), std::string::npos);
  EXPECT_NE(line.find(" dbias=bf16:-9223372036854775808:-9223372036854775808:255@dy "),
            std::string::npos);
  const std::string end = " kernel=" + std::string(RMSNORM_KERNEL_NAME_SIZE - 1, 'k');
  ASSERT_GE(line.size(), end.size());
  EXPECT_EQ(line.substr(line.size() - end.size()), end);
}

}  // namespace
