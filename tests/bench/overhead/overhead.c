/* The time of a call from C: one row of 1024 fp32 on the CPU. overhead/src/main.rs is its twin. */
#define _POSIX_C_SOURCE 200809L

#include <rmsnorm.h>
#include <stdio.h>
#include <time.h>

enum { COLS = 1024, CALLS = 500, ROUNDS = 4000 };

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec * 1e9 + (double)time.tv_nsec;
}

int main(void) {
  static float x[COLS], weight[COLS], y[COLS];
  for (int i = 0; i < COLS; ++i) x[i] = (float)(i % 7) - 3, weight[i] = 1;
  rmsnorm_context_t *context = NULL;
  if (rmsnorm_context_create(NULL, &context) != RMSNORM_SUCCESS) return 1;
  double best = 1e18;
  for (int round = 0; round < ROUNDS; ++round) {
    const double start = now();
    for (int i = 0; i < CALLS; ++i) {
      rmsnorm_forward_params_t p = RMSNORM_FORWARD_PARAMS_INIT;
      p.rows = 1, p.cols = COLS, p.eps = 1e-6;
      p.x.data = x, p.x.row_stride = COLS, p.x.dtype = RMSNORM_DTYPE_F32;
      p.weight.data = weight, p.weight.dtype = RMSNORM_DTYPE_F32;
      p.y.data = y, p.y.row_stride = COLS, p.y.dtype = RMSNORM_DTYPE_F32;
      if (rmsnorm_forward(context, &p, NULL, 0, NULL) != RMSNORM_SUCCESS) return 1;
    }
    const double each = (now() - start) / CALLS;
    if (each < best) best = each;
  }
  printf("C                      %7.1f ns\n", best);
  rmsnorm_context_destroy(context);
  return 0;
}
