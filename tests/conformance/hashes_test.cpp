// The CPU's outputs for a fixed set of calls, as hashes that are in the repository
// (tests/data/cpu_hashes.txt): every instruction set, processor, compiler and version of the
// library must find them. A process of its own for each RMSNORM_CPU_ISA, which the library reads
// once.
//
// Where the numerics are meant to change, RMSNORM_TEST_WRITE_HASHES=FILE writes the new ones.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <cstdlib>
#include <fstream>
#include <map>
#include <sstream>

#include "../support/judge.h"
#include "../support/on_device.h"

namespace rmsnorm_test {
namespace {

using Hashes = std::map<std::string, std::string>;  // by what was called

// FNV-1a over the elements; a NaN counts as one and the same.
std::string hash_of(const Execution &execution, Name name) {
  const Case &c = execution.tested();
  const std::vector<uint8_t> bits = execution.bits(name);
  const size_t size = static_cast<size_t>(rmsnorm::element_size(c[name].dtype));
  uint64_t hash = 14695981039346656037u;
  int64_t index = 0;
  for (int64_t row = 0; row < c.rows_of(name); ++row)
    for (int64_t group = 0; group < c.groups_of(name); ++group)
      for (int64_t col = 0; col < c.cols_of(name); ++col, ++index) {
        const bool nan = std::isnan(execution.output(name, row, group, col));
        for (size_t byte = 0; byte < size; ++byte)
          hash = (hash ^ (nan ? 0xff : bits[static_cast<size_t>(index) * size + byte])) *
                 1099511628211u;
      }
  std::ostringstream text;
  text << std::hex << hash;
  return text.str();
}

void add_call(const std::string &what, const Case &c, bool extremes, Hashes *hashes) {
  std::string why_not;
  Device &cpu = *find_device(RMSNORM_DEVICE_CPU, &why_not);
  Execution execution(cpu, c);
  // Odd rows of x, or of a gated activation's up: one exponent for each, from the dtype's smallest
  // numbers to its largest, and in every fourth column another. Without the C library's functions,
  // which round as each sees fit.
  const Name lead = is_glu(c.direction) ? kUp : kX;
  const int top = c[lead].dtype == RMSNORM_DTYPE_F16   ? 14
                  : c[lead].dtype == RMSNORM_DTYPE_F64 ? 1022
                                                       : 126;
  for (int64_t row = 1; extremes && row < c.rows; row += 2)
    for (int64_t col = 0; col < c.cols; ++col) {
      const uint64_t bits = row_hash(7, lead, row, col);
      const double fraction = static_cast<double>(bits >> 40) * 0x1p-23 - 1;
      const int64_t place = col % 4 == 3 ? static_cast<int64_t>(bits % 33) : row;
      execution.set(lead, row, 0, col,
                    std::ldexp(fraction, static_cast<int>((place * 2 * top) / 32) - top));
    }
  const rmsnorm_status_t status = execution.run();
  for (int i = 0; i < kNameCount; ++i) {
    const Name name = static_cast<Name>(i);
    if (!takes(c.direction, name) || !is_output(c.direction, name) || !c.has(name)) continue;
    (*hashes)[what + " " + info(name).text] =
        status == RMSNORM_SUCCESS ? hash_of(execution, name) : rmsnorm_status_name(status);
  }
}

// The gated activations, with gates from next to 0 to where act(gate) is 0 or gate.
void add_glu_calls(Hashes *hashes) {
  for (const Direction direction : kGluDirections)
    for (const rmsnorm_activation_t activation : kActivations) {
      const std::string head =
          std::string(text(direction)) + " " + rmsnorm::activation_name(activation) + " ";
      for (const rmsnorm_dtype_t dtype : kDtypes)
        for (const int64_t cols : {33, 5125}) {
          Case c = glu_case(direction, activation, 33, cols, dtype);
          c[kGate].pattern = Pattern::kWide;
          add_call(head + rmsnorm::dtype_name(dtype) + " " + std::to_string(cols), c, true, hashes);
        }
      for (const rmsnorm_dtype_t input : kMixable)
        for (const rmsnorm_dtype_t output : kMixable) {
          if (input == output) continue;
          Case c = glu_case(direction, activation, 9, 257, input);
          for (const Name name : {kY, kDgate, kDup})
            if (c.has(name)) c[name].dtype = output;
          add_call(head + rmsnorm::dtype_name(input) + " to " + rmsnorm::dtype_name(output), c,
                   false, hashes);
        }
    }
}

Hashes hashes_here() {
  Hashes hashes;
  add_glu_calls(&hashes);
  for (const Direction direction : kNormDirections)
    for (const rmsnorm_dtype_t dtype : kDtypes) {
      const std::string head = std::string(text(direction)) + " " + rmsnorm::dtype_name(dtype);
      for (const int64_t cols : {1, 33, 1024, 5125})
        add_call(head + " " + std::to_string(cols), full_case(direction, 33, cols, dtype), cols > 1,
                 &hashes);
      Case llama = full_case(direction, 200, 129, dtype);  // and many rows
      llama.rounding = RMSNORM_ROUNDING_LLAMA;
      llama.weight_offset = 1;
      llama[kBias] = llama[kRstd] = {};
      add_call(head + " 129 offset", llama, false, &hashes);
    }
  for (const rmsnorm_dtype_t x : kMixable)
    for (const rmsnorm_dtype_t y : kMixable) {
      Case c = add_case(9, 257, x);
      c[kY].dtype = c[kResidual].dtype = y;
      add_call(std::string("forward ") + rmsnorm::dtype_name(x) + " to " + rmsnorm::dtype_name(y),
               c, false, &hashes);
    }
  return hashes;
}

// In a process whose RMSNORM_CPU_ISA is `cap`.
Hashes hashes_under(const char *cap, std::string *isa) {
  int ends[2];
  if (pipe(ends) != 0) return {};
  const pid_t child = fork();
  if (child == 0) {
    setenv("RMSNORM_CPU_ISA", cap, 1);
    std::ostringstream said;
    for (const auto &[what, hash] : hashes_here()) said << what << " " << hash << "\n";
    rmsnorm_device_info_t info = RMSNORM_DEVICE_INFO_INIT;
    rmsnorm_device_info(RMSNORM_DEVICE_CPU, 0, &info);
    const std::string all = std::string(info.isa) + "\n" + said.str();
    for (size_t sent = 0; sent < all.size();) {
      const ssize_t wrote = write(ends[1], all.data() + sent, all.size() - sent);
      if (wrote <= 0) _exit(1);
      sent += static_cast<size_t>(wrote);
    }
    _exit(0);
  }
  close(ends[1]);
  std::string all;
  char chunk[4096];
  for (ssize_t got; (got = read(ends[0], chunk, sizeof chunk)) > 0;)
    all.append(chunk, static_cast<size_t>(got));
  close(ends[0]);
  waitpid(child, nullptr, 0);
  std::istringstream lines(all);
  std::getline(lines, *isa);
  Hashes hashes;
  for (std::string line; std::getline(lines, line);) {
    const size_t at = line.rfind(' ');
    hashes[line.substr(0, at)] = line.substr(at + 1);
  }
  return hashes;
}

Hashes hashes_kept() {
  const char *folder = std::getenv("RMSNORM_TEST_DATA");
  std::ifstream file(std::string(folder != nullptr ? folder : RMSNORM_TEST_DATA_DIR) +
                     "/cpu_hashes.txt");
  Hashes hashes;
  for (std::string line; std::getline(file, line);) {
    const size_t at = line.rfind(' ');
    if (!line.empty() && line[0] != '#') hashes[line.substr(0, at)] = line.substr(at + 1);
  }
  return hashes;
}

// This process makes no call of the library: each child is the first to ask.
TEST(Hashes, AreWhatTheyWereOnEveryInstructionSet) {
  const Hashes kept = hashes_kept();
  for (const char *cap : {"generic", "avx2", "avx512", "neon", ""}) {
    std::string isa;
    const Hashes here = hashes_under(cap, &isa);
    ASSERT_FALSE(here.empty()) << cap;
    for (const auto &[what, hash] : here) {
      const auto found = kept.find(what);
      EXPECT_EQ(found == kept.end() ? "not in tests/data/cpu_hashes.txt" : found->second, hash)
          << what << " by " << isa;
    }
    EXPECT_EQ(here.size(), kept.size()) << "calls that are no longer made";
    std::printf("RMSNORM_CPU_ISA=%s ran %s: %zu hashes\n", cap, isa.c_str(), here.size());
    if (const char *path = std::getenv("RMSNORM_TEST_WRITE_HASHES")) {
      std::ofstream file(path);
      file << "# conformance/hashes_test: the CPU's outputs for a fixed set of calls.\n";
      for (const auto &[what, hash] : here) file << what << " " << hash << "\n";
    }
  }
}

}  // namespace
}  // namespace rmsnorm_test
