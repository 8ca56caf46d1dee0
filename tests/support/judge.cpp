#include "judge.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <mutex>
#include <sstream>
#include <thread>

#include "errors.h"
#include "estimate.h"
#include "reference/glu.h"
#include "reference/reference.h"

namespace rmsnorm_test {
namespace {

using rmsnorm::reference::Exact;

struct Bound {
  double ulps;
  double factor;  // and this much of the sum of magnitudes
};

bool is_half(rmsnorm_dtype_t dtype) {
  return dtype == RMSNORM_DTYPE_F16 || dtype == RMSNORM_DTYPE_BF16;
}

// rmsnorm.h, 'Numerics'. The factors of dx and of the weight gradients on CUDA differ.
Bound bound_of(bool cuda, rmsnorm_dtype_t dtype, double cpu_factor, double cuda_factor) {
  const bool fp64 = dtype == RMSNORM_DTYPE_F64;
  if (!cuda) return {fp64 ? 2 : 0.501, cpu_factor};
  return {fp64 ? 2 : is_half(dtype) ? 0.51 : 1, fp64 ? cpu_factor : cuda_factor};
}

const double kBiasCpu = std::ldexp(1, -48), kBiasCuda = std::ldexp(1, -22);
const double kGradient = std::ldexp(1, -40);
const double kDxCuda = std::ldexp(1, -19), kSumCuda = std::ldexp(1, -18);

// Collects the errors of one kind of result; each host thread has one, and they are merged.
class Judge {
 public:
  Judge(const Case &c, Name name, const Bound &bound)
      : name_(name), dtype_(c[name].dtype), bound_(bound) {}

  // `magnitude`: what the bound's factor is relative to; 0 where the bound has none.
  void compare(double got, const Exact &exact, double magnitude, int64_t row, int64_t group,
               int64_t col) {
    const double error = rmsnorm::reference::error_in_ulps(got, exact, dtype_);
    const double ulp = rmsnorm::reference::ulp(exact, dtype_);
    const double slack = bound_.factor == 0 || magnitude == 0 ? 0 : bound_.factor * magnitude / ulp;
    // In ulps, or, where a sum cancelled and its ulp is next to nothing, in absolute terms.
    const double beyond =
        std::isfinite(error) ? (error - bound_.ulps) * ulp : std::fabs(got - exact.high);
    const bool within =
        error <= bound_.ulps ||
        (std::isfinite(beyond) && slack > 0 && beyond <= bound_.factor * magnitude) ||
        (bound_.factor > 0 && std::isinf(magnitude));  // the bound itself is infinite
    if (!within) return fail(got, exact, error, bound_.ulps + slack, row, group, col);
    if (!std::isfinite(exact.high)) return;
    ++worst_.compared;
    if (slack < 0.001) worst_.ulps = std::max(worst_.ulps, error);
    worst_.share = std::max(worst_.share, error / (bound_.ulps + slack));
    if (slack > 0 && error > bound_.ulps && std::isfinite(magnitude))
      worst_.factor = std::max(worst_.factor, beyond / magnitude);
  }
  void expect_equal(double got, double expected, int64_t row, int64_t group, int64_t col) {
    const bool same = std::isnan(expected)
                          ? std::isnan(got)
                          : got == expected && std::signbit(got) == std::signbit(expected);
    if (!same) fail(got, {expected, 0}, INFINITY, 0, row, group, col);
  }
  // LLAMA: y is judged by each value that h * rstd may have been rounded to.
  void compare_any(double got, const std::vector<Exact> &choices, double magnitude, int64_t row,
                   int64_t group, int64_t col) {
    const auto error = [&](const Exact &exact) {
      const double ulps = rmsnorm::reference::error_in_ulps(got, exact, dtype_);
      return std::isnan(ulps) ? INFINITY : ulps;
    };
    const auto nearest =
        std::min_element(choices.begin(), choices.end(),
                         [&](const Exact &a, const Exact &b) { return error(a) < error(b); });
    compare(got, *nearest, magnitude, row, group, col);
  }

