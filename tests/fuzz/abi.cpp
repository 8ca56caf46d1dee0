// Any call of the ABI, made of a fuzzer's bytes: a sound call first, then a few fields overwritten
// with anything. Every struct ends where memory faults, and so may every tensor. It must hold that
//   - a status of the header comes back, with a text if it is a failure;
//   - a refused call has written nothing;
//   - an accepted call has written every byte of its outputs, none beside them, and the outputs
//     depend on the inputs' elements alone: they are the same over other memory;
//   - the size and name queries agree with the call.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <string>

#include "../support/case.h"
#include "bytes.h"
#include "memory.h"

namespace rmsnorm_fuzz {
namespace {

using rmsnorm_test::Direction;
using rmsnorm_test::info;
using rmsnorm_test::kNameCount;
using rmsnorm_test::Name;
using rmsnorm_test::Params;

#define REQUIRE(condition)                                                         \
  do {                                                                             \
    if (!(condition)) {                                                            \
      std::fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
      std::fprintf(stderr, "last error: %s\n", last_error().c_str());              \
      std::abort();                                                                \
    }                                                                              \
  } while (false)

constexpr size_t kParamsRegion = Memory::kRegions - 1, kMiscRegion = Memory::kRegions - 2;

std::string last_error() {
  char text[1024];
  rmsnorm_last_error(text, sizeof text);
  return text;
}

bool is_status(rmsnorm_status_t status) {
  return std::strcmp(rmsnorm_status_name(status), "unknown status") != 0;
}

// What a call on the CPU may answer.
bool is_answer(rmsnorm_status_t status) {
  return is_status(status) && (status == RMSNORM_SUCCESS || !last_error().empty()) &&
         status != RMSNORM_ERROR_INTERNAL && status / 1000 != 4;
}

// ---- Contexts -----------------------------------------------------------------------------------

int32_t backwards(void *, int64_t count, rmsnorm_task_t task, void *arg) {
  for (int64_t i = count; i-- > 0;) task(arg, i);
  return 0;
}
int32_t half_done(void *, int64_t count, rmsnorm_task_t task, void *arg) {
  for (int64_t i = 0; i < count / 2; ++i) task(arg, i);
  return 7;
}
void count_lines(void *user, const char *line) {
  *static_cast<size_t *>(user) += std::strlen(line) > 0 ? 1 : 0;
}

size_t lines = 0;

rmsnorm_context_t *make_context(uint32_t flags, rmsnorm_parallel_for_t parallel_for,
                                int32_t threads, rmsnorm_log_t log) {
  rmsnorm_context_options_t options = RMSNORM_CONTEXT_OPTIONS_INIT;
  options.flags = flags;
  options.cpu_threads = threads;
  options.log = log;
  options.log_user = &lines;
  options.parallel_for = parallel_for;
  rmsnorm_context_t *context = nullptr;
  REQUIRE(rmsnorm_context_create(&options, &context) == RMSNORM_SUCCESS);
  return context;
}

struct World {
  Memory memory;
  rmsnorm_context_t *contexts[5] = {
      make_context(0, nullptr, 0, nullptr),
      make_context(RMSNORM_CONTEXT_KEEP_CACHED, nullptr, 1, count_lines),
      make_context(RMSNORM_CONTEXT_CHECK_POINTERS, backwards, 0, nullptr),
      make_context(RMSNORM_CONTEXT_PRELOAD, nullptr, 2, nullptr),
      make_context(0, half_done, 0, count_lines),
  };
  int64_t accepted = 0, refused = 0, others = 0;  // runs of an operation; other functions
  ~World() {
    std::fprintf(stderr, "%lld calls accepted, %lld refused, %lld of other functions\n",
                 static_cast<long long>(accepted), static_cast<long long>(refused),
                 static_cast<long long>(others));
    for (rmsnorm_context_t *context : contexts) rmsnorm_context_destroy(context);
  }
};

World &world() {
  static World made;
  return made;
}

// How many bytes a caller who says `struct_size` has given; the library must look at no more.
size_t given_bytes(size_t struct_size, size_t real) {
  if (struct_size > 4096) return real;
  return struct_size < sizeof(size_t) ? sizeof(size_t) : (struct_size + 7) / 8 * 8;
}

// ---- Calls of an operation ----------------------------------------------------------------------

constexpr int64_t kWild[] = {0,         1,         -1,        2,
                             3,         64,        -64,       4096,
                             INT64_MAX, INT64_MIN, 1ll << 62, (1ll << 61) + 1,
                             1ll << 31, 1ll << 32, 65536,     -(1ll << 40)};
constexpr double kScalars[] = {0,    1e-6,      1e-5,     1,    -1,       0.5,  1e-300, 5e-324,
                               1e39, -0x1p-126, 0x1p-127, 3e38, HUGE_VAL, -0.0, NAN,    1e300};
constexpr rmsnorm_dtype_t kTypes[] = {RMSNORM_DTYPE_F32, RMSNORM_DTYPE_F16, RMSNORM_DTYPE_BF16,
                                      RMSNORM_DTYPE_F64};

struct Shape {
  int64_t rows, groups, cols;
};

bool is_vector(Name name) { return info(name).extent == rmsnorm_test::Extent::kVector; }
int64_t rows_of(const Shape &shape, Name name) { return is_vector(name) ? 1 : shape.rows; }
int64_t cols_of(const Shape &shape, Name name) {
  return info(name).extent == rmsnorm_test::Extent::kRows ? 1 : shape.cols;
}

Shape draw_shape(Bytes *bytes) {
  Shape shape = {};
  shape.rows = static_cast<int64_t>(bytes->below(20));
  shape.groups = static_cast<int64_t>(bytes->below(4));
  const size_t kind = bytes->below(4);
  shape.cols = 1 + static_cast<int64_t>(bytes->below(kind == 0 ? 40 : kind == 1 ? 256 : 2048));
  const int64_t rows = shape.rows * (shape.groups > 1 ? shape.groups : 1);
  // A tensor of any dtype and some gaps fit a region.
  const int64_t most = static_cast<int64_t>(Memory::kRegionBytes) / 8 / (rows > 1 ? rows : 1) - 4;
  if (shape.cols > most) shape.cols = most;
  return shape;
}

// Each of an operation's tensors has one of its own.
size_t region_of(Direction direction, Name name) {
  size_t region = 0;
  for (int i = 0; i < name; ++i) region += rmsnorm_test::takes(direction, static_cast<Name>(i));
  return region % kMiscRegion;
}

// A tensor in a region of its own: from its beginning, up to its end, or between.
void draw_tensor(Bytes *bytes, const Shape &shape, Name name, rmsnorm_dtype_t dtype,
                 Params *params) {
  rmsnorm_tensor_t &tensor = params->tensor(name);
  tensor.dtype = dtype;
  const int64_t size = rmsnorm::element_size(dtype);
  const int64_t groups = shape.groups > 1 ? shape.groups : 1, rows = rows_of(shape, name);
  const int64_t cols = cols_of(shape, name), gap = static_cast<int64_t>(bytes->below(3));
  tensor.group_stride = cols + gap;
  tensor.row_stride = is_vector(name) ? 0 : groups * (cols + gap) + (gap == 2 ? 1 : 0);
  if (is_vector(name)) tensor.group_stride = bytes->chance(3) ? cols + gap : 0;
  const size_t turn = bytes->below(8);
  int64_t low = 0;  // elements below data
  if (turn == 6 && rows > 1) {
    tensor.row_stride = -tensor.row_stride;
    low = -tensor.row_stride * (rows - 1);
  } else if (turn == 7 && !rmsnorm_test::is_output(params->direction, name)) {
    tensor.row_stride = tensor.group_stride = 0;
  }
  const auto reach = [](int64_t stride, int64_t count) {
    return stride > 0 && count > 1 ? stride * (count - 1) : 0;
  };
  const int64_t high = reach(tensor.row_stride, rows) + reach(tensor.group_stride, groups) + cols;
  const size_t region = region_of(params->direction, name);
  char *at = world().memory.begin(region) + low * size;
  switch (bytes->below(3)) {
    case 0: break;
    case 1: at = world().memory.end(region) - high * size; break;
    default: at += static_cast<int64_t>(bytes->below(32)) * size; break;
  }
  tensor.data = at;
}

// One in four calls is a gated activation's.
Direction draw_direction(Bytes *bytes) {
  const uint8_t byte = bytes->take<uint8_t>();
  return byte < 0xc0 ? rmsnorm_test::kNormDirections[byte % 2]
                     : rmsnorm_test::kGluDirections[byte % 2];
}

bool is_required(Name name) {
  using namespace rmsnorm_test;
  return name == kX || name == kY || name == kDy || name == kGate || name == kUp;
}

Params draw_params(Bytes *bytes, Shape *shape) {
  Params params(draw_direction(bytes));
  *shape = draw_shape(bytes);
  const rmsnorm_dtype_t dtype = bytes->pick(kTypes);
  const bool mixed = bytes->chance(3) && dtype != RMSNORM_DTYPE_F64;
  const uint16_t presence = bytes->take<uint16_t>();
  int optional = 0;
  for (int i = 0; i < kNameCount; ++i) {
    const Name name = static_cast<Name>(i);
    if (!rmsnorm_test::takes(params.direction, name)) continue;
    if (!is_required(name) && (presence >> optional++ & 1) == 0) continue;
    rmsnorm_dtype_t own = dtype;
    if (info(name).extent == rmsnorm_test::Extent::kRows) own = rmsnorm_test::rstd_dtype(dtype);
    else if (mixed) own = kTypes[bytes->below(3)];
    draw_tensor(bytes, *shape, name, own, &params);
  }
  const uint8_t scalars = bytes->take<uint8_t>(), flags = bytes->take<uint8_t>();
  params.edit_head([&](auto *head) {
    head->rows = shape->rows, head->groups = shape->groups, head->cols = shape->cols;
    head->flags = flags >> 1 & (params.direction == Direction::kBackward ? 3 : 1);
  });
  params.edit_norm([&](auto *head) {
    head->eps = kScalars[scalars % 3];
    head->weight_offset = scalars & 0x40 ? 1 : scalars & 0x80 ? 0.1 : 0;
    head->rounding = flags & 1;
  });
  params.edit_glu([&](auto *head) { head->activation = scalars % 3; });
  return params;
}

// see(the struct of the params' direction)
template <class See>
auto with_head(const Params &params, See see) {
  switch (params.direction) {
    case Direction::kForward: return see(params.forward);
    case Direction::kBackward: return see(params.backward);
    case Direction::kGluForward: return see(params.glu_forward);
    default: return see(params.glu_backward);
  }
}
const char *head_of(const Params &params) {
  return with_head(params, [](const auto &head) { return reinterpret_cast<const char *>(&head); });
}
size_t size_of(const Params &params) {
  return with_head(params, [](const auto &head) { return sizeof head; });
}

Name draw_name(Bytes *bytes, Direction direction) {
  Name name = static_cast<Name>(bytes->below(kNameCount));
  while (!rmsnorm_test::takes(direction, name)) name = static_cast<Name>((name + 1) % kNameCount);
  return name;
}

// Any number of bytes from any address.
template <class Pointer>
void *moved(Pointer *from, int64_t bytes) {
  return reinterpret_cast<void *>(reinterpret_cast<uintptr_t>(from) + static_cast<uint64_t>(bytes));
}

// Overwrites one thing.
void edit(Bytes *bytes, Params *params) {
  const Name name = draw_name(bytes, params->direction);
  rmsnorm_tensor_t &tensor = params->tensor(name);
  const rmsnorm_tensor_t &other = params->tensor(draw_name(bytes, params->direction));
  char *const head = const_cast<char *>(head_of(*params));
  char *const field = head + bytes->below(size_of(*params) / 8) * 8;
  switch (bytes->below(14)) {
    case 0: {
      const int64_t value = bytes->take<int64_t>();
      std::memcpy(field, &value, sizeof value);
      break;
    }
    case 1: std::memcpy(field, &bytes->pick(kWild), sizeof(int64_t)); break;
    case 2: {
      const int32_t value = bytes->take<int32_t>();
      std::memcpy(field + (bytes->below(2) == 0 ? 0 : 4), &value, sizeof value);
      break;
    }
    case 3: tensor.data = other.data; break;
    case 4: tensor = other; break;
    case 5:
      tensor = other;
      tensor.data = moved(other.data, bytes->take<int8_t>());
      break;
    case 6: tensor.data = moved(tensor.data, bytes->take<int8_t>()); break;
    case 7: tensor.data = nullptr; break;
    case 8: tensor = RMSNORM_TENSOR_INIT; break;
    case 9: tensor.dtype = bytes->take<uint8_t>() * 256 + (8 << bytes->below(4)); break;
    case 10: tensor.row_stride = bytes->take<int16_t>(); break;
    case 11: tensor.group_stride = bytes->take<int16_t>(); break;
    case 12: {
      const size_t scalar = bytes->below(std::size(kScalars));
      const bool eps = bytes->below(2) == 0;
      params->edit_norm(
          [&](auto *norm) { (eps ? norm->eps : norm->weight_offset) = kScalars[scalar]; });
      params->edit_glu([&](auto *glu) { glu->activation = static_cast<int32_t>(scalar) - 2; });
      break;
    }
    default: {
      const size_t size = bytes->take<uint16_t>() % 4200;
      params->edit_head([&](auto *any) { any->struct_size = size; });
      break;
    }
  }
}

// Whether every element of an accepted call's tensors lies in the memory that there is.
bool within_memory(Params params, const Shape &shape) {
  for (int i = 0; i < kNameCount; ++i) {
    const Name name = static_cast<Name>(i);
    if (!rmsnorm_test::takes(params.direction, name)) continue;
    const rmsnorm_tensor_t &tensor = params.tensor(name);
    const int64_t rows = rows_of(shape, name);
    if (tensor.dtype == RMSNORM_DTYPE_NONE || rows == 0) continue;
    const __int128 size = rmsnorm::element_size(tensor.dtype);
    __int128 low = static_cast<__int128>(reinterpret_cast<uintptr_t>(tensor.data));
    __int128 high = low + cols_of(shape, name) * size;
    const int64_t counts[] = {rows, shape.groups},
                  strides[] = {tensor.row_stride, tensor.group_stride};
    for (int k = 0; k < 2; ++k) {
      const __int128 step = counts[k] > 1 ? size * strides[k] * (counts[k] - 1) : 0;
      (step < 0 ? low : high) += step;
    }
    if (!world().memory.holds(low, high)) return false;
  }
  return true;
}

// Enough for the regions, and short enough for the fuzzer, whatever row strides of 0 allow.
bool is_small(const Shape &shape) {
  const __int128 elements = static_cast<__int128>(shape.rows) * shape.groups * shape.cols;
  return elements <= 65536 && shape.rows <= 65536 && shape.groups <= 65536;
}

void mark_roles(Params params, const Shape &shape, uint32_t flags) {
  for (int i = 0; i < kNameCount; ++i) {
    const Name name = static_cast<Name>(i);
    if (!rmsnorm_test::takes(params.direction, name)) continue;
    const rmsnorm_tensor_t &tensor = params.tensor(name);
    if (tensor.dtype == RMSNORM_DTYPE_NONE) continue;
    const bool output = rmsnorm_test::is_output(params.direction, name);
    const bool added_to = output && is_vector(name) && (flags & RMSNORM_FLAG_ACCUMULATE) != 0;
    const int64_t size = rmsnorm::element_size(tensor.dtype), rows = rows_of(shape, name);
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t group = 0; group < shape.groups; ++group) {
        const int64_t at = (rows > 1 ? row * tensor.row_stride : 0) +
                           (shape.groups > 1 ? group * tensor.group_stride : 0);
        const char *const data = static_cast<const char *>(tensor.data) + at * size;
        const size_t bytes = static_cast<size_t>(cols_of(shape, name) * size);
        world().memory.mark(data, bytes, output ? Role::kOutput : Role::kInput);
        if (added_to) world().memory.mark(data, bytes, Role::kInput);
      }
  }
}

// One operation's function `rmsnorm_OPERATION##suffix`, with params of its type.
#define CALL(suffix, ...)                                                                     \
  switch (direction) {                                                                        \
    case Direction::kForward:                                                                 \
      return rmsnorm_forward##suffix(context,                                                 \
                                     static_cast<const rmsnorm_forward_params_t *>(params),   \
                                     __VA_ARGS__);                                            \
    case Direction::kBackward:                                                                \
      return rmsnorm_backward##suffix(context,                                                \
                                      static_cast<const rmsnorm_backward_params_t *>(params), \
                                      __VA_ARGS__);                                           \
    case Direction::kGluForward:                                                              \
      return rmsnorm_glu_forward##suffix(                                                     \
          context, static_cast<const rmsnorm_glu_forward_params_t *>(params), __VA_ARGS__);   \
    default:                                                                                  \
      return rmsnorm_glu_backward##suffix(                                                    \
          context, static_cast<const rmsnorm_glu_backward_params_t *>(params), __VA_ARGS__);  \
  }

