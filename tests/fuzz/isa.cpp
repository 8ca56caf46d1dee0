// The CPU backend's instruction sets against each other and against the reference: a fuzzer's bytes
// choose a case and its elements, any bits. Every table that this processor runs gives the same
// bits, NaN payloads aside, and the generic one is within rmsnorm.h's bounds.
#include "../unit/cpu_glu_check.h"
#include "bytes.h"

namespace rmsnorm {
namespace {

using rmsnorm_fuzz::Bytes;
using rmsnorm_fuzz::Stream;

rmsnorm_dtype_t draw_dtype(Bytes *bytes, rmsnorm_dtype_t common, bool mixed) {
  return mixed ? kDtypes[bytes->below(3)] : common;
}

Case draw_case(Bytes *bytes, rmsnorm_dtype_t dtype) {
  constexpr double kEps[] = {1e-6, 0, 1, 5e-324, 1e-45, 1e300};
  constexpr double kOffsets[] = {0, 1, 0.1, -1, 0x1p-126, -3e38};
  const bool forward = bytes->below(2) == 0, mixed = bytes->below(3) == 1 && dtype != kF64;
  const int64_t rows = 1 + static_cast<int64_t>(bytes->below(4));
  const int64_t cols = 1 + static_cast<int64_t>(bytes->below(bytes->below(8) == 1 ? 1100 : 80));
  Case c = forward ? forward_case(dtype, rows, cols) : backward_case(dtype, rows, cols);
  c.groups = 1 + static_cast<int64_t>(bytes->below(3));
  c.eps = kEps[bytes->below(6)], c.offset = kOffsets[bytes->below(6)];
  const uint8_t switches = bytes->take<uint8_t>();
  c.llama = forward && (switches & 1) != 0;
  c.accumulate = (switches & 2) != 0, c.per_group = (switches & 4) != 0;
  const uint16_t presence = bytes->take<uint16_t>();
  int optional = 0;
  for (auto it = c.tensors.begin(); it != c.tensors.end();) {
    const std::string &name = it->first;
    const bool needed = name == "x" || name == "y" || name == "dy" || name == "dx";
    const bool absent = !needed && (presence >> optional++ & 1) != 0;
    if (name != "rstd") it->second.dtype = draw_dtype(bytes, dtype, mixed);
    it = absent ? c.tensors.erase(it) : std::next(it);
  }
  if (forward && c.dtype("residual") == kNone) c.tensors.erase("residual_out");
  return c;
}

// dy, gate, up, y, dgate and dup.
GluCase draw_glu_case(Bytes *bytes, rmsnorm_dtype_t dtype) {
  const bool mixed = bytes->below(2) == 1 && dtype != kF64;
  GluCase c = {};
  c.activation = kActivations[bytes->below(3)];
  c.rows = 1 + static_cast<int64_t>(bytes->below(4));
  c.groups = 1 + static_cast<int64_t>(bytes->below(3));
  c.cols = 1 + static_cast<int64_t>(bytes->below(bytes->below(8) == 1 ? 1100 : 80));
  for (rmsnorm_dtype_t &own : c.dtypes) own = draw_dtype(bytes, dtype, mixed);
  const size_t absent = bytes->below(8);
  if (absent == 1) c.dtypes[4] = kNone;
  if (absent == 2) c.dtypes[5] = kNone;
  return c;
}

// Any bits, from the input as far as it goes; or numbers of one size, or about 1, which leave the
// rare paths alone.
void draw_elements(Bytes *bytes, Arrays *arrays) {
  Stream stream(bytes->take<uint16_t>());
  for (auto &[name, array] : *arrays) {
    const uint8_t kind = bytes->take<uint8_t>();
    const size_t size = static_cast<size_t>(element_size(array.dtype()));
    array.each([&](char *at, int64_t col) {
      uint64_t element = stream.next();
      if (kind % 4 != 0) {  // the same exponent bits for all but the last, or one of eight from 1
        uint64_t top = kind % 4 == 1 ? 0x3f80 : uint64_t{kind} << 7;
        if (kind % 8 == 5) top += (stream.next() & (size == 8 ? 1 : 7)) << 7;
        const int shift = static_cast<int>(size) * 8 - 16;
        element = (element & ~(uint64_t{0x7f80} << shift)) | (top & 0x7f80) << shift;
      }
      if (!bytes->empty() && col % 7 == 0) element = bytes->take<uint64_t>();
      std::memcpy(at, &element, size);
    });
  }
}

template <class AnyCase>
void compare(Bytes *bytes, const AnyCase &c) {
  const Layout layout = {static_cast<int64_t>(bytes->below(3)),
                         static_cast<int64_t>(bytes->below(3)),
                         static_cast<int64_t>(bytes->below(2))};
  Arrays arrays = make_arrays(c, layout);
  draw_elements(bytes, &arrays);
  const Bits expected = bits_with(c, kGeneric, arrays);
  const int64_t past_cache = bytes->below(2) == 0 ? INT64_MAX : 0;
  for (const RowTable *table : tables_here()) {
    if (table == &cpu::kGenericRows && past_cache != 0) continue;  // that is `expected`
    const State state = {table, nullptr, nullptr, nullptr, past_cache};
    EXPECT_EQ(bits_with(c, state, arrays), expected)
        << table->isa << (past_cache == 0 ? " past the cache " : " ") << c;
  }
  check(c, kGeneric, arrays);
  if (testing::Test::HasFailure()) std::abort();  // said by the failure above
}

}  // namespace
}  // namespace rmsnorm

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  using namespace rmsnorm;
  Bytes bytes(data, size);
  const uint8_t first = bytes.take<uint8_t>();
  const rmsnorm_dtype_t dtype = kDtypes[first % 4];
  if (first < 0xc0) compare(&bytes, draw_case(&bytes, dtype));
  else compare(&bytes, draw_glu_case(&bytes, dtype));
  return 0;
}
