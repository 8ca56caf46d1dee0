"""Reads arrays of any library: where their memory is, how it is laid out, on which device.

Each kind of array has a family. Its read() is the fast part, run in every call: a pointer, and a
key that tells all else. What the key means (view()) is worked out once and remembered by the
caller. Keys start with their family.
"""
import ctypes
import sys
from typing import Any, Callable, Dict, NamedTuple, Optional, Sequence, Tuple

from . import _abi
from ._errors import ArgumentError

Shape = Tuple[int, ...]
Key = Tuple[Any, ...]
# Pointer, key, and what must live until the call is over (besides the array).
Read = Tuple[int, Key, Any]
Axes = Optional[Sequence[int]]

DTYPES = {"float32": _abi.DTYPE_F32, "float16": _abi.DTYPE_F16, "bfloat16": _abi.DTYPE_BF16,
          "float64": _abi.DTYPE_F64}
DTYPE_NAMES = {code: name for name, code in DTYPES.items()}

CPU = (_abi.DEVICE_CPU, 0)


class View(NamedTuple):
    """What a key says."""
    shape: Shape
    strides: Optional[Shape]  # in elements; None: they are no whole elements apart
    dtype: int  # _abi.DTYPE_*
    device: Tuple[int, int]  # _abi.DEVICE_*, ordinal
    writable: bool


class Family:
    """What is done with arrays of one library."""

    def read(self, array: Any, name: str) -> Read:
        raise NotImplementedError

    def view(self, key: Key, name: str) -> View:
        raise NotImplementedError

    def empty(self, like: Any, shape: Shape, dtype: Optional[int], axes: Axes) -> Any:
        """A new array on like's device; dtype None: of like's own. axes: the order of dimensions
        in memory; None: as they are."""
        raise NotImplementedError

    def contiguous(self, array: Any, axes: Sequence[int]) -> Any:
        """A copy without gaps, with the dimensions in the order of axes in memory."""
        raise NotImplementedError

    def scratch(self, like: Any, size: int) -> Tuple[int, Any]:
        """The address of size bytes on like's device, and what keeps them."""
        buffer = ctypes.create_string_buffer(size)
        return ctypes.addressof(buffer), buffer

    def stream(self, ordinal: int) -> int:
        """The stream of a CUDA device that this library works in at present."""
        raise NotImplementedError


def inverse(axes: Sequence[int]) -> Tuple[int, ...]:
    return tuple(sorted(range(len(axes)), key=axes.__getitem__))


def contiguous_strides(shape: Shape, axes: Sequence[int]) -> Shape:
    """Of an array without gaps whose dimensions lie in memory in the order of axes."""
    strides = [0] * len(shape)
    step = 1
    for axis in reversed(axes):
        strides[axis] = step
        step *= max(shape[axis], 1)
    return tuple(strides)


def unknown_dtype(name: str, dtype: Any) -> ArgumentError:
    return ArgumentError(f"{name} has dtype {dtype}, but it must be one of {', '.join(DTYPES)}")


