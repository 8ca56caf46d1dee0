// rmsnorm/torch/_run.py's Runner.by_ctypes and _watch.py's checks once more, compiled: the same
// results at a fraction of the host's time. What is unusual it hands back to them.
//
// One file serves every Python from 3.10 on (the limited API), every PyTorch whose tensors have
// DLPack's exchange API, and every librmsnorm: nothing is linked, and a plan brings the address of
// its function and the bytes of its params.
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030A0000
#include <Python.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>

// Exported since 3.9, and by the limited API's headers since 3.12.
extern "C" PyObject *PyObject_Vectorcall(PyObject *, PyObject *const *, std::size_t, PyObject *);

namespace {

// ---- DLPack 1.x: what a torch.Tensor tells of itself --------------------------------------------

constexpr std::int32_t kCpu = 1, kCuda = 2;

struct DlTensor {
  void *data;
  std::int32_t device, ordinal, ndim;
  std::uint8_t type, bits;
  std::uint16_t lanes;
  std::int64_t *shape, *strides;
  std::uint64_t byte_offset;
};

struct DlExchange {
  std::uint32_t major, minor;
  void *previous, *allocate, *export_managed, *import_managed;
  int (*view)(void *object, DlTensor *view);  // borrows; -1 with Python's error set
  int (*stream)(std::int32_t device, std::int32_t ordinal, void **stream);
};
static_assert(sizeof(DlTensor) == 48 && sizeof(DlExchange) == 56, "DLPack's layout");

// ---- State --------------------------------------------------------------------------------------

// What setup() was given.
const DlExchange *exchange;
PyObject *types[2];    // torch.Tensor and Parameter: no other subclass
PyObject *empty_like;  // torch.empty_like
PyObject *is_neg;      // torch.Tensor.is_neg
PyObject *watchers;    // each says with a true value that somebody looks on
PyObject *forward_ad;
PyObject *is_grad_enabled;  // torch.is_grad_enabled
PyObject *inherited_apply;  // BackwardCFunction.apply

struct {
  PyObject *current_level, *saved_tensors, *needs_input_grad, *scalars, *run;
} names;

class Ref {  // owns a reference
 public:
  explicit Ref(PyObject *object) : object_(object) {}
  ~Ref() { Py_XDECREF(object_); }
  Ref(const Ref &) = delete;
  Ref &operator=(const Ref &) = delete;
  PyObject *get() const { return object_; }
  PyObject *release() {
    PyObject *object = object_;
    object_ = nullptr;
    return object;
  }

 private:
  PyObject *object_;
};

using FastFunction = PyObject *(PyObject *, PyObject *const *, Py_ssize_t);  // METH_FASTCALL

PyCFunction method(FastFunction *function) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void *>(function));
}

// 1 or 0; -1 with Python's error set.
int is_true(const Ref &answer) {
  return answer.get() == nullptr ? -1 : PyObject_IsTrue(answer.get());
}

bool is_plain(PyObject *object) {
  auto *type = reinterpret_cast<PyObject *>(Py_TYPE(object));
  return type == types[0] || type == types[1];
}

// ---- Plans --------------------------------------------------------------------------------------

constexpr int kMostTensors = 16;
constexpr std::size_t kMostParams = 512;
constexpr char kPlanName[] = "rmsnorm.plan";

using Function = std::int32_t(const void *context, const void *params, void *workspace,
                              std::size_t workspace_size, void *stream);

// All of a call but its pointers; _run.Plan has the same.
struct Plan {
  Function *function;
  const void *context;
  Py_ssize_t workspace_size, params_size, pointer_count, maker_count;
  std::int32_t ordinal;                    // of a CUDA device; -1: the CPU
  std::int32_t pointers[kMostTensors][2];  // which tensor; where its address stands in params
  std::int32_t makers[kMostTensors][2];    // an output; the tensor that it is like, or -1:
  PyObject *make_outputs;                  // a tuple of functions, one for each output
  PyObject *make_workspace;
  PyObject *refuse;  // raises what a status means; keeps the context
  alignas(8) unsigned char params[kMostParams];
};

void destroy_plan(PyObject *capsule) {
  auto *plan = static_cast<Plan *>(PyCapsule_GetPointer(capsule, kPlanName));
  Py_XDECREF(plan->make_outputs);
  Py_XDECREF(plan->make_workspace);
  Py_XDECREF(plan->refuse);
  std::free(plan);
}

