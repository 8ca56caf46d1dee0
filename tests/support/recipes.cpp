#include "recipes.h"

#include <cmath>

namespace rmsnorm_test {
namespace {

double sign(int64_t col) { return col % 2 == 0 ? 1.0 : -1.0; }

// Between 0.5 and 1.5, another in each column.
double vary(int64_t col) {
  return 0.5 + static_cast<double>(mix(7, static_cast<uint64_t>(col)) % 1000) / 1000;
}

}  // namespace

Limits limits_of(rmsnorm_dtype_t dtype) {
  switch (dtype) {
    case RMSNORM_DTYPE_F16: return {65504, 0x1p-14, 0x1p-24};
    case RMSNORM_DTYPE_BF16: return {0x1.fep127, 0x1p-126, 0x1p-133};
    case RMSNORM_DTYPE_F32: return {0x1.fffffep127, 0x1p-126, 0x1p-149};
    default: return {0x1.fffffffffffffp1023, 0x1p-1022, 0x1p-1074};
  }
}

std::vector<Recipe> finite_recipes(rmsnorm_dtype_t dtype, int64_t cols) {
  const Limits limits = limits_of(dtype);
  const double largest = limits.largest, normal = limits.smallest_normal, least = limits.smallest;
  const int64_t middle = cols / 2;
  return {
      {"all the largest", [=](int64_t col) { return sign(col) * largest; }},
      {"about a third of the largest",
       [=](int64_t col) { return largest / 4.5 * sign(col) * vary(col); }},
      {"squares just overflow",
       [=](int64_t col) { return std::sqrt(largest) * 1.5 * sign(col) * vary(col); }},
      {"the sum of squares just overflows",
       [=](int64_t col) {
         return std::sqrt(largest / static_cast<double>(cols)) * 1.2 * vary(col);
       }},
      {"all the smallest", [=](int64_t col) { return sign(col) * least; }},
      {"subnormal", [=](int64_t col) { return least * std::floor(1 + 6 * vary(col)) * sign(col); }},
      {"about the smallest normal", [=](int64_t col) { return normal * vary(col) * sign(col); }},
      {"squares just underflow", [=](int64_t col) { return std::sqrt(normal) * 0.3 * vary(col); }},
      {"squares far below",
       [=](int64_t col) { return std::sqrt(normal) * 1e-3 * sign(col) * vary(col); }},
      {"one huge among tiny", [=](int64_t col) { return col == middle ? largest : least * 3; }},
      {"one huge among small",
       [=](int64_t col) { return col == middle ? -largest : normal * 8 * vary(col); }},
      {"one huge among ones",
       [=](int64_t col) { return col == middle ? largest : sign(col) * vary(col); }},
      {"one small among zeros", [=](int64_t col) { return col == middle ? least : 0; }},
      {"one at the end", [=](int64_t col) { return col == cols - 1 ? 3 : 0; }},
      {"every magnitude",
       [=](int64_t col) {
         const double span = std::log2(largest) - std::log2(normal);
         const double share = static_cast<double>(col) / static_cast<double>(cols);
         return sign(col) * std::exp2(std::log2(normal) + 1 + share * (span - 2));
       }},
  };
}

void cook(Execution *execution, Name name, int64_t row, const Recipe &recipe) {
  for (int64_t col = 0; col < execution->tested().cols_of(name); ++col)
    execution->set(name, row, 0, col, recipe.element(col));
}

}  // namespace rmsnorm_test
