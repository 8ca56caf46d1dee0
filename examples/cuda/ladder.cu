// RMSNorm on a GPU, from the first kernel that comes to mind to one near the memory's speed, each
// rung explained, checked and timed, and the library last.
//
//   nvcc -O3 -std=c++17 -arch=native -Iinclude examples/cuda/ladder.cu -Lbuild/cuda -lrmsnorm
//     -Xlinker -rpath=$PWD/build/cuda -o ladder && ./ladder          (one line)
//
// y = x / sqrt(mean(x^2) + eps) * weight does three operations for an element that it reads and
// writes: all that counts is how often memory is touched, and how many bytes are on their way at
// once. The least is one read and one write: 8 bytes an element in fp32, 4 in fp16.
#include <cuda_fp16.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <vector>

#include "rmsnorm.h"

constexpr int kRows = 16384, kCols = 4096;  // 256 MB in fp32: far more than the cache
constexpr int kChecked = 128;               // rows that are compared with the CPU
constexpr float kEps = 1e-6f;

void check(cudaError_t error, const char *what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "ladder: %s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}

// ---- Rung 1: a thread for each row. Neighbouring threads read addresses 16 KB apart, so that each
// 32-byte sector which memory sends is used for 4 bytes; and the row is read twice.

__global__ void thread_per_row(const float *x, const float *weight, float *y) {
  const size_t row = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (row >= kRows) return;
  float squares = 0;
  for (int c = 0; c < kCols; ++c) squares += x[row * kCols + c] * x[row * kCols + c];
  const float rstd = rsqrtf(squares / kCols + kEps);
  for (int c = 0; c < kCols; ++c) y[row * kCols + c] = x[row * kCols + c] * rstd * weight[c];
}

// ---- Rung 2: a block for each row. Neighbours read neighbours; a tree in shared memory adds up.
// The second read mostly hits the cache, but the block waits at a barrier for each of its 8 steps.

constexpr int kThreads = 256;

__global__ void block_per_row(const float *x, const float *weight, float *y) {
  __shared__ float sums[kThreads];
  const float *row = x + size_t(blockIdx.x) * kCols;
  float squares = 0;
  for (int c = threadIdx.x; c < kCols; c += kThreads) squares += row[c] * row[c];
  sums[threadIdx.x] = squares;
  for (int step = kThreads / 2; step > 0; step /= 2) {
    __syncthreads();
    if (threadIdx.x < step) sums[threadIdx.x] += sums[threadIdx.x + step];
  }
  __syncthreads();
  const float rstd = rsqrtf(sums[0] / kCols + kEps);
  for (int c = threadIdx.x; c < kCols; c += kThreads)
    y[size_t(blockIdx.x) * kCols + c] = row[c] * rstd * weight[c];
}

// ---- Rung 3: the row stays in registers between its sum and its result, so that memory is read
// once; and warps add up by shuffles, which leaves one barrier.

__device__ float sum_of_block(float value) {
  __shared__ float sums[kThreads / 32];
  for (int offset = 16; offset > 0; offset /= 2)
    value += __shfl_xor_sync(0xffffffffu, value, offset);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = value;
  __syncthreads();
  value = 0;
  for (const float sum : sums) value += sum;
  return value;
}

__global__ void in_registers(const float *x, const float *weight, float *y) {
  constexpr int kEach = kCols / kThreads;
  const size_t start = size_t(blockIdx.x) * kCols + threadIdx.x;
  float own[kEach], squares = 0;
#pragma unroll
  for (int i = 0; i < kEach; ++i) own[i] = x[start + i * kThreads];
#pragma unroll
  for (int i = 0; i < kEach; ++i) squares += own[i] * own[i];
  const float rstd = rsqrtf(sum_of_block(squares) / kCols + kEps);
#pragma unroll
  for (int i = 0; i < kEach; ++i)
    y[start + i * kThreads] = own[i] * rstd * weight[threadIdx.x + i * kThreads];
}

// ---- Rung 4: 16 bytes an access, a quarter of the instructions for the same bytes. From here on
// what a row is made of is a template: the next two rungs change no line of the kernel's sense.
// Rung 5, kAdds: h = x + residual, written too, in the same pass: 4 accesses an element where two
// kernels have 5. Rung 6: halves, eight to a vector, fp32 inside: half the bytes, half the time.

struct Four {  // of float
  using Element = float;
  using Vector = float4;
  static constexpr int kCount = 4;
  __device__ static void read(const Vector &from, float *to) {
    to[0] = from.x, to[1] = from.y, to[2] = from.z, to[3] = from.w;
  }
  __device__ static Vector write(const float *from) {
    return make_float4(from[0], from[1], from[2], from[3]);
  }
};

struct Eight {  // of __half
  using Element = __half;
  using Vector = uint4;
  static constexpr int kCount = 8;
  __device__ static void read(const Vector &from, float *to) {
    const __half2 *pairs = reinterpret_cast<const __half2 *>(&from);
    for (int i = 0; i < 4; ++i)
      to[2 * i] = __low2float(pairs[i]), to[2 * i + 1] = __high2float(pairs[i]);
  }
  __device__ static Vector write(const float *from) {
    Vector to;
    __half2 *pairs = reinterpret_cast<__half2 *>(&to);
    for (int i = 0; i < 4; ++i) pairs[i] = __floats2half2_rn(from[2 * i], from[2 * i + 1]);
    return to;
  }
};

template <class Kind, bool kAdds>
__global__ void vectors(const typename Kind::Vector *x, const typename Kind::Vector *residual,
                        const typename Kind::Vector *weight, typename Kind::Vector *y,
                        typename Kind::Vector *h) {
  constexpr int kCount = Kind::kCount, kEach = kCols / kCount / kThreads;
  const size_t start = size_t(blockIdx.x) * (kCols / kCount) + threadIdx.x;
  float own[kEach][kCount], squares = 0;
#pragma unroll
  for (int i = 0; i < kEach; ++i) Kind::read(x[start + i * kThreads], own[i]);
  if constexpr (kAdds) {
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      float more[kCount];
      Kind::read(residual[start + i * kThreads], more);
      for (int k = 0; k < kCount; ++k) own[i][k] += more[k];
      h[start + i * kThreads] = Kind::write(own[i]);
      Kind::read(Kind::write(own[i]), own[i]);  // what is normalised is what h holds
    }
  }
#pragma unroll
  for (int i = 0; i < kEach; ++i)
    for (int k = 0; k < kCount; ++k) squares += own[i][k] * own[i][k];
  const float rstd = rsqrtf(sum_of_block(squares) / kCols + kEps);
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    float scale[kCount];
    Kind::read(weight[threadIdx.x + i * kThreads], scale);
    for (int k = 0; k < kCount; ++k) own[i][k] *= rstd * scale[k];
    y[start + i * kThreads] = Kind::write(own[i]);
  }
}

