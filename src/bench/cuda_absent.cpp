// A build without CUDA.
#include "bench/device.h"
#include "bench/text.h"

namespace bench {

std::unique_ptr<Device> make_cuda_device(int32_t) {
  fail(kBadInput, "--device cuda: this program was built without CUDA");
}

}  // namespace bench
