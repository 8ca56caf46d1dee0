// Forward in fp64 arithmetic, for what the row kernels do not take: fp64 tensors (kPairs: sums and
// products as pairs of doubles, rows scaled by a power of two where squares leave fp64's range) and
// rows of any dtype that are longer than a block's registers. One block a row, two passes: h is
// read again from memory or L2.
#pragma once

#include "cuda/kernels/normalise.cuh"

namespace rmsnorm::cuda {
namespace {

constexpr int kExactThreads = 512;

struct Pair {
  double high, low;
};

__device__ inline Pair add(Pair a, Pair b) {
  const double sum = a.high + b.high;
  const double part = sum - a.high;
  const double lost = (a.high - (sum - part)) + (b.high - part) + (a.low + b.low);
  const double high = sum + lost;
  return isfinite(high) ? Pair{high, lost - (high - sum)} : Pair{sum, 0};
}

__device__ inline Pair add_square(Pair sum, double value) {
  const double square = value * value;
  return add(sum, {square, isfinite(square) ? fma(value, value, -square) : 0});
}

// 1 / sqrt(m): one Newton step on the fp64 result.
__device__ inline Pair inverse_root(Pair m) {
  const double root = 1.0 / sqrt(m.high);
  const double square = root * root, square_low = fma(root, root, -square);
  const double one = m.high * square;
  const double one_low = fma(m.high, square, -one) + (m.high * square_low + m.low * square);
  const double correction = 0.5 * root * ((1.0 - one) - one_low);
  return isfinite(correction) ? add({root, 0}, {correction, 0}) : Pair{root, 0};
}

__device__ inline double block_max(double value, double *scratch) {
  for (int offset = 16; offset > 0; offset /= 2)
    value = fmax(value, __shfl_xor_sync(0xffffffffu, value, offset));
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
  __syncthreads();
  value = scratch[threadIdx.x % 32 < kExactThreads / 32 ? threadIdx.x % 32 : 0];
  for (int offset = 16; offset > 0; offset /= 2)
    value = fmax(value, __shfl_xor_sync(0xffffffffu, value, offset));
  __syncthreads();
  return value;
}

__device__ inline Pair block_sum(Pair value, Pair *scratch) {
  const auto over_warp = [&] {
    for (int offset = 16; offset > 0; offset /= 2)
      value = add(value, {__shfl_xor_sync(0xffffffffu, value.high, offset),
                          __shfl_xor_sync(0xffffffffu, value.low, offset)});
  };
  over_warp();
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
  __syncthreads();
  value = threadIdx.x % 32 < kExactThreads / 32 ? scratch[threadIdx.x % 32] : Pair{0, 0};
  over_warp();
  __syncthreads();
  return value;
}

// The sum over the block's row of what `element` gives for each column.
template <bool kPairs, class Element>
__device__ inline Pair sum_of_squares(int64_t cols, Element element, Pair *scratch) {
  Pair sum = {0, 0};
  for (int64_t c = threadIdx.x; c < cols; c += kExactThreads) {
    const double h = element(c);
    if (kPairs) sum = add_square(sum, h);
    else sum.high = fma(h, h, sum.high);
  }
  return block_sum(sum, scratch);
}

struct ExactScale {
  Pair rstd;     // of the row times 2^exponent
  int exponent;  // 0 unless the row's squares leave fp64's range
};

// rstd of the block's row. eps is scaled along with the row.
template <bool kPairs, class Element>
__device__ inline ExactScale exact_scale(int64_t cols, double eps, Element element, Pair *scratch) {
  const auto mean_plus_eps = [&](Pair sum, double scaled_eps) {
    const double mean = sum.high / double(cols);
    const double rest = (fma(-mean, double(cols), sum.high) + sum.low) / double(cols);
    return add({mean, isfinite(rest) ? rest : 0}, {scaled_eps, 0});
  };
  const Pair m = mean_plus_eps(sum_of_squares<kPairs>(cols, element, scratch), eps);
  if (!kPairs || (m.high >= 0x1p-900 && m.high <= 0x1p1000)) return {inverse_root(m), 0};
  double largest = 0;
  for (int64_t c = threadIdx.x; c < cols; c += kExactThreads)
    largest = fmax(largest, fabs(element(c)));
  largest = block_max(largest, reinterpret_cast<double *>(scratch));
  largest = fmax(largest, sqrt(eps));
  if (isnan(m.high) || isinf(largest) || largest == 0) return {{1.0 / sqrt(m.high), 0}, 0};
  const int exponent = -ilogb(largest);
  const double scaled_eps = scalbn(scalbn(eps, exponent), exponent);
  const Pair scaled =
      mean_plus_eps(sum_of_squares<kPairs>(
                        cols, [&](int64_t c) { return scalbn(element(c), exponent); }, scratch),
                    scaled_eps);
  return {inverse_root(scaled), exponent};
}

// A pair times a power of two: mantissas near 1 are multiplied and exponents added, so that nothing
// between the operands and the one rounding of the result can overflow or be subnormal.
struct ScaledPair {
  Pair value;
  int exponent;

