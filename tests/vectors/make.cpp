// Makes the vectors: runs every call on the CPU's generic code, has its results judged by the
// reference in ulps, and writes cases.json and data.bin.
//
//   make FOLDER          writes them
//   make --check FOLDER  writes nothing; says whether the files there are these, byte for byte
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>

#include "cases.h"
#include "judge.h"
#include "reference/reference.h"
#include "vector.h"

namespace rmsnorm_test {
namespace {

[[noreturn]] void die(const std::string &text) {
  std::fprintf(stderr, "make: %s\n", text.c_str());
  std::exit(1);
}

// The elements that a tensor reaches on either side of its first, and those it has in all.
struct Reach {
  int64_t below = 0, above = 0;
};

Reach reach_of(const Case &c, Name name) {
  const int64_t rows = c.rows_of(name), groups = c.groups_of(name);
  if (rows == 0 || groups == 0) return {};
  Reach reach{0, c.cols_of(name)};
  for (const int64_t step : {rows > 1 ? (rows - 1) * c.resolved_row_stride(name) : 0,
                             groups > 1 ? (groups - 1) * c.resolved_group_stride(name) : 0})
    (step < 0 ? reach.below : reach.above) += std::abs(step);
  return reach;
}

bool is_read(const Case &c, Name name) {
  return !is_output(c.direction, name) ||
         (info(name).extent == Extent::kVector && (c.flags & RMSNORM_FLAG_ACCUMULATE) != 0);
}

bool is_present(const Case &c, Name name) { return takes(c.direction, name) && c.has(name); }

// The call of a case and the places of its tensors, without data.
Vector describe(const std::string &name, const Case &c) {
  Vector vector;
  vector.name = name;
  vector.op = c.direction;
  vector.rows = c.rows, vector.groups = c.groups, vector.cols = c.cols;
  vector.eps = c.eps, vector.weight_offset = c.weight_offset;
  vector.rounding = c.rounding, vector.activation = c.activation, vector.flags = c.flags;
  for (int i = 0; i < kNameCount; ++i) {
    const Name tensor = static_cast<Name>(i);
    if (!is_present(c, tensor)) continue;
    const Spec &spec = c[tensor];
    VectorTensor given;
    given.name = tensor;
    given.dtype = spec.dtype;
    given.row_stride = c.resolved_row_stride(tensor);
    given.group_stride = c.resolved_group_stride(tensor);
    given.memory = spec.share == kNone ? tensor : spec.share;
    vector.tensors.push_back(given);
  }
  for (VectorTensor &root : vector.tensors) {
    if (root.memory != root.name) continue;
    const int64_t size = rmsnorm::element_size(root.dtype);
    int64_t below = 0, above = 0;
    for (const VectorTensor &each : vector.tensors) {
      if (each.memory != root.name) continue;
      const Reach reach = reach_of(c, each.name);
      below = std::max(below, reach.below - c[each.name].shift / size);
      above = std::max(above, reach.above + c[each.name].shift / size);
    }
    const int64_t first = below + c[root.name].misalign / size;
    root.elements = first + above;
    for (VectorTensor &each : vector.tensors)
      if (each.memory == root.name) each.offset = first + c[each.name].shift / size;
  }
  return vector;
}

// Puts a tensor's elements, before the call or after it, into its memory. A NaN is one and the
// same, for its sign is the compiler's choice.
void put(const Execution &execution, const VectorTensor &tensor, bool after,
         std::vector<uint8_t> *memory) {
  const Case &c = execution.tested();
  const int64_t size = rmsnorm::element_size(tensor.dtype);
  for (int64_t row = 0; row < c.rows_of(tensor.name); ++row)
    for (int64_t group = 0; group < c.groups_of(tensor.name); ++group)
      for (int64_t col = 0; col < c.cols_of(tensor.name); ++col) {
        const int64_t index =
            tensor.offset + row * tensor.row_stride + group * tensor.group_stride + col;
        const double value = after ? execution.output(tensor.name, row, group, col)
                                   : execution.input(tensor.name, row, group, col);
        rmsnorm::reference::store(std::isnan(value) ? NAN : value, memory->data() + index * size,
                                  tensor.dtype);
      }
}

Vector make(Device &device, const Sample &sample) {
  const Case &c = sample.c;
  Execution execution(device, c);
  sample.cook(&execution);
  if (execution.run() != RMSNORM_SUCCESS) die(sample.name + ": " + last_error());
  const testing::AssertionResult verdict = conforms(execution);
  if (!verdict) die(sample.name + ": " + verdict.message());
  Vector vector = describe(sample.name, c);
  for (VectorTensor &root : vector.tensors) {
    if (root.memory != root.name) continue;
    const size_t bytes = static_cast<size_t>(root.elements * rmsnorm::element_size(root.dtype));
    std::vector<uint8_t> before(bytes, kUnwritten);
    bool read = false, written = false;
    for (const VectorTensor &each : vector.tensors)
      if (each.memory == root.name && is_read(c, each.name)) {
        put(execution, each, false, &before);
        read = true;
      }
    std::vector<uint8_t> after = before;
    for (const VectorTensor &each : vector.tensors)
      if (each.memory == root.name && is_output(c.direction, each.name)) {
        put(execution, each, true, &after);
        written = true;
      }
    if (read) root.before = before;
    if (written) root.after = after;
  }
  const std::string problem = check_vector(device.context(), vector);
  if (!problem.empty()) die(sample.name + ", run again: " + problem);
  return vector;
}

Vector make(Device &device, const BrokenSample &sample) {
  Vector vector = describe(sample.name, sample.c);
  sample.break_rule(&vector);
  vector.status = sample.status;
  vector.error = sample.error;
  const std::string problem = check_vector(device.context(), vector);
  if (!problem.empty()) die(sample.name + ": " + problem);
  return vector;
}

std::string read_file(const std::string &path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

void write_file(const std::string &path, const std::string &bytes) {
  std::ofstream file(path, std::ios::binary);
  if (!file.write(bytes.data(), static_cast<std::streamsize>(bytes.size())).flush())
    die(path + " could not be written");
}

int make_all(const std::string &folder, bool check) {
  setenv("RMSNORM_CPU_ISA", "generic", 1);  // before the library's first look at it
  rmsnorm_device_info_t device_info = RMSNORM_DEVICE_INFO_INIT;
  if (rmsnorm_device_info(RMSNORM_DEVICE_CPU, 0, &device_info) != RMSNORM_SUCCESS ||
      std::strcmp(device_info.isa, "generic") != 0)
    die(std::string("the library runs ") + device_info.isa + ", not generic");
  std::string why_not;
  Device &device = *find_device(RMSNORM_DEVICE_CPU, &why_not);
  std::vector<Vector> vectors;
  for (const Sample &sample : samples()) vectors.push_back(make(device, sample));
  for (const BrokenSample &sample : broken_samples()) vectors.push_back(make(device, sample));
  const VectorFiles files = write_vectors(vectors);
  const std::string cases = folder + "/cases.json", data = folder + "/data.bin";
  if (!check) {
    write_file(cases, files.cases);
    write_file(data, files.data);
  } else if (read_file(cases) != files.cases || read_file(data) != files.data) {
    die("the files in " + folder + " are not what the calls give");
  }
  std::printf("%zu vectors, %zu and %zu bytes\n", vectors.size(), files.cases.size(),
              files.data.size());
  return 0;
}

}  // namespace
}  // namespace rmsnorm_test

int main(int count, char **arguments) {
  const bool check = count == 3 && std::strcmp(arguments[1], "--check") == 0;
  if (count != 2 + check) {
    std::fprintf(stderr, "usage: make [--check] FOLDER\n");
    return 2;
  }
  return rmsnorm_test::make_all(arguments[count - 1], check);
}
