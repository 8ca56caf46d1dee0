// The validated problem: what core hands to a backend. Shape, views and scalars are resolved, every
// rule of the ABI has been checked; nothing is left to decide but how to compute it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/dtype.h"
#include "rmsnorm.h"

namespace rmsnorm {

// One tensor; strides in elements, 0 for a dimension of size 1. Absent: dtype NONE. Inputs are held
// through the same type (data is never written through an input's view).
struct View {
  char *data = nullptr;
  int64_t row_stride = 0;
  int64_t group_stride = 0;
  rmsnorm_dtype_t dtype = RMSNORM_DTYPE_NONE;

  bool present() const { return dtype != RMSNORM_DTYPE_NONE; }
  char *at(int64_t row, int64_t group) const {
    return data + (row * row_stride + group * group_stride) * element_size(dtype);
  }
};

// What every operation's problem begins with.
struct Problem {
  int64_t rows = 0, groups = 1, cols = 0;
  bool overlap = false;
};

struct NormProblem : Problem {
  double eps = 0, weight_offset = 0;
};

struct ForwardProblem : NormProblem {
  bool llama = false;                            // RMSNORM_ROUNDING_LLAMA
  rmsnorm_dtype_t h_dtype = RMSNORM_DTYPE_NONE;  // what x + residual is rounded to; x's without one
  View x, residual, weight, bias, y, residual_out, rstd;
};

struct BackwardProblem : NormProblem {
  bool accumulate = false;
  bool per_group = false;  // dweight and dbias are per group, not summed over groups
  View dy, x, weight, rstd, dresidual_out, dx, dresidual, dweight, dbias;
};

struct GluProblem : Problem {
  rmsnorm_activation_t activation = RMSNORM_ACTIVATION_SILU;
};

inline const char *activation_name(rmsnorm_activation_t activation) {
  switch (activation) {
    case RMSNORM_ACTIVATION_SILU: return "silu";
    case RMSNORM_ACTIVATION_GELU_TANH: return "gelu_tanh";
    default: return "gelu_erf";
  }
}

struct GluForwardProblem : GluProblem {
  View gate, up, y;
};

struct GluBackwardProblem : GluProblem {
  View dy, gate, up, dgate, dup;
};

// How a tensor relates to the shape.
enum class Extent {
  kElements,  // rows x groups x cols
  kVector,    // groups x cols, the same for every row
  kRows       // rows x groups x 1
};

// One row of an operation's table of tensors, in the order of its params: validation, logging and
// pointer checks all walk this table.
template <class Problem>
struct Tensor {
  const char *name;
  size_t offset;  // in the params struct
  View Problem::*view;
  Extent extent;
  bool output;
  bool required;
};

extern const Tensor<ForwardProblem> kForwardTensors[7];
extern const Tensor<BackwardProblem> kBackwardTensors[9];
extern const Tensor<GluForwardProblem> kGluForwardTensors[3];
extern const Tensor<GluBackwardProblem> kGluBackwardTensors[5];

}  // namespace rmsnorm
