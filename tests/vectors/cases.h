// The calls of the vectors, before anything has run.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "case.h"
#include "execution.h"
#include "vector.h"

namespace rmsnorm_test {

// A call that succeeds; `cook` changes its data.
struct Sample {
  std::string name;
  Case c;
  std::function<void(Execution *)> cook = [](Execution *) {};
};
std::vector<Sample> samples();

// A call that is refused: a right one, broken by an edit.
struct BrokenSample {
  std::string name;
  Case c;
  rmsnorm_status_t status;
  std::string error;
  std::function<void(Vector *)> break_rule;
};
std::vector<BrokenSample> broken_samples();

}  // namespace rmsnorm_test
