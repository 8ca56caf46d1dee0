#include "bench/sweep.h"

#include "bench/text.h"

namespace bench {
namespace {

struct Step {
  Shape shape;
  std::string origin;
};

// Rows are what the bytes of x hold, so they depend on the dtype.
std::vector<Step> steps(const Options &options, rmsnorm_dtype_t dtype) {
  std::vector<Step> found;
  if (!options.shapes.empty()) {
    for (const Shape &shape : options.shapes) found.push_back({shape, "--shapes"});
    return found;
  }
  int64_t row = element_size(dtype);
  if (__builtin_mul_overflow(row, options.cols, &row) ||
      __builtin_mul_overflow(row, options.groups, &row))
    fail(kBadInput, "--cols %lld: a row is too long", static_cast<long long>(options.cols));
  if (options.min_bytes < row)
    fail(kBadInput, "--minbytes %lld: one row of %s has %lld bytes",
         static_cast<long long>(options.min_bytes), dtype_name(dtype), static_cast<long long>(row));
  int64_t bytes = options.min_bytes;
  while (bytes <= options.max_bytes) {
    found.push_back(
        {{bytes / row, options.cols}, bytes == options.min_bytes ? "--minbytes" : "--maxbytes"});
    if (__builtin_mul_overflow(bytes, options.factor, &bytes)) break;
  }
  return found;
}

Call make_call(const Options &options, Op op, rmsnorm_activation_t activation,
               rmsnorm_dtype_t dtype, const Step &step) {
  Call call;
  call.function = op == Op::kBackward      ? Function::kBackward
                  : op == Op::kGluForward  ? Function::kGluForward
                  : op == Op::kGluBackward ? Function::kGluBackward
                                           : Function::kForward;
  call.activation = activation;
  call.rows = step.shape.rows;
  call.groups = options.groups;
  call.cols = step.shape.cols;
  call.eps = options.eps;
  call.overlap = options.overlap;
  call.origin = step.origin;
  int64_t packed = 0;
  if (__builtin_mul_overflow(call.groups, call.cols, &packed))
    fail(kBadInput, "--groups %lld: a row is too long", static_cast<long long>(call.groups));
  if (options.row_stride != 0 && options.row_stride < packed)
    fail(kBadInput, "--row-stride %lld: a row has %lld elements",
         static_cast<long long>(options.row_stride), static_cast<long long>(packed));
  const int64_t row_stride = options.row_stride == 0 ? packed : options.row_stride;

  const auto add = [&](Slot slot, rmsnorm_dtype_t of) {
    TensorSpec &spec = call[slot];
    spec.dtype = of;
    spec.misalign = options.misalign * element_size(of);
    if (info(slot).extent == Extent::kElements) spec.row_stride = row_stride;
    if (info(slot).extent == Extent::kElements) spec.group_stride = call.cols;
    if (info(slot).extent == Extent::kRows) spec.row_stride = call.groups, spec.group_stride = 1;
  };
  if (call.is_glu()) {
    for (const Slot slot : {kDy, kGate, kUp, kY, kDgate, kDup})
      if (call.role(slot) != Role::kAbsent) add(slot, dtype);
    return call;
  }
  const rmsnorm_dtype_t weight =
      options.weight_dtype == RMSNORM_DTYPE_NONE ? dtype : options.weight_dtype;
  add(kX, dtype);
  add(kWeight, weight);
  if (op != Op::kBackward) add(kY, dtype);
  if (op == Op::kAdd) add(kResidual, dtype), add(kResidualOut, dtype);
  if (op == Op::kBackward) {
    add(kRstd, dtype == RMSNORM_DTYPE_F64 ? RMSNORM_DTYPE_F64 : RMSNORM_DTYPE_F32);
    add(kDy, dtype), add(kDx, dtype), add(kDweight, weight);
  }
  return call;
}

}  // namespace

std::vector<Call> sweep(const Options &options) {
  std::vector<Call> calls;
  const std::vector<rmsnorm_activation_t> none = {RMSNORM_ACTIVATION_SILU};
  for (const Op op : options.ops) {
    const bool gated = op == Op::kGluForward || op == Op::kGluBackward;
    for (const rmsnorm_activation_t activation : gated ? options.activations : none)
      for (const rmsnorm_dtype_t dtype : options.dtypes)
        for (const Step &step : steps(options, dtype))
          calls.push_back(make_call(options, op, activation, dtype, step));
  }
  return calls;
}

}  // namespace bench
