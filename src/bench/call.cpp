#include "bench/call.h"

#include <algorithm>
#include <cstring>

#include "bench/text.h"

namespace bench {
namespace {

#define IN(function, name) \
  { Role::kInput, offsetof(rmsnorm_##function##_params_t, name) }
#define OUT(function, name) \
  { Role::kOutput, offsetof(rmsnorm_##function##_params_t, name) }
#define NOT \
  { Role::kAbsent, 0 }
// Uses in the order of Function.
const SlotInfo kInfo[kSlots] = {
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

constexpr struct {
  const char *name;
  rmsnorm_dtype_t dtype;
} kDtypeNames[] = {{"f32", RMSNORM_DTYPE_F32},
                   {"f16", RMSNORM_DTYPE_F16},
                   {"bf16", RMSNORM_DTYPE_BF16},
                   {"f64", RMSNORM_DTYPE_F64}};

template <class Of>
void set_head(const Call &call, Of *params) {
  params->rows = call.rows;
  params->groups = call.groups;
  params->cols = call.cols;
  if (call.overlap) params->flags |= RMSNORM_FLAG_OVERLAP;
}

template <class Of>
void set_norm(const Call &call, Of *params) {
  set_head(call, params);
  params->eps = call.eps;
  params->weight_offset = call.weight_offset;
}

template <class Of>
void set_glu(const Call &call, Of *params) {
  set_head(call, params);
  params->activation = call.activation;
}

}  // namespace

const char *function_name(Function function) {
  constexpr const char *kNames[] = {"forward", "backward", "glu_forward", "glu_backward"};
  return kNames[static_cast<int>(function)];
}

const SlotInfo &info(Slot slot) { return kInfo[slot]; }

rmsnorm_activation_t find_activation(const std::string &name) {
  for (const rmsnorm_activation_t known :
       {RMSNORM_ACTIVATION_SILU, RMSNORM_ACTIVATION_GELU_TANH, RMSNORM_ACTIVATION_GELU_ERF})
    if (name == rmsnorm::activation_name(known)) return known;
  return -1;
}

const char *dtype_name(rmsnorm_dtype_t dtype) {
  for (const auto &known : kDtypeNames)
    if (known.dtype == dtype) return known.name;
  return "none";
}

rmsnorm_dtype_t find_dtype(const std::string &name) {
  for (const auto &known : kDtypeNames)
    if (name == known.name || (known.name[0] == 'f' && name == "fp" + std::string(known.name + 1)))
      return known.dtype;
  return RMSNORM_DTYPE_NONE;
}

// ---- Call ---------------------------------------------------------------------------------------

const char *Call::op() const {
  switch (function) {
    case Function::kBackward: return "backward";
    case Function::kGluForward: return "glu-forward";
    case Function::kGluBackward: return "glu-backward";
    default: return has(kResidual) && has(kResidualOut) ? "add" : "forward";
  }
}

std::string Call::dtype() const {
  std::string text = dtype_name(tensors[lead()].dtype);
  if (has(kWeight) && tensors[kWeight].dtype != tensors[kX].dtype)
    text += std::string("/") + dtype_name(tensors[kWeight].dtype);
  return text;
}

std::string Call::describe() const {
  const std::string middle = groups > 1 ? print("%lldx", static_cast<long long>(groups)) : "";
  const std::string gated = is_glu() ? print(" %s", rmsnorm::activation_name(activation)) : "";
  return print("%s%s %s %lldx%s%lld", op(), gated.c_str(), dtype().c_str(),
               static_cast<long long>(rows), middle.c_str(), static_cast<long long>(cols));
}

int64_t Call::groups_of(Slot slot) const {
  return info(slot).extent == Extent::kVector && tensors[slot].group_stride == 0 ? 1 : groups;
}

int64_t Call::bytes_of(Slot slot) const {
  constexpr int64_t kMost = int64_t{1} << 62;
  int64_t bytes = element_size(tensors[slot].dtype);
  for (const int64_t count : {rows_of(slot), groups_of(slot), cols_of(slot)})
    if (__builtin_mul_overflow(bytes, count, &bytes) || bytes > kMost) return kMost;
  return bytes;
}

double Call::bytes_moved() const {
  double bytes = 0;
  for (int slot = 0; slot < kSlots; ++slot)
    if (has(Slot(slot)) && info(Slot(slot)).extent == Extent::kElements)
      bytes += static_cast<double>(bytes_of(Slot(slot)));
  return bytes;
}

// ---- Params -------------------------------------------------------------------------------------

Params::Params(const Call &call) : function_(call.function) {
  set_norm(call, &forward_);
  set_norm(call, &backward_);
  set_glu(call, &glu_forward_);
  set_glu(call, &glu_backward_);
  if (call.llama) forward_.rounding = RMSNORM_ROUNDING_LLAMA;
  if (call.accumulate) backward_.flags |= RMSNORM_FLAG_ACCUMULATE;
  for (int slot = 0; slot < kSlots; ++slot) {
    const TensorSpec &spec = call[Slot(slot)];
    if (!spec.present()) continue;
    // rmsnorm_input_t has the same layout.
    const rmsnorm_tensor_t tensor = {nullptr, spec.row_stride, spec.group_stride, spec.dtype, 0};
    std::memcpy(place(Slot(slot)), &tensor, sizeof tensor);
  }
}

char *Params::place(Slot slot) {
  char *const all[] = {reinterpret_cast<char *>(&forward_), reinterpret_cast<char *>(&backward_),
                       reinterpret_cast<char *>(&glu_forward_),
                       reinterpret_cast<char *>(&glu_backward_)};
  const int index = static_cast<int>(function_);
  return all[index] + kInfo[slot].uses[index].offset;
}

void Params::set_data(Slot slot, void *data) {
  std::memcpy(place(slot) + offsetof(rmsnorm_tensor_t, data), &data, sizeof data);
}

rmsnorm_status_t Params::run(const rmsnorm_context_t *context, void *workspace, size_t size,
                             void *stream) const {
  switch (function_) {
    case Function::kForward: return rmsnorm_forward(context, &forward_, workspace, size, stream);
    case Function::kBackward: return rmsnorm_backward(context, &backward_, workspace, size, stream);
    case Function::kGluForward:
      return rmsnorm_glu_forward(context, &glu_forward_, workspace, size, stream);
    default: return rmsnorm_glu_backward(context, &glu_backward_, workspace, size, stream);
  }
}

rmsnorm_status_t Params::workspace_size(const rmsnorm_context_t *context, size_t *size) const {
  switch (function_) {
    case Function::kForward: return rmsnorm_forward_workspace_size(context, &forward_, size);
    case Function::kBackward: return rmsnorm_backward_workspace_size(context, &backward_, size);
    case Function::kGluForward:
      return rmsnorm_glu_forward_workspace_size(context, &glu_forward_, size);
    default: return rmsnorm_glu_backward_workspace_size(context, &glu_backward_, size);
  }
}

rmsnorm_status_t Params::kernel_name(const rmsnorm_context_t *context, std::string *name) const {
  char text[RMSNORM_KERNEL_NAME_SIZE] = "";
  rmsnorm_status_t status = RMSNORM_SUCCESS;
  switch (function_) {
    case Function::kForward:
      status = rmsnorm_forward_kernel_name(context, &forward_, text, sizeof text);
      break;
    case Function::kBackward:
      status = rmsnorm_backward_kernel_name(context, &backward_, text, sizeof text);
      break;
    case Function::kGluForward:
      status = rmsnorm_glu_forward_kernel_name(context, &glu_forward_, text, sizeof text);
      break;
    case Function::kGluBackward:
      status = rmsnorm_glu_backward_kernel_name(context, &glu_backward_, text, sizeof text);
      break;
  }
  *name = text;
  return status;
}

}  // namespace bench
