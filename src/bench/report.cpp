#include "bench/report.h"

#include <cmath>

#include "bench/text.h"

namespace bench {
namespace {

std::string number(const char *format, double value) {
  return std::isfinite(value) ? print(format, value) : "inf";
}

double gigabytes(const Result &result) {
  return result.call.bytes_moved() / (1e3 * result.times.call_us);
}

std::string checked_text(const Result &result) {
  if (!result.checked) return "-";
  const Verdict &verdict = result.verdict;
  if (verdict.all) return "all";
  std::string text = print("%lld", static_cast<long long>(verdict.rows));
  if (verdict.sum_rows > 0) text += print(" dw(%lld)", static_cast<long long>(verdict.sum_rows));
  return text;
}

const char *bound_text(const Result &result) {
  return !result.checked ? "-" : result.verdict.pass() ? "pass" : "FAIL";
}

// ---- JSON ---------------------------------------------------------------------------------------

std::string quoted(const std::string &text) {
  std::string json = "\"";
  for (const char letter : text) {
    if (letter == '"' || letter == '\\') json += '\\';
    if (static_cast<unsigned char>(letter) < 0x20) json += print("\\u%04x", letter);
    else json += letter;
  }
  return json + "\"";
}

// JSON has no infinity: null, as what was not measured.
std::string json_number(bool known, double value) {
  return known && std::isfinite(value) ? print("%.9g", value) : "null";
}

std::string json_integer(int64_t value) { return print("%lld", static_cast<long long>(value)); }

class Object {
 public:
  void add(const char *key, const std::string &value) {
    text_ += print("%s\"%s\": ", text_.empty() ? "" : ", ", key) + value;
  }
  std::string text() const { return "{" + text_ + "}"; }

 private:
  std::string text_;
};

std::string json_of(const Result &result) {
  const Call &call = result.call;
  const Verdict &verdict = result.verdict;
  Object errors, object;
  for (const Verdict::Error &error : verdict.errors) {
    Object one;
    one.add("ulps", json_number(true, error.ulps));
    one.add("share_of_bound", json_number(true, error.share));
    errors.add(error.name, one.text());
  }
  object.add("op", quoted(call.op()));
  object.add("dtype", quoted(dtype_name(call[call.lead()].dtype)));
  object.add("weight_dtype", quoted(dtype_name(call[kWeight].dtype)));
  object.add("activation",
             call.is_glu() ? quoted(rmsnorm::activation_name(call.activation)) : "null");
  object.add("rows", json_integer(call.rows));
  object.add("groups", json_integer(call.groups));
  object.add("cols", json_integer(call.cols));
  object.add("row_stride", json_integer(call[call.lead()].row_stride));
  object.add("misalign_bytes", json_integer(call[call.lead()].misalign));
  object.add("overlap", call.overlap ? "true" : "false");
  object.add("graph", result.graph ? "true" : "false");
  object.add("buffer_sets", json_integer(result.sets));
  object.add("bytes", json_number(true, call.bytes_moved()));
  object.add("us", json_number(result.timed, result.times.call_us));
  object.add("gb_per_s", json_number(result.timed, gigabytes(result)));
  object.add("ceiling_us", json_number(result.timed, result.times.ceiling_us));
  object.add("share", json_number(result.timed, result.times.ceiling_us / result.times.call_us));
  object.add("host_us", json_number(result.host_timed, result.host.call_us));
  object.add("bare_us", json_number(result.host_timed, result.host.bare_us));
  object.add("host_ratio",
             json_number(result.host_timed, result.host.call_us / result.host.bare_us));
  object.add("launches", json_number(result.host_timed, result.host.launches));
  object.add("argument_bytes",
             json_number(result.host_timed, static_cast<double>(result.host.argument_bytes)));
  object.add("error_ulps", json_number(result.checked, verdict.ulps()));
  object.add("errors", errors.text());
  object.add("bound", result.checked ? quoted(bound_text(result)) : "null");
  object.add("rows_checked", json_integer(verdict.rows));
  object.add("all_checked", verdict.all ? "true" : "false");
  object.add("dweight_rows", json_integer(verdict.sum_rows));
  object.add("kernel", quoted(result.kernel));
  return object.text();
}

}  // namespace

Report::Report(const Options &options, const rmsnorm_device_info_t &device)
    : options_(options), device_(device) {}

void Report::head(const std::string &remark) {
  std::printf("# librmsnorm %s\n", rmsnorm_build_info());
  std::printf("# %s %d: %s, %s\n", device_.device == RMSNORM_DEVICE_CPU ? "cpu" : "cuda",
              static_cast<int>(device_.ordinal), device_.name, device_.isa);
  if (!remark.empty()) std::printf("# %s\n", remark.c_str());
  if (options_.check)
    std::printf(
        "# error: the largest, in ulps; bound: of rmsnorm.h; checked: rows that were compared"
        " (dw(N): dweight, in a call of N rows)\n");
  std::printf("%-12s %-8s %9s %8s %10s %8s %10s %6s", "op", "dtype", "rows", "cols", "us", "GB/s",
              "ceiling us", "share");
  if (options_.host_time) std::printf(" %8s %8s %6s", "host us", "bare us", "ratio");
  std::printf(" %9s %5s %-12s %s\n", "error", "bound", "checked", "kernel");
  std::fflush(stdout);
}

void Report::row(const Result &result) {
  const Call &call = result.call;
  const std::string cols = call.groups > 1 ? print("%lldx%lld", static_cast<long long>(call.groups),
                                                   static_cast<long long>(call.cols))
                                           : json_integer(call.cols);
  std::printf("%-12s %-8s %9lld %8s", call.op(), call.dtype().c_str(),
              static_cast<long long>(call.rows), cols.c_str());
  const Times &times = result.times;
  if (result.timed)
    std::printf(" %10.2f %8.1f %10.2f %6.2f", times.call_us, gigabytes(result), times.ceiling_us,
                times.ceiling_us / times.call_us);
  else std::printf(" %10s %8s %10s %6s", "-", "-", "-", "-");
  if (options_.host_time)
    std::printf(" %8.2f %8.2f %6.2f", result.host.call_us, result.host.bare_us,
                result.host.call_us / result.host.bare_us);
  const std::string error = result.checked ? number("%.4g", result.verdict.ulps()) : "-";
  std::printf(" %9s %5s %-12s %s\n", error.c_str(), bound_text(result),
              checked_text(result).c_str(), result.kernel.c_str());
  std::fflush(stdout);
}

void Report::write_json(FILE *file, const std::vector<Result> &results) const {
  Object head;
  head.add("build", quoted(rmsnorm_build_info()));
  head.add("device", quoted(device_.device == RMSNORM_DEVICE_CPU ? "cpu" : "cuda"));
  head.add("ordinal", json_integer(device_.ordinal));
  head.add("name", quoted(device_.name));
  head.add("isa", quoted(device_.isa));
  head.add("iterations", options_.iterations < 0 ? "null" : json_integer(options_.iterations));
  head.add("warmups", json_integer(options_.warmups));
  head.add("threads", json_integer(options_.threads));
  std::string rows;
  for (const Result &result : results) rows += (rows.empty() ? "\n" : ",\n") + json_of(result);
  head.add("results", "[" + rows + "\n]");
  const bool written = std::fputs((head.text() + "\n").c_str(), file) >= 0;
  if (std::fclose(file) != 0 || !written)
    fail(kBroken, "--json %s: it cannot be written", options_.json.c_str());
}

}  // namespace bench