rmsnorm_status_t run(Direction direction, const rmsnorm_context_t *context, const void *params,
                     void *workspace, size_t workspace_size,
                     void *stream){CALL(, workspace, workspace_size, stream)} rmsnorm_status_t
    query_size(Direction direction, const rmsnorm_context_t *context, const void *params,
               size_t *size){CALL(_workspace_size, size)} rmsnorm_status_t
    query_name(Direction direction, const rmsnorm_context_t *context, const void *params,
               char *name, size_t capacity) {
  CALL(_kernel_name, name, capacity)
}

#undef CALL

// The name query at the end of memory.
void ask_name(Direction direction, const rmsnorm_context_t *context, const void *params,
              rmsnorm_status_t expected, size_t capacity) {
  Memory &memory = world().memory;
  char *const name = memory.end(kMiscRegion) - capacity;
  const rmsnorm_status_t status = query_name(direction, context, params, name, capacity);
  REQUIRE(is_answer(status));
  if (status == RMSNORM_SUCCESS) {
    REQUIRE(expected == RMSNORM_SUCCESS);
    const size_t length = std::strlen(name);
    REQUIRE(length > 0 && length < RMSNORM_KERNEL_NAME_SIZE);
    REQUIRE(memory.changed(false, name, length + 1) == nullptr);
  } else {
    REQUIRE(status == expected ||
            (status == RMSNORM_ERROR_VALUE && capacity < RMSNORM_KERNEL_NAME_SIZE));
    REQUIRE(memory.changed(false, nullptr, 0) == nullptr);
  }
}

