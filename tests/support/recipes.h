// Rows of extreme numbers, as large and as small as each dtype has them.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "execution.h"

namespace rmsnorm_test {

struct Limits {
  double largest, smallest_normal, smallest;  // finite; normal; subnormal
};
Limits limits_of(rmsnorm_dtype_t dtype);

struct Recipe {
  const char *name;
  std::function<double(int64_t col)> element;
};

// Finite rows: the header's bounds hold for them.
std::vector<Recipe> finite_recipes(rmsnorm_dtype_t dtype, int64_t cols);

// Writes a recipe over one row.
void cook(Execution *execution, Name name, int64_t row, const Recipe &recipe);

}  // namespace rmsnorm_test