  // By an estimate: whether `got` is within its bound whatever the exact result may be. Then it
  // counts as compared, if settle() says so.
  bool accepts(double got, const Estimate &exact, double magnitude) {
    const Distance from = distance(got, exact, format_of(dtype_));
    const double slack = bound_.factor == 0 ? 0 : bound_.factor * magnitude;
    // The magnitude, too, is an estimate.
    if (!(from.far <= bound_.ulps * from.ulp + slack * (1 - 0x1p-30))) return false;
    ++unsettled_.compared;
    // Divisions only where there is something to record.
    if (from.near > unsettled_.ulps * from.ulp && slack < 0.001 * from.ulp)
      unsettled_.ulps = static_cast<double>(from.near / from.ulp);
    const double bound = bound_.ulps * from.ulp + slack;
    if (from.near > unsettled_.share * bound)
      unsettled_.share = static_cast<double>(from.near / bound);
    const double beyond = static_cast<double>(from.near) - bound_.ulps * from.ulp;
    if (beyond > unsettled_.factor * magnitude && std::isfinite(magnitude))
      unsettled_.factor = beyond / magnitude;
    return true;
  }
  void settle(bool kept) {
    if (kept) worst_.merge(unsettled_);
    unsettled_ = {};
  }

  void merge(const Judge &other) {
    worst_.merge(other.worst_);
    failures_ += other.failures_;
    if (failure_.empty()) failure_ = other.failure_;
  }
  // Records the errors, and tells of the first failure.
  testing::AssertionResult verdict(const Execution &execution, const std::string &result) const {
    record_errors(execution.device().name(), result, dtype_, worst_);
    if (failures_ == 0) return testing::AssertionSuccess();
    return testing::AssertionFailure()
           << failure_ << " (" << failures_ << " elements of " << info(name_).text
           << " are wrong)\n  " << execution.device().name() << " " << execution.tested()
           << "\n  kernel " << execution.kernel_name();
  }

 private:
  void fail(double got, const Exact &exact, double error, double allowed, int64_t row,
            int64_t group, int64_t col) {
    if (failures_++ > 0) return;
    std::ostringstream text;
    text.precision(17);
    text << info(name_).text << "(" << row << ", " << group << ", " << col << ") = " << got
         << ", but exactly " << exact.high << " + " << exact.low << ": " << error
         << " ulp, allowed " << allowed;
    failure_ = text.str();
  }