bool fill_plan(Plan *plan, PyObject *args) {
  unsigned long long function, context;
  const char *params, *pointers, *makers;
  Py_ssize_t pointers_size, makers_size;
  PyObject *make_outputs, *make_workspace, *refuse;
  if (!PyArg_ParseTuple(args, "KKy#y#y#O!OniO:plan", &function, &context, &params,
                        &plan->params_size, &pointers, &pointers_size, &makers, &makers_size,
                        &PyTuple_Type, &make_outputs, &make_workspace, &plan->workspace_size,
                        &plan->ordinal, &refuse)) {
    return false;
  }
  constexpr Py_ssize_t kMostBytes = sizeof(plan->pointers), kPair = kMostBytes / kMostTensors;
  if (plan->params_size > Py_ssize_t{kMostParams} || pointers_size > kMostBytes ||
      makers_size > kMostBytes || PyTuple_Size(make_outputs) != makers_size / kPair) {
    PyErr_SetString(PyExc_ValueError, "no such plan");
    return false;
  }
  plan->function = reinterpret_cast<Function *>(function);
  plan->context = reinterpret_cast<const void *>(context);
  std::memcpy(plan->params, params, plan->params_size);
  std::memcpy(plan->pointers, pointers, pointers_size);
  std::memcpy(plan->makers, makers, makers_size);
  plan->pointer_count = pointers_size / kPair;
  plan->maker_count = makers_size / kPair;
  Py_INCREF(plan->make_outputs = make_outputs);
  Py_INCREF(plan->make_workspace = make_workspace);
  Py_INCREF(plan->refuse = refuse);
  return true;
}

// plan(function, context, params, pointers, makers, make_outputs, make_workspace, workspace_size,
// ordinal, refuse); pointers and makers: bytes of pairs of int32.
PyObject *make_plan(PyObject *, PyObject *args) {
  auto *plan = static_cast<Plan *>(std::calloc(1, sizeof(Plan)));
  if (plan == nullptr) return PyErr_NoMemory();
  PyObject *capsule = PyCapsule_New(plan, kPlanName, destroy_plan);
  if (capsule == nullptr) {
    std::free(plan);
    return nullptr;
  }
  if (fill_plan(plan, args)) return capsule;
  Py_DECREF(capsule);
  return nullptr;
}

// The address of a tensor's memory; false with Python's error set.
bool read_address(PyObject *tensor, void **address) {
  DlTensor view;
  if (exchange->view(tensor, &view) != 0) return false;
  *address = static_cast<char *>(view.data) + view.byte_offset;
  return true;
}

// The outputs that the plan makes, as a tuple; their addresses beside those of the tensors given.
PyObject *make_outputs(const Plan &plan, PyObject *const *tensors, void **addresses) {
  Ref outputs(PyTuple_New(plan.maker_count));
  if (outputs.get() == nullptr) return nullptr;
  for (Py_ssize_t i = 0; i < plan.maker_count; ++i) {
    const auto [position, like] = plan.makers[i];
    PyObject *made = like < 0 ? PyObject_CallNoArgs(PyTuple_GetItem(plan.make_outputs, i))
                              : PyObject_Vectorcall(empty_like, &tensors[like], 1, nullptr);
    if (made == nullptr || PyTuple_SetItem(outputs.get(), i, made) != 0 ||
        !read_address(made, &addresses[position])) {
      return nullptr;
    }
  }
  return outputs.release();
}

PyObject *run_plan(const Plan &plan, PyObject *const *tensors, void **addresses) {
  Ref outputs(make_outputs(plan, tensors, addresses));
  if (outputs.get() == nullptr) return nullptr;
  alignas(8) unsigned char params[kMostParams];
  std::memcpy(params, plan.params, plan.params_size);
  for (Py_ssize_t i = 0; i < plan.pointer_count; ++i) {
    const auto [position, offset] = plan.pointers[i];
    std::memcpy(params + offset, &addresses[position], sizeof(void *));
  }
  void *workspace = nullptr, *stream = nullptr;
  if (plan.ordinal >= 0 && exchange->stream(kCuda, plan.ordinal, &stream) != 0) return nullptr;
  Ref scratch(plan.workspace_size > 0 ? PyObject_CallNoArgs(plan.make_workspace) : nullptr);
  if (plan.workspace_size > 0 &&
      (scratch.get() == nullptr || !read_address(scratch.get(), &workspace))) {
    return nullptr;
  }
  std::int32_t status;
  Py_BEGIN_ALLOW_THREADS;
  status = plan.function(plan.context, params, workspace, plan.workspace_size, stream);
  Py_END_ALLOW_THREADS;
  if (status == 0) return outputs.release();
  const Ref nothing(PyObject_CallFunction(plan.refuse, "i", status));
  return nullptr;
}

