#include "vector.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <sstream>

namespace rmsnorm_test {
namespace {

struct DtypeName {
  rmsnorm_dtype_t dtype;
  const char *text;
};
constexpr DtypeName kDtypeNames[] = {{RMSNORM_DTYPE_F32, "f32"},
                                     {RMSNORM_DTYPE_F16, "f16"},
                                     {RMSNORM_DTYPE_BF16, "bf16"},
                                     {RMSNORM_DTYPE_F64, "f64"}};

const char *text_of(rmsnorm_dtype_t dtype) {
  for (const DtypeName &each : kDtypeNames)
    if (each.dtype == dtype) return each.text;
  return "?";
}

rmsnorm_dtype_t dtype_of(const std::string &text) {
  for (const DtypeName &each : kDtypeNames)
    if (text == each.text) return each.dtype;
  return RMSNORM_DTYPE_NONE;
}

std::string read_file(const std::string &path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

// ---- Reading -----------------------------------------------------------------------------------

using Fields = std::map<std::string, std::string>;

// One line's object: every value as text, strings without their quotes.
Fields fields_of(const std::string &line) {
  Fields fields;
  for (size_t at = line.find('"'); at != std::string::npos; at = line.find('"', at)) {
    const size_t key_end = line.find('"', at + 1);
    const std::string key = line.substr(at + 1, key_end - at - 1);
    size_t begin = key_end + 3;  // ": "
    const bool quoted = line[begin] == '"';
    begin += quoted;
    const size_t end = line.find_first_of(quoted ? "\"" : ",}", begin);
    fields[key] = line.substr(begin, end - begin);
    at = end + 1;
  }
  return fields;
}

class LineReader {
 public:
  LineReader(const std::string &line, const std::string &data)
      : fields_(fields_of(line)), data_(data) {}

  Vector read() {
    Vector vector;
    vector.name = text("name");
    const std::string op = text("op");
    bool known = false;
    for (const Direction each : kDirections)
      if (op == rmsnorm_test::text(each)) vector.op = each, known = true;
    if (!known) fail("op");
    vector.status = static_cast<rmsnorm_status_t>(integer("status"));
    if (vector.status != RMSNORM_SUCCESS) vector.error = text("error");
    vector.rows = integer("rows"), vector.groups = integer("groups");
    vector.cols = integer("cols");
    if (is_glu(vector.op)) {
      vector.activation = static_cast<rmsnorm_activation_t>(integer("activation"));
    } else {
      vector.eps = std::strtod(text("eps").c_str(), nullptr);
      vector.weight_offset = std::strtod(text("weight_offset").c_str(), nullptr);
      vector.rounding = static_cast<rmsnorm_rounding_t>(integer("rounding"));
    }
    vector.flags = static_cast<uint32_t>(integer("flags"));
    for (int i = 0; i < kNameCount; ++i)
      if (fields_.count(std::string(info(static_cast<Name>(i)).text) + ".dtype") != 0)
        vector.tensors.push_back(tensor(static_cast<Name>(i)));
    return vector;
  }
  const std::string &problem() const { return problem_; }

 private:
  void fail(const std::string &key) {
    if (problem_.empty()) problem_ = fields_["name"] + ": " + key;
  }
  std::string text(const std::string &key) {
    if (fields_.count(key) == 0) fail(key);
    return fields_[key];
  }
  int64_t integer(const std::string &key) { return std::strtoll(text(key).c_str(), nullptr, 10); }
  std::vector<uint8_t> bytes(const std::string &key, size_t count) {
    if (fields_.count(key) == 0) return {};
    const size_t at = static_cast<size_t>(integer(key));
    if (at > data_.size() || data_.size() - at < count) return fail(key), std::vector<uint8_t>();
    const auto begin = data_.begin() + static_cast<ptrdiff_t>(at);
    return {begin, begin + static_cast<ptrdiff_t>(count)};
  }
  VectorTensor tensor(Name name) {
    const std::string key = std::string(info(name).text) + ".";
    VectorTensor read;
    read.name = name;
    read.dtype = dtype_of(text(key + "dtype"));
    if (read.dtype == RMSNORM_DTYPE_NONE) fail(key + "dtype");
    read.row_stride = integer(key + "row_stride");
    read.group_stride = integer(key + "group_stride");
    read.offset = integer(key + "offset");
    read.memory = name;
    if (fields_.count(key + "memory") != 0) {
      for (int i = 0; i < kNameCount; ++i)
        if (fields_[key + "memory"] == info(static_cast<Name>(i)).text)
          read.memory = static_cast<Name>(i);
      return read;
    }
    read.elements = integer(key + "elements");
    const size_t size = static_cast<size_t>(read.elements * rmsnorm::element_size(read.dtype));
    read.before = bytes(key + "before", size);
    read.after = bytes(key + "after", size);
    return read;
  }

  Fields fields_;
  const std::string &data_;
  std::string problem_;
};

// ---- Writing -----------------------------------------------------------------------------------

class LineWriter {
 public:
  explicit LineWriter(std::string *data) : data_(data) {}

  std::string write(const Vector &vector) {
    add("name", vector.name);
    add("op", std::string(text(vector.op)));
    add("status", static_cast<int64_t>(vector.status));
    if (vector.status != RMSNORM_SUCCESS) add("error", vector.error);
    add("rows", vector.rows), add("groups", vector.groups), add("cols", vector.cols);
    if (is_glu(vector.op)) {
      add("activation", static_cast<int64_t>(vector.activation));
    } else {
      add("eps", vector.eps), add("weight_offset", vector.weight_offset);
      add("rounding", static_cast<int64_t>(vector.rounding));
    }
    add("flags", static_cast<int64_t>(vector.flags));
    for (const VectorTensor &each : vector.tensors) tensor(each);
    return "{" + line_.str() + "}";
  }

 private:
  std::ostream &key(const std::string &name) {
    if (line_.tellp() > 0) line_ << ", ";
    return line_ << '"' << name << "\": ";
  }
  void add(const std::string &name, const std::string &value) { key(name) << '"' << value << '"'; }
  void add(const std::string &name, int64_t value) { key(name) << value; }
  void add(const std::string &name, double value) {
    char text[40];
    for (int digits = 6; digits <= 17; ++digits) {  // as few as tell it
      std::snprintf(text, sizeof text, "%.*g", digits, value);
      if (std::strtod(text, nullptr) == value) break;
    }
    key(name) << text;
  }
  void add_bytes(const std::string &name, const std::vector<uint8_t> &bytes) {
    if (bytes.empty()) return;
    add(name, static_cast<int64_t>(data_->size()));
    data_->append(bytes.begin(), bytes.end());
  }
  void tensor(const VectorTensor &tensor) {
    const std::string prefix = std::string(info(tensor.name).text) + ".";
    add(prefix + "dtype", std::string(text_of(tensor.dtype)));
    add(prefix + "row_stride", tensor.row_stride);
    add(prefix + "group_stride", tensor.group_stride);
    add(prefix + "offset", tensor.offset);
    if (tensor.memory != tensor.name) {
      add(prefix + "memory", std::string(info(tensor.memory).text));
      return;
    }
    add(prefix + "elements", tensor.elements);
    add_bytes(prefix + "before", tensor.before);
    add_bytes(prefix + "after", tensor.after);
  }

  std::ostringstream line_;
  std::string *data_;
};

// ---- Running -----------------------------------------------------------------------------------

// A buffer on a 64-byte boundary.
class Memory {
 public:
  explicit Memory(size_t size) : bytes_(size + kBoundary) {
    void *begin = bytes_.data();
    size_t space = bytes_.size();
    begin_ = static_cast<uint8_t *>(std::align(kBoundary, size, begin, space));
  }
  uint8_t *begin() const { return begin_; }

 private:
  static constexpr size_t kBoundary = 64;
  std::vector<uint8_t> bytes_;
  uint8_t *begin_;
};

size_t bytes_of(const VectorTensor &tensor) {
  return static_cast<size_t>(tensor.elements * rmsnorm::element_size(tensor.dtype));
}

bool is_nan(const uint8_t *element, rmsnorm_dtype_t dtype) {
  uint64_t bits = 0;
  std::memcpy(&bits, element, static_cast<size_t>(rmsnorm::element_size(dtype)));
  switch (dtype) {
    case RMSNORM_DTYPE_F16: return (bits & 0x7fff) > 0x7c00;
    case RMSNORM_DTYPE_BF16: return (bits & 0x7fff) > 0x7f80;
    case RMSNORM_DTYPE_F32: return (bits & 0x7fffffff) > 0x7f800000;
    default: return (bits & 0x7fffffffffffffff) > 0x7ff0000000000000;
  }
}

std::string compare(const VectorTensor &tensor, const uint8_t *got) {
  const std::vector<uint8_t> unwritten(bytes_of(tensor), kUnwritten);
  const std::vector<uint8_t> &before = tensor.before.empty() ? unwritten : tensor.before;
  const std::vector<uint8_t> &expected = tensor.after.empty() ? before : tensor.after;
  const size_t size = static_cast<size_t>(rmsnorm::element_size(tensor.dtype));
  for (size_t at = 0; at < expected.size(); at += size)
    if (std::memcmp(got + at, &expected[at], size) != 0 &&
        !(is_nan(got + at, tensor.dtype) && is_nan(&expected[at], tensor.dtype)))
      return "element " + std::to_string(at / size) + " of the memory of " +
             info(tensor.name).text + " has other bits";
  return "";
}

}  // namespace

VectorTensor *Vector::find(Name tensor) {
  for (VectorTensor &each : tensors)
    if (each.name == tensor) return &each;
  return nullptr;
}

std::vector<Vector> read_vectors(const std::string &folder, std::string *problem) {
  const std::string data = read_file(folder + "/data.bin");
  std::istringstream cases(read_file(folder + "/cases.json"));
  std::vector<Vector> vectors;
  problem->clear();
  for (std::string line; std::getline(cases, line);) {
    if (line.empty() || line[0] != '{') continue;
    LineReader reader(line, data);
    vectors.push_back(reader.read());
    if (problem->empty()) *problem = reader.problem();
  }
  if (vectors.empty()) *problem = "no vectors in " + folder;
  return vectors;
}

VectorFiles write_vectors(const std::vector<Vector> &vectors) {
  VectorFiles files;
  files.cases = "[\n";
  for (const Vector &vector : vectors)
    files.cases +=
        LineWriter(&files.data).write(vector) + (&vector == &vectors.back() ? "\n" : ",\n");
  files.cases += "]\n";
  return files;
}

std::string check_vector(const rmsnorm_context_t *context, const Vector &vector) {
  std::map<Name, Memory> memories;
  for (const VectorTensor &tensor : vector.tensors) {
    if (tensor.memory != tensor.name) continue;
    const Memory &memory = memories.emplace(tensor.name, bytes_of(tensor)).first->second;
    if (tensor.before.empty()) std::memset(memory.begin(), kUnwritten, bytes_of(tensor));
    else std::memcpy(memory.begin(), tensor.before.data(), tensor.before.size());
  }
  Params params(vector.op);
  params.edit_head([&](auto *head) {
    head->rows = vector.rows, head->groups = vector.groups, head->cols = vector.cols;
    head->flags = vector.flags;
  });
  params.edit_norm([&](auto *norm) {
    norm->eps = vector.eps, norm->weight_offset = vector.weight_offset;
    norm->rounding = vector.rounding;
  });
  params.edit_glu([&](auto *glu) { glu->activation = vector.activation; });
  for (const VectorTensor &tensor : vector.tensors) {
    uint8_t *data =
        memories.at(tensor.memory).begin() + tensor.offset * rmsnorm::element_size(tensor.dtype);
    if (tensor.memory == tensor.name && tensor.elements == 0) data = nullptr;
    params.tensor(tensor.name) = {data, tensor.row_stride, tensor.group_stride, tensor.dtype, 0};
  }

  size_t size = 0;
  rmsnorm_status_t status = query_size(context, params, &size);
  Memory workspace(size);
  if (status == RMSNORM_SUCCESS)
    status = run(context, params, size == 0 ? nullptr : workspace.begin(), size, nullptr);
  if (status != vector.status)
    return std::string("status ") + rmsnorm_status_name(status) + " " +
           (status == RMSNORM_SUCCESS ? "" : last_error()) + ", expected " +
           rmsnorm_status_name(vector.status);
  if (status != RMSNORM_SUCCESS && last_error().compare(0, vector.error.size(), vector.error) != 0)
    return "the text is not '" + vector.error + "...', but: " + last_error();
  for (const VectorTensor &tensor : vector.tensors) {
    if (tensor.memory != tensor.name) continue;
    const std::string difference = compare(tensor, memories.at(tensor.name).begin());
    if (!difference.empty()) return difference;
  }
  return "";
}

}  // namespace rmsnorm_test