  Name name_;
  rmsnorm_dtype_t dtype_;
  Bound bound_;
  WorstError worst_, unsettled_;
  int64_t failures_ = 0;
  std::string failure_;
};

// What of a rounding's bound exceeds half an ulp: a value so near a tie may go either way.
double llama_tolerance(rmsnorm_dtype_t h_dtype, bool cuda) {
  return !cuda ? 0.001 : is_half(h_dtype) ? 0.01 : 0.5;
}

// The values that LLAMA's rounding of `scaled` may give: the nearest, and where the exact value
// lies at a tie as near as the bound of that rounding allows, its other neighbour.
std::vector<double> llama_roundings(const Exact &scaled, rmsnorm_dtype_t h_dtype, bool cuda) {
  const double nearest = rmsnorm::reference::round_to(scaled, h_dtype);
  std::vector<double> values = {nearest};
  if (!std::isfinite(nearest)) return values;
  const double ulp = rmsnorm::reference::ulp(scaled, h_dtype);
  if (h_dtype == RMSNORM_DTYPE_F64) {  // 2 ulp
    for (const double step : {-2.0, -1.0, 1.0, 2.0}) values.push_back(nearest + step * ulp);
    return values;
  }
  const double offset = (scaled.high - nearest) + scaled.low;
  if (std::fabs(offset) / ulp >= 0.5 - llama_tolerance(h_dtype, cuda) && offset != 0)
    values.push_back(
        rmsnorm::reference::round_to({nearest + std::copysign(ulp, offset), 0}, h_dtype));
  return values;
}

// Some of them, by an estimate: those that the exact value has for sure.
struct Roundings {
  double values[3];
  int count;
};
Roundings llama_roundings(const Estimate &scaled, rmsnorm_dtype_t h_dtype, bool cuda) {
  const double value = static_cast<double>(scaled.value);
  const double nearest = round_to(value, h_dtype);
  const double ulp = distance(0, scaled, format_of(h_dtype)).ulp;
  if (!std::isfinite(nearest) || !(scaled.error < 0x1p-4L * ulp)) return {{}, 0};
  // Wherever the exact value's nearest is, these are at most 2 ulp away.
  if (h_dtype == RMSNORM_DTYPE_F64) return {{nearest, nearest - ulp, nearest + ulp}, 3};
  const long double offset = scaled.value - nearest;
  const long double least = std::fabs(offset) - scaled.error;
  if (least < (0.5 - llama_tolerance(h_dtype, cuda)) * ulp) return {{nearest}, 1};
  const double step = std::copysign(ulp, static_cast<double>(offset));
  return {{nearest, round_to(nearest + step, h_dtype)}, 2};
}

// The (row, group) pairs to compare: all, or the first, the last and some between.
std::vector<int64_t> chosen_rows(const Case &c) {
  const int64_t count = c.rows * c.group_count();
  std::vector<int64_t> chosen;
  if (c.sampled == 0 || c.sampled >= count) {
    for (int64_t i = 0; i < count; ++i) chosen.push_back(i);
    return chosen;
  }
  chosen = {0, count - 1};
  for (int64_t i = 2; i < c.sampled; ++i)
    chosen.push_back(
        static_cast<int64_t>(mix(c.seed, static_cast<uint64_t>(i)) % static_cast<uint64_t>(count)));
  return chosen;
}

bool settle(std::vector<Judge> *judges, bool kept) {
  for (Judge &judge : *judges) judge.settle(kept);
  return kept;
}

// Judges of the results of one row after another, merged over the host's threads, each of which has
// a copy of body(judges, row, group).
template <class Body>
std::vector<Judge> over_rows(const Case &c, const std::vector<Judge> &fresh, const Body &body) {
  const std::vector<int64_t> rows = chosen_rows(c);
  const int64_t chunk = std::max<int64_t>(1, static_cast<int64_t>(rows.size()) / 256);
  const int64_t chunks = (static_cast<int64_t>(rows.size()) + chunk - 1) / chunk;
  std::vector<Judge> all = fresh;
  std::mutex mutex;
  on_host_threads(chunks, [&](int64_t index) {
    std::vector<Judge> own = fresh;
    Body mine = body;
    const int64_t end = std::min<int64_t>((index + 1) * chunk, static_cast<int64_t>(rows.size()));
    for (int64_t i = index * chunk; i < end; ++i)
      mine(&own, rows[static_cast<size_t>(i)] / c.group_count(),
           rows[static_cast<size_t>(i)] % c.group_count());
    const std::lock_guard<std::mutex> lock(mutex);
    for (size_t i = 0; i < all.size(); ++i) all[i].merge(own[i]);
  });
  return all;
}

enum { kOfY, kOfSum, kOfRstd };  // judges of forward

// Whether estimates find each result of a forward row clearly right.
class ForwardGlance {
 public:
  ForwardGlance(const Execution &execution, const rmsnorm::ForwardProblem &problem)
      : case_(execution.tested()),
        problem_(problem),
        exact_(problem),
        y_(execution.view(kY, true)),
        sum_(execution.view(kResidualOut, true)),
        rstd_(execution.view(kRstd, true)),
        cuda_(execution.device().is_cuda()) {}

