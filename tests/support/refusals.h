// Every rule of rmsnorm.h about an operation's params, as an edit that breaks it in a call that is
// right: the status and what the text must name. Core is tested with these in isolation, and each
// backend through the API.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "case.h"

namespace rmsnorm_test {

struct Refusal {
  std::string rule;
  std::function<void(Params *)> break_rule;
  rmsnorm_status_t status;
  std::vector<std::string> texts;
  bool of_memory = false;  // about data pointers, which the size and name queries ignore
};

// The call that is right: 4 rows, 3 groups, 40 columns, fp32, every tensor present.
Case unbroken_case(Direction direction);
std::vector<Refusal> refusals(Direction direction);

}  // namespace rmsnorm_test
