// Any processor: two doubles a vector, which is SSE2 on x86-64; conversions by integer arithmetic.
#include <cstddef>
#include <cstdint>

#include "cpu/rows.h"

namespace rmsnorm::cpu {
namespace generic {
namespace {

typedef double Native __attribute__((vector_size(16)));

#include "cpu/rows/block.inl.h"

using Quarter = Two<Vec>;
using Block = Two<Two<Quarter>>;

#include "cpu/rows/convert.inl.h"
#include "cpu/rows/rows.inl.h"

}  // namespace
}  // namespace generic

const RowTable kGenericRows = {"generic", generic::forward, generic::backward, generic::fold,
                               generic::finish};

}  // namespace rmsnorm::cpu
