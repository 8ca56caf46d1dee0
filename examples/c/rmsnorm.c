/*
 * Runs librmsnorm on real hidden states: rmsnorm FOLDER, where FOLDER (tests/data) holds what one
 * norm of a trained decoder sees, in fp32, fp16 and bf16. On the CPU, and on the first CUDA device
 * if there is one, it calls
 *
 *   fused add   h = x + residual, y = RMSNorm(h), and rstd for later
 *   forward     y = RMSNorm(h)
 *   backward    dx and dweight from dy, h, rstd, and dh, the gradient that h gets past the norm
 *
 * judges each result by formulas written out in exact.c, and times the same calls on the same data
 * repeated until no cache holds it. Exits with 1 and one line if anything is wrong.
 * SPDX-License-Identifier: Apache-2.0
 */
#define _POSIX_C_SOURCE 200809L

#include "rmsnorm.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "device.h"
#include "exact.h"
#include "npy.h"

static const double kEps = 1e-6; /* the model's */
enum { REPEATS = 7 };

static void die(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  fflush(stdout);
  fputs("rmsnorm: ", stderr);
  vfprintf(stderr, format, arguments);
  fputc('\n', stderr);
  va_end(arguments);
  exit(1);
}

static void check(rmsnorm_status_t status, const char *what) {
  if (status == RMSNORM_SUCCESS) return;
  char text[512];
  rmsnorm_last_error(text, sizeof text);
  die("%s: %s: %s", what, rmsnorm_status_name(status), text);
}

static void *allocate(const device_t *device, size_t bytes) {
  void *memory = device->allocate(bytes);
  if (memory == NULL) die("%s: no memory for %zu bytes", device->name, bytes);
  return memory;
}

/* ---- The data -------------------------------------------------------------------------------- */

typedef struct norm_t {
  const char *dtype_name;
  npy_t x, residual, weight, dy, dh;
  rmsnorm_dtype_t dtype;
  int64_t rows, cols;
} norm_t;

static npy_t read_array(const char *folder, const char *norm, const char *array,
                        const norm_t *like) {
  char path[4096];
  npy_t read;
  snprintf(path, sizeof path, "%s/%s.%s.npy", folder, norm, array);
  const char *problem = npy_read(path, &read);
  if (problem != NULL) die("%s: %s", path, problem);
  if (like != NULL && (read.dtype != like->dtype || read.cols != like->cols ||
                       (read.rows != like->rows && read.rows != 1)))
    die("%s: its dtype or shape does not go with x's", path);
  return read;
}

static norm_t read_norm(const char *folder, const char *name, const char *dtype_name) {
  norm_t norm;
  norm.dtype_name = dtype_name;
  norm.x = read_array(folder, name, "x", NULL);
  norm.dtype = norm.x.dtype;
  norm.rows = norm.x.rows;
  norm.cols = norm.x.cols;
  norm.residual = read_array(folder, name, "residual", &norm);
  norm.weight = read_array(folder, name, "weight", &norm);
  norm.dy = read_array(folder, name, "dy", &norm);
  norm.dh = read_array(folder, name, "dh", &norm);
  if (norm.residual.rows != norm.rows || norm.weight.rows != 1 || norm.dy.rows != norm.rows ||
      norm.dh.rows != norm.rows)
    die("%s/%s: the arrays' shapes do not go together", folder, name);
  return norm;
}

static void free_norm(norm_t *norm) {
  free(norm->x.data);
  free(norm->residual.data);
  free(norm->weight.data);
  free(norm->dy.data);
  free(norm->dh.data);
}

/* ---- The calls ------------------------------------------------------------------------------- */

/* Everything a call needs, in the device's memory. */
typedef struct run_t {
  const device_t *device;
  const rmsnorm_context_t *context;
  const norm_t *norm;
  int64_t rows; /* of the large, tiled arrays */
  void *x, *residual, *weight, *dy, *dh;
  void *h, *y, *rstd, *dx, *dweight;
} run_t;

enum { FUSED_ADD, FORWARD, BACKWARD, OPERATIONS };
static const char *const kNames[OPERATIONS] = {"fused add", "forward", "backward"};

static rmsnorm_input_t input(const void *data, int64_t row_stride, rmsnorm_dtype_t dtype) {
  const rmsnorm_input_t view = {data, row_stride, 0, dtype, 0};
  return view;
}

static rmsnorm_tensor_t output(void *data, int64_t row_stride, rmsnorm_dtype_t dtype) {
  const rmsnorm_tensor_t view = {data, row_stride, 0, dtype, 0};
  return view;
}

