#include "errors.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <tuple>

#include "core/dtype.h"

namespace rmsnorm_test {
namespace {

using Key = std::tuple<std::string, std::string, rmsnorm_dtype_t>;

struct Table {
  std::mutex mutex;
  std::map<Key, WorstError> rows;
};

Table &table() {
  static Table *const kept = new Table;  // outlives every test
  return *kept;
}

std::string power_of_two(double factor) {
  if (!(factor > 0)) return "-";
  char text[32];
  std::snprintf(text, sizeof text, "2^%.1f", std::log2(factor));
  return text;
}

class Report final : public testing::Environment {
 public:
  void TearDown() override {
    const std::lock_guard<std::mutex> lock(table().mutex);
    if (table().rows.empty()) return;
    std::printf("%-5s %-16s %-5s %12s %9s %9s %9s\n", "", "largest error", "dtype", "compared",
                "ulps", "of bound", "beyond");
    for (const auto &[key, worst] : table().rows) print(key, worst);
    if (const char *path = std::getenv("RMSNORM_TEST_ERRORS")) append(path);
  }

 private:
  static void print(const Key &key, const WorstError &worst) {
    const auto &[device, result, dtype] = key;
    char ulps[32] = "-";
    if (worst.ulps >= 0) std::snprintf(ulps, sizeof ulps, "%.4f", worst.ulps);
    std::printf("%-5s %-16s %-5s %12lld %9s %8.1f%% %9s\n", device.c_str(), result.c_str(),
                rmsnorm::dtype_name(dtype), static_cast<long long>(worst.compared), ulps,
                100 * worst.share, power_of_two(worst.factor).c_str());
  }
  static void append(const char *path) {
    std::FILE *file = std::fopen(path, "a");
    if (file == nullptr) return;
    for (const auto &[key, worst] : table().rows)
      std::fprintf(file, "%s\t%s\t%s\t%lld\t%.6g\t%.6g\t%.6g\n", std::get<0>(key).c_str(),
                   std::get<1>(key).c_str(), rmsnorm::dtype_name(std::get<2>(key)),
                   static_cast<long long>(worst.compared), worst.ulps, worst.share, worst.factor);
    std::fclose(file);
  }
};

testing::Environment *const kReport = testing::AddGlobalTestEnvironment(new Report);

}  // namespace

void WorstError::merge(const WorstError &other) {
  compared += other.compared;
  ulps = std::max(ulps, other.ulps);
  share = std::max(share, other.share);
  factor = std::max(factor, other.factor);
}

void record_errors(const char *device, const std::string &result, rmsnorm_dtype_t dtype,
                   const WorstError &worst) {
  if (worst.compared == 0) return;
  const std::lock_guard<std::mutex> lock(table().mutex);
  table().rows[{device, result, dtype}].merge(worst);
}

}  // namespace rmsnorm_test