def whole_strides(strides: Shape, size: int) -> Optional[Shape]:
    """Byte strides in elements."""
    if any(stride % size for stride in strides):
        return None
    return tuple(stride // size for stride in strides)


# ---- NumPy, and CuPy, which looks like it --------------------------------------------------------

_capsule_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_capsule_pointer.restype, _capsule_pointer.argtypes = ctypes.c_void_p, (ctypes.py_object,
                                                                        ctypes.c_char_p)
_pointer_at = ctypes.c_void_p.from_address
_DATA_IN_ARRAY_STRUCT = 40  # PyArrayInterface.data


class NumpyLike(Family):
    def __init__(self, module: Any) -> None:
        self.module = module

    def dtype_code(self, dtype: Any, name: str) -> int:
        code = DTYPES.get(dtype.name)
        if code is None or not dtype.isnative:
            raise unknown_dtype(name, dtype.str if not dtype.isnative else dtype.name)
        return code

    def empty(self, like: Any, shape: Shape, dtype: Optional[int], axes: Axes) -> Any:
        wanted = like.dtype if dtype is None else DTYPE_NAMES[dtype]
        if axes is None:
            return self.module.empty(shape, wanted)
        return self.module.empty([shape[axis] for axis in axes], wanted).transpose(inverse(axes))

    def contiguous(self, array: Any, axes: Sequence[int]) -> Any:
        return array.transpose(axes).copy(order="C").transpose(inverse(axes))


class Numpy(NumpyLike):
    def read(self, array: Any, name: str) -> Read:
        struct = array.__array_struct__  # array.ctypes and __array_interface__ are slower
        return (_pointer_at(_capsule_pointer(struct, None) + _DATA_IN_ARRAY_STRUCT).value or 0,
                (self, array.shape, array.strides, array.dtype, array.flags.writeable), None)

    def view(self, key: Key, name: str) -> View:
        _, shape, strides, dtype, writable = key
        code = self.dtype_code(dtype, name)
        return View(shape, whole_strides(strides, dtype.itemsize), code, CPU, writable)


class Jax(Numpy):
    """JAX's arrays on the CPU, as NumPy sees them: without a copy, and read-only."""

    def read(self, array: Any, name: str) -> Read:
        ask_device = getattr(array, "__dlpack_device__", None)
        if ask_device is None:
            raise TypeError(f"{name} is a JAX tracer: this function does not run inside jax.jit, "
                            "grad or vmap")
        if ask_device()[0] != _abi.DEVICE_CPU:
            raise ArgumentError(f"{name} is a JAX array on a GPU: only those on the CPU are read")
        seen = self.module.asarray(array)
        pointer, key, _ = super().read(seen, name)
        return pointer, key, seen

    def empty(self, like: Any, shape: Shape, dtype: Optional[int], axes: Axes) -> Any:
        return super().empty(self.module.asarray(like), shape, dtype, axes)

    def contiguous(self, array: Any, axes: Sequence[int]) -> Any:
        return super().contiguous(self.module.asarray(array), axes)


class Cupy(NumpyLike):
    def read(self, array: Any, name: str) -> Read:
        return array.data.ptr, (self, array.shape, array.strides, array.dtype,
                                array.device.id), None

    def view(self, key: Key, name: str) -> View:
        _, shape, strides, dtype, ordinal = key
        code = self.dtype_code(dtype, name)
        return View(shape, whole_strides(strides, dtype.itemsize), code,
                    (_abi.DEVICE_CUDA, ordinal), True)

    def empty(self, like: Any, shape: Shape, dtype: Optional[int], axes: Axes) -> Any:
        with like.device:
            return super().empty(like, shape, dtype, axes)

    def contiguous(self, array: Any, axes: Sequence[int]) -> Any:
        with array.device:
            return super().contiguous(array, axes)

    def scratch(self, like: Any, size: int) -> Tuple[int, Any]:
        with like.device:
            made = self.module.empty(size, "uint8")
        return made.data.ptr, made

    def stream(self, ordinal: int) -> int:
        with self.module.cuda.Device(ordinal):
            return self.module.cuda.get_current_stream().ptr


# ---- PyTorch -------------------------------------------------------------------------------------


class Torch(Family):
    def __init__(self, module: Any) -> None:
        self.module = module
        self.dtypes = {getattr(module, name): code for name, code in DTYPES.items()}
        self.dtypes_by_code = {code: dtype for dtype, code in self.dtypes.items()}
        self.grad_enabled = module.is_grad_enabled
        # What torch.cuda.current_stream() asks, without the Stream object around it.
        self.raw_stream = getattr(module._C, "_cuda_getCurrentRawStream", None)

    def read(self, array: Any, name: str) -> Read:
        if array.requires_grad and self.grad_enabled():
            raise ArgumentError(f"{name} requires grad, which this function does not record: "
                                "detach it, or call under torch.no_grad()")
        try:
            return array.data_ptr(), (self, array.shape, array.stride(), array.dtype, array.device,
                                      array.is_neg()), None
        except RuntimeError as error:  # sparse, fake, ...: it has no memory to point to
            raise ArgumentError(f"{name}: {error}") from None

    def view(self, key: Key, name: str) -> View:
        _, shape, strides, dtype, device, negated = key
        if dtype not in self.dtypes:
            raise unknown_dtype(name, dtype)
        if device.type not in ("cpu", "cuda"):
            raise ArgumentError(f"{name} is on {device}, but it must be on cpu or cuda")
        if negated:
            raise ArgumentError(f"{name} has its negative bit set: resolve_neg() makes it plain")
        where = CPU if device.type == "cpu" else (_abi.DEVICE_CUDA, device.index)
        return View(tuple(shape), strides, self.dtypes[dtype], where, True)

    def empty(self, like: Any, shape: Shape, dtype: Optional[int], axes: Axes) -> Any:
        wanted = like.dtype if dtype is None else self.dtypes_by_code[dtype]
        if axes is None:
            return self.module.empty(shape, dtype=wanted, device=like.device)
        made = self.module.empty([shape[axis] for axis in axes], dtype=wanted, device=like.device)
        return made.permute(inverse(axes))

    def contiguous(self, array: Any, axes: Sequence[int]) -> Any:
        made = self.empty(array, array.shape, None, axes)
        return made.copy_(array.detach())

    def scratch(self, like: Any, size: int) -> Tuple[int, Any]:
        made = self.module.empty(size, dtype=self.module.uint8, device=like.device)
        return made.data_ptr(), made

    def stream(self, ordinal: int) -> int:
        if self.raw_stream is not None:
            return self.raw_stream(ordinal)
        return self.module.cuda.current_stream(ordinal).cuda_stream


# ---- Anything else on the CPU, by DLPack ---------------------------------------------------------


class _DLTensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32), ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16), ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)), ("byte_offset", ctypes.c_uint64)]


