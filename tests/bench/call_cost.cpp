// What a call through rmsnorm.hpp costs beside the C call that it makes: one row of 1024 fp32 on
// the CPU, nanoseconds, the medians of alternating batches. call_cost.jl is the same for Julia.
//   c++ -std=c++17 -O2 -I include tests/bench/call_cost.cpp build/cpu/librmsnorm.so
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <vector>

#include "rmsnorm.hpp"

namespace {

constexpr std::int64_t kCols = 1024;
constexpr int kBatch = 200, kBatches = 2001;

template <class Call>
double nanoseconds(Call call) {
  using Clock = std::chrono::steady_clock;
  const Clock::time_point start = Clock::now();
  for (int i = 0; i < kBatch; ++i) call();
  return std::chrono::duration<double, std::nano>(Clock::now() - start).count() / kBatch;
}

double median(std::vector<double> &values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

}  // namespace

int main() {
  const std::vector<float> x(kCols, 1.5), weight(kCols, 2);
  std::vector<float> y(kCols);
  rmsnorm::Context context;
  rmsnorm::Status status = rmsnorm::Context::create({}, &context);
  const auto in_c = [&] {
    rmsnorm_forward_params_t params = RMSNORM_FORWARD_PARAMS_INIT;
    params.rows = 1, params.cols = kCols, params.eps = 1e-6;
    params.x.data = x.data(), params.x.row_stride = kCols, params.x.dtype = RMSNORM_DTYPE_F32;
    params.weight.data = weight.data(), params.weight.dtype = RMSNORM_DTYPE_F32;
    params.y.data = y.data(), params.y.row_stride = kCols, params.y.dtype = RMSNORM_DTYPE_F32;
    if (rmsnorm_forward(context.get(), &params, nullptr, 0, nullptr) != RMSNORM_SUCCESS)
      status = rmsnorm::Status::error(RMSNORM_ERROR_INTERNAL, "the C call failed");
  };
  const auto in_cpp = [&] {
    rmsnorm::Forward args;
    args.x = rmsnorm::matrix(x, 1, kCols);
    args.weight = rmsnorm::vector(weight, kCols);
    args.y = rmsnorm::matrix(y, 1, kCols);
    const rmsnorm::Status result = rmsnorm::forward(context, args);
    if (!result.ok()) status = result;
  };
  std::vector<double> c, cpp;
  for (int i = 0; i < kBatches; ++i) {
    c.push_back(nanoseconds(in_c));
    cpp.push_back(nanoseconds(in_cpp));
  }
  if (!status.ok()) return std::fprintf(stderr, "%s\n", status.text()), 1;
  std::printf("C %.0f ns, rmsnorm.hpp %.0f ns\n", median(c), median(cpp));
}
