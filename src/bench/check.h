// Compares what a call leaves with the fp64 reference, by the bounds of rmsnorm.h.
#pragma once

#include <string>
#include <vector>

#include "bench/measure.h"
#include "bench/memory.h"

namespace bench {

struct Verdict {
  struct Error {
    const char *name;  // of the output
    double ulps;       // the largest error
    double share;      // the largest error's share of what the header allows it
  };
  std::vector<Error> errors;
  int64_t rows = 0;      // compared in the first call, groups counted apart
  bool all = false;      // these are all of the call's
  int64_t sum_rows = 0;  // of the second call; 0: none was needed
  std::string failure;   // the first element beyond its bound; "": none is
  void add(const Error &error);
  double ulps() const;
  bool pass() const { return failure.empty(); }
};

// Poisons the outputs, runs the call once and looks at all of a small shape; of a large one, at
// some rows, and at dweight and dbias in a second call with fewer rows.
Verdict check(Device &device, bool cuda, const rmsnorm_context_t *context, const Call &call,
              const BufferSet &set, const Workspace &workspace);

}  // namespace bench
