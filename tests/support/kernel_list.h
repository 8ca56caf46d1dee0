// Calls that launch every CUDA kernel of the library at least once, for tools that watch kernels at
// work. tests/faults checks against the kernels of the build that none is missing.
#pragma once

#include <vector>

#include "case.h"

namespace rmsnorm_test {

std::vector<Case> kernel_list();

}  // namespace rmsnorm_test
