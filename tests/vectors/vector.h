// One test vector: a call, the memory it finds and the memory it leaves. README.md describes the
// files; this reads and writes them, and runs a vector through the C interface.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "case.h"
#include "rmsnorm.h"

namespace rmsnorm_test {

constexpr uint8_t kUnwritten = 0xa5;  // what memory holds before the call, unless a vector says

struct VectorTensor {
  Name name = kNone;
  rmsnorm_dtype_t dtype = RMSNORM_DTYPE_NONE;
  int64_t row_stride = 0, group_stride = 0;
  int64_t offset = 0;           // of element (0, 0, 0) in its memory, in elements
  Name memory = kNone;          // the tensor in whose memory it stands: itself, or another
  int64_t elements = 0;         // of the memory, where it is its own
  std::vector<uint8_t> before;  // the memory's bytes; empty: all kUnwritten
  std::vector<uint8_t> after;   // empty: as before
};

struct Vector {
  std::string name;
  Direction op = Direction::kForward;
  rmsnorm_status_t status = RMSNORM_SUCCESS;
  std::string error;  // what the text of a failure begins with
  int64_t rows = 0, groups = 0, cols = 0;
  double eps = 0, weight_offset = 0;
  rmsnorm_rounding_t rounding = RMSNORM_ROUNDING_ONCE;
  rmsnorm_activation_t activation = RMSNORM_ACTIVATION_SILU;
  uint32_t flags = 0;
  std::vector<VectorTensor> tensors;  // those present, in the order of the params

  VectorTensor *find(Name tensor);
};

// Both files of a folder. `problem` is "" or what is wrong with them.
std::vector<Vector> read_vectors(const std::string &folder, std::string *problem);
// The same, written: cases.json and data.bin.
struct VectorFiles {
  std::string cases, data;
};
VectorFiles write_vectors(const std::vector<Vector> &vectors);

// Runs a vector and compares status, text and every byte of its memory: "" or what differs.
std::string check_vector(const rmsnorm_context_t *context, const Vector &vector);

}  // namespace rmsnorm_test
