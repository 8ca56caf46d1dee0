// The C example (../c/rmsnorm.c) with rmsnorm.hpp: the same norm of a trained decoder, read,
// called, judged and timed in the same way. Views replace pointers with strides and dtypes,
// contexts and memory destroy themselves, and no status can be forgotten. SPDX-License-Identifier:
// Apache-2.0
#include "rmsnorm.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

extern "C" {
#include "device.h"
#include "exact.h"
#include "npy.h"
}

namespace {

using rmsnorm::matrix;
using rmsnorm::Status;

constexpr double kEps = 1e-6;  // the model's
constexpr int kRepeats = 7;

[[noreturn]] void die(const std::string &text) {
  std::fflush(stdout);
  std::fprintf(stderr, "rmsnorm: %s\n", text.c_str());
  std::exit(1);
}

void check(const Status &status, const char *what) {
  if (!status.ok()) die(std::string(what) + ": " + status.name() + ": " + status.text());
}

// ---- Memory -------------------------------------------------------------------------------------

// Bytes on a device, given back at the end.
class Memory {
 public:
  Memory(const device_t &device, size_t bytes)
      : device_(device), bytes_(bytes), data_(device.allocate(bytes), device.release) {
    if (data_ == nullptr) die(std::string(device.name) + ": no memory");
  }

  void *get() const { return data_.get(); }
  size_t bytes() const { return bytes_; }

  template <class T>
  T *as() const {
    return static_cast<T *>(data_.get());
  }
  void upload(size_t offset, const void *from, size_t bytes) {
    if (device_.copy(as<char>() + offset, from, bytes) != 0) die("copying to the device failed");
  }
  // The first elements.
  template <class T>
  std::vector<T> download(size_t count) const {
    std::vector<T> host(count);
    if (device_.copy(host.data(), get(), count * sizeof(T)) != 0)
      die("copying from the device failed");
    return host;
  }

 private:
  const device_t &device_;
  size_t bytes_;
  std::unique_ptr<void, void (*)(void *)> data_;
};

// ---- The data -----------------------------------------------------------------------------------

// A .npy file's array.
struct Array : npy_t {
  explicit Array(const std::string &path) {
    const char *problem = npy_read(path.c_str(), this);
    if (problem != nullptr) die(path + ": " + problem);
  }
  Array(const Array &) = delete;
  Array &operator=(const Array &) = delete;
  ~Array() { std::free(data); }
};

struct Norm {
  Norm(const std::string &path, const char *name)
      : dtype_name(name),
        x(path + ".x.npy"),
        residual(path + ".residual.npy"),
        weight(path + ".weight.npy"),
        dy(path + ".dy.npy"),
        dh(path + ".dh.npy") {
    for (const Array *array : {&residual, &weight, &dy, &dh})
      if (array->dtype != x.dtype || array->cols != x.cols ||
          array->rows != (array == &weight ? 1 : x.rows))
        die(path + ": the arrays' shapes or dtypes do not go together");
  }

  const char *dtype_name;
  Array x, residual, weight, dy, dh;
};

// ---- The calls ----------------------------------------------------------------------------------

// One norm on one device. T: the elements' type, or the tag of a half.
template <class T>
class Run {
 public:
  using Element = typename rmsnorm::View<T>::Element;

  Run(const device_t &device, const rmsnorm::Context &context, const Norm &norm)
      : device_(device),
        context_(context),
        norm_(norm),
        rows_(norm.x.rows),
        cols_(norm.x.cols),
        tiles_(static_cast<int64_t>(device.large) / (rows_ * cols_) + 1),
        x_(tiled(norm.x, tiles_)),
        residual_(tiled(norm.residual, tiles_)),
        weight_(tiled(norm.weight, 1)),
        dy_(tiled(norm.dy, tiles_)),
        dh_(tiled(norm.dh, tiles_)),
        h_(device, x_.bytes()),
        y_(device, x_.bytes()),
        rstd_(device, static_cast<size_t>(rows_ * tiles_) * sizeof(float)),
        dx_(device, x_.bytes()),
        dweight_(device, static_cast<size_t>(cols_) * sizeof(float)) {}

  void all_operations() const {
    one("fused add", 4, [this](int64_t rows) { return fused_add(rows); });
    one("forward", 2, [this](int64_t rows) { return forward(rows); });
    one("backward", 4, [this](int64_t rows) { return backward(rows); });
  }

 private:
  auto view(const Memory &memory, int64_t rows) const {
    return matrix<T>(memory.as<Element>(), rows, cols_);
  }

  rmsnorm::Forward fused_add(int64_t rows) const {
    rmsnorm::Forward args;
    args.eps = kEps;
    args.x = view(x_, rows), args.residual = view(residual_, rows);
    args.weight = rmsnorm::vector<T>(weight_.as<Element>(), cols_);
    args.y = view(y_, rows), args.residual_out = view(h_, rows);
    args.rstd = matrix(rstd_.as<float>(), rows, 1);
    return args;
  }

