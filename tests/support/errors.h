// The largest errors seen in this run, by device, result and dtype; printed as a table at the end.
// With RMSNORM_TEST_ERRORS=file the rows are appended there too, tab-separated, so that several
// runs can be merged.
#pragma once

#include <cstdint>
#include <string>

#include "rmsnorm.h"

namespace rmsnorm_test {

struct WorstError {
  int64_t compared = 0;
  double ulps = -1;  // where the header's bound is its ulps alone (no cancellation to
                     // speak of); -1: no such element
  double share = 0;  // of the whole bound
  double factor =
      0;  // what the error exceeds the bound's ulps by, relative to the sum of magnitudes

  void merge(const WorstError &other);
};

// Thread-safe.
void record_errors(const char *device, const std::string &result, rmsnorm_dtype_t dtype,
                   const WorstError &worst);

}  // namespace rmsnorm_test
