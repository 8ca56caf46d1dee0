// The gated activations' drivers: 16 elements are read, computed and written at a time. Within a
// block everything is read before anything is written: outputs may stand in inputs' memory.
// Included inside the isa file's namespace.

// f over the block's vectors, two at a time: enough to keep the processor busy, and few enough for
// its registers.
template <class F>
[[gnu::always_inline]] inline void by_pairs(const F &f, const Two<Vec> &gate, const Two<Vec> &up,
                                            Two<Vec> *y) {
  *y = f(gate, up);
}
template <class Half, class F>
[[gnu::always_inline]] inline void by_pairs(const F &f, const Two<Two<Half>> &gate,
                                            const Two<Two<Half>> &up, Two<Two<Half>> *y) {
  by_pairs(f, gate.low, up.low, &y->low);
  by_pairs(f, gate.high, up.high, &y->high);
}

template <class F>
[[gnu::always_inline]] inline void by_pairs(const F &f, const Two<Vec> &dy, const Two<Vec> &gate,
                                            const Two<Vec> &up, Two<Vec> *dgate, Two<Vec> *dup) {
  f(dy, gate, up, dgate, dup);
}
template <class Half, class F>
[[gnu::always_inline]] inline void by_pairs(const F &f, const Two<Two<Half>> &dy,
                                            const Two<Two<Half>> &gate, const Two<Two<Half>> &up,
                                            Two<Two<Half>> *dgate, Two<Two<Half>> *dup) {
  by_pairs(f, dy.low, gate.low, up.low, &dgate->low, &dup->low);
  by_pairs(f, dy.high, gate.high, up.high, &dgate->high, &dup->high);
}

template <class Activation, rmsnorm_dtype_t kDtype, bool kStreams>
struct GluForwardRows {
  static void run(const GluForwardProblem &problem, const Tile &tile) {
    each_row(tile.row_begin, tile.row_end, problem.groups, [&](int64_t index_row, int64_t group) {
      const Elements gate = elements(problem.gate, index_row, group);
      const Elements up = elements(problem.up, index_row, group);
      const Elements y = elements(problem.y, index_row, group);
      each_block(
          tile.col_begin,
          tile.col_end, [&](int64_t col, int64_t count) __attribute__((always_inline)) {
            prefetch_ahead<kDtype>(gate, col);
            prefetch_ahead<kDtype>(up, col);
            Block result;
            by_pairs(
                [](const Two<Vec> &gates, const Two<Vec> &ups)
                    __attribute__((always_inline)) { return Activation::value(gates, ups); },
                load<kDtype>(gate, col, count), load<kDtype>(up, col, count), &result);
            store<kDtype, kStreams>(result, y, col, count);
          });
    });
    if (kStreams) stream_fence();
  }
};

template <class Activation, rmsnorm_dtype_t kDtype, bool kStreams>
struct GluBackwardRows {
  static void run(const GluBackwardProblem &problem, const Tile &tile) {
    each_row(tile.row_begin, tile.row_end, problem.groups, [&](int64_t index_row, int64_t group) {
      const Elements dy = elements(problem.dy, index_row, group);
      const Elements gate = elements(problem.gate, index_row, group);
      const Elements up = elements(problem.up, index_row, group);
      const Elements dgate = elements(problem.dgate, index_row, group);
      const Elements dup = elements(problem.dup, index_row, group);
      each_block(
          tile.col_begin,
          tile.col_end, [&](int64_t col, int64_t count) __attribute__((always_inline)) {
            prefetch_ahead<kDtype>(dy, col);
            prefetch_ahead<kDtype>(gate, col);
            prefetch_ahead<kDtype>(up, col);
            Block dgates, dups;
            by_pairs(
                [](const Two<Vec> &dys, const Two<Vec> &gates, const Two<Vec> &ups,
                   Two<Vec> *to_dgate, Two<Vec> *to_dup) __attribute__((always_inline)) {
                  Two<Vec> slope;
                  *to_dup = Activation::value_and_slope(gates, dys, &slope);
                  *to_dgate = dys * ups * slope;
                },
                load<kDtype>(dy, col, count), load<kDtype>(gate, col, count),
                load<kDtype>(up, col, count), &dgates, &dups);
            if (dgate.present()) store<kDtype, kStreams>(dgates, dgate, col, count);
            if (dup.present()) store<kDtype, kStreams>(dups, dup, col, count);
          });
    });
    if (kStreams) stream_fence();
  }
};

inline bool glu_streams_to(const GluForwardProblem &problem) { return streams_to(problem.y); }
inline bool glu_streams_to(const GluBackwardProblem &problem) {
  return (!problem.dgate.present() || streams_to(problem.dgate)) &&
         (!problem.dup.present() || streams_to(problem.dup));
}

// Rows<activation, dtype, streams>::run of what the problem has.
template <template <class, rmsnorm_dtype_t, bool> class Rows, class Activation,
          rmsnorm_dtype_t kDtype, class Problem>
void glu_of_dtype(const Problem &problem, bool streams, const Tile &tile) {
  if constexpr (kDtype != kAny)
    if (streams && glu_streams_to(problem))
      return Rows<Activation, kDtype, true>::run(problem, tile);
  Rows<Activation, kDtype, false>::run(problem, tile);
}

template <template <class, rmsnorm_dtype_t, bool> class Rows, class Activation, class Problem>
void glu_of(const Problem &problem, bool streams, const Tile &tile) {
  switch (common_dtype(problem)) {
    case RMSNORM_DTYPE_F32:
      return glu_of_dtype<Rows, Activation, RMSNORM_DTYPE_F32>(problem, streams, tile);
    case RMSNORM_DTYPE_F16:
      return glu_of_dtype<Rows, Activation, RMSNORM_DTYPE_F16>(problem, streams, tile);
    case RMSNORM_DTYPE_BF16:
      return glu_of_dtype<Rows, Activation, RMSNORM_DTYPE_BF16>(problem, streams, tile);
    default: return glu_of_dtype<Rows, Activation, kAny>(problem, streams, tile);
  }
}

template <template <class, rmsnorm_dtype_t, bool> class Rows, class Problem>
void glu_rows(const Problem &problem, bool streams, const Tile &tile) {
  switch (problem.activation) {
    case RMSNORM_ACTIVATION_SILU: return glu_of<Rows, Silu>(problem, streams, tile);
    case RMSNORM_ACTIVATION_GELU_TANH: return glu_of<Rows, GeluTanh>(problem, streams, tile);
    default: return glu_of<Rows, GeluErf>(problem, streams, tile);
  }
}

void glu_forward(const GluForwardProblem &problem, bool streams, const Tile &tile) {
  if (problem.gate.dtype == RMSNORM_DTYPE_F64) return glu_forward_rows_f64(problem, tile);
  glu_rows<GluForwardRows>(problem, streams, tile);
}

void glu_backward(const GluBackwardProblem &problem, bool streams, const Tile &tile) {
  if (problem.gate.dtype == RMSNORM_DTYPE_F64) return glu_backward_rows_f64(problem, tile);
  glu_rows<GluBackwardRows>(problem, streams, tile);
}