void call_operation(Bytes *bytes) {
  Memory &memory = world().memory;
  const uint8_t whose = bytes->take<uint8_t>();
  memory.fill(bytes->take<uint16_t>(), (whose & 0x80) != 0);
  Shape shape;
  Params params = draw_params(bytes, &shape);
  for (size_t edits = bytes->below(5); edits > 0; --edits) edit(bytes, &params);

  const Direction direction = params.direction;
  const rmsnorm_context_t *const context =
      whose % 32 == 31 ? nullptr : world().contexts[whose % 32 % std::size(world().contexts)];
  const size_t real = size_of(params);
  const size_t struct_size = with_head(params, [](const auto &head) { return head.struct_size; });
  const size_t given = given_bytes(struct_size, real);
  // What the struct has beyond what is known here: zero, as a rule.
  std::vector<char> head(given, 0);
  if (bytes->chance(8)) head.back() = bytes->take<char>();
  std::memcpy(head.data(), head_of(params), std::min(given, real));
  char *const at = memory.end(kParamsRegion) - given;
  std::memcpy(at, head.data(), given);
  memory.save();

  size_t needed = 0x5a5a5a5a;
  const rmsnorm_status_t asked = query_size(direction, context, at, &needed);
  REQUIRE(is_answer(asked));
  REQUIRE(asked == RMSNORM_SUCCESS || needed == 0x5a5a5a5a);
  REQUIRE(memory.changed(false, nullptr, 0) == nullptr);
  ask_name(direction, context, at, asked, bytes->below(160));
  world().others += 2;

  // What the call sees, if it is accepted: fields may have been edited.
  shape = with_head(params, [](const auto &head) {
    return Shape{head.rows, head.groups == 0 ? 1 : head.groups, head.cols};
  });
  if (asked == RMSNORM_SUCCESS && (!is_small(shape) || !within_memory(params, shape))) return;

  void *const stream = bytes->chance(32) ? at : nullptr;
  size_t workspace_size = asked == RMSNORM_SUCCESS ? needed : bytes->take<uint16_t>();
  if (workspace_size > Memory::kLargeBytes) return;
  char *workspace = memory.end(Memory::kRegions) - workspace_size;
  switch (bytes->below(16)) {
    case 1: workspace = nullptr; break;
    case 2: workspace_size = workspace_size > 0 ? workspace_size - 1 : 0; break;
    case 3:  // where a tensor may be
      if (workspace_size <= Memory::kRegionBytes)
        workspace = memory.begin(region_of(direction, draw_name(bytes, direction)));
      break;
    case 4: workspace = memory.begin(Memory::kRegions); break;
    default: break;
  }
  memory.fill(bytes->take<uint16_t>(), (whose & 0x80) != 0);
  std::memcpy(at, head.data(), given);
  memory.save();
  const size_t lines_before = lines;
  const rmsnorm_status_t status = run(direction, context, at, workspace, workspace_size, stream);
  REQUIRE(is_answer(status));
  if (status != RMSNORM_SUCCESS && status != RMSNORM_ERROR_CALLBACK) {
    REQUIRE(memory.changed(false, nullptr, 0) == nullptr);
    REQUIRE(lines == lines_before);
    ++world().refused;
    return;
  }
  REQUIRE(asked == RMSNORM_SUCCESS && given >= real && stream == nullptr && context != nullptr);
  mark_roles(params, shape, with_head(params, [](const auto &head) { return head.flags; }));
  memory.mark(at, given, Role::kInput);
  REQUIRE(memory.changed(true, workspace, needed) == nullptr);
  if (status == RMSNORM_ERROR_CALLBACK) return;
  const std::vector<char> outputs = memory.outputs();

  // Again, over other memory: what was not written, or does not depend on the inputs alone, shows.
  memory.restore();
  memory.flip_all_but_inputs();
  REQUIRE(run(direction, context, at, workspace, workspace_size, stream) == RMSNORM_SUCCESS);
  REQUIRE(memory.outputs() == outputs);
  world().accepted += 2;
}

