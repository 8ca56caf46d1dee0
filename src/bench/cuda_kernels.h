// The bench's own kernels (cuda_kernels.cu): the ceiling, and an empty one to launch bare.
#pragma once

#include <cuda_runtime_api.h>

#include "bench/device.h"

namespace bench {

cudaError_t launch_move(const Move &move, cudaStream_t stream);

// A kernel that does nothing with its one argument, a struct of so many bytes; rounded up to a
// multiple of 64, of which *bytes tells. NULL where that is too many.
const void *empty_kernel(size_t *bytes);
constexpr size_t kLargestArguments = 2048;

}  // namespace bench
