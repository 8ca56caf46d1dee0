"""This library's calls on torch CUDA tensors, for side-by-side benchmarks of kernels: no checks, no
allocation but for the workspace, the params built once per set of buffers.

    fwd(x, w, y)                  y = rmsnorm(x) * w
    bwd(dy, x, w, rstd, dx, dw)   rstd: fp32, one per row
    add(x, residual, w, y, h)     h = x + residual; y = rmsnorm(h) * w
    glu(gate, up, y)              y = act(gate) * up
    glu_bwd(dy, gate, up, dgate, dup)

x, y, ... are (rows, cols) of fp32, fp16 or bf16 with stride 1 in cols. RMSNORM_LIBRARY names the
librmsnorm.so to load; RMSNORM_BENCH_OVERLAP=1 sets RMSNORM_FLAG_OVERLAP; RMSNORM_BENCH_ACTIVATION
is silu (the default), gelu_tanh or gelu_erf. make_fwd, make_bwd and
make_add give the same calls as objects, for callers that keep them, with flags of their own.
"""
import ctypes
import os

import torch

EPS = 1e-6
DTYPES = {torch.float32: 0x0220, torch.float16: 0x0210, torch.bfloat16: 0x0410}
FLAGS = 1 if os.environ.get("RMSNORM_BENCH_OVERLAP") == "1" else 0
ACTIVATION = ("silu", "gelu_tanh", "gelu_erf").index(
    os.environ.get("RMSNORM_BENCH_ACTIVATION", "silu"))
DEVICE_CUDA = 2


class Tensor(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("row_stride", ctypes.c_int64),
                ("group_stride", ctypes.c_int64), ("dtype", ctypes.c_int32),
                ("reserved", ctypes.c_int32)]


HEAD = [("struct_size", ctypes.c_size_t), ("rows", ctypes.c_int64), ("groups", ctypes.c_int64),
        ("cols", ctypes.c_int64), ("eps", ctypes.c_double), ("weight_offset", ctypes.c_double),
        ("rounding", ctypes.c_int32), ("flags", ctypes.c_uint32)]


class Forward(ctypes.Structure):
    _fields_ = HEAD + [(name, Tensor) for name in
                       ("x", "residual", "weight", "bias", "y", "residual_out", "rstd")]


class Backward(ctypes.Structure):
    _fields_ = HEAD + [(name, Tensor) for name in
                       ("dy", "x", "weight", "rstd", "dresidual_out", "dx", "dresidual", "dweight",
                        "dbias")]


GLU_HEAD = HEAD[:4] + [("activation", ctypes.c_int32), ("flags", ctypes.c_uint32)]


class GluForward(ctypes.Structure):
    _fields_ = GLU_HEAD + [(name, Tensor) for name in ("gate", "up", "y")]


class GluBackward(ctypes.Structure):
    _fields_ = GLU_HEAD + [(name, Tensor) for name in ("dy", "gate", "up", "dgate", "dup")]


class ContextOptions(ctypes.Structure):
    _fields_ = [("struct_size", ctypes.c_size_t), ("device", ctypes.c_int32),
                ("ordinal", ctypes.c_int32), ("flags", ctypes.c_uint32),
                ("cpu_threads", ctypes.c_int32), ("log", ctypes.c_void_p),
                ("log_user", ctypes.c_void_p), ("parallel_for", ctypes.c_void_p),
                ("parallel_for_user", ctypes.c_void_p)]


library = ctypes.CDLL(os.environ.get("RMSNORM_LIBRARY", "librmsnorm.so"))


def check(status):
    if status != 0:
        text = ctypes.create_string_buffer(512)
        library.rmsnorm_last_error(text, ctypes.c_size_t(len(text)))
        raise RuntimeError(f"{status}: {text.value.decode()}")


def version():
    number = library.rmsnorm_version()
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}"


context = ctypes.c_void_p()
options = ContextOptions(ctypes.sizeof(ContextOptions), DEVICE_CUDA)
check(library.rmsnorm_context_create(ctypes.byref(options), ctypes.byref(context)))


def view(t):
    return Tensor(t.data_ptr(), t.stride(0) if t.dim() > 1 else 0, 0, DTYPES[t.dtype], 0)


def rows(t):
    """A view of one fp32 a row."""
    return Tensor(t.data_ptr(), t.stride(0), 0, DTYPES[t.dtype], 0)


def params(kind, shape, flags, **tensors):
    m, n = shape
    return kind(ctypes.sizeof(kind), m, 1, n, EPS, 0.0, 0, flags, **tensors)


class Call:
    """One operation on fixed buffers, with its workspace."""

    def __init__(self, name, p):
        self.name, self.run = name, getattr(library, f"rmsnorm_{name}")
        size = ctypes.c_size_t()
        query = getattr(library, f"rmsnorm_{name}_workspace_size")
        check(query(context, ctypes.byref(p), ctypes.byref(size)))
        self.params, self.size = p, size.value
        self.workspace = torch.empty(max(size.value, 1), dtype=torch.uint8, device="cuda")

    def __call__(self):
        stream = torch.cuda.current_stream().cuda_stream
        check(self.run(context, ctypes.byref(self.params),
                       ctypes.c_void_p(self.workspace.data_ptr()), ctypes.c_size_t(self.size),
                       ctypes.c_void_p(stream)))

    def kernel(self):
        """The name of what runs."""
        text = ctypes.create_string_buffer(128)
        query = getattr(library, f"rmsnorm_{self.name}_kernel_name")
        check(query(context, ctypes.byref(self.params), text, ctypes.c_size_t(len(text))))
        return text.value.decode()


calls = {}


def cached(make, *tensors):
    key = (make, *((t.data_ptr(), t.shape, t.stride(), t.dtype) for t in tensors))
    if key not in calls:
        calls[key] = make(*tensors)
    calls[key]()


def make_fwd(x, w, y, flags=FLAGS):
    return Call("forward", params(Forward, x.shape, flags, x=view(x), weight=view(w), y=view(y)))


def make_bwd(dy, x, w, rstd, dx, dw, flags=FLAGS):
    return Call("backward", params(Backward, x.shape, flags, dy=view(dy), x=view(x),
                                   weight=view(w), rstd=rows(rstd), dx=view(dx),
                                   dweight=view(dw)))


def make_add(x, residual, w, y, h, flags=FLAGS):
    return Call("forward", params(Forward, x.shape, flags, x=view(x), residual=view(residual),
                                  weight=view(w), y=view(y), residual_out=view(h)))


def glu_params(kind, shape, **tensors):
    m, n = shape
    return kind(ctypes.sizeof(kind), m, 1, n, ACTIVATION, FLAGS, **tensors)


def make_glu(gate, up, y):
    return Call("glu_forward", glu_params(GluForward, gate.shape, gate=view(gate), up=view(up),
                                          y=view(y)))


def make_glu_bwd(dy, gate, up, dgate, dup):
    return Call("glu_backward", glu_params(GluBackward, gate.shape, dy=view(dy), gate=view(gate),
                                           up=view(up), dgate=view(dgate), dup=view(dup)))


def fwd(x, w, y): cached(make_fwd, x, w, y)
def bwd(dy, x, w, rstd, dx, dw): cached(make_bwd, dy, x, w, rstd, dx, dw)
def add(x, residual, w, y, h): cached(make_add, x, residual, w, y, h)
def glu(gate, up, y): cached(make_glu, gate, up, y)
def glu_bwd(dy, gate, up, dgate, dup): cached(make_glu_bwd, dy, gate, up, dgate, dup)
