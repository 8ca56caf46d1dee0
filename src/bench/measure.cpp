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
  const std::function<void()> run[] = {[&] {
                                         for (const BufferSet &set : sets)
                                           launch(device, context, set.params(), workspace);
                                       },
                                       [&] {
                                         for (const Move &move : moves) device.move(move);
                                       }};

  std::unique_ptr<Pass> passes[2];
  for (int i = 0; i < 2; ++i) {
    run[i]();  // the driver has loaded the kernels before a capture begins
    device.synchronize();
    passes[i] = device.prepare(run[i], graph);
    for (int j = 0; j < options.warmups; ++j) passes[i]->microseconds();
  }
  int counts[2] = {options.iterations, options.iterations};
  for (int i = 0; options.iterations < 0 && i < 2; ++i)
    counts[i] = static_cast<int>(
        std::max<double>(kLeastPasses,
                         std::min<double>(kMostPasses, kMedianUs / passes[i]->microseconds())));
  double best[2] = {std::numeric_limits<double>::infinity(),
                    std::numeric_limits<double>::infinity()};
  for (int turn = 0; turn < kMedians; ++turn)
    for (int i = 0; i < 2; ++i) best[i] = std::min(best[i], median_of(passes[i].get(), counts[i]));
  const double count = static_cast<double>(sets.size());
  return {best[0] / count, best[1] / count};
}

}  // namespace bench
