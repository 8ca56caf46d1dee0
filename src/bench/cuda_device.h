// What the bench's CUDA files share.
#pragma once

#include <cuda_runtime_api.h>

#include "bench/device.h"

namespace bench {

// Ends the program where a call of the CUDA runtime failed; `what` says which.
void require(cudaError_t error, const char *what);

// Captures what `calls` submits to the stream.
cudaGraph_t capture(cudaStream_t stream, const std::function<void()> &calls);

HostTime cuda_host_time(cudaStream_t stream, const std::function<void()> &call, bool overlap);

}  // namespace bench
