// Forward: the driver of all dtypes but fp64. A row is read once for its sum of squares, and again,
// from the cache, to be written; and while a row is written the next one is read, so that the
// memory is never idle. How a row is read and written is a Path's matter: ExactRows or HalfRows.
// Nothing is written before the row's sum is known, so a row that turns out to need another path
// starts anew. Included inside the isa file's namespace.

// The sums of the row that is written and of the one that is read meanwhile, on the stack: cheaper
// to read there, in the nearest cache, than to make again from x and residual. Which instruction
// sets keep them, their isa files say (kKeepsSums).
constexpr int64_t kKeptBytes = 16384, kPage = 4096;
template <Sum kSum>
struct KeptSums {
  void give_place(ForwardRow *, int64_t) {}
};
template <>
struct KeptSums<Sum::kKept> {
  // Half a page from where y has its place in a page. On Zen 3 a load that follows a store past the
  // cache waits for it if the last 12 bits of their addresses are those of one line, or nearly; a
  // fused add takes up to five times as long where both of its outputs are met so.
  void give_place(ForwardRow *row, int64_t index) {
    char *const start = memory[index % 2];
    const uintptr_t distance =
        reinterpret_cast<uintptr_t>(row->y.data) + kPage / 2 - reinterpret_cast<uintptr_t>(start);
    row->kept = start + distance % kPage / 64 * 64;
  }

  alignas(64) char memory[2][kKeptBytes + kPage];
};

// Writes the row `done` and reads `next`, either if asked to.
template <class Path, bool kWrites, bool kReads, bool kPlain>
[[gnu::always_inline]] inline void pass(const ForwardProblem &problem, const ForwardRow &done,
                                        double rstd, const ForwardRow &next,
                                        typename Path::Sums *sums) {
  const typename Path::Constants constants(problem, done, rstd);
  const ForwardRow written = done, read = next;  // no store changes these
  for (int64_t begin = 0; begin < problem.cols; begin += Path::kRun) {
    const int64_t end = problem.cols - begin < Path::kRun ? problem.cols : begin + Path::kRun;
    typename Path::Run run;
    each_block<Path::kStep>(
        begin, end, [&](int64_t col, int64_t count) __attribute__((always_inline)) {
          if constexpr (kReads && kWrites) {
            prefetch_ahead<Path::kDtype, Path::kStep>(read.x, col);
            if (Path::kSum != Sum::kNone)
              prefetch_ahead<Path::kDtype, Path::kStep>(read.residual, col);
          }
          // In this order: x and y often begin at the same place in a page, and see KeptSums.
          if constexpr (kReads) Path::read(problem, read, col, count, &run);
          if constexpr (kWrites)
            Path::template write<kPlain>(problem, written, constants, col, count);
        });
    if constexpr (kReads) Path::end_run(run, sums);
  }
}

inline void store_rstd(const ForwardProblem &problem, int64_t row, int64_t group, double rstd) {
  const float rounded = static_cast<float>(rstd);
  __builtin_memcpy(elements(problem.rstd, row, group).data, &rounded, sizeof rounded);
}

template <class Path, bool kWrites, bool kReads>
[[gnu::always_inline]] inline void pass(const ForwardProblem &problem, const ForwardRow &done,
                                        double rstd, const ForwardRow &next,
                                        typename Path::Sums *sums) {
  if constexpr (kWrites && Path::kDtype != kAny)
    if (is_plain(problem))
      return pass<Path, kWrites, kReads, true>(problem, done, rstd, next, sums);
  pass<Path, kWrites, kReads, false>(problem, done, rstd, next, sums);
}

// The row on its own.
template <class Path>
double sum_row(const ForwardProblem &problem, const ForwardRow &row) {
  typename Path::Sums sums;
  double rstd = 0;
  pass<Path, false, true>(problem, row, 0, row, &sums);
  Path::rstd(problem, &sums, &rstd);
  return rstd;
}