  bool is_clear(std::vector<Judge> *judges, int64_t row, int64_t group) {
    exact_.find(row, group);
    load_row(y_, row, group, case_.cols, &got_);
    bool clear = true;
    if (rstd_.present()) {
      const double got = rmsnorm::reference::load(rstd_.at(row, group), rstd_.dtype);
      clear =
          (*judges)[kOfRstd].accepts(got, exact_.rstd(), static_cast<double>(exact_.rstd().value));
    }
    if (sum_.present()) load_row(sum_, row, group, case_.cols, &got_sum_);
    for (size_t i = 0; clear && i < got_.size(); ++i) {
      clear = y_is_clear(&(*judges)[kOfY], i) &&
              (!sum_.present() || (got_sum_[i] == exact_.h(i) &&
                                   std::signbit(got_sum_[i]) == std::signbit(exact_.h(i))));
    }
    return settle(judges, clear);
  }

 private:
  bool y_is_clear(Judge *judge, size_t col) const {
    const Estimate scaled = exact_.scaled(col);
    double product = 0;
    if (!problem_.llama) {
      const Estimate y = exact_.y(col, scaled, &product);
      return judge->accepts(got_[col], y, product);
    }
    const Roundings roundings = llama_roundings(scaled, problem_.h_dtype, cuda_);
    if (roundings.count == 0) return false;
    Estimate nearest;
    for (int i = 0; i < roundings.count; ++i) {
      double its_product = 0;
      const Estimate y = exact_.y(col, {roundings.values[i], 0}, &its_product);
      if (i == 0 || std::fabs(got_[col] - y.value) < std::fabs(got_[col] - nearest.value))
        nearest = y, product = its_product;
    }
    return judge->accepts(got_[col], nearest, product);
  }

