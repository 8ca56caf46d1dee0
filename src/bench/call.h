// One call of the library as data: operation, shape, scalars and, for each tensor, its dtype,
// strides and place. The sweep makes Calls of flags, --replay of a log line; all that comes after
// (memory, check, timing, report) treats them alike.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "core/problem.h"
#include "rmsnorm.h"

namespace bench {

using rmsnorm::element_size;
using rmsnorm::Extent;

enum Slot {
  kX,
  kResidual,
  kWeight,
  kBias,
  kY,
  kResidualOut,
  kRstd,  // an output of forward, an input of backward
  kDy,
  kDresidualOut,
  kDx,
  kDresidual,
  kDweight,
  kDbias,
  kGate,
  kUp,
  kDgate,
  kDup,
  kSlots,
  kNone = -1
};

enum class Role { kAbsent, kInput, kOutput };

// The library's functions. As words: those of the log's lines.
enum class Function { kForward, kBackward, kGluForward, kGluBackward };
constexpr int kFunctions = 4;
const char *function_name(Function function);  // "glu_forward"

struct SlotInfo {
  const char *name;  // as in rmsnorm.h and in log lines
  Extent extent;
  struct Use {
    Role role;
    size_t offset;  // in the params
  } uses[kFunctions];
};
const SlotInfo &info(Slot slot);

struct TensorSpec {
  rmsnorm_dtype_t dtype = RMSNORM_DTYPE_NONE;  // NONE: absent
  int64_t row_stride = 0, group_stride = 0;    // in elements
  int64_t misalign = 0;                        // bytes past a multiple of 256
  Slot same_as = kNone;                        // starts where this tensor does
  bool present() const { return dtype != RMSNORM_DTYPE_NONE; }
};

struct Call {
  Function function = Function::kForward;
  int64_t rows = 0, groups = 1, cols = 0;
  double eps = 0, weight_offset = 0;
  bool overlap = false, llama = false, accumulate = false;
  rmsnorm_activation_t activation = RMSNORM_ACTIVATION_SILU;
  TensorSpec tensors[kSlots];
  std::string origin;  // the argument that asked for it, for errors

  const TensorSpec &operator[](Slot slot) const { return tensors[slot]; }
  TensorSpec &operator[](Slot slot) { return tensors[slot]; }
  bool has(Slot slot) const { return tensors[slot].present(); }
  bool is_glu() const {
    return function == Function::kGluForward || function == Function::kGluBackward;
  }
  Slot lead() const { return is_glu() ? kGate : kX; }  // whose dtype and bytes speak for all
  Role role(Slot slot) const { return info(slot).uses[static_cast<int>(function)].role; }
  bool writes(Slot slot) const { return has(slot) && role(slot) == Role::kOutput; }
  // "forward", "add" (forward with residual and residual_out), "backward", "glu-forward",
  // "glu-backward"
  const char *op() const;
  std::string dtype() const;     // x's; with the weight's where that is another: "bf16/f32"
  std::string describe() const;  // "add bf16 4096x1024"

  // The tensor's own counts: a vector has one row, and one group if the groups share it.
  int64_t rows_of(Slot slot) const { return info(slot).extent == Extent::kVector ? 1 : rows; }
  int64_t groups_of(Slot slot) const;
  int64_t cols_of(Slot slot) const { return info(slot).extent == Extent::kRows ? 1 : cols; }
  // Bytes of the elements of one rows x groups x cols tensor; at most 2^62.
  int64_t bytes_of(Slot slot) const;
  // What the call must read and write of such tensors (not weight, rstd and their like).
  double bytes_moved() const;
};

// The library's structs for a call.
class Params {
 public:
  explicit Params(const Call &call);  // data pointers are NULL
  void set_data(Slot slot, void *data);
  rmsnorm_status_t run(const rmsnorm_context_t *context, void *workspace, size_t size,
                       void *stream) const;
  rmsnorm_status_t workspace_size(const rmsnorm_context_t *context, size_t *size) const;
  rmsnorm_status_t kernel_name(const rmsnorm_context_t *context, std::string *name) const;

 private:
  char *place(Slot slot);
  Function function_;
  rmsnorm_forward_params_t forward_ = RMSNORM_FORWARD_PARAMS_INIT;
  rmsnorm_backward_params_t backward_ = RMSNORM_BACKWARD_PARAMS_INIT;
  rmsnorm_glu_forward_params_t glu_forward_ = RMSNORM_GLU_FORWARD_PARAMS_INIT;
  rmsnorm_glu_backward_params_t glu_backward_ = RMSNORM_GLU_BACKWARD_PARAMS_INIT;
};

// Names as in log lines: "gelu_tanh"; -1: there is no such activation.
rmsnorm_activation_t find_activation(const std::string &name);

const char *dtype_name(rmsnorm_dtype_t dtype);        // "bf16", "f32"
rmsnorm_dtype_t find_dtype(const std::string &name);  // also "fp32"; NONE: there is no such dtype

}  // namespace bench