// ---- A call -------------------------------------------------------------------------------------

// A call's signature: of each tensor the dtype, device, shape and strides.
class Key {
 public:
  // False for what is not plain memory of the CPU or CUDA.
  bool add(PyObject *tensor, void **address) {
    DlTensor view;
    if (!is_plain(tensor)) return false;
    if (exchange->view(tensor, &view) != 0) {
      PyErr_Clear();
      return false;
    }
    if ((view.device != kCpu && view.device != kCuda) || view.lanes != 1 || view.ndim < 1 ||
        view.ndim > kMostDims || view.strides == nullptr) {
      return false;
    }
    add(view.ndim | view.type << 8 | view.bits << 16 | std::int64_t{view.device} << 24 |
        std::int64_t{view.ordinal} << 32);
    bool contiguous = view.shape[view.ndim - 1] > 1;
    std::int64_t step = 1;
    for (int i = view.ndim - 1; i >= 0; --i) {
      contiguous = contiguous && (view.shape[i] == 1 || view.strides[i] == step);
      step *= view.shape[i];
      add(view.shape[i]);
      add(view.strides[i]);
    }
    *address = static_cast<char *>(view.data) + view.byte_offset;
    return contiguous || !negative(tensor);
  }
  void add_absent() { add(0); }
  PyObject *bytes() const {
    return PyBytes_FromStringAndSize(reinterpret_cast<const char *>(words_),
                                     count_ * sizeof(std::int64_t));
  }

 private:
  static constexpr int kMostDims = 8;

  void add(std::int64_t word) { words_[count_++] = word; }

  // Views of complex numbers alone have the negative bit: what is contiguous has none.
  static bool negative(PyObject *tensor) {
    Ref answer(PyObject_Vectorcall(is_neg, &tensor, 1, nullptr));
    if (answer.get() == nullptr) PyErr_Clear();
    return answer.get() != Py_False;
  }

  std::int64_t words_[kMostTensors * (1 + 2 * kMostDims)];
  Py_ssize_t count_ = 0;
};

constexpr Py_ssize_t kMostPlans = 1024;

// The plan of a call, kept for the next one with the same signature; None for what by_ctypes does.
PyObject *find_plan(PyObject *plans, PyObject *prepare, PyObject *signature, PyObject *const *args,
                    Py_ssize_t count) {
  PyObject *plan = PyDict_GetItemWithError(plans, signature);
  if (plan != nullptr || PyErr_Occurred()) {
    Py_XINCREF(plan);  // another thread may clear plans
    return plan;
  }
  plan = PyObject_Vectorcall(prepare, args, count, nullptr);
  if (plan == nullptr) return nullptr;
  if (PyDict_Size(plans) >= kMostPlans) PyDict_Clear(plans);
  if (PyDict_SetItem(plans, signature, plan) == 0) return plan;
  Py_DECREF(plan);
  return nullptr;
}

// What bind() returns: run(scalars, *tensors), each a tensor or None. The outputs made, as a tuple.
PyObject *run(PyObject *bound, PyObject *const *args, Py_ssize_t count) {
  PyObject *plans = PyTuple_GetItem(bound, 0), *prepare = PyTuple_GetItem(bound, 1),
           *by_ctypes = PyTuple_GetItem(bound, 2);
  if (count < 1 || count > kMostTensors) {
    return PyObject_Vectorcall(by_ctypes, args, count, nullptr);
  }
  PyObject *const *tensors = args + 1;
  void *addresses[kMostTensors] = {};
  Key key;
  for (Py_ssize_t i = 0; i < count - 1; ++i) {
    if (tensors[i] == Py_None) {
      key.add_absent();
    } else if (!key.add(tensors[i], &addresses[i])) {
      return PyObject_Vectorcall(by_ctypes, args, count, nullptr);
    }
  }
  Ref bytes(key.bytes());
  if (bytes.get() == nullptr) return nullptr;
  Ref signature(PyTuple_Pack(2, args[0], bytes.get()));
  if (signature.get() == nullptr) return nullptr;
  Ref plan(find_plan(plans, prepare, signature.get(), args, count));
  if (plan.get() == nullptr) return nullptr;
  if (plan.get() == Py_None) return PyObject_Vectorcall(by_ctypes, args, count, nullptr);
  auto *found = static_cast<const Plan *>(PyCapsule_GetPointer(plan.get(), kPlanName));
  return found == nullptr ? nullptr : run_plan(*found, tensors, addresses);
}

