#include "core/view.h"

namespace rmsnorm {
namespace {

struct Dimension {
  int64_t count, stride;  // stride in bytes, not negative
};

int64_t magnitude(int64_t value) { return value < 0 ? -value : value; }

// Dimensions are nested if, sorted by stride, each steps over all that the smaller ones span.
bool nested(Dimension *dimensions, int count, int64_t width) {
  for (int i = 1; i < count; ++i)
    for (int j = i; j > 0 && dimensions[j].stride < dimensions[j - 1].stride; --j) {
      const Dimension swapped = dimensions[j];
      dimensions[j] = dimensions[j - 1];
      dimensions[j - 1] = swapped;
    }
  int64_t span = width;
  for (int i = 0; i < count; ++i) {
    if (dimensions[i].count <= 1) continue;
    if (dimensions[i].stride < span) return false;
    span += (dimensions[i].count - 1) * dimensions[i].stride;
  }
  return true;
}

// The exact answer for two dimensions: no step (i of a, j of b) other than none lands within
// `width`.
bool steps_apart(Dimension a, Dimension b, int64_t width) {
  if (a.count > b.count) {
    const Dimension swapped = a;
    a = b;
    b = swapped;
  }
  if (a.count > 65536) return false;
  if (b.count > 1 && b.stride < width) return false;
  for (int64_t i = 1; i < a.count; ++i) {
    const int64_t distance = i * a.stride;
    if (distance < width) return false;
    if (b.count <= 1) continue;
    // The two multiples of b around the distance; byte_range has bounded every product.
    const int64_t below = distance / b.stride;
    if (below < b.count && distance - below * b.stride < width) return false;
    if (below + 1 < b.count && (below + 1) * b.stride - distance < width) return false;
  }
  return true;
}

}  // namespace

bool byte_range(const View &view, const Box &box, ByteRange *range) {
  range->low = range->high = reinterpret_cast<uintptr_t>(view.data);
  if (box.empty()) return true;
  const int64_t size = element_size(view.dtype);
  const int64_t counts[2] = {box.rows, box.groups};
  const int64_t strides[2] = {view.row_stride, view.group_stride};
  int64_t below = 0, above = 0;
  if (__builtin_mul_overflow(box.cols, size, &above)) return false;
  for (int i = 0; i < 2; ++i) {
    int64_t reach = 0;
    if (__builtin_mul_overflow(strides[i], size, &reach) ||
        __builtin_mul_overflow(reach, counts[i] - 1, &reach))
      return false;
    if (__builtin_add_overflow(reach < 0 ? below : above, reach, reach < 0 ? &below : &above))
      return false;
  }
  constexpr int64_t kLimit = int64_t{1} << 62;
  if (below <= -kLimit || above >= kLimit) return false;
  if (view.data == nullptr) return true;  // a size query: there is no address to leave
  return !__builtin_sub_overflow(range->low, static_cast<uintptr_t>(-below), &range->low) &&
         !__builtin_add_overflow(range->high, static_cast<uintptr_t>(above), &range->high);
}

bool elements_distinct(const View &view, const Box &box) {
  if (box.empty()) return true;
  const int64_t size = element_size(view.dtype);
  const int64_t width = box.cols * size;
  Dimension dimensions[2] = {{box.rows, magnitude(view.row_stride * size)},
                             {box.groups, magnitude(view.group_stride * size)}};
  return nested(dimensions, 2, width) || steps_apart(dimensions[0], dimensions[1], width);
}

bool interleave(const View &a, const View &b, const Box &box) {
  const int64_t size_a = element_size(a.dtype), size_b = element_size(b.dtype);
  if (a.row_stride * size_a != b.row_stride * size_b) return false;
  if (a.group_stride * size_a != b.group_stride * size_b) return false;
  const uintptr_t low = reinterpret_cast<uintptr_t>(a.data < b.data ? a.data : b.data);
  const uintptr_t high = reinterpret_cast<uintptr_t>(a.data < b.data ? b.data : a.data);
  Dimension dimensions[3] = {{2, static_cast<int64_t>(high - low)},
                             {box.rows, magnitude(a.row_stride * size_a)},
                             {box.groups, magnitude(a.group_stride * size_a)}};
  return nested(dimensions, 3, box.cols * (size_a > size_b ? size_a : size_b));
}

}  // namespace rmsnorm
