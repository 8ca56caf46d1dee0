// What one test runs: an operation, its shape, and for each tensor a dtype, strides, misalignment,
// the memory it shares, and the data in it. A Case prints itself as the params that reproduce it.
#pragma once

#include <cstdint>
#include <ostream>
#include <vector>

#include "core/problem.h"
#include "device.h"
#include "rmsnorm.h"

namespace rmsnorm_test {

using rmsnorm::Extent;

enum class Direction { kForward, kBackward, kGluForward, kGluBackward };
constexpr int kDirectionCount = 4;
constexpr Direction kDirections[] = {Direction::kForward, Direction::kBackward,
                                     Direction::kGluForward, Direction::kGluBackward};
constexpr Direction kNormDirections[] = {Direction::kForward, Direction::kBackward};
constexpr Direction kGluDirections[] = {Direction::kGluForward, Direction::kGluBackward};
const char *text(Direction direction);
inline bool is_glu(Direction direction) {
  return direction == Direction::kGluForward || direction == Direction::kGluBackward;
}

enum Name {
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
  kNameCount,
  kNone = -1
};

// What the ABI says of a tensor, written down once more here: tests do not read the library's
// table.
enum class Role { kNone, kInput, kOutput };
struct Use {
  Role role;
  size_t offset;  // in the params
};
struct NameInfo {
  const char *text;
  Extent extent;
  Use uses[kDirectionCount];
};
const NameInfo &info(Name name);
bool takes(Direction direction, Name name);
bool is_output(Direction direction, Name name);

// The params of each direction.
struct Params {
  Direction direction;
  rmsnorm_forward_params_t forward = RMSNORM_FORWARD_PARAMS_INIT;
  rmsnorm_backward_params_t backward = RMSNORM_BACKWARD_PARAMS_INIT;
  rmsnorm_glu_forward_params_t glu_forward = RMSNORM_GLU_FORWARD_PARAMS_INIT;
  rmsnorm_glu_backward_params_t glu_backward = RMSNORM_GLU_BACKWARD_PARAMS_INIT;

  explicit Params(Direction of) : direction(of) {}
  rmsnorm_tensor_t &tensor(Name name);
  template <class Edit>
  void edit_norm(Edit edit) {  // edit(params), of what the norm's have in common
    edit(&forward);
    edit(&backward);
  }
  template <class Edit>
  void edit_glu(Edit edit) {
    edit(&glu_forward);
    edit(&glu_backward);
  }
  template <class Edit>
  void edit_head(Edit edit) {  // what all begin with
    edit_norm(edit);
    edit_glu(edit);
  }
};
rmsnorm_status_t run(const rmsnorm_context_t *context, const Params &params, void *workspace,
                     size_t workspace_size, void *stream);
rmsnorm_status_t query_size(const rmsnorm_context_t *context, const Params &params, size_t *size);
rmsnorm_status_t query_name(const rmsnorm_context_t *context, const Params &params, char *name,
                            size_t capacity);

enum class Pattern {
  kNormal,    // about N(0, 1)
  kWeight,    // about 1 + N(0, 1) / 4
  kWide,      // N(0, 1) times a power of two from 2^-8 to 2^8, another for each element
  kRows,      // N(0, 1) times a power of two from 2^-8 to 2^8, one for each row
  kPositive,  // from 0.5 to 1.5
  kOne,
  kSign,  // 1 or -1
  kZero
};

constexpr int64_t kPacked = INT64_MIN;  // a stride: as if the tensor were contiguous

struct Spec {
  rmsnorm_dtype_t dtype = RMSNORM_DTYPE_NONE;
  int64_t row_stride = kPacked, group_stride = kPacked;
  int64_t misalign = 0;  // bytes between the data and the 256-byte boundary before it
  Name share = kNone;    // stands in this tensor's memory,
  int64_t shift = 0;     // so many bytes past its data
  Pattern pattern = Pattern::kNormal;
  double scale = 1;
};

struct Case {
  Direction direction = Direction::kForward;
  int64_t rows = 0, groups = 1, cols = 0;
  double eps = 1e-6, weight_offset = 0;
  rmsnorm_rounding_t rounding = RMSNORM_ROUNDING_ONCE;
  rmsnorm_activation_t activation = RMSNORM_ACTIVATION_SILU;
  uint32_t flags = 0;
  uint64_t seed = 1;
  int64_t sampled = 0;         // how many (row, group) are compared with the reference; 0: all
  bool estimated = false;      // what an estimate finds clearly right, the reference need not see
  int64_t guard = 512;         // bytes of the band on either side of each tensor's memory
  Fence fence = Fence::kNone;  // in place of guard bands: memory begins or ends with the tensor
  Spec tensors[kNameCount];

  Spec &operator[](Name name) { return tensors[name]; }
  const Spec &operator[](Name name) const { return tensors[name]; }
  bool has(Name name) const { return tensors[name].dtype != RMSNORM_DTYPE_NONE; }
  int64_t group_count() const { return groups == 0 ? 1 : groups; }
  int64_t resolved_row_stride(Name name) const;
  int64_t resolved_group_stride(Name name) const;
  // Elements of a tensor in each dimension; a vector that the groups share has one group.
  int64_t rows_of(Name name) const;
  int64_t groups_of(Name name) const;
  int64_t cols_of(Name name) const;
  rmsnorm_dtype_t h_dtype() const;
};
std::ostream &operator<<(std::ostream &out, const Case &c);

// x, weight, y and rstd (fp32, or fp64 with fp64).
Case forward_case(int64_t rows, int64_t cols, rmsnorm_dtype_t dtype);
// The same with residual and residual_out.
Case add_case(int64_t rows, int64_t cols, rmsnorm_dtype_t dtype);
// dy, x, weight, dx and dweight; rstd is recomputed.
Case backward_case(int64_t rows, int64_t cols, rmsnorm_dtype_t dtype);
// gate, up and y, or dy, gate, up, dgate and dup.
Case glu_case(Direction direction, rmsnorm_activation_t activation, int64_t rows, int64_t cols,
              rmsnorm_dtype_t dtype);
// With every optional tensor of the direction, and an rstd that is right for x where backward reads
// it. The gated activations take turns, by rows + cols.
Case full_case(Direction direction, int64_t rows, int64_t cols, rmsnorm_dtype_t dtype);

constexpr rmsnorm_activation_t kActivations[] = {RMSNORM_ACTIVATION_SILU,
                                                 RMSNORM_ACTIVATION_GELU_TANH,
                                                 RMSNORM_ACTIVATION_GELU_ERF};
constexpr rmsnorm_dtype_t kHalf[] = {RMSNORM_DTYPE_F16, RMSNORM_DTYPE_BF16};
constexpr rmsnorm_dtype_t kMixable[] = {RMSNORM_DTYPE_F32, RMSNORM_DTYPE_F16, RMSNORM_DTYPE_BF16};
constexpr rmsnorm_dtype_t kDtypes[] = {RMSNORM_DTYPE_F32, RMSNORM_DTYPE_F16, RMSNORM_DTYPE_BF16,
                                       RMSNORM_DTYPE_F64};
rmsnorm_dtype_t rstd_dtype(rmsnorm_dtype_t dtype);

// The values of a row of a tensor, the same on every machine: a hash of the row, and each element
// from that.
uint64_t row_hash(uint64_t seed, Name name, int64_t row, int64_t group);
double pattern_value(const Spec &spec, uint64_t of_row, int64_t col);
// A hash of its arguments: sampling and patterns.
uint64_t mix(uint64_t a, uint64_t b);

}  // namespace rmsnorm_test
