// One row of one tensor: 16 elements at a time into doubles and back. The end of a row goes through
// a buffer of 16 elements filled up with zeros, so that it takes the same code as the rest: a zero
// changes no sum. Included inside the isa file's namespace.

[[gnu::always_inline]] inline Block broadcast(double value) {
  Block block;
  broadcast(value, &block);
  return block;
}

[[gnu::always_inline]] inline Block load_doubles(const double *from) {
  Block block;
  load_doubles(from, &block);
  return block;
}

// The lanes' sum, by a tree that is the same for every width: the upper half is added to the lower.
inline double sum_lanes(const Vec &vec) {
  constexpr int kCount = sizeof(Vec) / sizeof(double);
  double lane[kCount];
  store_doubles(vec, lane);
  for (int half = kCount / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
  return lane[0];
}
template <class Half>
[[gnu::always_inline]] inline double sum_lanes(const Two<Half> &whole) {
  return sum_lanes(whole.low + whole.high);
}

struct Elements {
  char *data;
  rmsnorm_dtype_t dtype;  // NONE: the tensor is absent
  int shift;              // an element has 1 << shift bytes
  int64_t next;           // bytes from here to the row that is prefetched while this is written

  bool present() const { return dtype != RMSNORM_DTYPE_NONE; }
};

inline Elements elements(const View &view, int64_t row, int64_t group, int64_t groups = 1,
                         int64_t ahead = 1) {
  const int shift = view.dtype == RMSNORM_DTYPE_F64 ? 3 : view.dtype == RMSNORM_DTYPE_F32 ? 2 : 1;
  const int64_t size = int64_t{1} << shift;
  return {view.data + (row * view.row_stride + group * view.group_stride) * size, view.dtype, shift,
          (groups == 1 ? view.row_stride : view.group_stride) * ahead * size};
}

// Loads and stores have their dtype as a template argument, or kAny: the one that the row has at
// run time. So every algorithm is compiled for rows of one dtype throughout, and once for any mix
// of them.
constexpr rmsnorm_dtype_t kAny = RMSNORM_DTYPE_NONE;

template <rmsnorm_dtype_t kDtype>
[[gnu::always_inline]] inline Block load_block(const char *data, rmsnorm_dtype_t dtype) {
  const rmsnorm_dtype_t known = kDtype == kAny ? dtype : kDtype;
  if (kDtype == RMSNORM_DTYPE_F64) return load_doubles(reinterpret_cast<const double *>(data));
  if (known == RMSNORM_DTYPE_F32) return load_f32(data);
  if (known == RMSNORM_DTYPE_BF16) return load_bf16(data);
  return load_f16(data);
}

// Rounds to fp32 (but for fp64), then to fp16 or bf16.
template <rmsnorm_dtype_t kDtype>
[[gnu::always_inline]] inline void store_block(const Block &block, char *data,
                                               rmsnorm_dtype_t dtype) {
  const rmsnorm_dtype_t known = kDtype == kAny ? dtype : kDtype;
  if (kDtype == RMSNORM_DTYPE_F64) return store_doubles(block, reinterpret_cast<double *>(data));
  if (known == RMSNORM_DTYPE_F32) return store_f32(block, data);
  if (known == RMSNORM_DTYPE_BF16) return store_bf16(block, data);
  return store_f16(block, data);
}

template <rmsnorm_dtype_t kDtype>
[[gnu::always_inline]] inline char *address(Elements row, int64_t col) {
  if constexpr (kDtype == kAny) return row.data + (col << row.shift);
  return row.data + col * (kDtype == RMSNORM_DTYPE_F64 ? 8 : kDtype == RMSNORM_DTYPE_F32 ? 4 : 2);
}

template <rmsnorm_dtype_t kDtype>
[[gnu::always_inline]] inline void stream_block(const Block &block, char *data) {
  if (kDtype == RMSNORM_DTYPE_F32) return stream_f32(block, data);
  alignas(64) char buffer[kLanes * sizeof(uint16_t)];
  store_block<kDtype>(block, buffer, kDtype);
  stream_16_bytes(buffer, data);
  stream_16_bytes(buffer + 16, data + 16);
}

// 16 floats from a buffer.
template <bool kStreams>
[[gnu::always_inline]] inline void copy_f32(const char *from, char *to) {
  for (size_t i = 0; i < kLanes * sizeof(float); i += sizeof(NativeBits)) {
    const NativeBits bits = *reinterpret_cast<const UnalignedBits *>(from + i);
    if (kStreams) stream(bits, to + i);
    else *reinterpret_cast<UnalignedBits *>(to + i) = bits;
  }
}

// Asks the cache for column `col` of the row that comes next: it is read while this one is written.
// The row may not be there: a prefetch of any address does no harm.
template <rmsnorm_dtype_t kDtype>
[[gnu::always_inline]] inline void prefetch_next(const Elements &row, int64_t col) {
  __builtin_prefetch(reinterpret_cast<const char *>(
      reinterpret_cast<uintptr_t>(address<kDtype>(row, col)) + static_cast<uintptr_t>(row.next)));
}

// The same of `count` columns that are read later in this row, far enough ahead for the memory.
constexpr int64_t kPrefetchBytes = 4096;
template <rmsnorm_dtype_t kDtype, int64_t kCount = kLanes>
[[gnu::always_inline]] inline void prefetch_ahead(const Elements &row, int64_t col) {
  constexpr int64_t kCols = kDtype == RMSNORM_DTYPE_F32 ? 16 : 32;  // of a cache line, or fewer
  for (int64_t i = 0; i < kCount; i += kCols)
    __builtin_prefetch(reinterpret_cast<const char *>(
        reinterpret_cast<uintptr_t>(address<kDtype>(row, col + i)) + kPrefetchBytes));
}

// Whether every row can be written by streaming stores.
inline bool streams_to(const View &view) {
  const int64_t size = view.dtype == RMSNORM_DTYPE_F32 ? 4 : 2;
  const uint64_t places = reinterpret_cast<uintptr_t>(view.data) |
                          static_cast<uint64_t>(view.row_stride * size) |
                          static_cast<uint64_t>(view.group_stride * size);
  return places % 64 == 0;
}

template <rmsnorm_dtype_t kDtype>
[[gnu::noinline]] inline Block load_end(Elements row, int64_t col, int64_t count) {
  alignas(64) char buffer[kLanes * sizeof(double)] = {};
  __builtin_memcpy(buffer, address<kAny>(row, col), static_cast<size_t>(count << row.shift));
  return load_block<kDtype>(buffer, row.dtype);
}

template <rmsnorm_dtype_t kDtype>
[[gnu::noinline]] inline void store_end(const Block &block, Elements row, int64_t col,
                                        int64_t count) {
  alignas(64) char buffer[kLanes * sizeof(double)];
  store_block<kDtype>(block, buffer, row.dtype);
  __builtin_memcpy(address<kAny>(row, col), buffer, static_cast<size_t>(count << row.shift));
}

// Ends of rows are the same code for all dtypes but fp64.
constexpr rmsnorm_dtype_t end_dtype(rmsnorm_dtype_t dtype) {
  return dtype == RMSNORM_DTYPE_F64 ? dtype : kAny;
}

// `count` is 16, or less at the end of a row.
template <rmsnorm_dtype_t kDtype>
[[gnu::always_inline]] inline Block load(Elements row, int64_t col, int64_t count) {
  if (count == kLanes) return load_block<kDtype>(address<kDtype>(row, col), row.dtype);
  return load_end<end_dtype(kDtype)>(row, col, count);
}

// kStreams: past the cache; the row begins at a multiple of 64.
template <rmsnorm_dtype_t kDtype, bool kStreams = false>
[[gnu::always_inline]] inline void store(const Block &block, Elements row, int64_t col,
                                         int64_t count) {
  if (kStreams && count == kLanes) return stream_block<kDtype>(block, address<kDtype>(row, col));
  if (count == kLanes) return store_block<kDtype>(block, address<kDtype>(row, col), row.dtype);
  store_end<end_dtype(kDtype)>(block, row, col, count);
}

template <rmsnorm_dtype_t kDtype>
[[gnu::always_inline]] inline Block round_to(const Block &block, rmsnorm_dtype_t dtype) {
  const rmsnorm_dtype_t known = kDtype == kAny ? dtype : kDtype;
  alignas(64) char buffer[kLanes * sizeof(float)];
  if (known == RMSNORM_DTYPE_F32) return store_f32(block, buffer), load_f32(buffer);
  if (known == RMSNORM_DTYPE_BF16) return store_bf16(block, buffer), load_bf16(buffer);
  return store_f16(block, buffer), load_f16(buffer);
}

constexpr bool is_half(rmsnorm_dtype_t dtype) {
  return dtype == RMSNORM_DTYPE_F16 || dtype == RMSNORM_DTYPE_BF16;
}

// A truth that a generic lambda knows when it is compiled.
template <bool kValue>
struct Constant {
  static constexpr bool value = kValue;
};

// body(col, count) for the blocks of columns [begin, end).
template <int64_t kStep = kLanes, class Body>
[[gnu::always_inline]] inline void each_block(int64_t begin, int64_t end, const Body &body) {
  int64_t col = begin;
  for (; end - col >= kStep; col += kStep) body(col, kStep);
  if (col < end) body(col, end - col);
}

// body(row, group) for the row indices [begin, end), in order.
template <class Body>
[[gnu::always_inline]] inline void each_row(int64_t begin, int64_t end, int64_t groups,
                                            const Body &body) {
  int64_t row = begin / groups, group = begin % groups;
  for (int64_t index = begin; index < end; ++index) {
    body(row, group);
    if (++group == groups) group = 0, ++row;
  }
}

// Sums over the columns of a row add up at most this many before they go into a second level, so
// that their error stays below 2^-40 of the sum of magnitudes in a row of any length.
constexpr int64_t kSumCols = 16384;

template <class Body>
[[gnu::always_inline]] inline void each_run(int64_t cols, const Body &body) {
  for (int64_t begin = 0; begin < cols; begin += kSumCols)
    body(begin, cols - begin < kSumCols ? cols : begin + kSumCols);
}

inline double rstd_of(const Block &squares, int64_t cols, double eps) {
  return 1 / __builtin_sqrt(sum_lanes(squares) / static_cast<double>(cols) + eps);
}

// The sums of one group in memory that holds those of all groups, or of one vector for all of them.
inline char *sums_of(char *sums, const BackwardProblem &problem, int64_t group) {
  if (sums == nullptr) return nullptr;
  return sums +
         (problem.per_group ? group * padded_cols(problem.cols) : 0) * sum_bytes(problem.x.dtype);
}