  rmsnorm::Forward forward(int64_t rows) const {
    rmsnorm::Forward args;
    args.eps = kEps;
    args.x = view(h_, rows), args.y = view(y_, rows);
    args.weight = rmsnorm::vector<T>(weight_.as<Element>(), cols_);
    return args;
  }

  rmsnorm::Backward backward(int64_t rows) const {
    rmsnorm::Backward args;
    args.eps = kEps;
    args.dy = view(dy_, rows), args.x = view(h_, rows), args.dresidual_out = view(dh_, rows);
    args.weight = rmsnorm::vector<T>(weight_.as<Element>(), cols_);
    args.rstd = matrix(rstd_.as<float>(), rows, 1);
    args.dx = view(dx_, rows);
    args.dweight = rmsnorm::vector(dweight_.as<float>(), cols_);
    return args;
  }

  // Of one operation: the error on the data as it is, the time on the data repeated.
  template <class MakeArgs>
  void one(const char *name, int tensors, MakeArgs args_of) const {
    const int64_t many = rows_ * tiles_;
    char kernel[RMSNORM_KERNEL_NAME_SIZE];
    check(kernel_name(args_of(many), kernel), name);
    size_t size = 0;
    check(workspace_size(args_of(many), &size), name);
    const Memory memory(device_, size + 1);
    const rmsnorm::Workspace workspace = {memory.get(), size};

    check(call(args_of(rows_), workspace), name);
    wait();
    const double error = judge(args_of(rows_));
    const double seconds = time_call([&] { check(call(args_of(many), workspace), name); });
    const double bytes = tensors * static_cast<double>(x_.bytes());
    std::printf("%-6s  %-5s  %-9s  %9.4f  %8.1f  %s\n", device_.name, norm_.dtype_name, name, error,
                1e-9 * bytes / seconds, kernel);
    std::fflush(stdout);
  }

  Status call(const rmsnorm::Forward &args, rmsnorm::Workspace workspace) const {
    return rmsnorm::forward(context_, args, workspace);
  }
  Status call(const rmsnorm::Backward &args, rmsnorm::Workspace workspace) const {
    return rmsnorm::backward(context_, args, workspace);
  }
  Status workspace_size(const rmsnorm::Forward &args, size_t *size) const {
    return rmsnorm::forward_workspace_size(context_, args, size);
  }
  Status workspace_size(const rmsnorm::Backward &args, size_t *size) const {
    return rmsnorm::backward_workspace_size(context_, args, size);
  }
  Status kernel_name(const rmsnorm::Forward &args, char (&name)[RMSNORM_KERNEL_NAME_SIZE]) const {
    return rmsnorm::forward_kernel_name(context_, args, name, sizeof name);
  }
  Status kernel_name(const rmsnorm::Backward &args, char (&name)[RMSNORM_KERNEL_NAME_SIZE]) const {
    return rmsnorm::backward_kernel_name(context_, args, name, sizeof name);
  }

  void wait() const {
    if (device_.wait() != 0) die(std::string(device_.name) + ": a call failed on the device");
  }

  // Seconds of one call: a median, after a warm-up.
  template <class Call>
  double time_call(Call one_call) const {
    using Clock = std::chrono::steady_clock;
    std::vector<double> seconds;
    for (int i = 0; i <= kRepeats; ++i) {
      wait();
      const Clock::time_point start = Clock::now();
      for (int j = 0; j < device_.batch; ++j) one_call();
      wait();
      if (i > 0)
        seconds.push_back(std::chrono::duration<double>(Clock::now() - start).count() /
                          device_.batch);
    }
    std::nth_element(seconds.begin(), seconds.begin() + kRepeats / 2, seconds.end());
    return seconds[kRepeats / 2];
  }

  // ---- Judging ----------------------------------------------------------------------------------

  bool is_cuda() const { return device_.type == RMSNORM_DEVICE_CUDA; }
  double bound() const {
    return !is_cuda() ? 0.501 : norm_.x.dtype == RMSNORM_DTYPE_F32 ? 1 : 0.51;
  }

  // Keeps the largest error in *worst, in ulps of the larger of result and terms: a sum that
  // cancels keeps the rounding errors of its terms. Dies of one that is larger than promised.
  static void compare(double *worst, const char *what, rmsnorm_dtype_t dtype, double got,
                      const gradient_t &exact, double bound, double share) {
    const long double error = std::fabs(got - exact.value);
    if (!(error <= bound * ulp(exact.value, dtype) + share * exact.terms))
      die(std::string(what) + ": an error is larger than promised");
    const long double scale = ulp(std::max(std::fabs(exact.value), exact.terms), dtype);
    *worst = std::max(*worst, static_cast<double>(error / scale));
  }

