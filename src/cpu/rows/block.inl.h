// Sixteen columns of doubles as vectors of the instruction set, and what every algorithm needs of
// them. An isa file first defines Native, a vector of doubles; includes this; names its Block
// (Two<Vec>, Two<Two<Vec>>, ...) and defines the loads and stores of 16 elements of each dtype; and
// includes rows.inl.h. All inside its namespace. Named members, not an array: gcc keeps these in
// registers.
//
// Column c of a row belongs to lane c % 16 of its sums on every instruction set, whatever the width
// of the vectors: that makes the bits equal everywhere.

struct Vec {
  Native native;
};

// As many bytes of fp32 numbers, and of their bits.
typedef float NativeFloat __attribute__((vector_size(sizeof(Native))));
typedef uint32_t NativeBits __attribute__((vector_size(sizeof(Native))));
typedef uint16_t NativeShorts __attribute__((vector_size(sizeof(Native))));
typedef uint64_t NativeLongs __attribute__((vector_size(sizeof(Native))));

// In memory, at any address. Not by memcpy: gcc makes that several narrower copies, by way of the
// stack.
typedef Native UnalignedNative __attribute__((aligned(8), may_alias));
typedef NativeBits UnalignedBits __attribute__((aligned(1), may_alias));

struct FVec {
  NativeFloat native;
};
struct UVec {
  NativeBits native;
};

template <class Half>
struct Two {
  Half low, high;
};

// Floats' bits, of which the last 16 are to be cut: rounded to the nearest even bf16. A NaN here
// has been a half's, so that its last 16 bits are zeros, and stays one.
[[gnu::always_inline]] inline NativeBits plainly_rounded(NativeBits bits) {
  return bits + 0x7fffu + (bits >> 16 & 1u);
}

// Of floats' bits whose first 16 are a bf16: the even columns behind the odd ones.
[[gnu::always_inline]] inline NativeBits join_bfloats(NativeBits even, NativeBits odd) {
  return even >> 16 | (odd & 0xffff0000u);
}

[[gnu::always_inline]] inline Vec operator+(const Vec &a, const Vec &b) {
  return {a.native + b.native};
}
[[gnu::always_inline]] inline Vec operator-(const Vec &a, const Vec &b) {
  return {a.native - b.native};
}
[[gnu::always_inline]] inline Vec operator*(const Vec &a, const Vec &b) {
  return {a.native * b.native};
}
[[gnu::always_inline]] inline Vec operator/(const Vec &a, const Vec &b) {
  return {a.native / b.native};
}

template <class Half>
[[gnu::always_inline]] inline Two<Half> operator+(const Two<Half> &a, const Two<Half> &b) {
  return {a.low + b.low, a.high + b.high};
}
template <class Half>
[[gnu::always_inline]] inline Two<Half> operator-(const Two<Half> &a, const Two<Half> &b) {
  return {a.low - b.low, a.high - b.high};
}
template <class Half>
[[gnu::always_inline]] inline Two<Half> operator*(const Two<Half> &a, const Two<Half> &b) {
  return {a.low * b.low, a.high * b.high};
}
template <class Half>
[[gnu::always_inline]] inline Two<Half> operator/(const Two<Half> &a, const Two<Half> &b) {
  return {a.low / b.low, a.high / b.high};
}

// sum + a * b where the product is exact, as of numbers that were fp32, in fp64, or fp16, in fp32:
// in one operation, or in two. The isa file defines it for Vec and FVec.
template <class Half>
[[gnu::always_inline]] inline Two<Half> add_product(const Two<Half> &sum, const Two<Half> &a,
                                                    const Two<Half> &b) {
  return {add_product(sum.low, a.low, b.low), add_product(sum.high, a.high, b.high)};
}

[[gnu::always_inline]] inline void broadcast(double value, Vec *to) {
  to->native = value - Native{};
}
template <class Half>
[[gnu::always_inline]] inline void broadcast(double value, Two<Half> *to) {
  broadcast(value, &to->low);
  broadcast(value, &to->high);
}

[[gnu::always_inline]] inline void load_doubles(const double *from, Vec *to) {
  to->native = *reinterpret_cast<const UnalignedNative *>(from);
}
template <class Half>
[[gnu::always_inline]] inline void load_doubles(const double *from, Two<Half> *to) {
  load_doubles(from, &to->low);
  load_doubles(from + sizeof(Half) / sizeof *from, &to->high);
}

// The sums of 16 floats, rounded to fp32.
typedef NativeFloat UnalignedFloat __attribute__((aligned(1), may_alias));
[[gnu::always_inline]] inline void add_f32(const char *a, const char *b, char *to) {
  for (size_t i = 0; i < kLanes * sizeof(float); i += sizeof(NativeFloat))
    *reinterpret_cast<UnalignedFloat *>(to + i) = *reinterpret_cast<const UnalignedFloat *>(a + i) +
                                                  *reinterpret_cast<const UnalignedFloat *>(b + i);
}

[[gnu::always_inline]] inline void store_doubles(const Vec &vec, double *to) {
  *reinterpret_cast<UnalignedNative *>(to) = vec.native;
}
template <class Half>
[[gnu::always_inline]] inline void store_doubles(const Two<Half> &whole, double *to) {
  store_doubles(whole.low, to);
  store_doubles(whole.high, to + sizeof(Half) / sizeof *to);
}
