#include "bench/measure.h"

#include <algorithm>
#include <limits>
#include <memory>

#include "bench/text.h"

namespace bench {
namespace {

// A machine has slow moments of a tenth of a second: the best of some medians counts, taken in turn
// with the ceiling's.
constexpr int kMedians = 3;
// Where no number of passes is asked for: 11, or as many as take about half a second, from 3 on.
constexpr int kMostPasses = 11, kLeastPasses = 3;
constexpr double kMedianUs = 5e5;
// Where the number of buffer sets is asked for, a pass may be too short for the clock with one call
// on each.
constexpr int64_t kPassCalls = 40;

double median_of(Pass *pass, int count) {
  std::vector<double> times;
  for (int i = 0; i < count; ++i) times.push_back(pass->microseconds());
  std::sort(times.begin(), times.end());
  const size_t middle = times.size() / 2;
  return times.size() % 2 != 0 ? times[middle] : (times[middle - 1] + times[middle]) / 2;
}

}  // namespace

void launch(Device &device, const rmsnorm_context_t *context, const Params &params,
            const Workspace &workspace) {
  const rmsnorm_status_t status =
      params.run(context, workspace.data, workspace.bytes, device.stream());
  if (status != RMSNORM_SUCCESS) fail(kBroken, "the call: %s", library_error(status).c_str());
}

Times measure(Device &device, const rmsnorm_context_t *context, const Call &call,
              const std::vector<BufferSet> &sets, const Workspace &workspace,
              const Options &options, bool graph) {
  std::vector<Move> moves;
  for (const BufferSet &set : sets)
    for (const Move &move : set.moves(call)) moves.push_back(move);
  const int64_t sets_count = static_cast<int64_t>(sets.size());
  const int64_t rounds = options.sets == 0 ? 1 : std::max<int64_t>(1, kPassCalls / sets_count);
  std::vector<std::function<void()>> runs = {[&] {
    for (int64_t i = 0; i < rounds; ++i)
      for (const BufferSet &set : sets) launch(device, context, set.params(), workspace);
  }};
  for (int way = 0; way < device.ways(); ++way)
    runs.push_back([&device, &moves, way, rounds] {
      for (int64_t i = 0; i < rounds; ++i)
        for (const Move &move : moves) device.move(move, way);
    });

  std::vector<std::unique_ptr<Pass>> passes;
  std::vector<int> counts;
  for (const std::function<void()> &run : runs) {
    run();  // the driver has loaded the kernels before a capture begins
    device.synchronize();
    passes.push_back(device.prepare(run, graph));
    for (int i = 0; i < options.warmups; ++i) passes.back()->microseconds();
    counts.push_back(options.iterations);
    if (options.iterations < 0)
      counts.back() = static_cast<int>(std::max<double>(
          kLeastPasses, std::min<double>(kMostPasses, kMedianUs / passes.back()->microseconds())));
  }
  double call_us = std::numeric_limits<double>::infinity(), ceiling_us = call_us;
  for (int turn = 0; turn < kMedians; ++turn)
    for (size_t i = 0; i < passes.size(); ++i) {
      double &best = i == 0 ? call_us : ceiling_us;
      best = std::min(best, median_of(passes[i].get(), counts[i]));
    }
  const double count = static_cast<double>(sets_count * rounds);
  return {call_us / count, ceiling_us / count};
}

}  // namespace bench
