// Thirty-two columns of halves as fp32 numbers, for the rows that half_rows.inl.h computes in fp32.
// The isa file has defined Floats, a Two<> of vectors down to FVec, HalfBits, the halves' own bits
// (half as large, of UVecs), to bf16 round_to_bfloat and narrow_to_bfloats, and to and from fp16
// load_halves, narrow_halves, store_halves, round_halves.
// Included inside its namespace.
//
// bf16 needs no shuffle: as 32-bit numbers the halves' bits are the odd columns in front and the
// even ones behind, and either is a float after one operation. So Floats.low has the even columns
// and Floats.high the odd ones; of fp16 it has the first 16 and the last 16. Sums know their lanes
// by this place, which is the same on every instruction set.

constexpr int64_t kFloatCols = 32;

[[gnu::always_inline]] inline FVec operator+(const FVec &a, const FVec &b) {
  return {a.native + b.native};
}
[[gnu::always_inline]] inline FVec operator-(const FVec &a, const FVec &b) {
  return {a.native - b.native};
}
[[gnu::always_inline]] inline FVec operator*(const FVec &a, const FVec &b) {
  return {a.native * b.native};
}
[[gnu::always_inline]] inline void broadcast(float value, FVec *to) {
  to->native = value - NativeFloat{};
}
template <class Half>
[[gnu::always_inline]] inline void broadcast(float value, Two<Half> *to) {
  broadcast(value, &to->low);
  broadcast(value, &to->high);
}
[[gnu::always_inline]] inline Floats broadcast_floats(double value) {
  Floats floats;
  broadcast(static_cast<float>(value), &floats);
  return floats;
}

[[gnu::always_inline]] inline void load_bits(const char *data, UVec *to) {
  to->native = *reinterpret_cast<const UnalignedBits *>(data);
}
[[gnu::always_inline]] inline void load_bits(const char *data, FVec *to) {
  to->native = *reinterpret_cast<const UnalignedFloat *>(data);
}
template <class Half>
[[gnu::always_inline]] inline void load_bits(const char *data, Two<Half> *to) {
  load_bits(data, &to->low);
  load_bits(data + sizeof(Half), &to->high);
}

[[gnu::always_inline]] inline void store_bits(const UVec &value, char *data) {
  *reinterpret_cast<UnalignedBits *>(data) = value.native;
}
[[gnu::always_inline]] inline void store_bits(const FVec &value, char *data) {
  *reinterpret_cast<UnalignedBits *>(data) = reinterpret_cast<NativeBits>(value.native);
}
template <class Half>
[[gnu::always_inline]] inline void store_bits(const Two<Half> &value, char *data) {
  store_bits(value.low, data);
  store_bits(value.high, data + sizeof(Half));
}

[[gnu::always_inline]] inline void fill_bits(UVec *to) { to->native = ~NativeBits{}; }
template <class Half>
[[gnu::always_inline]] inline void fill_bits(Two<Half> *to) {
  fill_bits(&to->low);
  fill_bits(&to->high);
}

// ---- bf16 ---------------------------------------------------------------------------------------

[[gnu::always_inline]] inline void widen_bfloats(const UVec &bits, FVec *even, FVec *odd) {
  even->native = reinterpret_cast<NativeFloat>(bits.native << 16);
  odd->native = reinterpret_cast<NativeFloat>(bits.native & 0xffff0000u);
}
template <class BitsHalf, class Half>
[[gnu::always_inline]] inline void widen_bfloats(const Two<BitsHalf> &bits, Two<Half> *even,
                                                 Two<Half> *odd) {
  widen_bfloats(bits.low, &even->low, &odd->low);
  widen_bfloats(bits.high, &even->high, &odd->high);
}

[[gnu::always_inline]] inline FVec round_bfloats(const FVec &value) {
  const NativeBits rounded = round_to_bfloat(reinterpret_cast<NativeBits>(value.native));
  return {reinterpret_cast<NativeFloat>(rounded & 0xffff0000u)};
}
template <class Half>
[[gnu::always_inline]] inline Two<Half> round_bfloats(const Two<Half> &value) {
  return {round_bfloats(value.low), round_bfloats(value.high)};
}

