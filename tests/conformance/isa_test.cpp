// The CPU's bits do not depend on the instruction set: a process of its own for each value of
// RMSNORM_CPU_ISA (the library reads it once) runs the same cases, and all must give the same
// bytes.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>

#include "../support/judge.h"
#include "../support/on_device.h"
#include "../support/recipes.h"

namespace rmsnorm_test {
namespace {

void append_outputs(const Execution &execution, std::vector<uint8_t> *bytes) {
  for (const Name name :
       {kY, kResidualOut, kRstd, kDx, kDresidual, kDweight, kDbias, kDgate, kDup}) {
    const Case &c = execution.tested();
    if (!takes(c.direction, name) || !is_output(c.direction, name) || !c.has(name)) continue;
    const std::vector<uint8_t> own = execution.bits(name);
    bytes->insert(bytes->end(), own.begin(), own.end());
  }
}

// All outputs of a tour through dtypes, widths, roundings, misalignment and extremes.
std::vector<uint8_t> tour(std::string *isa) {
  std::vector<uint8_t> bytes;
  std::string why_not;
  Device &device = *find_device(RMSNORM_DEVICE_CPU, &why_not);
  rmsnorm_device_info_t info = RMSNORM_DEVICE_INFO_INIT;
  if (rmsnorm_device_info(RMSNORM_DEVICE_CPU, 0, &info) == RMSNORM_SUCCESS) *isa = info.isa;
  for (const rmsnorm_dtype_t dtype : kDtypes)
    for (const Direction direction : kDirections)
      for (const int64_t cols : {1, 7, 16, 33, 64, 100, 257, 1027, 4096})
        for (const rmsnorm_rounding_t rounding : {RMSNORM_ROUNDING_ONCE, RMSNORM_ROUNDING_LLAMA}) {
          Case c = full_case(direction, 33, cols, dtype);
          c.rounding = rounding;
          c.weight_offset = cols % 2 == 0 ? 1 : 0;
          if (rounding == RMSNORM_ROUNDING_LLAMA) {
            c[kBias] = c[kRstd] = {};
            for (const Name name : {kX, kY, kDx, kGate, kDup})
              c[name].misalign = rmsnorm::element_size(dtype);
            c.activation = kActivations[cols % 3];  // the other cases' have another
          }
          Execution execution(device, c);
          const std::vector<Recipe> recipes = finite_recipes(dtype, cols);
          for (size_t i = 0; i < recipes.size() && cols > 7; ++i)
            cook(&execution, is_glu(direction) ? kGate : kX, static_cast<int64_t>(2 * i + 1),
                 recipes[i]);
          if (execution.run() != RMSNORM_SUCCESS) return {};
          append_outputs(execution, &bytes);
        }
  for (const rmsnorm_dtype_t x : kMixable)
    for (const rmsnorm_dtype_t y : kMixable) {
      Case c = forward_case(5, 133, x);
      c[kY].dtype = y;
      Execution execution(device, c);
      if (execution.run() != RMSNORM_SUCCESS) return {};
      append_outputs(execution, &bytes);
    }
  return bytes;
}

// What the tour gives in a process whose RMSNORM_CPU_ISA is `cap`; `isa` is the code that ran
// there.
std::vector<uint8_t> tour_under(const char *cap, std::string *isa) {
  int ends[2];
  if (pipe(ends) != 0) return {};
  const pid_t child = fork();
  if (child == 0) {
    setenv("RMSNORM_CPU_ISA", cap, 1);
    std::string used;
    std::vector<uint8_t> bytes = tour(&used);
    used.resize(32);
    bytes.insert(bytes.begin(), used.begin(), used.end());
    for (size_t sent = 0; sent < bytes.size();) {
      const ssize_t wrote = write(ends[1], bytes.data() + sent, bytes.size() - sent);
      if (wrote <= 0) _exit(1);
      sent += static_cast<size_t>(wrote);
    }
    _exit(0);
  }
  close(ends[1]);
  std::vector<uint8_t> bytes;
  uint8_t chunk[65536];
  for (ssize_t got; (got = read(ends[0], chunk, sizeof chunk)) > 0;)
    bytes.insert(bytes.end(), chunk, chunk + got);
  close(ends[0]);
  int status = -1;
  waitpid(child, &status, 0);
  if (status != 0 || bytes.size() < 32) return {};
  *isa = reinterpret_cast<const char *>(bytes.data());
  bytes.erase(bytes.begin(), bytes.begin() + 32);
  return bytes;
}

// This process makes no call of the library: each child is the first to ask.
TEST(Isa, GivesTheSameBits) {
  std::string first_isa;
  const std::vector<uint8_t> first = tour_under("generic", &first_isa);
  ASSERT_FALSE(first.empty());
  EXPECT_EQ(first_isa, "generic");
  for (const char *cap : {"avx2", "avx512", "neon", ""}) {
    std::string isa;
    const std::vector<uint8_t> other = tour_under(cap, &isa);
    ASSERT_EQ(other.size(), first.size()) << cap;
    size_t differing = 0;
    for (size_t i = 0; i < first.size(); ++i) differing += first[i] != other[i];
    EXPECT_EQ(differing, 0u) << "bytes differ between generic and " << isa
                             << " (RMSNORM_CPU_ISA=" << cap << ")";
    std::printf("RMSNORM_CPU_ISA=%s ran %s: %zu bytes compared\n", cap, isa.c_str(), other.size());
  }
}

}  // namespace
}  // namespace rmsnorm_test
