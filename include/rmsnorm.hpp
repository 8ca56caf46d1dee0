/*
 * rmsnorm.h for C++17: a context that destroys itself, views that know their shape and dtype, and a
 * status that is not dropped unseen. rmsnorm.h is the manual; what is here only calls it. Header
 * only: nothing of it is compiled into the library, and the library's ABI stays C's. No exceptions,
 * no RTTI, no allocation.
 * SPDX-License-Identifier: Apache-2.0
 *
 *   rmsnorm::Context context;
 *   rmsnorm::Status status = rmsnorm::Context::create({}, &context);  // the CPU
 *   rmsnorm::Forward args;
 *   args.x = rmsnorm::matrix(x, 128, 4096);  // x: a std::vector, a std::span, an array, a pointer
 *   args.weight = rmsnorm::vector(weight, 4096);
 *   args.y = rmsnorm::matrix(y, 128, 4096);
 *   if (status.ok()) status = rmsnorm::forward(context, args);
 *   if (!status.ok()) std::fprintf(stderr, "%s\n", status.text());
 *
 * The shape of a call is that of its main view (x, or gate); the others must go with it, and a view
 * of a container must stay inside it. Both are checked here, everything else in the library; the
 * first argument that does not fit is named, and nothing has been written.
 */
#ifndef RMSNORM_HPP
#define RMSNORM_HPP

#include <cstdarg>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <iterator>
#include <type_traits>
#include <utility>

#include "rmsnorm.h"

namespace rmsnorm {

// ---- Status -------------------------------------------------------------------------------------

// What a call came to. It carries its text itself, so it may be kept and handed to other threads.
class [[nodiscard]] Status {
 public:
  Status() noexcept { text_[0] = '\0'; }  // success

  // The status that a C function has just returned on this thread, with its text.
  static Status of(rmsnorm_status_t code) noexcept {
    Status status;
    status.code_ = code;
    if (code != RMSNORM_SUCCESS) rmsnorm_last_error(status.text_, sizeof status.text_);
    return status;
  }

  // A status with a text of one's own, as of printf.
  __attribute__((format(printf, 2, 3))) static Status error(rmsnorm_status_t code,
                                                            const char *format, ...) noexcept {
    Status status;
    status.code_ = code;
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(status.text_, sizeof status.text_, format, arguments);
    va_end(arguments);
    return status;
  }

  bool ok() const noexcept { return code_ == RMSNORM_SUCCESS; }
  rmsnorm_status_t code() const noexcept { return code_; }
  const char *name() const noexcept { return rmsnorm_status_name(code_); }  // of the constant
  const char *text() const noexcept { return text_; }                       // "" for success

 private:
  rmsnorm_status_t code_ = RMSNORM_SUCCESS;
  char text_[512];
};

// ---- Views --------------------------------------------------------------------------------------

// The dtype of an element type. C++17 has none for halves: Float16 and BFloat16 are tags for memory
// of std::uint16_t. For a type of your own:
//   template <> struct rmsnorm::Dtype<__half> {
//     static constexpr rmsnorm_dtype_t value = RMSNORM_DTYPE_F16;
//     using Element = __half;
//   };
template <class T>
struct Dtype;
template <>
struct Dtype<float> {
  static constexpr rmsnorm_dtype_t value = RMSNORM_DTYPE_F32;
  using Element = float;
};
template <>
struct Dtype<double> {
  static constexpr rmsnorm_dtype_t value = RMSNORM_DTYPE_F64;
  using Element = double;
};
struct Float16 {};
template <>
struct Dtype<Float16> {
  static constexpr rmsnorm_dtype_t value = RMSNORM_DTYPE_F16;
  using Element = std::uint16_t;
};
struct BFloat16 {};
template <>
struct Dtype<BFloat16> {
  static constexpr rmsnorm_dtype_t value = RMSNORM_DTYPE_BF16;
  using Element = std::uint16_t;
};

inline constexpr std::int64_t kUnknownSize = -1;  // of a bare pointer, which is trusted

// rows x groups x cols elements of T, which may be const; (r, g, c) stands at data + r * row_stride
// + g * group_stride + c. size: how many elements there are from data on.
template <class T>
struct View {
  using Plain = typename Dtype<std::remove_const_t<T>>::Element;
  using Element = std::conditional_t<std::is_const_v<T>, const Plain, Plain>;