PyMethodDef run_method = {"run", method(run), METH_FASTCALL,
                          "run(scalars, *tensors): Runner.by_ctypes, compiled."};

// bind(plans, prepare, by_ctypes): run() with these.
PyObject *bind(PyObject *, PyObject *args) {
  PyObject *plans, *prepare, *by_ctypes;
  if (!PyArg_ParseTuple(args, "O!OO:bind", &PyDict_Type, &plans, &prepare, &by_ctypes)) {
    return nullptr;
  }
  return PyCFunction_New(&run_method, args);
}

// ---- Who looks on -------------------------------------------------------------------------------

// Whether each is a plain tensor, all but the first or None, the first has memory on the CPU or
// CUDA, and nobody looks on: 1 or 0; -1 with Python's error set.
int are_plain(PyObject *const *tensors, Py_ssize_t count) {
  for (Py_ssize_t i = 0; i < count; ++i) {
    if (!is_plain(tensors[i]) && (tensors[i] != Py_None || i == 0)) return 0;
  }
  DlTensor view;
  if (exchange->view(tensors[0], &view) != 0) {
    PyErr_Clear();
    return 0;
  }
  if (view.device != kCpu && view.device != kCuda) return 0;
  const Py_ssize_t watcher_count = PyTuple_Size(watchers);
  for (Py_ssize_t i = 0; i < watcher_count; ++i) {
    const int looks_on = is_true(Ref(PyObject_CallNoArgs(PyTuple_GetItem(watchers, i))));
    if (looks_on != 0) return looks_on < 0 ? -1 : 0;
  }
  Ref level(PyObject_GetAttr(forward_ad, names.current_level));
  if (level.get() == nullptr) return -1;
  const long number = PyLong_AsLong(level.get());
  return number == -1 && PyErr_Occurred() ? -1 : number < 0;
}

// plain(*tensors), compiled: _watch.plain().
PyObject *plain(PyObject *, PyObject *const *tensors, Py_ssize_t count) {
  if (count < 1) {
    PyErr_SetString(PyExc_TypeError, "plain() takes at least one tensor");
    return nullptr;
  }
  const int answer = are_plain(tensors, count);
  return answer < 0 ? nullptr : PyBool_FromLong(answer);
}

// ---- Backward -----------------------------------------------------------------------------------

// Each input's gradient, where one is needed: the outputs made, in order. Where there are fewer,
// the first is that of the first few: of x and residual alike.
PyObject *spread(PyObject *made, PyObject *needs) {
  const Py_ssize_t count = PyTuple_Size(needs), made_count = PyTuple_Size(made);
  if (count < 0 || made_count < 0) return nullptr;
  Py_ssize_t next = made_count;
  for (Py_ssize_t i = 0; i < count; ++i) next -= PyTuple_GetItem(needs, i) == Py_True;
  Ref gradients(PyTuple_New(count));
  if (gradients.get() == nullptr) return nullptr;
  for (Py_ssize_t i = 0; i < count; ++i) {
    PyObject *gradient = Py_None;
    if (PyTuple_GetItem(needs, i) == Py_True && made_count > 0) {
      gradient = PyTuple_GetItem(made, next < 0 ? 0 : next);
      ++next;
    }
    Py_XINCREF(gradient);
    if (PyTuple_SetItem(gradients.get(), i, gradient) != 0) return nullptr;
  }
  return gradients.release();
}

// The gradients; None where the Python function is to make them.
PyObject *make_gradients(PyObject *ctx, PyObject *const *grads, Py_ssize_t count) {
  const int plain = count < 1 ? 0 : are_plain(grads, count);
  if (plain < 0) return nullptr;
  const int again = is_true(Ref(PyObject_CallNoArgs(is_grad_enabled)));  // gradients of gradients
  if (again < 0) return nullptr;
  if (!plain || again) Py_RETURN_NONE;
  Ref saved(PyObject_GetAttr(ctx, names.saved_tensors));
  if (saved.get() == nullptr) return nullptr;  // freed: no further call while the error is set
  Ref scalars(PyObject_GetAttr(ctx, names.scalars));
  if (scalars.get() == nullptr) return nullptr;
  Ref needs(PyObject_GetAttr(ctx, names.needs_input_grad));
  if (needs.get() == nullptr) return nullptr;
  Ref run(PyObject_GetAttr(ctx, names.run));
  if (run.get() == nullptr) return nullptr;
  const Py_ssize_t saved_count = PyTuple_Size(saved.get());
  if (saved_count < 0) return nullptr;
  if (1 + saved_count + count > kMostTensors) Py_RETURN_NONE;
  Ref key(PyTuple_Pack(2, scalars.get(), needs.get()));
  if (key.get() == nullptr) return nullptr;
  PyObject *args[kMostTensors] = {key.get(), grads[0]};
  for (Py_ssize_t i = 0; i < saved_count; ++i) {
    args[2 + i] = PyTuple_GetItem(saved.get(), i);
    if (!is_plain(args[2 + i]) && args[2 + i] != Py_None) Py_RETURN_NONE;
  }
  std::copy(grads + 1, grads + count, args + 2 + saved_count);
  Ref made(PyObject_Vectorcall(run.get(), args, 1 + saved_count + count, nullptr));
  if (made.get() == nullptr || made.get() == Py_None) return made.release();
  return spread(made.get(), needs.get());
}