class _DLManagedTensorVersioned(ctypes.Structure):
    _fields_ = [
        ("major", ctypes.c_uint32), ("minor", ctypes.c_uint32), ("manager", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p), ("flags", ctypes.c_uint64), ("tensor", _DLTensor)]


_READ_ONLY = 1  # of DLManagedTensorVersioned.flags
_capsule_is_valid = ctypes.pythonapi.PyCapsule_IsValid
_capsule_is_valid.restype, _capsule_is_valid.argtypes = ctypes.c_int, (ctypes.py_object,
                                                                       ctypes.c_char_p)


class Dlpack(Family):
    """The capsule is never consumed: it frees what it holds when the call drops it."""

    def read(self, array: Any, name: str) -> Read:
        try:
            try:
                capsule = array.__dlpack__(max_version=(1, 0))
            except TypeError:  # older than DLPack 1.0
                capsule = array.__dlpack__()
        except Exception as error:
            raise ArgumentError(f"{name}: {error}") from error
        writable = True
        if _capsule_is_valid(capsule, b"dltensor_versioned"):
            managed = _DLManagedTensorVersioned.from_address(
                _capsule_pointer(capsule, b"dltensor_versioned"))
            if managed.major != 1:
                raise ArgumentError(f"{name} comes by DLPack {managed.major}, of which only 1 is "
                                    "known")
            tensor, writable = managed.tensor, not managed.flags & _READ_ONLY
        else:
            tensor = _DLTensor.from_address(_capsule_pointer(capsule, b"dltensor"))
        shape = tuple(tensor.shape[:tensor.ndim])
        if tensor.strides:
            strides = tuple(tensor.strides[:tensor.ndim])
        else:
            strides = contiguous_strides(shape, range(len(shape)))
        return ((tensor.data or 0) + tensor.byte_offset,
                (self, shape, strides, (tensor.code, tensor.bits, tensor.lanes),
                 tensor.device_type, writable), capsule)

    def view(self, key: Key, name: str) -> View:
        _, shape, strides, (code, bits, lanes), device, writable = key
        dtype = code * 256 + bits
        if dtype not in DTYPE_NAMES or lanes != 1:
            raise unknown_dtype(name, f"of DLPack code {code} with {bits} bits and {lanes} lanes")
        if device != _abi.DEVICE_CPU:
            raise ArgumentError(f"{name} is on a device of DLPack type {device}: away from the CPU "
                                "only PyTorch's and CuPy's arrays on CUDA are known")
        return View(shape, strides, dtype, CPU, writable)

    def empty(self, like: Any, shape: Shape, dtype: Optional[int], axes: Axes) -> Any:
        raise TypeError(f"no array like {type(like).__name__} can be made here: every output must "
                        "be given")

    def contiguous(self, array: Any, axes: Sequence[int]) -> Any:
        raise ArgumentError(f"an array of {type(array).__name__} has strides that cannot be "
                            "expressed as rows x groups: it must be contiguous")


# ---- Which family --------------------------------------------------------------------------------

Reader = Callable[[Any, str], Read]
readers: Dict[type, Reader] = {}  # of the types that were seen
_families: Dict[str, Family] = {}


def _family(name: str, make: Callable[[Any], Family]) -> Family:
    if name not in _families:
        _families[name] = make(sys.modules[name])
    return _families[name]


def find_reader(array: Any, name: str) -> Reader:
    """The read() for an array's type; TypeError for what is no array."""
    kind = type(array)
    numpy, torch, cupy, jax = map(sys.modules.get, ("numpy", "torch", "cupy", "jax"))
    if numpy is not None and isinstance(array, numpy.ndarray):
        if isinstance(array, numpy.ma.MaskedArray):
            raise TypeError(f"{name} is a masked array, and its mask would be ignored")
        family = _family("numpy", Numpy)
    elif torch is not None and isinstance(array, torch.Tensor):
        family = _family("torch", Torch)
    elif cupy is not None and isinstance(array, cupy.ndarray):
        family = _family("cupy", Cupy)
    elif jax is not None and isinstance(array, jax.Array):
        if "jax" not in _families:
            _families["jax"] = Jax(numpy)
        family = _families["jax"]
    elif hasattr(kind, "__dlpack__"):
        if "dlpack" not in _families:
            _families["dlpack"] = Dlpack()
        family = _families["dlpack"]
    else:
        raise TypeError(f"{name} must be an array (of NumPy, PyTorch, CuPy, or with __dlpack__), "
                        f"not {kind.__name__}")
    readers[kind] = family.read
    return family.read