  Element *data = nullptr;
  std::int64_t rows = 1, groups = 1, cols = 0;
  std::int64_t row_stride = 0, group_stride = 0;
  std::int64_t size = kUnknownSize;
};

namespace detail {

// Where the elements of a pointer, an array or a container begin, and how many there are.
template <class T>
T *data_of(T *pointer) noexcept {
  return pointer;
}
template <class Data>
auto data_of(Data &data) noexcept -> decltype(std::data(data)) {
  return std::data(data);
}
template <class Data>
std::int64_t size_of(const Data &data) noexcept {
  if constexpr (std::is_pointer_v<Data>) return kUnknownSize;
  else return static_cast<std::int64_t>(std::size(data));
}

// T of the View: what the elements are or, for halves, the tag that the caller named.
template <class Tag, class Element>
using Viewed = std::conditional_t<std::is_void_v<Tag>, Element,
                                  std::conditional_t<std::is_const_v<Element>, const Tag, Tag>>;

}  // namespace detail

// Views with strides of their own. Halves are named: tensor<rmsnorm::BFloat16>(bits, ...).
template <class Tag = void, class Data>
auto tensor(Data &&data, std::int64_t rows, std::int64_t groups, std::int64_t cols,
            std::int64_t row_stride, std::int64_t group_stride) noexcept {
  using Element = std::remove_pointer_t<decltype(detail::data_of(data))>;
  return View<detail::Viewed<Tag, Element>>{
      detail::data_of(data), rows, groups, cols, row_stride, group_stride, detail::size_of(data)};
}
template <class Tag = void, class Data>
auto matrix(Data &&data, std::int64_t rows, std::int64_t cols, std::int64_t row_stride) noexcept {
  return tensor<Tag>(std::forward<Data>(data), rows, 1, cols, row_stride, 0);
}
// Views without gaps. rstd is matrix(rstd, rows, 1), or tensor(rstd, rows, groups, 1).
template <class Tag = void, class Data>
auto tensor(Data &&data, std::int64_t rows, std::int64_t groups, std::int64_t cols) noexcept {
  return tensor<Tag>(std::forward<Data>(data), rows, groups, cols, groups * cols, cols);
}
template <class Tag = void, class Data>
auto matrix(Data &&data, std::int64_t rows, std::int64_t cols) noexcept {
  return matrix<Tag>(std::forward<Data>(data), rows, cols, cols);
}
// weight, bias, dweight and dbias; one per group is tensor(weight, 1, groups, cols).
template <class Tag = void, class Data>
auto vector(Data &&data, std::int64_t cols) noexcept {
  return matrix<Tag>(std::forward<Data>(data), 1, cols, 0);
}

namespace detail {

// A view of which the element type is known at run time alone. Absent unless made from a View.
template <class Void>
struct AnyView {
  AnyView() = default;
  template <class T,
            class = std::enable_if_t<std::is_convertible_v<typename View<T>::Element *, Void *>>>
  AnyView(const View<T> &view) noexcept
      : data(view.data),
        rows(view.rows),
        groups(view.groups),
        cols(view.cols),
        row_stride(view.row_stride),
        group_stride(view.group_stride),
        size(view.size),
        dtype(Dtype<std::remove_const_t<T>>::value) {}

  Void *data = nullptr;
  std::int64_t rows = 0, groups = 0, cols = 0;
  std::int64_t row_stride = 0, group_stride = 0;
  std::int64_t size = 0;
  rmsnorm_dtype_t dtype = RMSNORM_DTYPE_NONE;
};

}  // namespace detail

using Input = detail::AnyView<const void>;  // of any View
using Output = detail::AnyView<void>;       // of a View whose elements are not const

// ---- Context and devices ------------------------------------------------------------------------

// rmsnorm_context_options_t, set to the CPU and its caller's thread.
struct ContextOptions : rmsnorm_context_options_t {
  ContextOptions() noexcept : rmsnorm_context_options_t RMSNORM_CONTEXT_OPTIONS_INIT {}

