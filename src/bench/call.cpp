#include "bench/call.h"

#include <algorithm>
#include <cstring>

#include "bench/text.h"

namespace bench {
namespace {

constexpr auto kAbsent = Role::kAbsent;
constexpr auto kIn = Role::kInput;
constexpr auto kOut = Role::kOutput;

#define F(name) offsetof(rmsnorm_forward_params_t, name)
#define B(name) offsetof(rmsnorm_backward_params_t, name)
const SlotInfo kInfo[kSlots] = {
    {"x", Extent::kElements, kIn, kIn, F(x), B(x)},
    {"residual", Extent::kElements, kIn, kAbsent, F(residual), 0},
    {"weight", Extent::kVector, kIn, kIn, F(weight), B(weight)},
    {"bias", Extent::kVector, kIn, kAbsent, F(bias), 0},
    {"y", Extent::kElements, kOut, kAbsent, F(y), 0},
    {"residual_out", Extent::kElements, kOut, kAbsent, F(residual_out), 0},
    {"rstd", Extent::kRows, kOut, kIn, F(rstd), B(rstd)},
    {"dy", Extent::kElements, kAbsent, kIn, 0, B(dy)},
    {"dresidual_out", Extent::kElements, kAbsent, kIn, 0, B(dresidual_out)},
    {"dx", Extent::kElements, kAbsent, kOut, 0, B(dx)},
    {"dresidual", Extent::kElements, kAbsent, kOut, 0, B(dresidual)},
    {"dweight", Extent::kVector, kAbsent, kOut, 0, B(dweight)},
    {"dbias", Extent::kVector, kAbsent, kOut, 0, B(dbias)},
};
#undef F
#undef B

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
  params->eps = call.eps;
  params->weight_offset = call.weight_offset;
  if (call.overlap) params->flags |= RMSNORM_FLAG_OVERLAP;
}

}  // namespace

const SlotInfo &info(Slot slot) { return kInfo[slot]; }

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
  if (backward) return "backward";
  return has(kResidual) && has(kResidualOut) ? "add" : "forward";
}

std::string Call::dtype() const {
  std::string text = dtype_name(tensors[kX].dtype);
  if (has(kWeight) && tensors[kWeight].dtype != tensors[kX].dtype)
    text += std::string("/") + dtype_name(tensors[kWeight].dtype);
  return text;
}

std::string Call::describe() const {
  const std::string middle = groups > 1 ? print("%lldx", static_cast<long long>(groups)) : "";
  return print("%s %s %lldx%s%lld", op(), dtype().c_str(), static_cast<long long>(rows),
               middle.c_str(), static_cast<long long>(cols));
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

Params::Params(const Call &call) : is_backward_(call.backward) {
  set_head(call, &forward_);
  set_head(call, &backward_);
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
  if (is_backward_) return reinterpret_cast<char *>(&backward_) + kInfo[slot].backward_offset;
  return reinterpret_cast<char *>(&forward_) + kInfo[slot].forward_offset;
}

void Params::set_data(Slot slot, void *data) {
  std::memcpy(place(slot) + offsetof(rmsnorm_tensor_t, data), &data, sizeof data);
}

rmsnorm_status_t Params::run(const rmsnorm_context_t *context, void *workspace, size_t size,
                             void *stream) const {
  return is_backward_ ? rmsnorm_backward(context, &backward_, workspace, size, stream)
                      : rmsnorm_forward(context, &forward_, workspace, size, stream);
}

rmsnorm_status_t Params::workspace_size(const rmsnorm_context_t *context, size_t *size) const {
  return is_backward_ ? rmsnorm_backward_workspace_size(context, &backward_, size)
                      : rmsnorm_forward_workspace_size(context, &forward_, size);
}

rmsnorm_status_t Params::kernel_name(const rmsnorm_context_t *context, std::string *name) const {
  char text[RMSNORM_KERNEL_NAME_SIZE] = "";
  const rmsnorm_status_t status =
      is_backward_ ? rmsnorm_backward_kernel_name(context, &backward_, text, sizeof text)
                   : rmsnorm_forward_kernel_name(context, &forward_, text, sizeof text);
  *name = text;
  return status;
}

}  // namespace bench