  __device__ double round() const {
    return value.high == 0 ? value.high : scalbn(value.high + value.low, exponent);
  }
};

__device__ inline ScaledPair split(Pair value) {
  int exponent = 0;
  const double mantissa = frexp(value.high, &exponent);
  return {{mantissa, scalbn(value.low, -exponent)}, exponent};
}

__device__ inline ScaledPair multiply(ScaledPair a, ScaledPair b) {
  const double product = a.value.high * b.value.high;
  const double low = fma(a.value.high, b.value.high, -product) +
                     (a.value.high * b.value.low + a.value.low * b.value.high);
  return {{product, low}, a.exponent + b.exponent};
}

// y of one element of an fp64 row.
__device__ inline double normalise_pair(const ForwardArgs &a, const ExactScale &scale, double h,
                                        double weight, double bias) {
  const Pair w = add({weight, 0}, {a.weight_offset, 0});
  double plain = h * scale.rstd.high * w.high;
  if (!isfinite(h) || !isfinite(scale.rstd.high) || !isfinite(w.high))
    return a.bias.data != nullptr ? plain + bias : plain;
  ScaledPair t = multiply(split({h, 0}), {scale.rstd, scale.exponent});
  if (a.llama) t = split({t.round(), 0});
  const ScaledPair y = multiply(t, split(w));
  if (a.bias.data == nullptr) return y.round();
  const Pair sum =
      add({bias, 0}, {scalbn(y.value.high, y.exponent), scalbn(y.value.low, y.exponent)});
  return sum.high + sum.low;
}

// y of one element of any other row.
__device__ inline double normalise_double(const ForwardArgs &a, double rstd, double h,
                                          double weight, double bias) {
  double t = h * rstd;
  if (a.llama) t = round_double_to(t, a.h_dtype);
  t *= weight + a.weight_offset;
  return a.bias.data != nullptr ? t + bias : t;
}

template <bool kPairs>
__global__ void __launch_bounds__(kExactThreads)
    forward_exact(const __grid_constant__ ForwardArgs a) {
  __shared__ Pair scratch[32];
  const int64_t task = a.first_task + blockIdx.x;
  int64_t r, g;
  a.tasks.locate(task, &r, &g);
  if (a.overlap) start_beside_neighbours();

  const char *x = a.x().at(r, g), *residual = a.residual().at(r, g);
  char *residual_out = a.residual_out().at(r, g);
  const auto h_of = [&](int64_t c) {
    const double value = load_double(x, c, a.x().dtype);
    if (a.residual().data == nullptr) return value;
    return add_rounded(value, load_double(residual, c, a.residual().dtype), a.h_dtype);
  };
  // Once h is stored it is read from there: residual_out may lie over x or residual.
  const auto h_again = [&](int64_t c) {
    return a.residual_out().data != nullptr ? load_double(residual_out, c, a.h_dtype) : h_of(c);
  };
  if (a.residual_out().data != nullptr)
    for (int64_t c = threadIdx.x; c < a.cols; c += kExactThreads)
      store_double(residual_out, c, a.h_dtype, h_of(c));

  const ExactScale scale = exact_scale<kPairs>(a.cols, a.eps, h_again, scratch);
  if (a.rstd().data != nullptr && threadIdx.x == 0)
    store_double(a.rstd().at(r, g), 0, a.rstd().dtype, scalbn(scale.rstd.high, scale.exponent));

  if (a.y().data == nullptr) return;
  char *y = a.y().at(r, g);
  const char *weight = a.weight().data + g * a.weight().group_stride;
  const char *bias = a.bias.data + g * a.bias.group_stride;
  for (int64_t c = threadIdx.x; c < a.cols; c += kExactThreads) {
    const double w = a.weight().data != nullptr ? load_double(weight, c, a.weight().dtype) : 1;
    const double b = a.bias.data != nullptr ? load_double(bias, c, a.bias.dtype) : 0;
    store_double(y, c, a.y().dtype,
                 kPairs ? normalise_pair(a, scale, h_again(c), w, b)
                        : normalise_double(a, scale.rstd.high, h_again(c), w, b));
  }
}

}  // namespace
}  // namespace rmsnorm::cuda