  double judge(const rmsnorm::Forward &args) const {
    const size_t rows = static_cast<size_t>(rows_), cols = static_cast<size_t>(cols_);
    const rmsnorm_dtype_t dtype = norm_.x.dtype;
    const auto h = h_.download<Element>(rows * cols), y = y_.download<Element>(rows * cols);
    double worst = 0;
    for (size_t row = 0; row < rows; ++row) {
      const long double rstd = exact_rstd(h.data(), dtype, row, cols, kEps);
      for (size_t col = 0; col < cols; ++col) {
        const size_t i = row * cols + col;
        const double value = element(h.data(), dtype, i);
        if (args.residual.dtype != RMSNORM_DTYPE_NONE) {  // rounded once, whatever the device
          const long double sum = static_cast<long double>(element(norm_.x.data, dtype, i)) +
                                  element(norm_.residual.data, dtype, i);
          compare(&worst, "residual_out", dtype, value, {sum, 0}, 0.5, 0);
        }
        const long double exact = value * rstd * element(norm_.weight.data, dtype, col);
        compare(&worst, "y", dtype, element(y.data(), dtype, i), {exact, 0}, bound(), 0);
      }
    }
    return worst;
  }

  double judge(const rmsnorm::Backward &) const {
    const size_t rows = static_cast<size_t>(rows_), cols = static_cast<size_t>(cols_);
    const rmsnorm_dtype_t dtype = norm_.x.dtype;
    const auto h = h_.download<Element>(rows * cols), dx = dx_.download<Element>(rows * cols);
    const auto rstd = rstd_.download<float>(rows), dweight = dweight_.download<float>(cols);
    double worst = 0;
    std::vector<gradient_t> exact(cols);
    for (size_t row = 0; row < rows; ++row) {
      exact_dx(norm_.dy.data, h.data(), norm_.weight.data, norm_.dh.data, dtype, row, cols,
               rstd[row], exact.data());
      for (size_t col = 0; col < cols; ++col)
        compare(&worst, "dx", dtype, element(dx.data(), dtype, row * cols + col), exact[col],
                bound(), std::ldexp(1, is_cuda() ? -19 : -40));
    }
    for (size_t col = 0; col < cols; ++col)
      compare(&worst, "dweight", RMSNORM_DTYPE_F32, dweight[col],
              exact_dweight(norm_.dy.data, h.data(), dtype, rstd.data(), rows, cols, col),
              is_cuda() ? 1 : 0.501, std::ldexp(1, is_cuda() ? -18 : -40));
    return worst;
  }

  // -----------------------------------------------------------------------------------------------

  // The array, repeated until no cache holds it.
  Memory tiled(const Array &array, int64_t tiles) const {
    Memory memory(device_, array.bytes * static_cast<size_t>(tiles));
    for (size_t at = 0; at < memory.bytes(); at += array.bytes)
      memory.upload(at, array.data, array.bytes);
    return memory;
  }

  const device_t &device_;
  const rmsnorm::Context &context_;
  const Norm &norm_;
  const int64_t rows_, cols_, tiles_;
  Memory x_, residual_, weight_, dy_, dh_, h_, y_, rstd_, dx_, dweight_;
};

void run_device(const device_t &device, const std::string &folder) {
  rmsnorm::ContextOptions options;
  options.device = device.type;
  rmsnorm::Context context;
  check(rmsnorm::Context::create(options, &context), "Context::create");
  const Norm fp32(folder + "/layer2_mlp", "fp32"), fp16(folder + "/layer2_mlp_f16", "fp16"),
      bf16(folder + "/layer2_mlp_bf16", "bf16");
  Run<float>(device, context, fp32).all_operations();
  Run<rmsnorm::Float16>(device, context, fp16).all_operations();
  Run<rmsnorm::BFloat16>(device, context, bf16).all_operations();
}

// The CUDA device to run on, or NULL after a line that says why there is none.
const device_t *find_cuda() {
  std::int32_t count = 0;
  const Status status = rmsnorm::device_count(RMSNORM_DEVICE_CUDA, &count);
  if (status.code() == RMSNORM_ERROR_BACKEND_NOT_BUILT) {
    std::puts("cuda    librmsnorm was built without CUDA");
    return nullptr;
  }
  check(status, "device_count");
  if (count == 0) std::puts("cuda    no device");
  else if (cuda_device == nullptr)
    std::puts("cuda    this program was built without the CUDA runtime");
  return count == 0 ? nullptr : cuda_device;
}

}  // namespace

int main(int argc, char **argv) {
  if (argc != 2) die("usage: rmsnorm FOLDER, where FOLDER holds the .npy files (tests/data)");
  std::printf("librmsnorm %s\n", rmsnorm_build_info());
  std::puts(
      "error: the largest, in ulps against formulas in long double (exact.c); for gradients, in");
  std::puts("ulps of the terms that they sum. GB/s: of what a call must read and write.\n");
  std::puts("device  dtype  operation  error/ulp      GB/s  kernel");
  run_device(cpu_device, argv[1]);
  const device_t *cuda = find_cuda();
  if (cuda != nullptr) run_device(*cuda, argv[1]);
}