  const Case &case_;
  const rmsnorm::ForwardProblem &problem_;
  ForwardEstimate exact_;
  rmsnorm::View y_, sum_, rstd_;
  bool cuda_;
  std::vector<double> got_, got_sum_;
};

testing::AssertionResult judge_forward(const Execution &execution) {
  const Case &c = execution.tested();
  const bool cuda = execution.device().is_cuda();
  const bool llama = c.rounding == RMSNORM_ROUNDING_LLAMA;
  const rmsnorm::ForwardProblem problem = execution.forward_problem();
  Bound y_bound = bound_of(cuda, c[kY].dtype, kBiasCpu, kBiasCuda);
  if (!c.has(kBias)) y_bound.factor = 0;
  Bound rstd_bound = {cuda ? 1.0 : c[kRstd].dtype == RMSNORM_DTYPE_F64 ? 2 : 0.501, 0};
  if (cuda && is_half(c[kX].dtype) && is_half(c[kY].dtype) && is_half(c.h_dtype()))
    rstd_bound = {0.5, std::ldexp(1, -20)};
  const std::vector<Judge> fresh = {{c, kY, y_bound},
                                    {c, kResidualOut, {0, 0}},
                                    {c, kRstd, rstd_bound}};

  const auto body = [&, glance = ForwardGlance(execution, problem)](std::vector<Judge> *own,
                                                                    int64_t row,
                                                                    int64_t group) mutable {
    if (c.estimated && glance.is_clear(own, row, group)) return;
    const rmsnorm::reference::ForwardRow exact =
        rmsnorm::reference::forward_row(problem, row, group);
    if (c.has(kRstd))
      (*own)[kOfRstd].compare(execution.output(kRstd, row, group, 0), exact.rstd,
                              std::fabs(exact.rstd.high), row, group, 0);
    std::vector<Exact> choices;
    for (int64_t col = 0; col < c.cols; ++col) {
      const size_t i = static_cast<size_t>(col);
      if (c.has(kResidualOut))
        (*own)[kOfSum].expect_equal(execution.output(kResidualOut, row, group, col), exact.h[i],
                                    row, group, col);
      const double got = execution.output(kY, row, group, col);
      if (!llama) {
        (*own)[kOfY].compare(got, exact.y[i], exact.product[i], row, group, col);
        continue;
      }
      choices.clear();
      for (const double scaled : llama_roundings(exact.scaled[i], problem.h_dtype, cuda))
        choices.push_back(rmsnorm::reference::llama_y(problem, scaled, group, col));
      (*own)[kOfY].compare_any(got, choices, exact.product[i], row, group, col);
    }
  };
  const std::vector<Judge> judges = over_rows(c, fresh, body);

  std::string result = "y";
  if (llama) result += " llama";
  if (c.has(kBias)) result += " bias";
  for (const auto &[index, text] :
       {std::pair<int, std::string>{kOfY, result}, {kOfSum, "residual_out"}, {kOfRstd, "rstd"}}) {
    const testing::AssertionResult verdict =
        judges[static_cast<size_t>(index)].verdict(execution, text);
    if (!verdict) return verdict;
  }
  return testing::AssertionSuccess();
}

// Whether estimates find each result of a backward row clearly right.
bool dx_is_clear(const Execution &execution, const std::vector<Name> &names, double subnormal,
                 BackwardEstimate *estimate, std::vector<Judge> *judges, int64_t row,
                 int64_t group) {
  estimate->find(row, group);
  const double gain = subnormal > 0 ? subnormal * estimate->gain() : 0;
  std::vector<double> got;
  for (size_t n = 0; n < names.size(); ++n) {
    load_row(execution.view(names[n], true), row, group, execution.tested().cols, &got);
    for (size_t i = 0; i < got.size(); ++i) {
      double magnitude = 0;
      const Estimate dx = estimate->dx(i, &magnitude);
      if (!(*judges)[n].accepts(got[i], dx, magnitude + gain)) return settle(judges, false);
    }
  }
  return settle(judges, true);
}

testing::AssertionResult judge_dx(const Execution &execution) {
  const Case &c = execution.tested();
  const bool cuda = execution.device().is_cuda();
  const rmsnorm::BackwardProblem problem = execution.backward_problem();
  std::vector<Name> names;
  for (const Name name : {kDx, kDresidual})
    if (c.has(name)) names.push_back(name);
  std::vector<Judge> fresh;
  for (const Name name : names)
    fresh.push_back({c, name, bound_of(cuda, c[name].dtype, kGradient, kDxCuda)});
  if (names.empty()) return testing::AssertionSuccess();
  // CUDA's 2^-148, as a share of the factor that compare() multiplies.
  const double subnormal =
      cuda && c[kX].dtype != RMSNORM_DTYPE_F64 ? std::ldexp(1, -148) / kDxCuda : 0;

  const auto body = [&, estimate = BackwardEstimate(problem)](std::vector<Judge> *own, int64_t row,
                                                              int64_t group) mutable {
    if (c.estimated && dx_is_clear(execution, names, subnormal, &estimate, own, row, group)) return;
    const rmsnorm::reference::BackwardRow exact =
        rmsnorm::reference::backward_row(problem, row, group);
    for (size_t n = 0; n < names.size(); ++n)
      for (int64_t col = 0; col < c.cols; ++col) {
        const size_t i = static_cast<size_t>(col);
        (*own)[n].compare(execution.output(names[n], row, group, col), exact.dx[i],
                          exact.magnitude[i] + (subnormal > 0 ? subnormal * exact.gain : 0), row,
                          group, col);
      }
  };
  const std::vector<Judge> judges = over_rows(c, fresh, body);
  for (size_t n = 0; n < names.size(); ++n) {
    const testing::AssertionResult verdict = judges[n].verdict(execution, "dx");
    if (!verdict) return verdict;
  }
  return testing::AssertionSuccess();
}

Exact plus(const Exact &a, const Exact &b) {
  const double sum = a.high + b.high;
  if (!std::isfinite(sum)) return {sum, 0};
  const double part = sum - a.high;
  return {sum, (a.high - (sum - part)) + (b.high - part) + a.low + b.low};
}

// One group's gradients, or all groups', from parts of the rows on the host's threads.
rmsnorm::reference::WeightGradients sums_of(const rmsnorm::BackwardProblem &problem,
                                            int64_t group) {
  constexpr int64_t kParts = 16;
  std::vector<rmsnorm::reference::WeightGradients> parts(kParts);
  on_host_threads(kParts, [&](int64_t index) {
    const int64_t begin = problem.rows * index / kParts, end = problem.rows * (index + 1) / kParts;
    rmsnorm::BackwardProblem part = problem;
    part.rows = end - begin;
    for (rmsnorm::View *view : {&part.x, &part.dy, &part.rstd})
      if (view->present()) view->data = view->at(begin, 0);
    parts[static_cast<size_t>(index)] = rmsnorm::reference::weight_gradients(part, group);
  });
  rmsnorm::reference::WeightGradients sum = parts[0];
  for (size_t i = 1; i < parts.size(); ++i)
    for (size_t col = 0; col < sum.dweight.size(); ++col) {
      sum.dweight[col] = plus(sum.dweight[col], parts[i].dweight[col]);
      sum.dbias[col] = plus(sum.dbias[col], parts[i].dbias[col]);
      sum.dweight_magnitude[col] += parts[i].dweight_magnitude[col];
      sum.dbias_magnitude[col] += parts[i].dbias_magnitude[col];
    }
  return sum;
}

// Of one group or of all, from parts of the rows on the host's threads.
SumEstimates estimated_sums(const rmsnorm::BackwardProblem &problem, int64_t group) {
  const int64_t count = std::clamp<int64_t>(problem.rows / 4, 1, 16);
  std::vector<SumEstimates> parts(static_cast<size_t>(count), SumEstimates(problem, group, 0, 0));
  on_host_threads(count, [&](int64_t index) {
    parts[static_cast<size_t>(index)] = SumEstimates(problem, group, problem.rows * index / count,
                                                     problem.rows * (index + 1) / count);
  });
  for (size_t i = 1; i < parts.size(); ++i) parts[0].add(parts[i]);
  return parts[0];
}

// Whether estimates find all of dweight and dbias clearly right. judges: those that are present.
bool sums_are_clear(const Execution &execution, const rmsnorm::BackwardProblem &problem,
                    int64_t groups, const std::vector<Name> &names, std::vector<Judge> *judges) {
  const Case &c = execution.tested();
  const bool accumulate = (c.flags & RMSNORM_FLAG_ACCUMULATE) != 0;
  std::vector<double> got, old(static_cast<size_t>(c.cols));
  for (int64_t group = 0; group < groups; ++group) {
    const SumEstimates sums = estimated_sums(problem, group);
    for (size_t n = 0; n < names.size(); ++n) {
      load_row(execution.view(names[n], true), 0, group, c.cols, &got);
      if (accumulate) load_row(execution.view(names[n], false), 0, group, c.cols, &old);
      for (size_t i = 0; i < got.size(); ++i) {
        double magnitude = 0;
        Estimate sum =
            names[n] == kDweight ? sums.dweight(i, &magnitude) : sums.dbias(i, &magnitude);
        sum.value += old[i];
        sum.error += std::fabs(sum.value) * 0x1p-63L;
        if (!(*judges)[n].accepts(got[i], sum, magnitude)) return settle(judges, false);
      }
    }
  }
  return settle(judges, true);
}

// What CUDA's dweight may lose besides, as a share of the factor that compare() multiplies: 2^-149
// of 1 + |x| a row, asked only where it can matter.
double lost_in_subnormals(const Execution &execution, const Exact &dweight, int64_t group,
                          int64_t col) {
  const Case &c = execution.tested();
  if (!execution.device().is_cuda() || c[kX].dtype == RMSNORM_DTYPE_F64 ||
      std::fabs(dweight.high) > 0x1p-100)
    return 0;
  const bool all_groups = !execution.backward_problem().per_group;
  double sum = 0;
  for (int64_t row = 0; row < c.rows; ++row)
    for (int64_t g = all_groups ? 0 : group; g < (all_groups ? c.group_count() : group + 1); ++g)
      sum += 1 + std::fabs(execution.input(kX, row, g, col));
  return std::ldexp(sum, -149) / kSumCuda;
}

testing::AssertionResult judge_sums(const Execution &execution) {
  const Case &c = execution.tested();
  const bool accumulate = (c.flags & RMSNORM_FLAG_ACCUMULATE) != 0;
  const rmsnorm::BackwardProblem problem = execution.backward_problem();
  const int64_t groups = problem.per_group ? c.group_count() : 1;
  std::vector<Name> names;
  std::vector<Judge> judges;
  for (const Name name : {kDweight, kDbias}) {
    if (!c.has(name)) continue;
    names.push_back(name);
    judges.push_back(
        {c, name, bound_of(execution.device().is_cuda(), c[name].dtype, kGradient, kSumCuda)});
  }
  if (names.empty()) return testing::AssertionSuccess();
  if (!c.estimated || !sums_are_clear(execution, problem, groups, names, &judges)) {
    std::vector<rmsnorm::reference::WeightGradients> exact(static_cast<size_t>(groups));
    if (groups == 1) exact[0] = sums_of(problem, 0);
    else
      on_host_threads(groups, [&](int64_t group) {
        exact[static_cast<size_t>(group)] = rmsnorm::reference::weight_gradients(problem, group);
      });
    for (size_t n = 0; n < names.size(); ++n)
      for (int64_t group = 0; group < groups; ++group)
        for (int64_t col = 0; col < c.cols; ++col) {
          const rmsnorm::reference::WeightGradients &sums = exact[static_cast<size_t>(group)];
          const size_t i = static_cast<size_t>(col);
          const bool of_weight = names[n] == kDweight;
          Exact sum = of_weight ? sums.dweight[i] : sums.dbias[i];
          double magnitude = of_weight ? sums.dweight_magnitude[i] : sums.dbias_magnitude[i];
          if (of_weight) magnitude += lost_in_subnormals(execution, sum, group, col);
          if (accumulate) sum = plus(sum, {execution.input(names[n], 0, group, col), 0});
          judges[n].compare(execution.output(names[n], 0, group, col), sum, magnitude, 0, group,
                            col);
        }
  }
  for (size_t n = 0; n < names.size(); ++n) {
    const testing::AssertionResult verdict = judges[n].verdict(execution, info(names[n]).text);
    if (!verdict) return verdict;
  }
  return testing::AssertionSuccess();
}

// ---- Gated activations --------------------------------------------------------------------------

// rmsnorm.h, 'Gated activations'.
Bound glu_bound_of(bool cuda, const Case &c, Name name) {
  const rmsnorm_dtype_t dtype = c[name].dtype;
  const bool fp64 = dtype == RMSNORM_DTYPE_F64;
  const double single = c.activation == RMSNORM_ACTIVATION_SILU ? 2 : 4;
  const double ulps = !cuda ? (fp64 ? 2 : 0.501) : fp64 ? 8 : is_half(dtype) ? 0.51 : single;
  const int cancelled = fp64 ? -48 : !cuda ? -40 : is_half(dtype) ? -17 : -20;
  return {ulps, name == kDgate ? std::ldexp(1, cancelled) : 0};
}

// body(col) for each column of a row or, of a wide one, for its ends and every 13th between them:
// elements are independent.
template <class Body>
void over_cols(const Case &c, const Body &body) {
  constexpr int64_t kEnds = 600;
  for (int64_t col = 0; col < c.cols; ++col)
    if (c.cols < 8192 || col < kEnds || col >= c.cols - kEnds || col % 13 == 0) body(col);
}

// up or dy is Inf where act(gate) is next to nothing: Inf times that, or times 0.
bool inf_times_little(double factor, double gate) {
  return std::isinf(factor) && std::isfinite(gate) && gate < -9;
}

testing::AssertionResult judge_glu(const Execution &execution) {
  const Case &c = execution.tested();
  const bool cuda = execution.device().is_cuda();
  const char *const activation = rmsnorm::activation_name(c.activation);
  std::vector<Name> names;
  std::vector<Judge> fresh;
  for (const Name name : {kY, kDgate, kDup}) {
    if (!takes(c.direction, name) || !c.has(name)) continue;
    names.push_back(name);
    fresh.push_back({c, name, glu_bound_of(cuda, c, name)});
  }
  const bool forward = c.direction == Direction::kGluForward;
  struct Rows {
    std::vector<double> dy, gate, up, got[2];
  };
  const auto body = [&, rows = Rows()](std::vector<Judge> *own, int64_t row,
                                       int64_t group) mutable {
    load_row(execution.view(kGate, false), row, group, c.cols, &rows.gate);
    load_row(execution.view(kUp, false), row, group, c.cols, &rows.up);
    if (!forward) load_row(execution.view(kDy, false), row, group, c.cols, &rows.dy);
    for (size_t n = 0; n < names.size(); ++n)
      load_row(execution.view(names[n], true), row, group, c.cols, &rows.got[n]);
    over_cols(c, [&](int64_t col) {
      const size_t i = static_cast<size_t>(col);
      const double gate = rows.gate[i], up = rows.up[i];
      if (forward) {
        const double got = rows.got[0][i];
        if (inf_times_little(up, gate)) return;
        if (!c.estimated || !(*own)[0].accepts(got, estimate_glu_y(c.activation, gate, up), 0))
          (*own)[0].compare(got, rmsnorm::reference::glu_y(c.activation, gate, up), 0, row, group,
                            col);
        return;
      }
      const double dy = rows.dy[i];
      GluEstimates about;
      if (c.estimated) about = estimate_glu_gradients(c.activation, dy, gate, up);
      for (size_t n = 0; n < names.size(); ++n) {
        const bool is_dgate = names[n] == kDgate;
        const double got = rows.got[n][i];
        if (inf_times_little(dy, gate) || (is_dgate && inf_times_little(up, gate))) continue;
        if (c.estimated && (*own)[n].accepts(got, is_dgate ? about.dgate : about.dup,
                                             is_dgate ? about.magnitude : 0))
          continue;
        const rmsnorm::reference::GluGradients exact =
            rmsnorm::reference::glu_gradients(c.activation, dy, gate, up);
        (*own)[n].compare(got, is_dgate ? exact.dgate : exact.dup, is_dgate ? exact.magnitude : 0,
                          row, group, col);
      }
    });
    settle(own, true);
  };
  const std::vector<Judge> judges = over_rows(c, fresh, body);
  for (size_t n = 0; n < names.size(); ++n) {
    const testing::AssertionResult verdict =
        judges[n].verdict(execution, std::string(info(names[n]).text) + " " + activation);
    if (!verdict) return verdict;
  }
  return testing::AssertionSuccess();
}

}  // namespace

void on_host_threads(int64_t count, const std::function<void(int64_t)> &body) {
  const int64_t threads =
      std::min<int64_t>(count, std::max<int64_t>(1, std::thread::hardware_concurrency()));
  std::atomic<int64_t> next{0};
  const auto work = [&] {
    for (int64_t index = next++; index < count; index = next++) body(index);
  };
  std::vector<std::thread> others;
  for (int64_t i = 1; i < threads; ++i) others.emplace_back(work);
  work();
  for (std::thread &thread : others) thread.join();
}

testing::AssertionResult conforms(const Execution &execution) {
  const testing::AssertionResult memory = execution.nothing_else_written();
  if (!memory) return memory;
  if (is_glu(execution.tested().direction)) return judge_glu(execution);
  if (execution.tested().direction == Direction::kForward) return judge_forward(execution);
  const testing::AssertionResult dx = judge_dx(execution);
  return dx ? judge_sums(execution) : dx;
}

testing::AssertionResult conforms(Device &device, const Case &c) {
  Execution execution(device, c);
  const rmsnorm_status_t status = execution.run();
  if (status != RMSNORM_SUCCESS)
    return testing::AssertionFailure() << rmsnorm_status_name(status) << ": " << last_error()
                                       << "\n  " << device.name() << " " << c;
  return conforms(execution);
}

}  // namespace rmsnorm_test
