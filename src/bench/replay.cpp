#include "bench/replay.h"

#include <map>
#include <vector>

#include "bench/options.h"
#include "bench/text.h"

namespace bench {
namespace {

class Line {
 public:
  explicit Line(const std::string &line) {
    for (const std::string &word : split(line, ' ')) {
      if (word.empty()) continue;
      const size_t equals = word.find('=');
      if (equals == std::string::npos || equals == 0)
        fail(kBadInput, "--replay: '%s' is not key=value", word.c_str());
      const std::string key = word.substr(0, equals);
      if (!values_.emplace(key, word.substr(equals + 1)).second)
        fail(kBadInput, "--replay: key '%s' is there twice", key.c_str());
    }
  }
  bool has(const std::string &key) const { return values_.count(key) != 0; }
  std::string take(const std::string &key) {
    const auto found = values_.find(key);
    if (found == values_.end()) fail(kBadInput, "--replay: key '%s' is missing", key.c_str());
    const std::string value = found->second;
    values_.erase(found);
    return value;
  }
  int64_t take_integer(const std::string &key, int64_t least, int64_t most) {
    return read_integer("--replay: " + key, take(key), least, most);
  }
  double take_real(const std::string &key) { return read_real("--replay: " + key, take(key)); }
  // One of two words: whether it is the second.
  bool take_choice(const std::string &key, const char *no, const char *yes) {
    const std::string value = take(key);
    if (value != no && value != yes)
      fail(kBadInput, "--replay: %s=%s: it is %s or %s", key.c_str(), value.c_str(), no, yes);
    return value == yes;
  }
  void expect_empty() const {
    if (!values_.empty())
      fail(kBadInput, "--replay: key '%s' is unknown here", values_.begin()->first.c_str());
  }

 private:
  std::map<std::string, std::string> values_;
};

Slot find_slot(const std::string &name) {
  for (int slot = 0; slot < kSlots; ++slot)
    if (name == info(Slot(slot)).name) return Slot(slot);
  return kNone;
}

// dtype:row_stride:group_stride[:alignment][@other]
TensorSpec read_tensor(const Call &call, Slot slot, const std::string &value) {
  const std::string argument = std::string("--replay: ") + info(slot).name;
  const std::vector<std::string> sharing = split(value, '@');
  const std::vector<std::string> parts = split(sharing[0], ':');
  if (sharing.size() > 2 || parts.size() < 3 || parts.size() > 4)
    fail(kBadInput, "%s=%s: dtype:row_stride:group_stride:alignment is wanted", argument.c_str(),
         value.c_str());
  TensorSpec spec;
  spec.dtype = find_dtype(parts[0]);
  if (!spec.present())
    fail(kBadInput, "%s=%s: there are fp32, fp16, bf16 and fp64", argument.c_str(), value.c_str());
  spec.row_stride = read_integer(argument, parts[1], -INT64_MAX, INT64_MAX);
  spec.group_stride = read_integer(argument, parts[2], -INT64_MAX, INT64_MAX);
  if (parts.size() == 4) spec.misalign = read_integer(argument, parts[3], 0, 255);
  if (spec.misalign % element_size(spec.dtype) != 0)
    fail(kBadInput, "%s=%s: the alignment is no multiple of the element's size", argument.c_str(),
         value.c_str());
  if (sharing.size() == 2) {
    spec.same_as = find_slot(sharing[1]);
    if (spec.same_as == kNone || spec.same_as == slot || !call.has(spec.same_as))
      fail(kBadInput, "%s=%s: there is no such tensor before it", argument.c_str(), value.c_str());
    spec.misalign = call[spec.same_as].misalign;
  }
  return spec;
}

// In the order of the library's tables, in which @other is always earlier.
const std::vector<Slot> kOrders[kFunctions] = {{kX, kResidual, kWeight, kBias, kY, kResidualOut,
                                                kRstd},
                                               {kDy, kX, kWeight, kRstd, kDresidualOut, kDx,
                                                kDresidual, kDweight, kDbias},
                                               {kGate, kUp, kY},
                                               {kDy, kGate, kUp, kDgate, kDup}};

bool is_required(const Call &call, Slot slot) {
  return slot == call.lead() || slot == kUp || slot == kDy || slot == kY;
}

Function take_function(Line *line) {
  const std::string value = line->take("op");
  for (int function = 0; function < kFunctions; ++function)
    if (value == function_name(Function(function))) return Function(function);
  fail(kBadInput, "--replay: op=%s: there are forward, backward, glu_forward and glu_backward",
       value.c_str());
}

rmsnorm_activation_t take_activation(Line *line) {
  const std::string value = line->take("activation");
  const rmsnorm_activation_t activation = find_activation(value);
  if (activation < 0)
    fail(kBadInput, "--replay: activation=%s: there are silu, gelu_tanh and gelu_erf",
         value.c_str());
  return activation;
}

}  // namespace

Replay read_replay(const std::string &text) {
  std::string trimmed = text;
  while (!trimmed.empty() && (trimmed.back() == '\n' || trimmed.back() == '\r')) trimmed.pop_back();
  Line line(trimmed);
  Replay replay;
  Call &call = replay.call;
  call.origin = "--replay";
  call.function = take_function(&line);

  const std::string device = line.take("device");
  const std::vector<std::string> place = split(device, ':');
  if (place.size() != 2 || (place[0] != "cpu" && place[0] != "cuda"))
    fail(kBadInput, "--replay: device=%s: cpu:0 or cuda:N is wanted", device.c_str());
  replay.device = place[0] == "cpu" ? RMSNORM_DEVICE_CPU : RMSNORM_DEVICE_CUDA;
  replay.ordinal = static_cast<int32_t>(read_integer("--replay: device", place[1], 0, INT32_MAX));

  call.rows = line.take_integer("rows", 0, INT64_MAX);
  call.groups = line.take_integer("groups", 1, INT64_MAX);
  call.cols = line.take_integer("cols", 1, INT64_MAX);
  if (call.is_glu()) {
    call.activation = take_activation(&line);
  } else {
    call.eps = line.take_real("eps");
    call.weight_offset = line.take_real("weight_offset");
  }
  call.overlap = line.take_choice("overlap", "0", "1");
  if (call.function == Function::kBackward)
    call.accumulate = line.take_choice("accumulate", "0", "1");
  if (call.function == Function::kForward)
    call.llama = line.take_choice("rounding", "once", "llama");
  for (const Slot slot : kOrders[static_cast<int>(call.function)])
    if (is_required(call, slot) || line.has(info(slot).name))
      call[slot] = read_tensor(call, slot, line.take(info(slot).name));
  replay.kernel = line.take("kernel");
  line.expect_empty();
  return replay;
}

}  // namespace bench
