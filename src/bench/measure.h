// How long a call takes, beside the ceiling: passes over rotating buffer sets.
#pragma once

#include <vector>

#include "bench/memory.h"
#include "bench/options.h"

namespace bench {

struct Workspace {
  void *data;
  size_t bytes;
};

struct Times {
  double call_us = 0, ceiling_us = 0;
};

// `graph`: each pass is one CUDA graph.
Times measure(Device &device, const rmsnorm_context_t *context, const Call &call,
              const std::vector<BufferSet> &sets, const Workspace &workspace,
              const Options &options, bool graph);

// One call; a refusal ends the program.
void launch(Device &device, const rmsnorm_context_t *context, const Params &params,
            const Workspace &workspace);

}  // namespace bench