// Rows [begin, end) by Path; by Exact those that Path cannot, and every rstd that is asked for.
template <class Path, class Exact>
void forward_rows(const ForwardProblem &problem, int64_t begin, int64_t end) {
  int64_t row = begin / problem.groups, group = begin % problem.groups;
  KeptSums<Path::kSum> kept;
  ForwardRow current = forward_elements(problem, row, group);
  kept.give_place(&current, begin);
  typename Path::Sums sums;
  pass<Path, false, true>(problem, current, 0, current, &sums);
  for (int64_t index = begin; index < end; ++index) {
    double rstd = 0;
    const bool taken = Path::rstd(problem, &sums, &rstd);
    if (!Path::kExact && (!taken || problem.rstd.present())) {
      const double exact = sum_row<Exact>(problem, current);
      if (!taken) rstd = exact;
      if (problem.rstd.present()) store_rstd(problem, row, group, exact);
    } else if (problem.rstd.present()) {
      store_rstd(problem, row, group, rstd);
    }
    if (++group == problem.groups) group = 0, ++row;
    const bool more = index + 1 < end;
    ForwardRow next = current;
    if (more)
      next = problem.groups == 1 ? next_row(current) : forward_elements(problem, row, group);
    kept.give_place(&next, index + 1);
    sums = typename Path::Sums();
    if (!taken) {
      pass<Exact, true, false>(problem, current, rstd, current, nullptr);
      if (more) pass<Path, false, true>(problem, next, 0, next, &sums);
    } else if (more) {
      pass<Path, true, true>(problem, current, rstd, next, &sums);
    } else {
      pass<Path, true, false>(problem, current, rstd, current, nullptr);
    }
    if (taken && !Path::is_right())
      pass<Exact, true, false>(problem, current, rstd, current, nullptr);
    current = next;
  }
  if (Path::kStreams) stream_fence();
}

template <rmsnorm_dtype_t kDtype, Sum kSum, bool kStreams>
void forward_rows_of(const ForwardProblem &problem, int64_t begin, int64_t end) {
  // Of rows that have been read another way.
  constexpr Sum kAgain = kSum == Sum::kNone ? Sum::kNone : Sum::kTwice;
  if constexpr (is_half(kDtype)) {
    using Half = HalfRows<kDtype, kSum, kStreams>;
    using Exact = ExactRows<kDtype, kAgain, false>;
    if (Half::takes(problem)) return forward_rows<Half, Exact>(problem, begin, end);
    return forward_rows<Exact, Exact>(problem, begin, end);
  } else {
    if constexpr (kDtype == RMSNORM_DTYPE_F32 && FusedFloats::kPresent) {
      using Pairs = PairRows<FusedFloats, kSum, kStreams>;
      using Again = ExactRows<kDtype, kAgain, kStreams>;
      if (takes_pairs(problem)) return forward_rows<Pairs, Again>(problem, begin, end);
    }
    using Exact = ExactRows<kDtype, kSum, kStreams>;
    forward_rows<Exact, Exact>(problem, begin, end);
  }
}

template <rmsnorm_dtype_t kDtype, bool kStreams>
void forward_rows_of(const ForwardProblem &problem, int64_t begin, int64_t end) {
  if (!problem.residual.present())
    return forward_rows_of<kDtype, Sum::kNone, kStreams>(problem, begin, end);
  if constexpr (kDtype != kAny && kKeepsSums)
    if (problem.cols <= kKeptBytes / (is_half(kDtype) ? 2 : 4))
      return forward_rows_of<kDtype, Sum::kKept, kStreams>(problem, begin, end);
  forward_rows_of<kDtype, Sum::kTwice, kStreams>(problem, begin, end);
}

template <rmsnorm_dtype_t kDtype>
void forward_rows_of(const ForwardProblem &problem, bool streams, int64_t begin, int64_t end) {
  if constexpr (kDtype != kAny)
    if (streams && streams_to(problem.y) &&
        (!problem.residual_out.present() || streams_to(problem.residual_out)))
      return forward_rows_of<kDtype, true>(problem, begin, end);
  forward_rows_of<kDtype, false>(problem, begin, end);
}
