// What the gated activations' kernels know of the shape: each element stands alone, so a thread may
// have any; those of a warp are neighbours. Items are the vectors of all rows, one after another,
// one a thread.
#pragma once

#include "cuda/kernels/glu_functions.cuh"
#include "cuda/kernels/rows.cuh"

namespace rmsnorm::cuda {
namespace {

constexpr int kGluThreads = 256;  // of a block, at most

// Where a thread's vector is.
struct GluPlace {
  int64_t row = 0, group = 0, col = 0;
  int left = 0;  // elements from here to the row's end, or enough; none: 0 or less
};

__device__ inline int64_t item_of_thread() {
  return int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
}

__device__ inline int cut_to_int(int64_t elements) {
  return elements < (1 << 30) ? int(elements) : 1 << 30;
}

// Rows that stand anywhere.
struct GluArgs {
  using Tensor = Matrix;
  Matrix dy, gate, up, y, dgate, dup;
  Tasks items;  // (row, vector of the row)
  Tasks rows;   // (row, group)
  int64_t cols;
  rmsnorm_activation_t activation;
  bool aligned_rows;  // each starts at a multiple of the vector
  bool overlap;

  __device__ bool aligned() const { return aligned_rows; }
  __device__ char *row_of(const Matrix &matrix, const GluPlace &place) const {
    char *const row = matrix.data + place.row * matrix.row_stride;
    return rows.groups == 1 ? row : row + place.group * matrix.group_stride;
  }
  __device__ GluPlace place(int width) const {
    GluPlace place;
    const int64_t item = item_of_thread();
    if (item >= items.count) return place;
    int64_t index, vector;
    items.locate(item, &index, &vector);
    rows.locate(index, &place.row, &place.group);
    place.col = vector * width;
    place.left = cut_to_int(cols - place.col);
    return place;
  }
};

// The same, known when the kernel is compiled.
struct AlignedGluArgs : GluArgs {
  __device__ static constexpr bool aligned() { return true; }
};
struct UnalignedGluArgs : GluArgs {
  __device__ static constexpr bool aligned() { return false; }
};

// A contiguous tensor.
struct FlatTensor {
  char *data;
  static constexpr rmsnorm_dtype_t dtype = RMSNORM_DTYPE_NONE;  // the kernel knows
};

// Contiguous and aligned tensors of one dtype. Small: a short call waits for each line of
// arguments, and this fits in what is left of the first.
struct FlatGluArgs {
  using Tensor = FlatTensor;
  uint32_t last_block;
  uint16_t last_elements;  // of that block; all before it are full
  uint8_t activation;
  bool overlap;
  FlatTensor gate, up, dy;
  union {
    FlatTensor y, dgate;
  };
  FlatTensor dup;

  __device__ static constexpr bool aligned() { return true; }
  __device__ static char *row_of(const FlatTensor &tensor, const GluPlace &) { return tensor.data; }
  __device__ GluPlace place(int width) const {
    GluPlace place;
    place.col = item_of_thread() * width;
    place.left = blockIdx.x == last_block ? last_elements - int(threadIdx.x) * width : width;
    return place;
  }
};

}  // namespace
}  // namespace rmsnorm::cuda
