#include "bench/memory.h"

#include <algorithm>
#include <map>
#include <random>
#include <utility>

#include "reference/reference.h"

namespace bench {
namespace {

constexpr int64_t kAlign = 256;
// Random data repeats after a prime number of elements, so that rows differ.
constexpr int64_t kTile = 262139;

int64_t round_up(int64_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

// Bytes that a tensor takes below and above its data.
std::pair<int64_t, int64_t> extent(const Call &call, Slot slot) {
  const TensorSpec &spec = call[slot];
  const int64_t size = element_size(spec.dtype);
  int64_t below = 0, above = call.cols_of(slot) * size;
  const int64_t counts[] = {call.rows_of(slot), call.groups_of(slot)};
  const int64_t strides[] = {spec.row_stride, spec.group_stride};
  for (int i = 0; i < 2; ++i) {
    if (counts[i] == 0) return {0, 0};
    const int64_t reach = (counts[i] - 1) * strides[i] * size;  // the library has bounded it
    (reach < 0 ? below : above) += reach < 0 ? -reach : reach;
  }
  return {below, above};
}

bool is_normal(Slot slot) { return slot != kWeight && slot != kRstd; }

// N(0, 1); weight about 1 + N(0, 1) / 4; rstd about what such rows have.
const std::vector<char> &tile_of(Slot slot, rmsnorm_dtype_t dtype) {
  static std::map<std::pair<Slot, rmsnorm_dtype_t>, std::vector<char>> tiles;
  std::vector<char> &tile = tiles[{slot, dtype}];
  if (!tile.empty()) return tile;
  std::mt19937_64 random(static_cast<uint64_t>(slot) + 1);
  std::normal_distribution<double> normal;
  const int64_t size = element_size(dtype);
  tile.resize(static_cast<size_t>(kTile * size));
  for (int64_t i = 0; i < kTile; ++i) {
    const double drawn = normal(random);
    const double value = is_normal(slot) ? drawn : 1 + drawn / (slot == kWeight ? 4 : 64);
    rmsnorm::reference::store(value, &tile[static_cast<size_t>(i * size)], dtype);
  }
  return tile;
}

// The tile again and again, in copies that grow; `start` is where its elements begin.
void fill_random(Device &device, char *start, int64_t bytes, Slot slot, rmsnorm_dtype_t dtype) {
  const std::vector<char> &tile = tile_of(slot, dtype);
  int64_t done = std::min<int64_t>(bytes, static_cast<int64_t>(tile.size()));
  device.upload(start, tile.data(), static_cast<size_t>(done));
  while (done < bytes) {
    const int64_t more = std::min(done, bytes - done);
    device.copy(start + done, start, static_cast<size_t>(more));
    done += more;
  }
}

}  // namespace

Layout::Layout(const Call &call) {
  std::pair<int64_t, int64_t> extents[kSlots];  // of all that share a root's memory
  for (int i = 0; i < kSlots; ++i) {
    Slot slot = Slot(i);
    while (call[slot].same_as != kNone) slot = call[slot].same_as;
    root[i] = slot;
    if (!call.has(Slot(i))) continue;
    const std::pair<int64_t, int64_t> own = extent(call, Slot(i));
    extents[slot].first = std::max(extents[slot].first, own.first);
    extents[slot].second = std::max(extents[slot].second, own.second);
  }
  for (int i = 0; i < kSlots; ++i)
    if (call.has(Slot(i))) offset[i] = round_up(extents[root[i]].first) + call[root[i]].misalign;
  for (int i = 0; i < kSlots; ++i) {
    if (!call.has(Slot(i)) || root[i] != i) continue;
    block_bytes[i] = round_up(offset[i] + extents[i].second + 1);
    bytes += static_cast<double>(block_bytes[i]);
  }
}

BufferSet::BufferSet(Device &device, const Call &call, const Layout &layout)
    : layout_(layout), params_(call) {
  for (int i = 0; i < kSlots; ++i) {
    const Slot slot = Slot(i);
    if (layout_.block_bytes[i] == 0) continue;
    blocks_[i] = Memory(device, static_cast<size_t>(layout_.block_bytes[i]));
    // Elements begin at the data and every element's size from there, up and down.
    const rmsnorm_dtype_t dtype = call[slot].dtype;
    const int64_t lead = layout_.offset[i] % element_size(dtype);
    fill_random(device, block(slot) + lead, layout_.block_bytes[i] - lead, slot, dtype);
  }
  params_ = params_of(call);
}

Params BufferSet::params_of(const Call &other) const {
  Params params(other);
  for (int i = 0; i < kSlots; ++i)
    if (other.has(Slot(i))) params.set_data(Slot(i), data(Slot(i)));
  return params;
}

void BufferSet::poison(Device &device, const Call &call) const {
  for (int i = 0; i < kSlots; ++i) {
    const Slot slot = Slot(i);
    const bool sum = info(slot).extent == Extent::kVector;
    if (!call.writes(slot) || root(slot) != slot || (sum && call.accumulate)) continue;
    device.fill(block(slot), 0xff, static_cast<size_t>(block_bytes(slot)));
  }
}

std::vector<Move> BufferSet::moves(const Call &call) const {
  const auto span = [&](Slot slot) -> Move::Span {
    if (!call.has(slot)) return {};
    // From the aligned start of the block, which may be smaller where strides are.
    const int64_t bytes = std::min(call.bytes_of(slot) + 15, block_bytes(root(slot))) / 16 * 16;
    return {block(root(slot)), bytes};
  };
  Move move;
  move.sink = block(root(call.lead()));
  if (call.function == Function::kGluForward) {
    move.in[0] = span(kGate), move.in[1] = span(kUp), move.out[0] = span(kY);
    return {move};
  }
  if (call.function == Function::kGluBackward) {  // two launches: of forward's, and a copy
    Move copy;
    copy.sink = move.sink;
    move.in[0] = span(kDy), move.in[1] = span(kGate), move.out[0] = span(kDgate);
    copy.in[0] = span(kUp), copy.out[0] = span(kDup);
    return {move, copy};
  }
  if (call.function == Function::kBackward) {
    move.in[0] = span(kX), move.in[1] = span(kDy), move.in[2] = span(kDresidualOut);
    move.out[0] = span(kDx), move.out[1] = span(kDresidual);
    return {move};
  }
  move.in[0] = span(kX), move.out[0] = span(kY);
  if (!call.has(kResidualOut)) {
    move.in[1] = span(kResidual);
    return {move};
  }
  Move second;  // add: two launches of forward's
  second.sink = move.sink;
  second.in[0] = span(kResidual), second.out[0] = span(kResidualOut);
  return {move, second};
}

int64_t wanted_sets(const Call &call, int64_t cache_bytes) {
  const int64_t bytes = std::max<int64_t>(1, call.bytes_of(call.lead()));
  return std::max<int64_t>(2, std::min<int64_t>(40, (2 * cache_bytes + bytes - 1) / bytes));
}

int64_t least_sets(const Call &call, int64_t cache_bytes) {
  return call.bytes_of(call.lead()) >= 2 * cache_bytes ? 1 : wanted_sets(call, cache_bytes);
}

}  // namespace bench