// ---- The other functions ------------------------------------------------------------------------

void create_context(Bytes *bytes) {
  rmsnorm_context_options_t options = RMSNORM_CONTEXT_OPTIONS_INIT;
  options.device = bytes->chance(4) ? bytes->take<int32_t>() : bytes->below(3);
  options.ordinal = bytes->chance(4) ? bytes->take<int32_t>() : 0;
  options.flags = bytes->chance(4) ? bytes->take<uint32_t>() : bytes->below(8);
  options.cpu_threads = bytes->chance(4) ? bytes->take<int32_t>() : bytes->below(5);
  options.log = bytes->chance(2) ? count_lines : nullptr;
  options.log_user = &lines;
  options.parallel_for = bytes->chance(4) ? backwards : nullptr;
  if (bytes->chance(4)) options.struct_size = bytes->take<uint16_t>() % 4200;
  const size_t given = given_bytes(options.struct_size, sizeof options);
  Memory &memory = world().memory;
  char *const at = memory.end(kParamsRegion) - given;
  if (!bytes->chance(4)) std::memset(at, 0, given);
  std::memcpy(at, &options, given < sizeof options ? given : sizeof options);
  memory.save();
  rmsnorm_context_t *context = reinterpret_cast<rmsnorm_context_t *>(at);
  const rmsnorm_status_t status =
      rmsnorm_context_create(bytes->chance(16) ? nullptr
                                               : reinterpret_cast<rmsnorm_context_options_t *>(at),
                             bytes->chance(16) ? nullptr : &context);
  REQUIRE(is_answer(status));
  REQUIRE(memory.changed(false, nullptr, 0) == nullptr);
  if (status != RMSNORM_SUCCESS) {
    REQUIRE(context == nullptr || last_error() == "context is NULL");
    return;
  }
  rmsnorm_context_destroy(context);
}