[[gnu::always_inline]] inline void narrow_bfloats(const FVec &even, const FVec &odd, UVec *to) {
  to->native = narrow_to_bfloats(reinterpret_cast<NativeBits>(even.native),
                                 reinterpret_cast<NativeBits>(odd.native));
}
template <class Half, class BitsHalf>
[[gnu::always_inline]] inline void narrow_bfloats(const Two<Half> &even, const Two<Half> &odd,
                                                  Two<BitsHalf> *to) {
  narrow_bfloats(even.low, odd.low, &to->low);
  narrow_bfloats(even.high, odd.high, &to->high);
}

// The same of floats that are bf16, or are to be cut.
[[gnu::always_inline]] inline void join_bfloats(const UVec &even, const UVec &odd, UVec *to) {
  to->native = join_bfloats(even.native, odd.native);
}
[[gnu::always_inline]] inline void join_bfloats(const FVec &even, const FVec &odd, UVec *to) {
  to->native = join_bfloats(reinterpret_cast<NativeBits>(even.native),
                            reinterpret_cast<NativeBits>(odd.native));
}
template <class Half, class BitsHalf>
[[gnu::always_inline]] inline void join_bfloats(const Two<Half> &even, const Two<Half> &odd,
                                                Two<BitsHalf> *to) {
  join_bfloats(even.low, odd.low, &to->low);
  join_bfloats(even.high, odd.high, &to->high);
}

// Of each 16 bits the magnitude less 1, so that zeros count as the largest.
[[gnu::always_inline]] inline UVec order_of(const UVec &bits) {
  const NativeShorts halves = reinterpret_cast<NativeShorts>(bits.native);
  return {reinterpret_cast<NativeBits>((halves & 0x7fff) - 1)};
}
template <class Half>
[[gnu::always_inline]] inline Two<Half> order_of(const Two<Half> &bits) {
  return {order_of(bits.low), order_of(bits.high)};
}

[[gnu::always_inline]] inline UVec smaller(const UVec &a, const UVec &b) {
  const NativeShorts one = reinterpret_cast<NativeShorts>(a.native);
  const NativeShorts other = reinterpret_cast<NativeShorts>(b.native);
  return {reinterpret_cast<NativeBits>(one < other ? one : other)};
}
template <class Half>
[[gnu::always_inline]] inline Two<Half> smaller(const Two<Half> &a, const Two<Half> &b) {
  return {smaller(a.low, b.low), smaller(a.high, b.high)};
}

// Of all the 16 bits.
inline uint32_t least_short(const UVec &bits) {
  typedef uint16_t Shorts __attribute__((vector_size(16)));
  constexpr size_t kCount = sizeof(UVec) / sizeof(Shorts);
  Shorts each[kCount];
  __builtin_memcpy(each, &bits, sizeof each);
  for (size_t i = 1; i < kCount; ++i) each[0] = each[0] < each[i] ? each[0] : each[i];
  uint32_t least = each[0][0];
  for (int i = 1; i < 8; ++i) least = each[0][i] < least ? each[0][i] : least;
  return least;
}
template <class Half>
[[gnu::always_inline]] inline uint32_t least_short(const Two<Half> &bits) {
  return least_short(smaller(bits.low, bits.high));
}

// ---- fp16 ---------------------------------------------------------------------------------------

template <class Half>
[[gnu::always_inline]] inline void load_halves(const char *data, Two<Half> *to) {
  load_halves(data, &to->low);
  load_halves(data + sizeof(Half) / 2, &to->high);
}
template <class Half, class BitsHalf>
[[gnu::always_inline]] inline void narrow_halves(const Two<Half> &value, Two<BitsHalf> *to) {
  narrow_halves(value.low, &to->low);
  narrow_halves(value.high, &to->high);
}
template <class Half>
[[gnu::always_inline]] inline void store_halves(const Two<Half> &value, char *data) {
  store_halves(value.low, data);
  store_halves(value.high, data + sizeof(Half) / 2);
}
template <class Half>
[[gnu::always_inline]] inline Two<Half> round_halves(const Two<Half> &value) {
  return {round_halves(value.low), round_halves(value.high)};
}

// ---- Either -------------------------------------------------------------------------------------