static rmsnorm_forward_params_t forward_params(const run_t *run, int operation, int64_t rows) {
  const rmsnorm_dtype_t dtype = run->norm->dtype;
  const int64_t cols = run->norm->cols;
  rmsnorm_forward_params_t params = RMSNORM_FORWARD_PARAMS_INIT;
  params.rows = rows;
  params.cols = cols;
  params.eps = kEps;
  params.weight = input(run->weight, 0, dtype);
  params.y = output(run->y, cols, dtype);
  if (operation == FUSED_ADD) {
    params.x = input(run->x, cols, dtype);
    params.residual = input(run->residual, cols, dtype);
    params.residual_out = output(run->h, cols, dtype);
    params.rstd = output(run->rstd, 1, RMSNORM_DTYPE_F32);
  } else {
    params.x = input(run->h, cols, dtype);
  }
  return params;
}

static rmsnorm_backward_params_t backward_params(const run_t *run, int64_t rows) {
  const rmsnorm_dtype_t dtype = run->norm->dtype;
  const int64_t cols = run->norm->cols;
  rmsnorm_backward_params_t params = RMSNORM_BACKWARD_PARAMS_INIT;
  params.rows = rows;
  params.cols = cols;
  params.eps = kEps;
  params.dy = input(run->dy, cols, dtype);
  params.x = input(run->h, cols, dtype);
  params.weight = input(run->weight, 0, dtype);
  params.rstd = input(run->rstd, 1, RMSNORM_DTYPE_F32);
  params.dresidual_out = input(run->dh, cols, dtype);
  params.dx = output(run->dx, cols, dtype);
  params.dweight = output(run->dweight, 0, RMSNORM_DTYPE_F32);
  return params;
}

static void launch(const run_t *run, int operation, int64_t rows, void *workspace, size_t size) {
  if (operation == BACKWARD) {
    const rmsnorm_backward_params_t params = backward_params(run, rows);
    check(rmsnorm_backward(run->context, &params, workspace, size, NULL), kNames[operation]);
  } else {
    const rmsnorm_forward_params_t params = forward_params(run, operation, rows);
    check(rmsnorm_forward(run->context, &params, workspace, size, NULL), kNames[operation]);
  }
}

static void wait_for(const run_t *run, int operation) {
  if (run->device->wait() != 0)
    die("%s: %s failed on the device", run->device->name, kNames[operation]);
}

/* Writes the name of what will run, and returns a workspace for up to run->rows rows. */
static void *prepare(const run_t *run, int operation, char *kernel, size_t *size) {
  if (operation == BACKWARD) {
    const rmsnorm_backward_params_t params = backward_params(run, run->rows);
    check(rmsnorm_backward_kernel_name(run->context, &params, kernel, RMSNORM_KERNEL_NAME_SIZE),
          "name");
    check(rmsnorm_backward_workspace_size(run->context, &params, size), "workspace size");
  } else {
    const rmsnorm_forward_params_t params = forward_params(run, operation, run->rows);
    check(rmsnorm_forward_kernel_name(run->context, &params, kernel, RMSNORM_KERNEL_NAME_SIZE),
          "name");
    check(rmsnorm_forward_workspace_size(run->context, &params, size), "workspace size");
  }
  return *size == 0 ? NULL : allocate(run->device, *size);
}

/* Seconds of one call on all rows: a median, after a warm-up. */
static double time_call(const run_t *run, int operation, void *workspace, size_t size) {
  double seconds[REPEATS];
  launch(run, operation, run->rows, workspace, size);
  wait_for(run, operation);
  for (int i = 0; i < REPEATS; ++i) {
    struct timespec start, end;
    clock_gettime(CLOCK_MONOTONIC, &start);
    for (int j = 0; j < run->device->batch; ++j) launch(run, operation, run->rows, workspace, size);
    wait_for(run, operation);
    clock_gettime(CLOCK_MONOTONIC, &end);
    const double took =
        ((double)(end.tv_sec - start.tv_sec) + 1e-9 * (double)(end.tv_nsec - start.tv_nsec)) /
        run->device->batch;
    int place = i; /* kept sorted */
    for (; place > 0 && seconds[place - 1] > took; --place) seconds[place] = seconds[place - 1];
    seconds[place] = took;
  }
  return seconds[REPEATS / 2];
}

/* The bytes that an operation cannot help reading and writing, weight aside. */
static double bytes_moved(const run_t *run, int operation) {
  const int tensors = operation == FORWARD ? 2 : 4;
  return tensors * ((double)run->norm->x.bytes / (double)run->norm->rows) * (double)run->rows;
}

/* ---- Judging --------------------------------------------------------------------------------- */

