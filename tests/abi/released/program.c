/* A program of the day when the header beside it was current: compiled with that header, it runs
 * with every later library of the same ABI. It calls every function that was there, with structs of
 * the size of that day, and checks what comes back. */
#include <stdio.h>
#include <string.h>

#include "rmsnorm.h"

#define CHECK(condition)                                                 \
  do {                                                                   \
    if (!(condition)) {                                                  \
      char text[512];                                                    \
      rmsnorm_last_error(text, sizeof text);                             \
      fprintf(stderr, "line %d: %s (%s)\n", __LINE__, #condition, text); \
      return 1;                                                          \
    }                                                                    \
  } while (0)

static int lines;

static void log_line(void *user, const char *line) { *(int *)user += line[0] != '\0'; }

static int32_t in_order(void *user, int64_t count, rmsnorm_task_t task, void *arg) {
  for (int64_t i = 0; i < count; ++i) task(arg, i);
  return *(int32_t *)user;
}

static int near(double got, double wanted) {
  const double error = got - wanted;
  return error < 1e-5 && error > -1e-5;
}

/* Two rows whose means of squares are 4 and 9, normalised in place, and back. */
static int norm(const rmsnorm_context_t *context) {
  float x[2][4] = {{2, 2, -2, 2}, {3, -3, 3, 3}}, residual[2][4] = {{0}, {0}};
  const float weight[4] = {1, 2, 3, 4}, bias[4] = {0, 0, 0, 1};
  float h[2][4], rstd[2], dx[2][4], dweight[4], dbias[4];
  const float dy[2][4] = {{1, 0, 0, 0}, {0, 0, 0, 0}};
  char workspace[65536], name[RMSNORM_KERNEL_NAME_SIZE];
  size_t size = 1;
  rmsnorm_forward_params_t f = RMSNORM_FORWARD_PARAMS_INIT;
  rmsnorm_backward_params_t b = RMSNORM_BACKWARD_PARAMS_INIT;

  f.rows = 2, f.cols = 4;
  f.x.data = x, f.x.row_stride = 4, f.x.dtype = RMSNORM_DTYPE_F32;
  f.residual.data = residual, f.residual.row_stride = 4, f.residual.dtype = RMSNORM_DTYPE_F32;
  f.weight.data = weight, f.weight.dtype = RMSNORM_DTYPE_F32;
  f.bias.data = bias, f.bias.dtype = RMSNORM_DTYPE_F32;
  f.y.data = x, f.y.row_stride = 4, f.y.dtype = RMSNORM_DTYPE_F32;
  f.residual_out.data = h, f.residual_out.row_stride = 4, f.residual_out.dtype = RMSNORM_DTYPE_F32;
  f.rstd.data = rstd, f.rstd.row_stride = 1, f.rstd.dtype = RMSNORM_DTYPE_F32;
  CHECK(rmsnorm_forward_workspace_size(context, &f, &size) == RMSNORM_SUCCESS);
  CHECK(size <= sizeof workspace);
  CHECK(rmsnorm_forward_kernel_name(context, &f, name, sizeof name) == RMSNORM_SUCCESS);
  CHECK(strlen(name) > 0);
  CHECK(rmsnorm_forward(context, &f, workspace, size, NULL) == RMSNORM_SUCCESS);
  CHECK(near(x[0][0], 1) && near(x[0][2], -3) && near(x[1][1], -2) && near(x[1][3], 5));
  CHECK(near(rstd[0], 0.5) && near(rstd[1], 1.0 / 3) && near(h[0][0], 2) && near(h[1][1], -3));

  b.rows = 2, b.cols = 4;
  b.dy.data = dy, b.dy.row_stride = 4, b.dy.dtype = RMSNORM_DTYPE_F32;
  b.x.data = h, b.x.row_stride = 4, b.x.dtype = RMSNORM_DTYPE_F32;
  b.weight = f.weight;
  b.rstd.data = rstd, b.rstd.row_stride = 1, b.rstd.dtype = RMSNORM_DTYPE_F32;
  b.dx.data = dx, b.dx.row_stride = 4, b.dx.dtype = RMSNORM_DTYPE_F32;
  b.dweight.data = dweight, b.dweight.dtype = RMSNORM_DTYPE_F32;
  b.dbias.data = dbias, b.dbias.dtype = RMSNORM_DTYPE_F32;
  CHECK(rmsnorm_backward_workspace_size(context, &b, &size) == RMSNORM_SUCCESS);
  CHECK(size <= sizeof workspace);
  CHECK(rmsnorm_backward_kernel_name(context, &b, name, sizeof name) == RMSNORM_SUCCESS);
  CHECK(rmsnorm_backward(context, &b, workspace, size, NULL) == RMSNORM_SUCCESS);
  CHECK(near(dweight[0], 1) && near(dbias[0], 1) && near(dbias[1], 0));
  CHECK(near(dx[0][0], 0.375) && near(dx[0][2], 0.125) && near(dx[1][0], 0));

  b.x.reserved = 1;
  CHECK(rmsnorm_backward(context, &b, workspace, size, NULL) == RMSNORM_ERROR_NEWER_LIBRARY);
  f.y.data = NULL;
  CHECK(rmsnorm_forward(context, &f, workspace, size, NULL) == RMSNORM_ERROR_NULL);
  return 0;
}

/* One row of each activation, and its gradients. */
static int gated(const rmsnorm_context_t *context) {
  const float packed[2][4] = {{0, 1, 20, -20}, {3, 2, 0.5f, 1}}, dy[4] = {1, 1, 1, 1};
  float y[4], dgate[4], dup[4];
  char workspace[65536], name[RMSNORM_KERNEL_NAME_SIZE];
  size_t size = 1;
  rmsnorm_glu_forward_params_t f = RMSNORM_GLU_FORWARD_PARAMS_INIT;
  rmsnorm_glu_backward_params_t b = RMSNORM_GLU_BACKWARD_PARAMS_INIT;

  f.rows = 1, f.cols = 4, f.activation = RMSNORM_ACTIVATION_SILU;
  f.gate.data = packed[0], f.gate.row_stride = 8, f.gate.dtype = RMSNORM_DTYPE_F32;
  f.up.data = packed[1], f.up.row_stride = 8, f.up.dtype = RMSNORM_DTYPE_F32;
  f.y.data = y, f.y.row_stride = 4, f.y.dtype = RMSNORM_DTYPE_F32;
  CHECK(rmsnorm_glu_forward_workspace_size(context, &f, &size) == RMSNORM_SUCCESS);
  CHECK(size <= sizeof workspace);
  CHECK(rmsnorm_glu_forward_kernel_name(context, &f, name, sizeof name) == RMSNORM_SUCCESS);
  CHECK(strlen(name) > 0);
  CHECK(rmsnorm_glu_forward(context, &f, workspace, size, NULL) == RMSNORM_SUCCESS);
  CHECK(near(y[0], 0) && near(y[1], 1.4621172) && near(y[2], 10) && near(y[3], 0));

  b.rows = 1, b.cols = 4, b.activation = f.activation;
  b.dy.data = dy, b.dy.row_stride = 4, b.dy.dtype = RMSNORM_DTYPE_F32;
  b.gate = f.gate, b.up = f.up;
  b.dgate.data = dgate, b.dgate.row_stride = 4, b.dgate.dtype = RMSNORM_DTYPE_F32;
  b.dup.data = dup, b.dup.row_stride = 4, b.dup.dtype = RMSNORM_DTYPE_F32;
  CHECK(rmsnorm_glu_backward_workspace_size(context, &b, &size) == RMSNORM_SUCCESS);
  CHECK(size <= sizeof workspace);
  CHECK(rmsnorm_glu_backward_kernel_name(context, &b, name, sizeof name) == RMSNORM_SUCCESS);
  CHECK(rmsnorm_glu_backward(context, &b, workspace, size, NULL) == RMSNORM_SUCCESS);
  CHECK(near(dgate[0], 1.5) && near(dgate[1], 1.8553413) && near(dgate[2], 0.5));
  CHECK(near(dup[0], 0) && near(dup[1], 0.7310586) && near(dup[2], 20) && near(dup[3], 0));

  f.activation = RMSNORM_ACTIVATION_GELU_ERF;
  CHECK(rmsnorm_glu_forward(context, &f, workspace, size, NULL) == RMSNORM_SUCCESS);
  CHECK(near(y[1], 1.6826895));
  f.activation = RMSNORM_ACTIVATION_GELU_TANH;
  CHECK(rmsnorm_glu_forward(context, &f, workspace, size, NULL) == RMSNORM_SUCCESS);
  CHECK(near(y[1], 1.6823840));
  return 0;
}

int main(void) {
  rmsnorm_context_t *context = NULL;
  rmsnorm_context_options_t options = RMSNORM_CONTEXT_OPTIONS_INIT;
  rmsnorm_device_info_t info = RMSNORM_DEVICE_INFO_INIT;
  rmsnorm_forward_params_t f;
  rmsnorm_backward_params_t b;
  rmsnorm_glu_forward_params_t glu_f;
  rmsnorm_glu_backward_params_t glu_b;
  int32_t count = 0, result = 0;
  char text[4];

  CHECK(rmsnorm_abi_version() == RMSNORM_ABI_VERSION);
  CHECK(rmsnorm_version() >= RMSNORM_VERSION_MAJOR * 10000 + RMSNORM_VERSION_MINOR * 100);
  CHECK(strstr(rmsnorm_build_info(), "version=") != NULL);
  CHECK(strcmp(rmsnorm_status_name(RMSNORM_ERROR_STRIDE), "RMSNORM_ERROR_STRIDE") == 0);
  CHECK(rmsnorm_device_count(RMSNORM_DEVICE_CPU, &count) == RMSNORM_SUCCESS && count == 1);
  CHECK(rmsnorm_device_info(RMSNORM_DEVICE_CPU, 0, &info) == RMSNORM_SUCCESS);
  CHECK(info.device == RMSNORM_DEVICE_CPU && info.supported == 1 && info.isa[0] != '\0');
  CHECK(rmsnorm_device_count(RMSNORM_DEVICE_CPU, NULL) == RMSNORM_ERROR_NULL);
  CHECK(rmsnorm_last_error(text, sizeof text) == sizeof "count is NULL");
  CHECK(strcmp(text, "cou") == 0);
  rmsnorm_device_info_init(&info, sizeof info);
  CHECK(info.struct_size == sizeof info && info.processors == 0);
  rmsnorm_forward_params_init(&f, sizeof f);
  CHECK(f.struct_size == sizeof f && f.rstd.dtype == RMSNORM_DTYPE_NONE);
  rmsnorm_backward_params_init(&b, sizeof b);
  CHECK(b.struct_size == sizeof b && b.dbias.data == NULL);
  rmsnorm_glu_forward_params_init(&glu_f, sizeof glu_f);
  CHECK(glu_f.struct_size == sizeof glu_f && glu_f.activation == RMSNORM_ACTIVATION_SILU);
  rmsnorm_glu_backward_params_init(&glu_b, sizeof glu_b);
  CHECK(glu_b.struct_size == sizeof glu_b && glu_b.dup.data == NULL);

  CHECK(rmsnorm_context_create(NULL, &context) == RMSNORM_SUCCESS);
  if (norm(context) != 0 || gated(context) != 0) return 1;
  rmsnorm_context_destroy(context);
  rmsnorm_context_options_init(&options, sizeof options);
  options.log = log_line, options.log_user = &lines;
  options.parallel_for = in_order, options.parallel_for_user = &result;
  options.flags =
      RMSNORM_CONTEXT_PRELOAD | RMSNORM_CONTEXT_CHECK_POINTERS | RMSNORM_CONTEXT_KEEP_CACHED;
  CHECK(rmsnorm_context_create(&options, &context) == RMSNORM_SUCCESS);
  if (norm(context) != 0 || gated(context) != 0) return 1;
  CHECK(lines == 6);
  rmsnorm_context_destroy(context);
  puts("everything is as it was");
  return 0;
}
