#include "bench/check.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <mutex>
#include <random>
#include <thread>

#include "bench/judge.h"
#include "reference/glu.h"
#include "reference/reference.h"

namespace bench {
namespace {

// What one check compares: about a second of the reference on a few cores.
constexpr int64_t kElements = int64_t{1} << 20;
constexpr int64_t kMostRows = 4096;                 // each may be a copy from the device
constexpr int64_t kWholeBlock = int64_t{64} << 20;  // bytes that are downloaded at once

struct Task {
  int64_t row, group;
};

// All tasks, in order, or the first, the last and some between.
std::vector<Task> choose_tasks(const Call &call, bool all) {
  std::vector<Task> tasks;
  if (all) {
    for (int64_t row = 0; row < call.rows; ++row)
      for (int64_t group = 0; group < call.groups; ++group) tasks.push_back({row, group});
    return tasks;
  }
  const int64_t count = std::max<int64_t>(2, std::min(kMostRows, kElements / call.cols));
  std::mt19937_64 random(1);
  tasks = {{0, 0}, {call.rows - 1, call.groups - 1}};
  while (static_cast<int64_t>(tasks.size()) < count)
    tasks.push_back({static_cast<int64_t>(random() % static_cast<uint64_t>(call.rows)),
                     static_cast<int64_t>(random() % static_cast<uint64_t>(call.groups))});
  return tasks;
}

bool is_all(const Call &call) {
  const double elements = static_cast<double>(call.rows) * static_cast<double>(call.groups) *
                          static_cast<double>(call.cols);
  return elements <= static_cast<double>(kElements);
}

// The tasks' rows of every tensor (or its vectors), one after another in host memory.
class HostRows {
 public:
  void download(Device &device, const Call &call, const BufferSet &set, Slot slot,
                const std::vector<Task> &tasks) {
    std::vector<Task> places = tasks;
    if (info(slot).extent == Extent::kVector) {
      places.clear();
      for (int64_t group = 0; group < call.groups_of(slot); ++group) places.push_back({0, group});
    }
    const TensorSpec &spec = call[slot];
    const int64_t size = element_size(spec.dtype);
    const size_t width = static_cast<size_t>(call.cols_of(slot) * size);
    std::vector<char> &rows = rows_[slot];
    rows.resize(places.size() * width);
    std::vector<char> whole;
    const Slot root = set.root(slot);
    if (set.block_bytes(root) <= kWholeBlock) {
      whole.resize(static_cast<size_t>(set.block_bytes(root)));
      device.download(whole.data(), set.block(root), whole.size());
    }
    for (size_t i = 0; i < places.size(); ++i) {
      const int64_t step =
          (places[i].row * spec.row_stride + places[i].group * spec.group_stride) * size;
      char *const to = rows.data() + i * width;
      if (whole.empty()) device.download(to, set.data(slot) + step, width);
      else std::memcpy(to, whole.data() + set.offset(slot) + step, width);
    }
  }

  // As the reference takes it: row i is task i, and a vector has its groups.
  rmsnorm::View view(const Call &call, Slot slot) const {
    rmsnorm::View view;
    if (!call.has(slot)) return view;
    view.data = const_cast<char *>(rows_[slot].data());
    view.dtype = call[slot].dtype;
    if (info(slot).extent != Extent::kVector) view.row_stride = call.cols_of(slot);
    else if (call.groups_of(slot) > 1) view.group_stride = call.cols;
    return view;
  }
  double element(const Call &call, Slot slot, int64_t place, int64_t col) const {
    const rmsnorm_dtype_t dtype = call[slot].dtype;
    const int64_t index = place * call.cols_of(slot) + col;
    return rmsnorm::reference::load(rows_[slot].data() + index * element_size(dtype), dtype);
  }