  // run(count, task) calls task(index) for every index below count, on any threads, and returns 0,
  // or another number if it could not. It must outlive the context; an exception ends the program.
  template <class Run>
  void set_parallel_for(Run *run) noexcept {
    parallel_for = [](void *user, std::int64_t count, rmsnorm_task_t task,
                      void *arg) noexcept -> std::int32_t {
      return (*static_cast<Run *>(user))(count, [=](std::int64_t index) { task(arg, index); });
    };
    parallel_for_user = const_cast<std::remove_const_t<Run> *>(run);
  }

  // write(line) is called once per accepted operation; as above.
  template <class Write>
  void set_log(Write *write) noexcept {
    log = [](void *user, const char *line) noexcept { (*static_cast<Write *>(user))(line); };
    log_user = const_cast<std::remove_const_t<Write> *>(write);
  }
};

// Owns a rmsnorm_context_t. Any number of threads may call with it; none while it is moved.
class Context {
 public:
  Context() = default;  // none yet: a call refuses it
  Context(Context &&other) noexcept : handle_(other.release()) {}
  Context &operator=(Context &&other) noexcept {
    if (this != &other) {
      rmsnorm_context_destroy(handle_);
      handle_ = other.release();
    }
    return *this;
  }
  ~Context() { rmsnorm_context_destroy(handle_); }

  // On success *context is a new one, and what it was before is destroyed; else it stays.
  static Status create(const ContextOptions &options, Context *context) noexcept {
    Context created;
    const Status status = Status::of(rmsnorm_context_create(&options, &created.handle_));
    if (status.ok()) *context = std::move(created);
    return status;
  }

  const rmsnorm_context_t *get() const noexcept { return handle_; }
  // Gives up the handle, for rmsnorm_context_destroy.
  rmsnorm_context_t *release() noexcept { return std::exchange(handle_, nullptr); }

 private:
  rmsnorm_context_t *handle_ = nullptr;
};

inline Status device_count(rmsnorm_device_t device, std::int32_t *count) noexcept {
  return Status::of(rmsnorm_device_count(device, count));
}

inline Status device_info(rmsnorm_device_t device, std::int32_t ordinal,
                          rmsnorm_device_info_t *info) noexcept {
  rmsnorm_device_info_init(info, sizeof *info);
  return Status::of(rmsnorm_device_info(device, ordinal, info));
}

// ---- Operations ---------------------------------------------------------------------------------

// The arguments of each operation: the fields of its C struct, with views for tensors. What is not
// set is absent. In C++20: forward(context, {.x = x, .weight = weight, .y = y}).
struct Forward {
  Input x = {}, residual = {}, weight = {}, bias = {};
  Output y = {}, residual_out = {}, rstd = {};
  double eps = 1e-6, weight_offset = 0;
  rmsnorm_rounding_t rounding = RMSNORM_ROUNDING_ONCE;
  std::uint32_t flags = 0;
};

struct Backward {
  Input dy = {}, x = {}, weight = {}, rstd = {}, dresidual_out = {};
  Output dx = {}, dresidual = {}, dweight = {}, dbias = {};
  double eps = 1e-6, weight_offset = 0;
  std::uint32_t flags = 0;
};

struct GluForward {
  Input gate = {}, up = {};
  Output y = {};
  rmsnorm_activation_t activation = RMSNORM_ACTIVATION_SILU;
  std::uint32_t flags = 0;
};

struct GluBackward {
  Input dy = {}, gate = {}, up = {};
  Output dgate = {}, dup = {};
  rmsnorm_activation_t activation = RMSNORM_ACTIVATION_SILU;
  std::uint32_t flags = 0;
};

// Memory of the context's device, of at least the bytes that the operation's _workspace_size tells.
struct Workspace {
  void *data = nullptr;
  std::size_t size = 0;
};

namespace detail {

// Puts views into the params of one call, and keeps the first error.
class Filler {
 public:
  Filler(const char *name, const Input &view) noexcept : main_name_(name), main_(view) {
    if (view.dtype == RMSNORM_DTYPE_NONE)
      status_ = Status::error(RMSNORM_ERROR_NULL, "%s is absent", name);
  }

