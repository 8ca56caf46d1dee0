#include "npy.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static rmsnorm_dtype_t dtype_of(const char *header) {
  static const struct {
    const char *text;
    rmsnorm_dtype_t dtype;
  } known[] = {{"'descr': '<f4'", RMSNORM_DTYPE_F32},
               {"'descr': '<f2'", RMSNORM_DTYPE_F16},
               {"'descr': '<f8'", RMSNORM_DTYPE_F64},
               {"'descr': '<u2'", RMSNORM_DTYPE_BF16}};
  for (size_t i = 0; i < sizeof known / sizeof known[0]; ++i)
    if (strstr(header, known[i].text) != NULL) return known[i].dtype;
  return RMSNORM_DTYPE_NONE;
}

/* "(96, 256)" or "(256,)". */
static int read_shape(const char *header, npy_t *array) {
  const char *shape = strstr(header, "'shape': (");
  long long first = 0, second = 0;
  if (shape == NULL) return 0;
  const int counts = sscanf(shape, "'shape': (%lld, %lld)", &first, &second);
  array->rows = counts == 2 ? first : 1;
  array->cols = counts == 2 ? second : first;
  return counts >= 1 && strchr(shape, ')') != NULL && array->rows > 0 && array->cols > 0 &&
         array->rows <= (1 << 20) && array->cols <= (1 << 20);
}

static const char *read_open(FILE *file, npy_t *array) {
  unsigned char start[10];
  if (fread(start, 1, sizeof start, file) != sizeof start || memcmp(start, "\x93NUMPY\x01", 7) != 0)
    return "not a .npy file of version 1.0";
  char header[65536];
  const size_t length = start[8] + 256u * start[9];
  if (fread(header, 1, length, file) != length) return "its header is cut short";
  header[length] = '\0';
  if (strstr(header, "'fortran_order': False") == NULL) return "not in C order";
  array->dtype = dtype_of(header);
  if (array->dtype == RMSNORM_DTYPE_NONE) return "of a type other than f2, f4, f8 and u2";
  if (!read_shape(header, array)) return "neither a vector nor a matrix";
  array->bytes = (size_t)(array->rows * array->cols) * ((size_t)(array->dtype & 0xff) / 8);
  array->data = malloc(array->bytes);
  if (array->data == NULL) return "too large for memory";
  if (fread(array->data, 1, array->bytes, file) == array->bytes && fgetc(file) == EOF) return NULL;
  free(array->data);
  array->data = NULL;
  return "its size does not match its shape";
}

const char *npy_read(const char *path, npy_t *array) {
  memset(array, 0, sizeof *array);
  FILE *file = fopen(path, "rb");
  if (file == NULL) return strerror(errno);
  const char *problem = read_open(file, array);
  fclose(file);
  return problem;
}