[[gnu::always_inline]] inline void stream_bits(const UVec &bits, char *data) {
  stream(bits.native, data);
}
[[gnu::always_inline]] inline void stream_bits(const FVec &value, char *data) {
  stream(reinterpret_cast<NativeBits>(value.native), data);
}
template <class Half>
[[gnu::always_inline]] inline void stream_bits(const Two<Half> &bits, char *data) {
  stream_bits(bits.low, data);
  stream_bits(bits.high, data + sizeof(Half));
}

template <rmsnorm_dtype_t kDtype>
[[gnu::always_inline]] inline Floats load_floats(const char *data, const HalfBits &bits) {
  Floats floats;
  if constexpr (kDtype == RMSNORM_DTYPE_BF16) widen_bfloats(bits, &floats.low, &floats.high);
  else load_halves(data, &floats);
  return floats;
}

template <rmsnorm_dtype_t kDtype>
[[gnu::always_inline]] inline HalfBits narrow_floats(const Floats &floats) {
  HalfBits bits;
  if constexpr (kDtype == RMSNORM_DTYPE_BF16) narrow_bfloats(floats.low, floats.high, &bits);
  else narrow_halves(floats, &bits);
  return bits;
}

// Rounded to halves, as fp32 again.
template <rmsnorm_dtype_t kDtype>
[[gnu::always_inline]] inline Floats round_floats(const Floats &floats) {
  if constexpr (kDtype == RMSNORM_DTYPE_BF16) return round_bfloats(floats);
  else return round_halves(floats);
}

// 32 columns, or `count` at the end of a row and zeros.
template <rmsnorm_dtype_t kDtype>
[[gnu::always_inline]] inline Floats load_floats(const Elements &row, int64_t col, int64_t count,
                                                 HalfBits *bits) {
  const char *data = address<kDtype>(row, col);
  alignas(64) char buffer[kFloatCols * 2] = {};
  if (count != kFloatCols) {
    __builtin_memcpy(buffer, data, static_cast<size_t>(count) * 2);
    data = buffer;
  }
  load_bits(data, bits);
  return load_floats<kDtype>(data, *bits);
}

template <bool kStreams>
[[gnu::always_inline]] inline void store_bits(const HalfBits &bits, const Elements &row,
                                              int64_t col, int64_t count) {
  char *const data = row.data + col * 2;
  if (count == kFloatCols) return kStreams ? stream_bits(bits, data) : store_bits(bits, data);
  alignas(64) char buffer[kFloatCols * 2];
  store_bits(bits, buffer);
  __builtin_memcpy(data, buffer, static_cast<size_t>(count) * 2);
}

// Rounded to halves.
template <rmsnorm_dtype_t kDtype, bool kStreams>
[[gnu::always_inline]] inline void store_rounded(const Floats &floats, const Elements &row,
                                                 int64_t col, int64_t count) {
  if (kDtype == RMSNORM_DTYPE_F16 && !kStreams && count == kFloatCols)
    return store_halves(floats, address<kDtype>(row, col));
  store_bits<kStreams>(narrow_floats<kDtype>(floats), row, col, count);
}

template <bool kStreams>
[[gnu::always_inline]] inline void store_floats(const Floats &floats, char *data) {
  if constexpr (kStreams) stream_bits(floats, data);
  else store_bits(floats, data);
}

// ---- Between two numbers ------------------------------------------------------------------------

// The bits in which any of both differ.
[[gnu::always_inline]] inline NativeBits differences(const UVec &a, const UVec &b) {
  return a.native ^ b.native;
}
template <class Half>
[[gnu::always_inline]] inline NativeBits differences(const Two<Half> &a, const Two<Half> &b) {
  return differences(a.low, b.low) | differences(a.high, b.high);
}

// Rounded to bf16 in front, but for ties.
[[gnu::always_inline]] inline UVec raise_bfloat(const FVec &value) {
  return {reinterpret_cast<NativeBits>(value.native) + 0x8000u};
}
template <class Half>
[[gnu::always_inline]] inline auto raise_bfloat(const Two<Half> &value) {
  return Two<decltype(raise_bfloat(value.low))>{raise_bfloat(value.low), raise_bfloat(value.high)};
}