  template <class Void, class Tensor>
  void rows(const char *name, const AnyView<Void> &view, Tensor *tensor) noexcept {
    put(name, view, main_.rows, main_.groups, main_.cols, tensor);
  }
  template <class Void, class Tensor>
  void rstd(const char *name, const AnyView<Void> &view, Tensor *tensor) noexcept {
    put(name, view, main_.rows, main_.groups, 1, tensor);
  }
  template <class Void, class Tensor>
  void vector(const char *name, const AnyView<Void> &view, Tensor *tensor) noexcept {
    put(name, view, 1, view.groups == 1 ? 1 : main_.groups, main_.cols, tensor);
    tensor->row_stride = 0;
    if (view.groups == 1) tensor->group_stride = 0;
  }
  template <class Args, class Params>
  Status finish(const Args &args, Params *params) const noexcept {
    params->rows = main_.rows;
    params->groups = main_.groups;
    params->cols = main_.cols;
    params->flags = args.flags;
    return status_;
  }

 private:
  template <class Void, class Tensor>
  void put(const char *name, const AnyView<Void> &view, std::int64_t rows, std::int64_t groups,
           std::int64_t cols, Tensor *tensor) noexcept {
    if (view.dtype == RMSNORM_DTYPE_NONE || !status_.ok()) return;
    if (view.rows != rows || view.groups != groups || view.cols != cols)
      status_ = Status::error(RMSNORM_ERROR_SHAPE,
                              "%s is %lld x %lld x %lld, but with %s it must be %lld x %lld x %lld",
                              name, number(view.rows), number(view.groups), number(view.cols),
                              main_name_, number(rows), number(groups), number(cols));
    else if (!inside(view))
      status_ = Status::error(
          RMSNORM_ERROR_SHAPE,
          "%s of %lld x %lld x %lld, row_stride %lld, group_stride %lld leaves its %lld elements",
          name, number(rows), number(groups), number(cols), number(view.row_stride),
          number(view.group_stride), number(view.size));
    else *tensor = {view.data, view.row_stride, view.group_stride, view.dtype, 0};
  }

  static long long number(std::int64_t value) noexcept { return value; }

  // Whether a view of a container reaches no element that is not the container's.
  template <class Void>
  static bool inside(const AnyView<Void> &view) noexcept {
    if (view.size == kUnknownSize || view.rows < 1 || view.groups < 1 || view.cols < 1) return true;
    std::int64_t across_rows = 0, across_groups = 0, first = 0, last = 0;
    bool overflow = __builtin_mul_overflow(view.rows - 1, view.row_stride, &across_rows);
    overflow |= __builtin_mul_overflow(view.groups - 1, view.group_stride, &across_groups);
    for (const std::int64_t across : {across_rows, across_groups})
      overflow |=
          __builtin_add_overflow(across < 0 ? first : last, across, across < 0 ? &first : &last);
    overflow |= __builtin_add_overflow(last, view.cols, &last);
    return !overflow && first >= 0 && last <= view.size;
  }

