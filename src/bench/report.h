// What the bench says: a table on stdout, a row as soon as it is measured, and at the end a JSON
// file with the same numbers and more.
#pragma once

#include <cstdio>
#include <string>
#include <vector>

#include "bench/check.h"
#include "bench/measure.h"

namespace bench {

struct Result {
  Call call;
  std::string kernel;
  int64_t sets = 0;
  bool graph = false;
  bool checked = false, timed = false, host_timed = false;
  Verdict verdict;
  Times times;
  HostTime host;
};

class Report {
 public:
  Report(const Options &options, const rmsnorm_device_info_t &device);
  void head(const std::string &remark);  // remark: "" or one more line
  void row(const Result &result);
  void write_json(FILE *file, const std::vector<Result> &results) const;

 private:
  const Options &options_;
  const rmsnorm_device_info_t &device_;
};

}  // namespace bench