// ---- Memory, the check and the clock
// ---------------------------------------------------------------

template <class Element>
struct Data {
  std::vector<Element> x = std::vector<Element>(size_t(kRows) * kCols), residual = x;
  std::vector<Element> weight = std::vector<Element>(kCols);
  Element *d_x, *d_residual, *d_weight, *d_y, *d_h;

  Data() {
    uint32_t state = 1;
    const auto random = [&] {  // about N(0, 1): twelve uniform numbers
      float sum = -6;
      for (int i = 0; i < 12; ++i) {
        state = state * 1664525u + 1013904223u;
        sum += float(state >> 8) * 0x1p-24f;
      }
      return sum;
    };
    for (size_t i = 0; i < x.size(); ++i) {  // the rows that are not compared repeat those that are
      x[i] = i < size_t(kChecked) * kCols ? Element(random()) : x[i - size_t(kChecked) * kCols];
      residual[i] = x[i];
    }
    for (Element &value : weight) value = Element(1 + random() / 4);
    for (Element **to : {&d_x, &d_residual, &d_y, &d_h})
      check(cudaMalloc(to, x.size() * sizeof(Element)), "cudaMalloc");
    check(cudaMalloc(&d_weight, kCols * sizeof(Element)), "cudaMalloc");
    const auto copy = [](Element *to, const std::vector<Element> &from) {
      check(cudaMemcpy(to, from.data(), from.size() * sizeof(Element), cudaMemcpyHostToDevice),
            "cudaMemcpy");
    };
    copy(d_x, x), copy(d_residual, residual), copy(d_weight, weight);
  }

  // The largest |y - exact| / max(1, |exact|) of the first rows.
  double error(bool adds) const {
    std::vector<Element> y(size_t(kChecked) * kCols);
    check(cudaMemcpy(y.data(), d_y, y.size() * sizeof(Element), cudaMemcpyDeviceToHost), "y");
    double worst = 0;
    std::vector<double> h(kCols);
    for (int row = 0; row < kChecked; ++row) {
      double squares = 0;
      for (int c = 0; c < kCols; ++c) {
        const size_t i = size_t(row) * kCols + c;
        h[c] = double(float(x[i]));
        if (adds) h[c] = double(float(Element(float(x[i]) + float(residual[i]))));
        squares += h[c] * h[c];
      }
      for (int c = 0; c < kCols; ++c) {
        const double exact =
            h[c] / std::sqrt(squares / kCols + double(kEps)) * double(float(weight[c]));
        const double got = double(float(y[size_t(row) * kCols + c]));
        const double error = std::fabs(got - exact) / std::fmax(1, std::fabs(exact));
        if (!(error <= worst)) worst = error;  // NaN too
      }
    }
    return worst;
  }
};

bool all_right = true;

