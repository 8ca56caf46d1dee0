// Compiled at every standard that rmsnorm.hpp is for, with every warning an error, without
// exceptions and RTTI: the header included twice, each template instantiated.
#include "rmsnorm.hpp"
#include "rmsnorm.hpp"

// A half type of the user's own.
struct Half {
  std::uint16_t bits;
};
template <>
struct rmsnorm::Dtype<Half> {
  static constexpr rmsnorm_dtype_t value = RMSNORM_DTYPE_F16;
  using Element = Half;
};

rmsnorm::Status calls(const float (&x)[8], std::uint16_t *y, Half *h, float *rstd);
rmsnorm::Status calls(const float (&x)[8], std::uint16_t *y, Half *h, float *rstd) {
  const auto run = [](std::int64_t count, const auto &task) {
    for (std::int64_t i = 0; i < count; ++i) task(i);
    return 0;
  };
  int lines = 0;
  auto count_lines = [&](const char *) { ++lines; };
  rmsnorm::ContextOptions options;
  options.set_parallel_for(&run);
  options.set_log(&count_lines);
  rmsnorm::Context context;
  rmsnorm::Status status = rmsnorm::Context::create(options, &context);
  std::int32_t count = 0;
  if (status.ok()) status = rmsnorm::device_count(RMSNORM_DEVICE_CPU, &count);
  rmsnorm_device_info_t info;
  if (status.ok()) status = rmsnorm::device_info(RMSNORM_DEVICE_CPU, 0, &info);

  rmsnorm::Forward forward;
  forward.x = rmsnorm::matrix(x, 2, 4);
  forward.residual = rmsnorm::tensor(x, 2, 1, 4, 4, 0);
  forward.weight = rmsnorm::vector(x, 4);
  forward.y = rmsnorm::matrix<rmsnorm::BFloat16>(y, 2, 4);
  forward.residual_out = rmsnorm::matrix(h, 2, 4, 4);
  forward.rstd = rmsnorm::tensor(rstd, 2, 1, 1);
  char name[RMSNORM_KERNEL_NAME_SIZE];
  rmsnorm::Workspace workspace;
  if (status.ok()) status = rmsnorm::forward_workspace_size(context, forward, &workspace.size);
  if (status.ok()) status = rmsnorm::forward_kernel_name(context, forward, name, sizeof name);
  if (status.ok()) status = rmsnorm::forward(context, forward, workspace, nullptr);

  rmsnorm::Backward backward;
  backward.dy = backward.x = rmsnorm::matrix(x, 2, 4);
  backward.dx = forward.y;
  if (status.ok()) status = rmsnorm::backward_workspace_size(context, backward, &workspace.size);
  if (status.ok()) status = rmsnorm::backward_kernel_name(context, backward, name, sizeof name);
  if (status.ok()) status = rmsnorm::backward(context, backward, workspace, nullptr);

  rmsnorm::GluForward glu_forward;
  glu_forward.gate = glu_forward.up = rmsnorm::matrix(x, 2, 4);
  glu_forward.y = forward.y;
  if (status.ok())
    status = rmsnorm::glu_forward_workspace_size(context, glu_forward, &workspace.size);
  if (status.ok())
    status = rmsnorm::glu_forward_kernel_name(context, glu_forward, name, sizeof name);
  if (status.ok()) status = rmsnorm::glu_forward(context, glu_forward, workspace, nullptr);

  rmsnorm::GluBackward glu_backward;
  glu_backward.dy = glu_backward.gate = glu_backward.up = rmsnorm::matrix(x, 2, 4);
  glu_backward.dgate = forward.y;
  if (status.ok())
    status = rmsnorm::glu_backward_workspace_size(context, glu_backward, &workspace.size);
  if (status.ok())
    status = rmsnorm::glu_backward_kernel_name(context, glu_backward, name, sizeof name);
  if (status.ok()) status = rmsnorm::glu_backward(context, glu_backward, workspace, nullptr);
#if __cplusplus >= 202002L
  if (status.ok())
    status = rmsnorm::forward(context, {.x = rmsnorm::matrix(x, 2, 4), .y = forward.y});
#endif
  return status;
}
