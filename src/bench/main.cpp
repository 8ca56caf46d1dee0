// rmsnorm-bench: checks and times calls of librmsnorm. In order: the arguments, the device, every
// call's rules and memory; only then the first measurement.
#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <set>

#include "bench/check.h"
#include "bench/measure.h"
#include "bench/replay.h"
#include "bench/report.h"
#include "bench/sweep.h"
#include "bench/text.h"

namespace bench {
namespace {

// ---- RMSNORM_LOG --------------------------------------------------------------------------------

struct Log {
  FILE *file = nullptr;
  std::set<std::string> seen;
};

void log_line(void *user, const char *line) {
  Log *log = static_cast<Log *>(user);
  if (log->seen.insert(line).second) std::fprintf(log->file, "%s\n", line);
  std::fflush(log->file);
}

void open_log(Log *log) {
  const char *value = std::getenv("RMSNORM_LOG");
  if (value == nullptr || *value == '\0' || std::strcmp(value, "0") == 0) return;
  log->file = std::strcmp(value, "1") == 0 ? stderr : std::fopen(value, "w");
  if (log->file == nullptr) fail(kBadInput, "RMSNORM_LOG=%s: %s", value, std::strerror(errno));
}

// ---- The device and its contexts ----------------------------------------------------------------

rmsnorm_device_t choose_device() {
  int32_t count = 0;
  const rmsnorm_status_t status = rmsnorm_device_count(RMSNORM_DEVICE_CUDA, &count);
  return status == RMSNORM_SUCCESS && count > 0 ? RMSNORM_DEVICE_CUDA : RMSNORM_DEVICE_CPU;
}

// The arguments that chose the device, for errors.
std::string device_arguments(const Options &options) {
  std::string text = options.device == RMSNORM_DEVICE_CPU ? "--device cpu" : "--device cuda";
  text += print(" --ordinal %d", static_cast<int>(options.ordinal));
  if (options.threads != 0) text += print(" --threads %d", static_cast<int>(options.threads));
  return text;
}

rmsnorm_context_t *make_context(const Options &options, Log *log) {
  rmsnorm_context_options_t wanted = RMSNORM_CONTEXT_OPTIONS_INIT;
  wanted.device = options.device;
  wanted.ordinal = options.ordinal;
  wanted.cpu_threads = options.threads;
  if (log != nullptr) wanted.log = log_line, wanted.log_user = log;
  rmsnorm_context_t *context = nullptr;
  const rmsnorm_status_t status = rmsnorm_context_create(&wanted, &context);
  if (status != RMSNORM_SUCCESS)
    fail(kBadInput, "%s: %s", device_arguments(options).c_str(), library_error(status).c_str());
  return context;
}

// ---- Plans: what a call needs, before anything is allocated -------------------------------------

struct Plan {
  Call call;
  Layout layout;
  std::string kernel;
  size_t workspace = 0;
  int64_t sets = 0;
};

Plan make_plan(const Options &options, const rmsnorm_context_t *context, const Call &call,
               double free_bytes, int64_t cache_bytes) {
  std::string kernel;
  size_t workspace = 0;
  const Params params(call);
  rmsnorm_status_t status = params.kernel_name(context, &kernel);
  if (status == RMSNORM_SUCCESS) status = params.workspace_size(context, &workspace);
  if (status != RMSNORM_SUCCESS)
    fail(kBadInput, "%s: %s: %s", call.origin.c_str(), call.describe().c_str(),
         library_error(status).c_str());
  Plan plan = {call, Layout(call), kernel, workspace,
               options.sets != 0 ? options.sets : wanted_sets(call, cache_bytes)};
  const auto need = [&](int64_t sets) {
    return static_cast<double>(sets) * plan.layout.bytes + static_cast<double>(workspace);
  };
  if (need(plan.sets) > free_bytes && options.sets == 0) plan.sets = least_sets(call, cache_bytes);
  if (need(plan.sets) > free_bytes)
    fail(kBadInput, "%s: %s needs %s in %lld buffer sets, but %s are free", call.origin.c_str(),
         call.describe().c_str(), readable_bytes(need(plan.sets)).c_str(),
         static_cast<long long>(plan.sets), readable_bytes(std::max(0.0, free_bytes)).c_str());
  return plan;
}

// ---- Running ------------------------------------------------------------------------------------

struct Bench {
  const Options &options;
  Device &device;
  const rmsnorm_context_t *context;
  const rmsnorm_context_t *first;  // for the calls before timing: with the log, if there is one
};

Result run(const Bench &bench, const Plan &plan) {
  const Options &options = bench.options;
  const bool cuda = options.device == RMSNORM_DEVICE_CUDA;
  Result result;
  result.call = plan.call;
  result.kernel = plan.kernel;
  result.sets = plan.sets;
  result.graph = cuda && options.graph != 0;
  std::vector<BufferSet> sets;
  for (int64_t i = 0; i < plan.sets; ++i) sets.emplace_back(bench.device, plan.call, plan.layout);
  const Memory memory(bench.device, plan.workspace);
  const Workspace workspace = {memory.data(), memory.bytes()};

  result.checked = options.check;
  if (options.check)
    result.verdict = check(bench.device, cuda, bench.first, plan.call, sets[0], workspace);
  else launch(bench.device, bench.first, sets[0].params(), workspace);
  bench.device.synchronize();
  result.timed = options.iterations != 0;
  if (result.timed)
    result.times =
        measure(bench.device, bench.context, plan.call, sets, workspace, options, result.graph);
  result.host_timed = options.host_time;
  if (options.host_time)
    result.host = bench.device.host_time(
        [&] { launch(bench.device, bench.context, sets[0].params(), workspace); },
        plan.call.overlap);
  return result;
}

int main(int argc, char **argv) {
  Options options = read_options(argc, argv);
  std::vector<Call> calls;
  std::string remark;
  if (options.replay.empty()) {
    calls = sweep(options);
    if (options.device == 0) options.device = choose_device();
  } else {
    const Replay replay = read_replay(options.replay);
    calls = {replay.call};
    remark = "replay of " + replay.kernel;
    if (options.ordinal < 0 && options.device == 0) options.ordinal = replay.ordinal;
    if (options.device == 0) options.device = replay.device;
  }
  options.ordinal = std::max(options.ordinal, 0);
  const bool cuda = options.device == RMSNORM_DEVICE_CUDA;
  if (!cuda && options.graph == 1) fail(kBadInput, "--graph 1 is for CUDA");
  if (!cuda && options.host_time)
    fail(kBadInput, "--host-time is for CUDA: on the CPU a call's time is its host time");

  Log log;
  open_log(&log);
  rmsnorm_context_t *const context = make_context(options, nullptr);
  rmsnorm_context_t *const logged = log.file == nullptr ? nullptr : make_context(options, &log);
  rmsnorm_device_info_t info = RMSNORM_DEVICE_INFO_INIT;
  const rmsnorm_status_t status = rmsnorm_device_info(options.device, options.ordinal, &info);
  if (status != RMSNORM_SUCCESS) fail(kBroken, "%s", library_error(status).c_str());
  const std::unique_ptr<Device> device =
      cuda ? make_cuda_device(options.ordinal) : make_cpu_device(options.threads);

  // Something is left for the check, and for what else runs here.
  const double free_bytes = 0.95 * (device->free_bytes() - double(int64_t{256} << 20));
  std::vector<Plan> plans;
  for (const Call &call : calls)
    plans.push_back(make_plan(options, context, call, free_bytes, info.cache_bytes));
  FILE *json = nullptr;
  if (!options.json.empty() && (json = std::fopen(options.json.c_str(), "w")) == nullptr)
    fail(kBadInput, "--json %s: %s", options.json.c_str(), std::strerror(errno));

  Report report(options, info);
  report.head(remark);
  const Bench bench = {options, *device, context, logged == nullptr ? context : logged};
  std::vector<Result> results;
  int code = 0;
  for (const Plan &plan : plans) {
    results.push_back(run(bench, plan));
    report.row(results.back());
    if (results.back().verdict.pass()) continue;
    code = kBeyondBound;
    std::fprintf(stderr, "rmsnorm-bench: %s: %s\n", plan.call.describe().c_str(),
                 results.back().verdict.failure.c_str());
  }
  if (json != nullptr) report.write_json(json, results);
  rmsnorm_context_destroy(logged);
  rmsnorm_context_destroy(context);
  return code;
}

}  // namespace
}  // namespace bench

int main(int argc, char **argv) { return bench::main(argc, argv); }