void ask_devices(Bytes *bytes) {
  const rmsnorm_device_t device = bytes->chance(4) ? bytes->take<int32_t>() : bytes->below(3);
  int32_t count = -77;
  rmsnorm_status_t status = rmsnorm_device_count(device, bytes->chance(8) ? nullptr : &count);
  REQUIRE(is_answer(status));
  REQUIRE(status == RMSNORM_SUCCESS ? count >= 0 : count == -77);
  rmsnorm_device_info_t info = RMSNORM_DEVICE_INFO_INIT;
  if (bytes->chance(2)) info.struct_size = bytes->take<uint16_t>() % 4200;
  const size_t given = given_bytes(info.struct_size, sizeof info);
  Memory &memory = world().memory;
  char *const at = memory.end(kParamsRegion) - given;
  if (!bytes->chance(4)) std::memset(at, 0, given);
  std::memcpy(at, &info, given < sizeof info ? given : sizeof info);
  memory.save();
  status = rmsnorm_device_info(device, bytes->chance(2) ? bytes->take<int32_t>() : 0,
                               reinterpret_cast<rmsnorm_device_info_t *>(at));
  REQUIRE(is_answer(status));
  const size_t written = status == RMSNORM_SUCCESS ? sizeof info : 0;
  REQUIRE(written <= given);
  REQUIRE(memory.changed(false, at, written) == nullptr);
}

