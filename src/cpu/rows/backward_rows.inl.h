// Backward: rows [begin, end) of all dtypes but fp64, in pairs where no vector is per group.
// Included inside the isa file's namespace.

template <rmsnorm_dtype_t kDtype, bool kPair, bool kStreams, bool kPlain>
void write_rows(const BackwardProblem &problem, const GradientSums &sums, int64_t group,
                const BackwardRow &first, const Elements &first_rstd, const BackwardRow &second,
                const Elements &second_rstd) {
  if constexpr (kPlain && is_half(kDtype) && GradientFloats::kPresent)
    HalfGradients<GradientFloats, kDtype, kPair, kStreams>::run(
        problem, sums_of(sums.dweight, problem, group), first, first_rstd, second, second_rstd);
  else
    backward_rows<kDtype, kPair, kStreams, kPlain && kPair>(problem, sums, group, first, first_rstd,
                                                            second, second_rstd);
}

template <rmsnorm_dtype_t kDtype, bool kStreams, bool kPlain>
void backward_rows(const BackwardProblem &problem, const GradientSums &sums, int64_t begin,
                   int64_t end) {
  const int64_t groups = problem.groups;
  const bool pairs = groups == 1 || (!problem.per_group && problem.weight.group_stride == 0);
  for (int64_t index = begin; index < end; ++index) {
    const int64_t row = index / groups, group = index % groups;
    const BackwardRow first = backward_elements(problem, row, group, pairs);
    const Elements rstd = elements(problem.rstd, row, group);
    if (!pairs || index + 1 == end) {
      write_rows<kDtype, false, kStreams, kPlain>(problem, sums, group, first, rstd, first, rstd);
      continue;
    }
    const int64_t next = ++index / groups, next_group = index % groups;
    write_rows<kDtype, true, kStreams, kPlain>(problem, sums, group, first, rstd,
                                               backward_elements(problem, next, next_group, pairs),
                                               elements(problem.rstd, next, next_group));
  }
  if (kStreams) stream_fence();
}

template <rmsnorm_dtype_t kDtype>
void backward_rows_of(const BackwardProblem &problem, const GradientSums &sums, bool streams,
                      int64_t begin, int64_t end) {
  const auto fits = [](const View &view) { return !view.present() || streams_to(view); };
  streams = streams && fits(problem.dx) && fits(problem.dresidual);
  const auto run = [&](auto streams_too, auto plain) {
    backward_rows<kDtype, streams_too.value, plain.value>(problem, sums, begin, end);
  };
  using Yes = Constant<true>;
  using No = Constant<false>;
  if constexpr (kDtype == kAny) {
    run(No(), No());
  } else if constexpr (is_half(kDtype)) {
    // The loops in fp64 write half a cache line at a time, of one row and another: not past it.
    using Whole = Constant<GradientFloats::kPresent>;
    if (!is_plain(problem)) run(No(), No());
    else if (streams) run(Whole(), Yes());
    else run(No(), Yes());
  } else if (is_plain(problem)) {
    if (streams) run(Yes(), Yes());
    else run(No(), Yes());
  } else {
    if (streams) run(Yes(), No());
    else run(No(), No());
  }
}