  const char *main_name_;
  const Input &main_;
  Status status_;
};

inline Status fill(const Forward &args, rmsnorm_forward_params_t *params) noexcept {
  Filler filler("x", args.x);
  filler.rows("x", args.x, &params->x);
  filler.rows("residual", args.residual, &params->residual);
  filler.vector("weight", args.weight, &params->weight);
  filler.vector("bias", args.bias, &params->bias);
  filler.rows("y", args.y, &params->y);
  filler.rows("residual_out", args.residual_out, &params->residual_out);
  filler.rstd("rstd", args.rstd, &params->rstd);
  params->eps = args.eps;
  params->weight_offset = args.weight_offset;
  params->rounding = args.rounding;
  return filler.finish(args, params);
}

inline Status fill(const Backward &args, rmsnorm_backward_params_t *params) noexcept {
  Filler filler("x", args.x);
  filler.rows("x", args.x, &params->x);
  filler.rows("dy", args.dy, &params->dy);
  filler.vector("weight", args.weight, &params->weight);
  filler.rstd("rstd", args.rstd, &params->rstd);
  filler.rows("dresidual_out", args.dresidual_out, &params->dresidual_out);
  filler.rows("dx", args.dx, &params->dx);
  filler.rows("dresidual", args.dresidual, &params->dresidual);
  filler.vector("dweight", args.dweight, &params->dweight);
  filler.vector("dbias", args.dbias, &params->dbias);
  params->eps = args.eps;
  params->weight_offset = args.weight_offset;
  return filler.finish(args, params);
}

inline Status fill(const GluForward &args, rmsnorm_glu_forward_params_t *params) noexcept {
  Filler filler("gate", args.gate);
  filler.rows("gate", args.gate, &params->gate);
  filler.rows("up", args.up, &params->up);
  filler.rows("y", args.y, &params->y);
  params->activation = args.activation;
  return filler.finish(args, params);
}

inline Status fill(const GluBackward &args, rmsnorm_glu_backward_params_t *params) noexcept {
  Filler filler("gate", args.gate);
  filler.rows("gate", args.gate, &params->gate);
  filler.rows("dy", args.dy, &params->dy);
  filler.rows("up", args.up, &params->up);
  filler.rows("dgate", args.dgate, &params->dgate);
  filler.rows("dup", args.dup, &params->dup);
  params->activation = args.activation;
  return filler.finish(args, params);
}

// Fills the params of one of the C functions, all zero where nothing is said, and calls it.
template <class Args, class Params, class... Rest>
Status call(rmsnorm_status_t (*function)(const rmsnorm_context_t *, const Params *, Rest...),
            const Context &context, const Args &args, std::common_type_t<Rest>... rest) noexcept {
  Params params = {};
  params.struct_size = sizeof params;
  const Status status = fill(args, &params);
  return status.ok() ? Status::of(function(context.get(), &params, rest...)) : status;
}

}  // namespace detail

// stream: CUDA, a cudaStream_t; CPU, nullptr.
inline Status forward(const Context &context, const Forward &args, Workspace workspace = {},
                      void *stream = nullptr) noexcept {
  return detail::call(rmsnorm_forward, context, args, workspace.data, workspace.size, stream);
}
inline Status forward_workspace_size(const Context &context, const Forward &args,
                                     std::size_t *size) noexcept {
  return detail::call(rmsnorm_forward_workspace_size, context, args, size);
}
inline Status forward_kernel_name(const Context &context, const Forward &args, char *name,
                                  std::size_t capacity) noexcept {
  return detail::call(rmsnorm_forward_kernel_name, context, args, name, capacity);
}

inline Status backward(const Context &context, const Backward &args, Workspace workspace = {},
                       void *stream = nullptr) noexcept {
  return detail::call(rmsnorm_backward, context, args, workspace.data, workspace.size, stream);
}
inline Status backward_workspace_size(const Context &context, const Backward &args,
                                      std::size_t *size) noexcept {
  return detail::call(rmsnorm_backward_workspace_size, context, args, size);
}
inline Status backward_kernel_name(const Context &context, const Backward &args, char *name,
                                   std::size_t capacity) noexcept {
  return detail::call(rmsnorm_backward_kernel_name, context, args, name, capacity);
}

inline Status glu_forward(const Context &context, const GluForward &args, Workspace workspace = {},
                          void *stream = nullptr) noexcept {
  return detail::call(rmsnorm_glu_forward, context, args, workspace.data, workspace.size, stream);
}
inline Status glu_forward_workspace_size(const Context &context, const GluForward &args,
                                         std::size_t *size) noexcept {
  return detail::call(rmsnorm_glu_forward_workspace_size, context, args, size);
}
inline Status glu_forward_kernel_name(const Context &context, const GluForward &args, char *name,
                                      std::size_t capacity) noexcept {
  return detail::call(rmsnorm_glu_forward_kernel_name, context, args, name, capacity);
}

inline Status glu_backward(const Context &context, const GluBackward &args,
                           Workspace workspace = {}, void *stream = nullptr) noexcept {
  return detail::call(rmsnorm_glu_backward, context, args, workspace.data, workspace.size, stream);
}
inline Status glu_backward_workspace_size(const Context &context, const GluBackward &args,
                                          std::size_t *size) noexcept {
  return detail::call(rmsnorm_glu_backward_workspace_size, context, args, size);
}
inline Status glu_backward_kernel_name(const Context &context, const GluBackward &args, char *name,
                                       std::size_t capacity) noexcept {
  return detail::call(rmsnorm_glu_backward_kernel_name, context, args, name, capacity);
}

}  // namespace rmsnorm

#endif  // RMSNORM_HPP
