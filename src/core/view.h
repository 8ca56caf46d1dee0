// Where a view's elements stand in memory: its byte range, whether its elements are distinct,
// whether two views meet. All arithmetic is checked for overflow.
#pragma once

#include <cstdint>

#include "core/problem.h"

namespace rmsnorm {

// A view's extent: counts already resolved for its kind (Extent), `cols` elements wide.
struct Box {
  int64_t rows, groups, cols;
  bool empty() const { return rows == 0 || groups == 0 || cols == 0; }
};

// Bytes [low, high) that a view can touch; empty boxes have low = high.
struct ByteRange {
  uintptr_t low = 0, high = 0;
  bool meets(const ByteRange &other) const { return low < other.high && other.low < high; }
};

// False if the view spans more than 2^62 bytes or leaves the address space.
bool byte_range(const View &view, const Box &box, ByteRange *range);

// Whether no two elements of the view share a byte. Never true by mistake; false for layouts whose
// strides are not nested and whose two counts are both above 65,536, distinct or not.
bool elements_distinct(const View &view, const Box &box);

// Whether two views of equal boxes and equal strides interleave without meeting: [gate | up] rows.
bool interleave(const View &a, const View &b, const Box &box);

}  // namespace rmsnorm