/* The results of one call on the data as it is, in host memory. */
typedef struct results_t {
  void *h, *y, *dx;
  float *rstd, *dweight;
} results_t;

/* Keeps the largest error in *worst, in ulps of the larger of result and terms: a sum that cancels
 * keeps the rounding errors of its terms. More than `bound` ulps of the result plus `share` of the
 * terms, the library's promise (rmsnorm.h, Numerics), is a failure. */
static void judge(double *worst, const char *what, size_t index, rmsnorm_dtype_t dtype, double got,
                  gradient_t exact, double bound, double share) {
  const long double error = fabsl(got - exact.value);
  if (!(error <= bound * ulp(exact.value, dtype) + share * exact.terms))
    die("%s[%zu] is %.9g, but exactly it is %.12Lg: the error is larger than promised", what, index,
        got, exact.value);
  const double ulps = (double)(error / ulp(fmaxl(fabsl(exact.value), exact.terms), dtype));
  if (ulps > *worst) *worst = ulps;
}

static double judge_forward(const run_t *run, int operation, const results_t *results) {
  const norm_t *norm = run->norm;
  const int is_cuda = run->device->type == RMSNORM_DEVICE_CUDA;
  const double bound = !is_cuda ? 0.501 : norm->dtype == RMSNORM_DTYPE_F32 ? 1 : 0.51;
  double worst = 0;
  for (size_t row = 0; row < (size_t)norm->rows; ++row) {
    const long double rstd = exact_rstd(results->h, norm->dtype, row, (size_t)norm->cols, kEps);
    for (size_t col = 0; col < (size_t)norm->cols; ++col) {
      const size_t i = row * (size_t)norm->cols + col;
      const double h = element(results->h, norm->dtype, i);
      gradient_t exact = {0, 0};
      if (operation == FUSED_ADD) { /* rounded once, whatever the device */
        exact.value = (long double)element(norm->x.data, norm->dtype, i) +
                      element(norm->residual.data, norm->dtype, i);
        judge(&worst, "residual_out", i, norm->dtype, h, exact, 0.5, 0);
      }
      exact.value = h * rstd * element(norm->weight.data, norm->dtype, col);
      judge(&worst, "y", i, norm->dtype, element(results->y, norm->dtype, i), exact, bound, 0);
    }
  }
  return worst;
}

static double judge_backward(const run_t *run, const results_t *results) {
  const norm_t *norm = run->norm;
  const size_t rows = (size_t)norm->rows, cols = (size_t)norm->cols;
  const int is_cuda = run->device->type == RMSNORM_DEVICE_CUDA;
  const double bound = !is_cuda ? 0.501 : norm->dtype == RMSNORM_DTYPE_F32 ? 1 : 0.51;
  double worst = 0;
  gradient_t *dx = malloc(cols * sizeof *dx);
  if (dx == NULL) die("no memory");
  for (size_t row = 0; row < rows; ++row) {
    exact_dx(norm->dy.data, results->h, norm->weight.data, norm->dh.data, norm->dtype, row, cols,
             results->rstd[row], dx);
    for (size_t col = 0; col < cols; ++col)
      judge(&worst, "dx", row * cols + col, norm->dtype,
            element(results->dx, norm->dtype, row * cols + col), dx[col], bound,
            is_cuda ? ldexp(1, -19) : ldexp(1, -40));
  }
  free(dx);
  for (size_t col = 0; col < cols; ++col)
    judge(&worst, "dweight", col, RMSNORM_DTYPE_F32, results->dweight[col],
          exact_dweight(norm->dy.data, results->h, norm->dtype, results->rstd, rows, cols, col),
          is_cuda ? 1 : 0.501, is_cuda ? ldexp(1, -18) : ldexp(1, -40));
  return worst;
}

static void *download(const run_t *run, const void *from, size_t bytes) {
  void *to = malloc(bytes);
  if (to == NULL || run->device->copy(to, from, bytes) != 0) die("copying from the device failed");
  return to;
}

/* Calls once on the data as it is; the largest error. */
static double measure_error(const run_t *run, int operation, void *workspace, size_t size) {
  const norm_t *norm = run->norm;
  launch(run, operation, norm->rows, workspace, size);
  wait_for(run, operation);
  results_t results;
  results.h = download(run, run->h, norm->x.bytes);
  results.y = download(run, run->y, norm->x.bytes);
  results.dx = download(run, run->dx, norm->x.bytes);
  results.rstd = download(run, run->rstd, (size_t)norm->rows * sizeof(float));
  results.dweight = download(run, run->dweight, (size_t)norm->cols * sizeof(float));
  const double worst = operation == BACKWARD ? judge_backward(run, &results)
                                             : judge_forward(run, operation, &results);
  free(results.h);
  free(results.y);
  free(results.dx);
  free(results.rstd);
  free(results.dweight);
  return worst;
}

