// Where a call's tensors stand, computed before anything is allocated; one set of them, filled; and
// how many sets keep the cache from holding the next call's data.
#pragma once

#include <vector>

#include "bench/call.h"
#include "bench/device.h"

namespace bench {

struct Layout {
  explicit Layout(const Call &call);
  int64_t block_bytes[kSlots] = {};  // of a tensor with memory of its own; 0: it has none
  Slot root[kSlots];                 // whose memory a tensor stands in
  int64_t offset[kSlots] = {};       // of its data there
  double bytes = 0;                  // of all
};

class BufferSet {
 public:
  BufferSet(Device &device, const Call &call, const Layout &layout);

  char *block(Slot root) const { return blocks_[root].data(); }
  int64_t block_bytes(Slot root) const { return layout_.block_bytes[root]; }
  Slot root(Slot slot) const { return layout_.root[slot]; }
  char *data(Slot slot) const { return block(layout_.root[slot]) + layout_.offset[slot]; }
  int64_t offset(Slot slot) const { return layout_.offset[slot]; }
  const Params &params() const { return params_; }
  Params params_of(const Call &other) const;  // another call on the same memory
  // Fills outputs that no input shares, and that are not added to, with NaN.
  void poison(Device &device, const Call &call) const;
  // The element-wise kernels that move the call's bytes.
  std::vector<Move> moves(const Call &call) const;

 private:
  Layout layout_;
  Memory blocks_[kSlots];
  Params params_;
};

// At least 2, at most 40, and together an x (or gate) of twice the cache. Where memory has not so
// many, one will do (the least) if its x alone is that large.
int64_t wanted_sets(const Call &call, int64_t cache_bytes);
int64_t least_sets(const Call &call, int64_t cache_bytes);

}  // namespace bench
