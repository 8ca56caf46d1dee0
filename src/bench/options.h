// The command line: its flags, their defaults, --help. Whatever is wrong ends the program with one
// line that names the argument (exit code 2), before anything else has happened.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "rmsnorm.h"

namespace bench {

enum class Op { kForward, kAdd, kBackward, kGluForward, kGluBackward };
extern const std::vector<Op> kAllOps;  // in the order of --op all

struct Shape {
  int64_t rows, cols;
};

struct Options {
  // What: a sweep over bytes of x, or shapes, or one log line.
  int64_t min_bytes = int64_t{1} << 20, max_bytes = int64_t{64} << 20, factor = 8;
  int64_t cols = 4096;
  std::vector<Shape> shapes;  // empty: the sweep
  std::string replay;
  std::vector<Op> ops = kAllOps;
  std::vector<rmsnorm_activation_t> activations = {RMSNORM_ACTIVATION_SILU};
  std::vector<rmsnorm_dtype_t> dtypes = {RMSNORM_DTYPE_F32};
  rmsnorm_dtype_t weight_dtype = RMSNORM_DTYPE_NONE;  // NONE: as x
  int64_t groups = 1, row_stride = 0;                 // 0: groups * cols
  int64_t misalign = 0;                               // elements
  bool overlap = false;
  double eps = 1e-6;
  // Where. Device 0: CUDA if there is one; with --replay, the line's.
  rmsnorm_device_t device = 0;
  int32_t ordinal = -1;  // as device
  int32_t threads = 0;
  // How.
  int64_t sets = 0;                  // of buffers; 0: as many as exceed the cache
  int iterations = -1, warmups = 2;  // -1: as measure.cpp decides
  bool check = true, host_time = false;
  int graph = -1;  // -1: on CUDA
  std::string json;
};

Options read_options(int argc, char **argv);  // prints --help and exits where that is asked

// Numbers as a user writes them: the whole text, in range. A failure names `argument`.
int64_t read_integer(const std::string &argument, const std::string &text, int64_t least,
                     int64_t most);
double read_real(const std::string &argument, const std::string &text);  // finite
// The words between separators, empty ones too.
std::vector<std::string> split(const std::string &text, char separator);

}  // namespace bench