template <class Element>
void rung(const char *name, const Data<Element> &data, bool adds, std::function<void()> launch) {
  check(cudaMemset(data.d_y, 0xff, data.x.size() * sizeof(Element)), "cudaMemset");
  launch();
  check(cudaDeviceSynchronize(), name);
  const double error = data.error(adds), allowed = sizeof(Element) == 4 ? 1e-5 : 1e-3;
  cudaEvent_t begin, end;
  check(cudaEventCreate(&begin), "event"), check(cudaEventCreate(&end), "event");
  float best = HUGE_VALF;
  for (int turn = 0; turn < 20; ++turn) {
    float ms = 0;
    check(cudaEventRecord(begin), "event");
    launch();
    check(cudaEventRecord(end), "event"), check(cudaEventSynchronize(end), name);
    check(cudaEventElapsedTime(&ms, begin, end), "event");
    best = std::fmin(best, ms);
  }
  const double bytes = double(data.x.size()) * sizeof(Element) * (adds ? 4 : 2);
  const bool right = error <= allowed;
  all_right = all_right && right;
  std::printf("%-44s %9.1f us %7.0f GB/s   error %.1e%s\n", name, best * 1e3, bytes / best / 1e6,
              error, right ? "" : "  WRONG");
}

template <class Element>
constexpr rmsnorm_dtype_t kDtype = sizeof(Element) == 4 ? RMSNORM_DTYPE_F32 : RMSNORM_DTYPE_F16;

// The last rung: any dtype, shape, stride and alignment, fp32 within 1 ulp, no fixed width.
template <class Element>
void library_call(const rmsnorm_context_t *context, const Data<Element> &data, bool adds) {
  rmsnorm_forward_params_t p = RMSNORM_FORWARD_PARAMS_INIT;
  p.rows = kRows, p.cols = kCols, p.eps = double(kEps);
  p.x = {data.d_x, kCols, 0, kDtype<Element>, 0};
  p.weight = {data.d_weight, 0, 0, kDtype<Element>, 0};
  p.y = {data.d_y, kCols, 0, kDtype<Element>, 0};
  if (adds) {
    p.residual = {data.d_residual, kCols, 0, kDtype<Element>, 0};
    p.residual_out = {data.d_h, kCols, 0, kDtype<Element>, 0};
  }
  if (rmsnorm_forward(context, &p, nullptr, 0, nullptr) == RMSNORM_SUCCESS) return;
  char text[512];
  rmsnorm_last_error(text, sizeof text);
  std::fprintf(stderr, "ladder: %s\n", text);
  std::exit(1);
}

int main() {
  rmsnorm_context_options_t options = RMSNORM_CONTEXT_OPTIONS_INIT;
  options.device = RMSNORM_DEVICE_CUDA;
  rmsnorm_context_t *context = nullptr;
  if (rmsnorm_context_create(&options, &context) != RMSNORM_SUCCESS) {
    char text[512];
    rmsnorm_last_error(text, sizeof text);
    std::fprintf(stderr, "ladder: %s\n", text);
    return 1;
  }
  std::printf("%d x %d\n", kRows, kCols);
  {
    const Data<float> d;
    rung("1 fp32: a thread for each row", d, false,
         [&] { thread_per_row<<<kRows / 64, 64>>>(d.d_x, d.d_weight, d.d_y); });
    rung("2 a block for each row, shared memory", d, false,
         [&] { block_per_row<<<kRows, kThreads>>>(d.d_x, d.d_weight, d.d_y); });
    rung("3 in registers, shuffles", d, false,
         [&] { in_registers<<<kRows, kThreads>>>(d.d_x, d.d_weight, d.d_y); });
    const auto vector = [](float *data) { return reinterpret_cast<float4 *>(data); };
    const float4 *x = vector(d.d_x), *residual = vector(d.d_residual), *w = vector(d.d_weight);
    float4 *y = vector(d.d_y), *h = vector(d.d_h);
    rung("4 vectors of 16 bytes", d, false,
         [&] { vectors<Four, false><<<kRows, kThreads>>>(x, nullptr, w, y, nullptr); });
    rung("  the library", d, false, [&] { library_call(context, d, false); });
    rung("5 fused residual add", d, true,
         [&] { vectors<Four, true><<<kRows, kThreads>>>(x, residual, w, y, h); });
    rung("  the library", d, true, [&] { library_call(context, d, true); });
  }
  {
    const Data<__half> d;
    const auto vector = [](__half *data) { return reinterpret_cast<uint4 *>(data); };
    const uint4 *x = vector(d.d_x), *residual = vector(d.d_residual), *w = vector(d.d_weight);
    uint4 *y = vector(d.d_y), *h = vector(d.d_h);
    rung("6 fp16", d, false,
         [&] { vectors<Eight, false><<<kRows, kThreads>>>(x, nullptr, w, y, nullptr); });
    rung("  the library", d, false, [&] { library_call(context, d, false); });
    rung("6 fp16, fused residual add", d, true,
         [&] { vectors<Eight, true><<<kRows, kThreads>>>(x, residual, w, y, h); });
    rung("  the library", d, true, [&] { library_call(context, d, true); });
  }
  rmsnorm_context_destroy(context);
  return all_right ? 0 : 1;
}
