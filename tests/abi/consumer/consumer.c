/* A small user of the installed library: its version, one forward call on the CPU, its devices.
 * Prints the number of CUDA devices, "none" where the library was built without CUDA. */
#include <rmsnorm.h>
#include <stdio.h>

static int fail(const char *what) {
  char text[512];
  rmsnorm_last_error(text, sizeof text);
  fprintf(stderr, "consumer: %s: %s\n", what, text);
  return 1;
}

int main(void) {
  static const float x[2][3] = {{1, 2, 2}, {-3, 0, 4}};
  static const float weight[3] = {1, 2, 0.5f};
  float y[2][3];
  rmsnorm_context_t *context = NULL;
  rmsnorm_forward_params_t params = RMSNORM_FORWARD_PARAMS_INIT;

  if (rmsnorm_abi_version() != RMSNORM_ABI_VERSION) return fail("another ABI");
  if (rmsnorm_context_create(NULL, &context) != RMSNORM_SUCCESS) return fail("no context");
  params.rows = 2;
  params.cols = 3;
  params.x.data = x;
  params.x.row_stride = 3;
  params.x.dtype = RMSNORM_DTYPE_F32;
  params.weight.data = weight;
  params.weight.dtype = RMSNORM_DTYPE_F32;
  params.y.data = y;
  params.y.row_stride = 3;
  params.y.dtype = RMSNORM_DTYPE_F32;
  if (rmsnorm_forward(context, &params, NULL, 0, NULL) != RMSNORM_SUCCESS) return fail("forward");
  rmsnorm_context_destroy(context);
  for (int row = 0; row < 2; ++row) {
    /* The rows' means of squares are 3 and 25 / 3. */
    const double mean = row == 0 ? 3 : 25.0 / 3;
    for (int col = 0; col < 3; ++col) {
      const double exact = x[row][col] * weight[col], got = y[row][col];
      const double square = got * got * mean - exact * exact;
      if (square > 1e-5 || square < -1e-5 || got * exact < 0) return fail("y is wrong");
    }
  }

  int32_t devices = -1;
  const rmsnorm_status_t status = rmsnorm_device_count(RMSNORM_DEVICE_CUDA, &devices);
  if (status == RMSNORM_ERROR_BACKEND_NOT_BUILT) {
    puts("none");
  } else if (status == RMSNORM_SUCCESS) {
    printf("%d\n", (int)devices);
  } else {
    return fail("rmsnorm_device_count");
  }
  return 0;
}
