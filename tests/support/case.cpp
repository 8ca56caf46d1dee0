#include "case.h"

#include <cmath>
#include <cstddef>

namespace rmsnorm_test {
namespace {

#define FORWARD(name) offsetof(rmsnorm_forward_params_t, name)
#define BACKWARD(name) offsetof(rmsnorm_backward_params_t, name)
constexpr size_t kNowhere = 0;

const NameInfo kNames[kNameCount] = {
    {"x", Extent::kElements, true, true, false, false, FORWARD(x), BACKWARD(x)},
    {"residual", Extent::kElements, true, false, false, false, FORWARD(residual), kNowhere},
    {"weight", Extent::kVector, true, true, false, false, FORWARD(weight), BACKWARD(weight)},
    {"bias", Extent::kVector, true, false, false, false, FORWARD(bias), kNowhere},
    {"y", Extent::kElements, true, false, true, false, FORWARD(y), kNowhere},
    {"residual_out", Extent::kElements, true, false, true, false, FORWARD(residual_out), kNowhere},
    {"rstd", Extent::kRows, true, true, true, false, FORWARD(rstd), BACKWARD(rstd)},
    {"dy", Extent::kElements, false, true, false, false, kNowhere, BACKWARD(dy)},
    {"dresidual_out", Extent::kElements, false, true, false, false, kNowhere,
     BACKWARD(dresidual_out)},
    {"dx", Extent::kElements, false, true, false, true, kNowhere, BACKWARD(dx)},
    {"dresidual", Extent::kElements, false, true, false, true, kNowhere, BACKWARD(dresidual)},
    {"dweight", Extent::kVector, false, true, false, true, kNowhere, BACKWARD(dweight)},
    {"dbias", Extent::kVector, false, true, false, true, kNowhere, BACKWARD(dbias)},
};

#undef FORWARD
#undef BACKWARD

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

double power_of_two(uint64_t hash) { return std::ldexp(1.0, static_cast<int>(hash % 17) - 8); }

void put(Case *c, Name name, rmsnorm_dtype_t dtype) { (*c)[name].dtype = dtype; }

}  // namespace

const NameInfo &info(Name name) { return kNames[name]; }

bool takes(Direction direction, Name name) {
  return direction == Direction::kForward ? kNames[name].in_forward : kNames[name].in_backward;
}

bool is_output(Direction direction, Name name) {
  return direction == Direction::kForward ? kNames[name].forward_output
                                          : kNames[name].backward_output;
}

rmsnorm_tensor_t &Params::tensor(Name name) {  // rmsnorm_input_t has the same layout
  const bool is_forward = direction == Direction::kForward;
  char *params =
      is_forward ? reinterpret_cast<char *>(&forward) : reinterpret_cast<char *>(&backward);
  const size_t offset = is_forward ? kNames[name].forward_offset : kNames[name].backward_offset;
  return *reinterpret_cast<rmsnorm_tensor_t *>(params + offset);
}

rmsnorm_status_t run(const rmsnorm_context_t *context, const Params &params, void *workspace,
                     size_t workspace_size, void *stream) {
  return params.direction == Direction::kForward
             ? rmsnorm_forward(context, &params.forward, workspace, workspace_size, stream)
             : rmsnorm_backward(context, &params.backward, workspace, workspace_size, stream);
}

rmsnorm_status_t query_size(const rmsnorm_context_t *context, const Params &params, size_t *size) {
  return params.direction == Direction::kForward
             ? rmsnorm_forward_workspace_size(context, &params.forward, size)
             : rmsnorm_backward_workspace_size(context, &params.backward, size);
}

rmsnorm_status_t query_name(const rmsnorm_context_t *context, const Params &params, char *name,
                            size_t capacity) {
  return params.direction == Direction::kForward
             ? rmsnorm_forward_kernel_name(context, &params.forward, name, capacity)
             : rmsnorm_backward_kernel_name(context, &params.backward, name, capacity);
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
  if (direction == Direction::kBackward || !has(kResidual)) return x;
  if (has(kResidualOut)) return tensors[kResidualOut].dtype;
  return tensors[kResidual].dtype == x ? x : RMSNORM_DTYPE_F32;
}

std::ostream &operator<<(std::ostream &out, const Case &c) {
  out << (c.direction == Direction::kForward ? "forward" : "backward") << " rows=" << c.rows
      << " groups=" << c.groups << " cols=" << c.cols << " eps=" << c.eps
      << " weight_offset=" << c.weight_offset << " rounding=" << c.rounding << " flags=" << c.flags
      << " seed=" << c.seed;
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

Case full_case(Direction direction, int64_t rows, int64_t cols, rmsnorm_dtype_t dtype) {
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