/* ---- Running --------------------------------------------------------------------------------- */

/* The array, repeated `tiles` times, on the device. */
static void *upload(const device_t *device, const npy_t *array, int64_t tiles) {
  char *to = allocate(device, array->bytes * (size_t)tiles);
  for (int64_t i = 0; i < tiles; ++i)
    if (device->copy(to + (size_t)i * array->bytes, array->data, array->bytes) != 0)
      die("%s: copying to the device failed", device->name);
  return to;
}

static void run_norm(const device_t *device, const rmsnorm_context_t *context, const norm_t *norm) {
  const int64_t tiles = (int64_t)device->large / (norm->rows * norm->cols) + 1;
  const size_t bytes = norm->x.bytes * (size_t)tiles;
  run_t run;
  run.device = device;
  run.context = context;
  run.norm = norm;
  run.rows = norm->rows * tiles;
  run.x = upload(device, &norm->x, tiles);
  run.residual = upload(device, &norm->residual, tiles);
  run.weight = upload(device, &norm->weight, 1);
  run.dy = upload(device, &norm->dy, tiles);
  run.dh = upload(device, &norm->dh, tiles);
  run.h = allocate(device, bytes);
  run.y = allocate(device, bytes);
  run.dx = allocate(device, bytes);
  run.rstd = allocate(device, (size_t)run.rows * sizeof(float));
  run.dweight = allocate(device, (size_t)norm->cols * sizeof(float));
  for (int operation = 0; operation < OPERATIONS; ++operation) {
    char kernel[RMSNORM_KERNEL_NAME_SIZE];
    size_t size = 0;
    void *workspace = prepare(&run, operation, kernel, &size);
    const double error = measure_error(&run, operation, workspace, size);
    const double seconds = time_call(&run, operation, workspace, size);
    printf("%-6s  %-5s  %-9s  %9.4f  %8.1f  %s\n", device->name, norm->dtype_name,
           kNames[operation], error, 1e-9 * bytes_moved(&run, operation) / seconds, kernel);
    fflush(stdout);
    device->release(workspace);
  }
  void *const memory[] = {run.x, run.residual, run.weight, run.dy,   run.dh,
                          run.h, run.y,        run.dx,     run.rstd, run.dweight};
  for (size_t i = 0; i < sizeof memory / sizeof memory[0]; ++i) device->release(memory[i]);
}

static void run_device(const device_t *device, const char *folder) {
  static const char *const files[][2] = {{"layer2_mlp", "fp32"},
                                         {"layer2_mlp_f16", "fp16"},
                                         {"layer2_mlp_bf16", "bf16"}};
  rmsnorm_context_options_t options = RMSNORM_CONTEXT_OPTIONS_INIT;
  options.device = device->type;
  rmsnorm_context_t *context = NULL;
  check(rmsnorm_context_create(&options, &context), "rmsnorm_context_create");
  for (size_t i = 0; i < sizeof files / sizeof files[0]; ++i) {
    norm_t norm = read_norm(folder, files[i][0], files[i][1]);
    run_norm(device, context, &norm);
    free_norm(&norm);
  }
  rmsnorm_context_destroy(context);
}

/* The CUDA device to run on, or NULL after a line that says why there is none. */
static const device_t *find_cuda(void) {
  int32_t count = 0;
  const rmsnorm_status_t status = rmsnorm_device_count(RMSNORM_DEVICE_CUDA, &count);
  if (status == RMSNORM_ERROR_BACKEND_NOT_BUILT) {
    puts("cuda    librmsnorm was built without CUDA");
    return NULL;
  }
  check(status, "rmsnorm_device_count");
  if (count == 0) {
    puts("cuda    no device");
    return NULL;
  }
  if (cuda_device == NULL) puts("cuda    this program was built without the CUDA runtime");
  return cuda_device;
}

int main(int argc, char **argv) {
  if (argc != 2) die("usage: rmsnorm FOLDER, where FOLDER holds the .npy files (tests/data)");
  printf("librmsnorm %s\n", rmsnorm_build_info());
  puts("error: the largest, in ulps against formulas in long double (exact.c); for gradients, in");
  puts("ulps of the terms that they sum. GB/s: of what a call must read and write.\n");
  puts("device  dtype  operation  error/ulp      GB/s  kernel");
  run_device(&cpu_device, argv[1]);
  const device_t *cuda = find_cuda();
  if (cuda != NULL) run_device(cuda, argv[1]);
  return 0;
}