void ask_texts(Bytes *bytes) {
  Memory &memory = world().memory;
  const rmsnorm_status_t status =
      bytes->chance(2) ? bytes->take<int32_t>() : static_cast<int32_t>(bytes->below(6000));
  REQUIRE(std::strlen(rmsnorm_status_name(status)) > 0);
  const size_t capacity = bytes->below(600);
  char *const text = memory.end(kMiscRegion) - capacity;
  memory.save();
  const size_t needed = rmsnorm_last_error(bytes->chance(8) ? nullptr : text, capacity);
  REQUIRE(needed >= 1 && needed <= 512);
  REQUIRE(memory.changed(false, text, needed < capacity ? needed : capacity) == nullptr);
  const size_t size = bytes->below(5000);
  char *const at = memory.end(kParamsRegion) - size;
  using Init = void (*)(void *, size_t);
  constexpr Init kInits[] = {rmsnorm_forward_params_init,     rmsnorm_backward_params_init,
                             rmsnorm_context_options_init,    rmsnorm_device_info_init,
                             rmsnorm_glu_forward_params_init, rmsnorm_glu_backward_params_init};
  memory.save();
  bytes->pick(kInits)(at, size);
  REQUIRE(memory.changed(false, at, size) == nullptr);
  for (size_t i = sizeof size; i < size; ++i) REQUIRE(at[i] == 0);
}

}  // namespace
}  // namespace rmsnorm_fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  using namespace rmsnorm_fuzz;
  Bytes bytes(data, size);
  world().memory.fill(1, false);
  for (int calls = 0; calls < 4 && (calls == 0 || !bytes.empty()); ++calls) {
    switch (bytes.below(16)) {
      case 13: create_context(&bytes); break;
      case 14: ask_devices(&bytes); break;
      case 15: ask_texts(&bytes); break;
      default: call_operation(&bytes); break;
    }
  }
  return 0;
}