 private:
  std::vector<char> rows_[kSlots];
};

struct Checked {
  const Call &call;
  const std::vector<Task> &tasks;
  const HostRows &before, &after;
  bool cuda;
};

// Judges of the outputs that are there.
std::vector<Judge> judges_of(const Call &call, std::initializer_list<Slot> outputs, bool cuda) {
  std::vector<Judge> judges;
  for (const Slot slot : outputs)
    if (call.writes(slot)) judges.emplace_back(call, slot, cuda);
  return judges;
}

// body(judges, index) for each index below count, on the host's threads; the judges, merged.
template <class Body>
std::vector<Judge> on_threads(const std::vector<Judge> &fresh, int64_t count, Body body) {
  std::vector<Judge> merged = fresh;
  std::mutex mutex;
  std::atomic<int64_t> next{0};
  const auto work = [&] {
    std::vector<Judge> own = fresh;
    for (int64_t index = next++; index < count; index = next++) body(&own, index);
    const std::lock_guard<std::mutex> lock(mutex);
    for (size_t i = 0; i < merged.size(); ++i) merged[i].merge(own[i]);
  };
  std::vector<std::thread> threads;
  const int64_t most = std::min<int64_t>(count, std::thread::hardware_concurrency());
  for (int64_t i = 1; i < most; ++i) threads.emplace_back(work);
  work();
  for (std::thread &thread : threads) thread.join();
  return merged;
}

void set_shape(const Call &call, int64_t rows, rmsnorm::Problem *problem) {
  problem->rows = rows;
  problem->groups = 1;
  problem->cols = call.cols;
}

void set_scalars(const Call &call, int64_t rows, rmsnorm::NormProblem *problem) {
  set_shape(call, rows, problem);
  problem->eps = call.eps;
  problem->weight_offset = call.weight_offset;
}

std::vector<Judge> judge_forward(const Checked &c) {
  const Call &call = c.call;
  rmsnorm::ForwardProblem problem;
  set_scalars(call, static_cast<int64_t>(c.tasks.size()), &problem);
  problem.llama = call.llama;
  problem.x = c.before.view(call, kX);
  problem.residual = c.before.view(call, kResidual);
  problem.weight = c.before.view(call, kWeight);
  problem.bias = c.before.view(call, kBias);
  problem.h_dtype = call.has(kResidualOut) ? call[kResidualOut].dtype
                    : !call.has(kResidual) || call[kResidual].dtype == call[kX].dtype
                        ? call[kX].dtype
                        : rmsnorm_dtype_t(RMSNORM_DTYPE_F32);
  return on_threads(judges_of(call, {kY, kResidualOut, kRstd}, c.cuda), problem.rows,
                    [&](std::vector<Judge> *judges, int64_t index) {
                      const Task &task = c.tasks[static_cast<size_t>(index)];
                      const rmsnorm::reference::ForwardRow exact =
                          rmsnorm::reference::forward_row(problem, index, task.group);
                      for (Judge &judge : *judges)
                        for (int64_t col = 0; col < call.cols_of(judge.output); ++col) {
                          const size_t i = static_cast<size_t>(col);
                          const double got = c.after.element(call, judge.output, index, col);
                          Exact value = judge.output == kY             ? exact.y[i]
                                        : judge.output == kResidualOut ? Exact{exact.h[i], 0}
                                                                       : exact.rstd;
                          const double magnitude =
                              judge.output == kRstd ? std::fabs(exact.rstd.high) : exact.product[i];
                          if (judge.output == kY && call.llama)
                            for (const double scaled :
                                 llama_roundings(exact.scaled[i], problem.h_dtype, c.cuda)) {
                              const Exact y =
                                  rmsnorm::reference::llama_y(problem, scaled, task.group, col);
                              if (std::fabs(got - y.high) < std::fabs(got - value.high)) value = y;
                            }
                          judge.compare(got, value, magnitude, task.row, task.group, col);
                        }
                    });
}

rmsnorm::BackwardProblem backward_problem(const Checked &c) {
  rmsnorm::BackwardProblem problem;
  set_scalars(c.call, static_cast<int64_t>(c.tasks.size()), &problem);
  problem.dy = c.before.view(c.call, kDy);
  problem.x = c.before.view(c.call, kX);
  problem.weight = c.before.view(c.call, kWeight);
  problem.rstd = c.before.view(c.call, kRstd);
  problem.dresidual_out = c.before.view(c.call, kDresidualOut);
  return problem;
}

std::vector<Judge> judge_dx(const Checked &c) {
  const rmsnorm::BackwardProblem problem = backward_problem(c);
  return on_threads(judges_of(c.call, {kDx, kDresidual}, c.cuda), problem.rows,
                    [&](std::vector<Judge> *judges, int64_t index) {
                      const Task &task = c.tasks[static_cast<size_t>(index)];
                      const rmsnorm::reference::BackwardRow exact =
                          rmsnorm::reference::backward_row(problem, index, task.group);
                      for (Judge &judge : *judges)
                        for (int64_t col = 0; col < c.call.cols; ++col) {
                          const size_t i = static_cast<size_t>(col);
                          judge.compare(c.after.element(c.call, judge.output, index, col),
                                        exact.dx[i], exact.magnitude[i], task.row, task.group, col);
                        }
                    });
}

// Of a check of all tasks: the gradients of weight and bias.
std::vector<Judge> judge_sums(const Checked &c) {
  const std::vector<Judge> fresh = judges_of(c.call, {kDweight, kDbias}, c.cuda);
  if (fresh.empty()) return fresh;
  const bool per_group = c.call.groups_of(fresh[0].output) > 1;
  rmsnorm::BackwardProblem problem = backward_problem(c);
  // The tasks are all: rows x groups again, one group's apart from another's by one row here.
  problem.rows = c.call.rows;
  problem.groups = c.call.groups;
  problem.per_group = per_group;
  for (rmsnorm::View *view : {&problem.dy, &problem.x, &problem.rstd}) {
    view->group_stride = view->row_stride;
    view->row_stride *= c.call.groups;
  }
  return on_threads(fresh, per_group ? c.call.groups : 1,
                    [&](std::vector<Judge> *judges, int64_t group) {
                      const rmsnorm::reference::WeightGradients exact =
                          rmsnorm::reference::weight_gradients(problem, group);
                      for (Judge &judge : *judges)
                        for (int64_t col = 0; col < c.call.cols; ++col) {
                          const size_t i = static_cast<size_t>(col);
                          const bool dweight = judge.output == kDweight;
                          Exact sum = dweight ? exact.dweight[i] : exact.dbias[i];
                          if (c.call.accumulate) {
                            const double old = c.before.element(c.call, judge.output, group, col);
                            const double both = sum.high + old, part = both - sum.high;
                            sum = {both, (sum.high - (both - part)) + (old - part) + sum.low};
                          }
                          judge.compare(c.after.element(c.call, judge.output, group, col), sum,
                                        dweight ? exact.dweight_magnitude[i]
                                                : exact.dbias_magnitude[i],
                                        0, group, col);
                        }
                    });
}

std::vector<Judge> judge_glu_forward(const Checked &c) {
  rmsnorm::GluForwardProblem problem;
  set_shape(c.call, static_cast<int64_t>(c.tasks.size()), &problem);
  problem.activation = c.call.activation;
  problem.gate = c.before.view(c.call, kGate);
  problem.up = c.before.view(c.call, kUp);
  return on_threads(judges_of(c.call, {kY}, c.cuda), problem.rows,
                    [&](std::vector<Judge> *judges, int64_t index) {
                      const Task &task = c.tasks[static_cast<size_t>(index)];
                      const std::vector<Exact> exact =
                          rmsnorm::reference::glu_forward_row(problem, index, task.group);
                      for (int64_t col = 0; col < c.call.cols; ++col)
                        judges->front().compare(c.after.element(c.call, kY, index, col),
                                                exact[static_cast<size_t>(col)], 0, task.row,
                                                task.group, col);
                    });
}

std::vector<Judge> judge_glu_backward(const Checked &c) {
  rmsnorm::GluBackwardProblem problem;
  set_shape(c.call, static_cast<int64_t>(c.tasks.size()), &problem);
  problem.activation = c.call.activation;
  problem.dy = c.before.view(c.call, kDy);
  problem.gate = c.before.view(c.call, kGate);
  problem.up = c.before.view(c.call, kUp);
  return on_threads(judges_of(c.call, {kDgate, kDup}, c.cuda), problem.rows,
                    [&](std::vector<Judge> *judges, int64_t index) {
                      const Task &task = c.tasks[static_cast<size_t>(index)];
                      const std::vector<rmsnorm::reference::GluGradients> exact =
                          rmsnorm::reference::glu_backward_row(problem, index, task.group);
                      for (Judge &judge : *judges)
                        for (int64_t col = 0; col < c.call.cols; ++col) {
                          const rmsnorm::reference::GluGradients &of =
                              exact[static_cast<size_t>(col)];
                          judge.compare(c.after.element(c.call, judge.output, index, col),
                                        judge.output == kDgate ? of.dgate : of.dup, of.magnitude,
                                        task.row, task.group, col);
                        }
                    });
}

std::vector<Judge> judge_rows(const Checked &c) {
  switch (c.call.function) {
    case Function::kForward: return judge_forward(c);
    case Function::kBackward: return judge_dx(c);
    case Function::kGluForward: return judge_glu_forward(c);
    default: return judge_glu_backward(c);
  }
}

// Runs the call and adds to `found` what was seen of all tasks, or of some.
void check_call(Device &device, bool cuda, const rmsnorm_context_t *context, const Call &call,
                const BufferSet &set, const Workspace &workspace, bool all, Verdict *found) {
  const std::vector<Task> tasks = choose_tasks(call, all);
  HostRows before, after;
  set.poison(device, call);
  for (int slot = 0; slot < kSlots; ++slot)
    if (call.has(Slot(slot)) && (!call.writes(Slot(slot)) || call.accumulate))
      before.download(device, call, set, Slot(slot), tasks);
  launch(device, context, set.params_of(call), workspace);
  device.synchronize();
  for (int slot = 0; slot < kSlots; ++slot)
    if (call.writes(Slot(slot))) after.download(device, call, set, Slot(slot), tasks);

  if (found->rows == 0) found->rows = static_cast<int64_t>(tasks.size());
  const Checked checked = {call, tasks, before, after, cuda};
  std::vector<Judge> judges = judge_rows(checked);
  if (call.function == Function::kBackward && all)
    for (const Judge &judge : judge_sums(checked)) judges.push_back(judge);
  for (const Judge &judge : judges) {
    found->add({info(judge.output).name, judge.ulps, judge.share});
    if (found->failure.empty()) found->failure = judge.failure;
  }
}

}  // namespace

void Verdict::add(const Error &error) {
  for (Error &known : errors)
    if (std::strcmp(known.name, error.name) == 0) {
      known.ulps = std::max(known.ulps, error.ulps);
      known.share = std::max(known.share, error.share);
      return;
    }
  errors.push_back(error);
}

double Verdict::ulps() const {
  double largest = 0;
  for (const Error &error : errors) largest = std::max(largest, error.ulps);
  return largest;
}

Verdict check(Device &device, bool cuda, const rmsnorm_context_t *context, const Call &call,
              const BufferSet &set, const Workspace &workspace) {
  Verdict found;
  found.all = is_all(call);
  check_call(device, cuda, context, call, set, workspace, found.all, &found);
  if (found.all || (!call.has(kDweight) && !call.has(kDbias))) return found;
  Call few = call;
  few.rows = found.sum_rows = std::max<int64_t>(1, kElements / (call.groups * call.cols));
  check_call(device, cuda, context, few, set, workspace, true, &found);
  return found;
}

}  // namespace bench
