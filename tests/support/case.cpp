#include "case.h"

#include <cmath>
#include <cstddef>

#include "reference/double_double.h"

namespace rmsnorm_test {
namespace {

#define IN(direction, name) \
  { Role::kInput, offsetof(rmsnorm_##direction##_params_t, name) }
#define OUT(direction, name) \
  { Role::kOutput, offsetof(rmsnorm_##direction##_params_t, name) }
#define NOT \
  { Role::kNone, 0 }

// Uses in the order of Direction.
const NameInfo kNames[kNameCount] = {
    {"x", Extent::kElements, {IN(forward, x), IN(backward, x), NOT, NOT}},
    {"residual", Extent::kElements, {IN(forward, residual), NOT, NOT, NOT}},
    {"weight", Extent::kVector, {IN(forward, weight), IN(backward, weight), NOT, NOT}},
    {"bias", Extent::kVector, {IN(forward, bias), NOT, NOT, NOT}},
    {"y", Extent::kElements, {OUT(forward, y), NOT, OUT(glu_forward, y), NOT}},
    {"residual_out", Extent::kElements, {OUT(forward, residual_out), NOT, NOT, NOT}},
    {"rstd", Extent::kRows, {OUT(forward, rstd), IN(backward, rstd), NOT, NOT}},
    {"dy", Extent::kElements, {NOT, IN(backward, dy), NOT, IN(glu_backward, dy)}},
    {"dresidual_out", Extent::kElements, {NOT, IN(backward, dresidual_out), NOT, NOT}},
    {"dx", Extent::kElements, {NOT, OUT(backward, dx), NOT, NOT}},
    {"dresidual", Extent::kElements, {NOT, OUT(backward, dresidual), NOT, NOT}},
    {"dweight", Extent::kVector, {NOT, OUT(backward, dweight), NOT, NOT}},
    {"dbias", Extent::kVector, {NOT, OUT(backward, dbias), NOT, NOT}},
    {"gate", Extent::kElements, {NOT, NOT, IN(glu_forward, gate), IN(glu_backward, gate)}},
    {"up", Extent::kElements, {NOT, NOT, IN(glu_forward, up), IN(glu_backward, up)}},
    {"dgate", Extent::kElements, {NOT, NOT, NOT, OUT(glu_backward, dgate)}},
    {"dup", Extent::kElements, {NOT, NOT, NOT, OUT(glu_backward, dup)}},
};

#undef IN
#undef OUT
#undef NOT

const Use &use_of(Direction direction, Name name) {
  return kNames[name].uses[static_cast<int>(direction)];
}

const char *text(rmsnorm_dtype_t dtype) { return rmsnorm::dtype_name(dtype); }

const char *text(Pattern pattern) {
  switch (pattern) {
    case Pattern::kNormal: return "normal";
    case Pattern::kWeight: return "weight";
    case Pattern::kWide: return "wide";
    case Pattern::kRows: return "rows";
    case Pattern::kPositive: return "positive";
    case Pattern::kOne: return "one";
    case Pattern::kSign: return "sign";
    case Pattern::kZero: return "zero";
  }
  return "?";
}

// From 0 to 1, from 16 bits of a hash.
double unit(uint64_t bits) { return static_cast<double>(bits & 0xffff) / 65536.0; }

double normal(uint64_t hash) {
  const double sum = unit(hash) + unit(hash >> 16) + unit(hash >> 32) + unit(hash >> 48);
  return (sum - 2.0) * 1.7320508075688772;  // sqrt(3)
}

double power_of_two(uint64_t hash) {
  return rmsnorm::reference::scale(1.0, static_cast<int>(hash % 17) - 8);
}

void put(Case *c, Name name, rmsnorm_dtype_t dtype) { (*c)[name].dtype = dtype; }

}  // namespace

const NameInfo &info(Name name) { return kNames[name]; }

const char *text(Direction direction) {
  constexpr const char *kTexts[] = {"forward", "backward", "glu_forward", "glu_backward"};
  return kTexts[static_cast<int>(direction)];
}

bool takes(Direction direction, Name name) { return use_of(direction, name).role != Role::kNone; }

bool is_output(Direction direction, Name name) {
  return use_of(direction, name).role == Role::kOutput;
}

rmsnorm_tensor_t &Params::tensor(Name name) {  // rmsnorm_input_t has the same layout
  char *const all[] = {reinterpret_cast<char *>(&forward), reinterpret_cast<char *>(&backward),
                       reinterpret_cast<char *>(&glu_forward),
                       reinterpret_cast<char *>(&glu_backward)};
  char *const params = all[static_cast<int>(direction)];
  return *reinterpret_cast<rmsnorm_tensor_t *>(params + use_of(direction, name).offset);
}

rmsnorm_status_t run(const rmsnorm_context_t *context, const Params &params, void *workspace,
                     size_t workspace_size, void *stream) {
  switch (params.direction) {
    case Direction::kForward:
      return rmsnorm_forward(context, &params.forward, workspace, workspace_size, stream);
    case Direction::kBackward:
      return rmsnorm_backward(context, &params.backward, workspace, workspace_size, stream);
    case Direction::kGluForward:
      return rmsnorm_glu_forward(context, &params.glu_forward, workspace, workspace_size, stream);
    default:
      return rmsnorm_glu_backward(context, &params.glu_backward, workspace, workspace_size, stream);
  }
}

rmsnorm_status_t query_size(const rmsnorm_context_t *context, const Params &params, size_t *size) {
  switch (params.direction) {
    case Direction::kForward: return rmsnorm_forward_workspace_size(context, &params.forward, size);
    case Direction::kBackward:
      return rmsnorm_backward_workspace_size(context, &params.backward, size);
    case Direction::kGluForward:
      return rmsnorm_glu_forward_workspace_size(context, &params.glu_forward, size);
    default: return rmsnorm_glu_backward_workspace_size(context, &params.glu_backward, size);
  }
}

rmsnorm_status_t query_name(const rmsnorm_context_t *context, const Params &params, char *name,
                            size_t capacity) {
  switch (params.direction) {
    case Direction::kForward:
      return rmsnorm_forward_kernel_name(context, &params.forward, name, capacity);
    case Direction::kBackward:
      return rmsnorm_backward_kernel_name(context, &params.backward, name, capacity);
    case Direction::kGluForward:
      return rmsnorm_glu_forward_kernel_name(context, &params.glu_forward, name, capacity);
    default: return rmsnorm_glu_backward_kernel_name(context, &params.glu_backward, name, capacity);
  }
}

int64_t Case::rows_of(Name name) const { return info(name).extent == Extent::kVector ? 1 : rows; }

int64_t Case::groups_of(Name name) const {
  const bool shared = info(name).extent == Extent::kVector && resolved_group_stride(name) == 0;
  return shared ? 1 : group_count();
}

int64_t Case::cols_of(Name name) const { return info(name).extent == Extent::kRows ? 1 : cols; }

int64_t Case::resolved_row_stride(Name name) const {
  if (tensors[name].row_stride != kPacked) return tensors[name].row_stride;
  if (info(name).extent == Extent::kVector) return 0;
  return group_count() * cols_of(name);
}

int64_t Case::resolved_group_stride(Name name) const {
  if (tensors[name].group_stride != kPacked) return tensors[name].group_stride;
  return info(name).extent == Extent::kVector ? 0 : cols_of(name);
}

rmsnorm_dtype_t Case::h_dtype() const {
  const rmsnorm_dtype_t x = tensors[kX].dtype;
  if (direction != Direction::kForward || !has(kResidual)) return x;
  if (has(kResidualOut)) return tensors[kResidualOut].dtype;
  return tensors[kResidual].dtype == x ? x : RMSNORM_DTYPE_F32;
}

std::ostream &operator<<(std::ostream &out, const Case &c) {
  out << text(c.direction) << " rows=" << c.rows << " groups=" << c.groups << " cols=" << c.cols;
  if (is_glu(c.direction)) out << " activation=" << c.activation;
  else
    out << " eps=" << c.eps << " weight_offset=" << c.weight_offset << " rounding=" << c.rounding;
  out << " flags=" << c.flags << " seed=" << c.seed;
  if (c.fence != Fence::kNone)
    out << (c.fence == Fence::kBefore ? " fence before" : " fence after");
  for (int i = 0; i < kNameCount; ++i) {
    const Name name = static_cast<Name>(i);
    if (!c.has(name) || !takes(c.direction, name)) continue;
    const Spec &spec = c[name];
    out << "\n    " << info(name).text << "=" << text(spec.dtype)
        << " row_stride=" << c.resolved_row_stride(name)
        << " group_stride=" << c.resolved_group_stride(name);
    if (spec.misalign != 0) out << " misalign=" << spec.misalign;
    if (spec.share != kNone)
      out << " at " << info(spec.share).text << "+" << spec.shift << " bytes";
    if (!is_output(c.direction, name)) out << " " << text(spec.pattern) << "*" << spec.scale;
  }
  return out;
}

rmsnorm_dtype_t rstd_dtype(rmsnorm_dtype_t dtype) {
  return dtype == RMSNORM_DTYPE_F64 ? RMSNORM_DTYPE_F64 : RMSNORM_DTYPE_F32;
}

Case forward_case(int64_t rows, int64_t cols, rmsnorm_dtype_t dtype) {
  Case c;
  c.rows = rows;
  c.cols = cols;
  for (const Name name : {kX, kWeight, kY}) put(&c, name, dtype);
  put(&c, kRstd, rstd_dtype(dtype));
  c[kWeight].pattern = Pattern::kWeight;
  return c;
}

Case add_case(int64_t rows, int64_t cols, rmsnorm_dtype_t dtype) {
  Case c = forward_case(rows, cols, dtype);
  for (const Name name : {kResidual, kResidualOut}) put(&c, name, dtype);
  return c;
}

Case backward_case(int64_t rows, int64_t cols, rmsnorm_dtype_t dtype) {
  Case c;
  c.direction = Direction::kBackward;
  c.rows = rows;
  c.cols = cols;
  for (const Name name : {kDy, kX, kWeight, kDx, kDweight}) put(&c, name, dtype);
  c[kWeight].pattern = Pattern::kWeight;
  return c;
}

Case glu_case(Direction direction, rmsnorm_activation_t activation, int64_t rows, int64_t cols,
              rmsnorm_dtype_t dtype) {
  Case c;
  c.direction = direction;
  c.activation = activation;
  c.rows = rows;
  c.cols = cols;
  for (const Name name : {kY, kDy, kGate, kUp, kDgate, kDup})
    if (takes(direction, name)) put(&c, name, dtype);
  c[kGate].scale = 3;
  return c;
}

Case full_case(Direction direction, int64_t rows, int64_t cols, rmsnorm_dtype_t dtype) {
  if (is_glu(direction))
    return glu_case(direction, kActivations[(rows + cols) % 3], rows, cols, dtype);
  if (direction == Direction::kForward) {
    Case c = add_case(rows, cols, dtype);
    put(&c, kBias, dtype);
    return c;
  }
  Case c = backward_case(rows, cols, dtype);
  for (const Name name : {kDresidualOut, kDresidual, kDbias}) put(&c, name, dtype);
  put(&c, kRstd, rstd_dtype(dtype));
  c[kRstd].pattern = Pattern::kPositive;
  return c;
}

uint64_t mix(uint64_t a, uint64_t b) {
  uint64_t hash = a * 0x9e3779b97f4a7c15u + b + 0x7f4a7c15u;
  hash = (hash ^ (hash >> 30)) * 0xbf58476d1ce4e5b9u;
  hash = (hash ^ (hash >> 27)) * 0x94d049bb133111ebu;
  return hash ^ (hash >> 31);
}

uint64_t row_hash(uint64_t seed, Name name, int64_t row, int64_t group) {
  const uint64_t of_tensor = mix(seed, static_cast<uint64_t>(name));
  return mix(mix(of_tensor, static_cast<uint64_t>(row)), static_cast<uint64_t>(group));
}

double pattern_value(const Spec &spec, uint64_t of_row, int64_t col) {
  const uint64_t hash = mix(of_row, static_cast<uint64_t>(col));
  switch (spec.pattern) {
    case Pattern::kNormal: return spec.scale * normal(hash);
    case Pattern::kWeight: return spec.scale * (1 + normal(hash) / 4);
    case Pattern::kWide: return spec.scale * normal(hash) * power_of_two(mix(hash, 1));
    case Pattern::kRows: return spec.scale * normal(hash) * power_of_two(of_row);
    case Pattern::kPositive: return spec.scale * (0.5 + unit(hash));
    case Pattern::kOne: return spec.scale;
    case Pattern::kSign: return (hash & 1) != 0 ? spec.scale : -spec.scale;
    case Pattern::kZero: return 0;
  }
  return 0;
}

}  // namespace rmsnorm_test