// The method apply(*grads) of an autograd.Function's backward class. It stands in for the inherited
// one, which calls the Python function backward(), where the gradients are what the class's
// run((scalars, needs_input_grad), grads[0], *saved_tensors, *grads[1:]) makes.
PyObject *apply(PyObject *ctx, PyObject *const *grads, Py_ssize_t count) {
  Ref gradients(make_gradients(ctx, grads, count));
  if (gradients.get() != Py_None) return gradients.release();
  if (count >= kMostTensors) {
    PyErr_SetString(PyExc_TypeError, "too many gradients");
    return nullptr;
  }
  PyObject *args[kMostTensors] = {ctx};
  std::copy(grads, grads + count, args + 1);
  return PyObject_Vectorcall(inherited_apply, args, 1 + count, nullptr);
}

PyMethodDef apply_method = {"apply", method(apply), METH_FASTCALL, "backward(), compiled."};

// apply_of(class): that method for such a class.
PyObject *apply_of(PyObject *, PyObject *type) {
  if (!PyType_Check(type)) {
    PyErr_SetString(PyExc_TypeError, "not a class");
    return nullptr;
  }
  return PyDescr_NewMethod(reinterpret_cast<PyTypeObject *>(type), &apply_method);
}

// ---- The module ---------------------------------------------------------------------------------

// setup(exchange, Tensor, Parameter, empty_like, is_neg, watchers, forward_ad, is_grad_enabled,
// BackwardCFunction.apply), once.
PyObject *setup(PyObject *, PyObject *args) {
  PyObject *capsule;
  if (!PyArg_ParseTuple(args, "OOOOOO!OOO:setup", &capsule, &types[0], &types[1], &empty_like,
                        &is_neg, &PyTuple_Type, &watchers, &forward_ad, &is_grad_enabled,
                        &inherited_apply)) {
    return nullptr;
  }
  exchange = static_cast<const DlExchange *>(PyCapsule_GetPointer(capsule, "dlpack_exchange_api"));
  if (exchange == nullptr) return nullptr;
  if (exchange->major != 1 || exchange->view == nullptr) {
    PyErr_SetString(PyExc_ImportError, "another version of DLPack's exchange API");
    return nullptr;
  }
  const struct {
    PyObject **name;
    const char *text;
  } all[] = {{&names.current_level, "_current_level"},
             {&names.saved_tensors, "saved_tensors"},
             {&names.needs_input_grad, "needs_input_grad"},
             {&names.scalars, "scalars"},
             {&names.run, "run"}};
  for (const auto &each : all) {
    *each.name = PyUnicode_InternFromString(each.text);
    if (*each.name == nullptr) return nullptr;
  }
  Py_INCREF(args);  // and with it all that it holds, for good
  Py_RETURN_NONE;
}

PyMethodDef methods[] = {
    {"setup", setup, METH_VARARGS, "Gives the module what it needs of PyTorch, once."},
    {"plan", make_plan, METH_VARARGS, "All of a call but its pointers."},
    {"bind", bind, METH_VARARGS, "A function that runs an operation."},
    {"apply_of", apply_of, METH_O, "The method apply of a Function's backward class."},
    {"plain", method(plain), METH_FASTCALL, "Whether nobody looks on: _watch.plain."},
    {nullptr, nullptr, 0, nullptr}};

PyModuleDef module = {PyModuleDef_HEAD_INIT,
                      "rmsnorm_torch_host",
                      "Calls of librmsnorm from PyTorch, compiled.",
                      -1,
                      methods,
                      nullptr,
                      nullptr,
                      nullptr,
                      nullptr};

}  // namespace

PyMODINIT_FUNC PyInit_rmsnorm_torch_host() { return PyModule_Create(&module); }
