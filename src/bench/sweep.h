// The calls that the flags ask for: every shape, op and dtype.
#pragma once

#include <vector>

#include "bench/call.h"
#include "bench/options.h"

namespace bench {

std::vector<Call> sweep(const Options &options);

}  // namespace bench
