// The bounds of rmsnorm.h, 'Numerics' and 'Gated activations', and the largest errors seen beside
// them.
#pragma once

#include <string>
#include <vector>

#include "bench/call.h"
#include "reference/reference.h"

namespace bench {

using rmsnorm::reference::Exact;

struct Bound {
  double ulps = 0;
  double factor = 0;  // and so much of the sum of the terms' magnitudes
};
Bound bound_of(const Call &call, Slot output, bool cuda);

class Judge {
 public:
  Judge(const Call &call, Slot output, bool cuda)
      : output(output), dtype_(call[output].dtype), bound_(bound_of(call, output, cuda)) {}

  void compare(double got, const Exact &exact, double magnitude, int64_t row, int64_t group,
               int64_t col);
  void merge(const Judge &other);

  Slot output;
  double ulps = 0, share = 0;
  std::string failure;  // of the first row that has one

 private:
  int64_t failed_row_ = 0;
  rmsnorm_dtype_t dtype_;
  Bound bound_;
};

// RMSNORM_ROUNDING_LLAMA: what h * rstd may have been rounded to; its other neighbour too where the
// exact value lies so near a tie that the bound of that rounding allows both.
std::vector<double> llama_roundings(const Exact &scaled, rmsnorm_dtype_t h_dtype, bool cuda);

}  // namespace bench
