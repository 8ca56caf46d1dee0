// Compares what a call left with the reference, in ulps, by the bounds that rmsnorm.h promises
// under 'Numerics' and 'Gated activations', and records the largest errors. No bound here is looser
// than the header's.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <functional>

#include "execution.h"

namespace rmsnorm_test {

// Of an execution that has run: every output element (or those of the sampled rows) is within its
// bound, residual_out is h bit for bit, and nothing else was written. Of gated activations' wide
// rows only some columns are compared. Where the case says so, elements that an estimate finds
// within their bounds whatever the exact result may be are not shown to the reference.
testing::AssertionResult conforms(const Execution &execution);

// Runs the case, expects success, and compares.
testing::AssertionResult conforms(Device &device, const Case &c);

// Runs body(index) for each index below count on the host's threads.
void on_host_threads(int64_t count, const std::function<void(int64_t)> &body);

}  // namespace rmsnorm_test
