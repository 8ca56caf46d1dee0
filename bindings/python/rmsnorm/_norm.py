"""rms_norm and rms_norm_backward for arrays of any library.

What a call's arguments mean for the library (their layout, what to copy, what to make) is worked
out once per combination of shapes, strides, dtypes, devices and scalars: a Plan. A call then reads
pointers, writes them into the plan's struct and calls C.
"""
import ctypes
import re
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple, Type, Union

from . import _abi, _arrays, _context, _errors, _layout
from ._arrays import Family, Shape, View
from ._errors import ArgumentError

Array = Any  # of NumPy, PyTorch, CuPy, or with __dlpack__
Scalars = Tuple[float, float, int, int]  # eps, weight_offset, rounding, flags

_ROUNDINGS = {"once": _abi.ROUNDING_ONCE, "llama": _abi.ROUNDING_LLAMA}
_MOST_PLANS = 1024


class Gradients(NamedTuple):
    """What rms_norm_backward computed; None for what was not asked for."""
    dx: Optional[Array]
    dweight: Optional[Array]
    dbias: Optional[Array]
    dresidual: Optional[Array]


def rms_norm(x: Array, weight: Optional[Array] = None, eps: float = 1e-6, *,
             residual: Optional[Array] = None, bias: Optional[Array] = None,
             weight_offset: float = 0.0, rounding: str = "once", out: Optional[Array] = None,
             residual_out: Union[Array, bool, None] = None,
             rstd: Union[Array, bool] = False) -> Union[Array, Tuple[Array, ...]]:
    """Normalises each row of x, along its last dimension:

        h = x + residual                       (with a residual; else h = x)
        y = h / sqrt(mean(h**2) + eps) * (weight + weight_offset) + bias

    x: an array of one dimension or more, (..., cols). NumPy (bfloat16 is ml_dtypes'), PyTorch on
        the CPU or CUDA, CuPy, whatever has __dlpack__ on the CPU, and, as an input, JAX on the
        CPU, for which results are NumPy's. A CUDA call goes into the stream that the array's
        library works in, and is not waited for.
    weight, bias: (cols,), or (groups, cols) for x (..., groups, cols). Absent: 1 and 0.
    residual: as x. Gemma's 1 + weight is weight_offset=1.
    rounding: "once", at the end; "llama" rounds h / sqrt(...) to h's dtype as well, as Hugging
        Face's LlamaRMSNorm does.
    out: where y goes, of x's shape; x itself is allowed. Absent: a new array of x's dtype.
    residual_out: where h goes; residual and x are allowed. Absent, with a residual: a new array of
        residual's dtype. h is rounded to its dtype before it is normalised. False: h is not kept,
        and rounded to x's and residual's dtype, to float32 where they differ.
    rstd: where 1 / sqrt(...) goes, of x's shape without cols, float32 (float64 where all is), for
        rms_norm_backward. True: a new array.

    dtypes: float32, float16 and bfloat16, each array its own; or float64 for all. Strides: any;
    an input is copied if its columns are not next to each other, or its other dimensions need more
    than two strides. Outputs are never copied: such a one is refused.

    Returns y; with a residual (y, h), unless residual_out is False; rstd comes last if asked for.

    Raises ArgumentError (a ValueError) or TypeError, with the argument's name, before anything is
    written; UnsupportedError where there is no CUDA. Autograd does not see it.

    Zhang and Sennrich, "Root Mean Square Layer Normalization", NeurIPS 2019. Accuracy:
    include/rmsnorm.h, "Numerics"; on the CPU y is within 0.501 ulp of the exact result.
    """
    if out is None:
        out = True
    if residual_out is None:
        residual_out = residual is not None
    scalars = _scalars(eps, weight_offset, _rounding(rounding), 0)
    arrays = _run(FORWARD, (x, residual, weight, bias, out, residual_out, rstd), scalars)
    if residual_out is False and rstd is False:
        return arrays[4]
    return tuple(array for array in arrays[4:] if array is not None and array is not False)


def rms_norm_backward(dy: Array, x: Array, weight: Optional[Array] = None, eps: float = 1e-6, *,
                      rstd: Optional[Array] = None, dresidual_out: Optional[Array] = None,
                      weight_offset: float = 0.0, dx: Union[Array, bool] = True,
                      dresidual: Union[Array, bool] = False,
                      dweight: Union[Array, bool, None] = None,
                      dbias: Union[Array, bool] = False, accumulate: bool = False) -> Gradients:
    """The gradients of rms_norm. With xhat = x * rstd and w = weight + weight_offset:

        dx      = rstd * (w * dy - xhat * mean(w * dy * xhat)) + dresidual_out
        dweight = the sum of dy * xhat over all rows
        dbias   = the sum of dy over all rows

    dy: the gradient of y. x: what was normalised: rms_norm's x, or its residual_out where there
        was a residual; dx is then the gradient of both. Both of one shape, (..., cols).
    weight, weight_offset, eps: as in rms_norm.
    rstd: rms_norm's; absent, it is computed from x and eps.
    dresidual_out: the gradient that arrives at residual_out by other ways.
    dx, dresidual, dweight, dbias: where results go. True: a new array. False: not computed. dweight
        is new if weight is given and dweight is not. dx may be dy, x or dresidual_out. dresidual
        is dx once more, for a residual of another dtype. dweight and dbias are (cols,), or
        (groups, cols) where weight is, new ones of weight's dtype (float32 without a weight).
    accumulate: adds to what dweight and dbias hold; both must be given then.

    Arrays, dtypes, strides and errors are those of rms_norm. The same bits every time.
    """
    if dweight is None:
        dweight = weight is not None
    flags = 0
    if accumulate:
        flags = _abi.FLAG_ACCUMULATE
        for name, array in (("dweight", dweight), ("dbias", dbias)):
            if array is True:
                raise ArgumentError(f"{name} must be given with accumulate: it is added to")
    scalars = _scalars(eps, weight_offset, _abi.ROUNDING_ONCE, flags)
    arrays = _run(BACKWARD, (dy, x, weight, rstd, dresidual_out, dx, dresidual, dweight, dbias),
                  scalars)
    dx, dresidual, dweight, dbias = (None if array is False else array for array in arrays[5:])
    return Gradients(dx, dweight, dbias, dresidual)


# ---- The tensors of each operation ---------------------------------------------------------------


class Tensor(NamedTuple):
    """A tensor of an operation."""
    name: str  # as the caller knows it
    field: str  # as C does
    shape: str  # "rows": x's; "vector": cols, or groups x cols; "rstd": x's without the columns
    output: bool = False
    # For an output that is not given: whose library, device and dtype it gets, by preference.
    like: Tuple[str, ...] = ()


class Operation(NamedTuple):
    name: str  # of the C function
    params: Type[ctypes.Structure]
    main: str  # the tensor that all others must go with
    required: Tuple[str, ...]
    tensors: Tuple[Tensor, ...]
    names: Tuple[str, ...]
    plans: Dict[Tuple[Any, ...], "Plan"]


def _operation(name: str, params: Type[ctypes.Structure], main: str, required: Tuple[str, ...],
               tensors: Tuple[Tensor, ...]) -> Operation:
    return Operation(name, params, main, required, tensors, tuple(t.name for t in tensors), {})


FORWARD = _operation("forward", _abi.ForwardParams, "x", ("x",), (
    Tensor("x", "x", "rows"),
    Tensor("residual", "residual", "rows"),
    Tensor("weight", "weight", "vector"),
    Tensor("bias", "bias", "vector"),
    Tensor("out", "y", "rows", True, ("x",)),
    Tensor("residual_out", "residual_out", "rows", True, ("residual",)),
    Tensor("rstd", "rstd", "rstd", True, ("x",)),
))

BACKWARD = _operation("backward", _abi.BackwardParams, "x", ("dy", "x"), (
    Tensor("dy", "dy", "rows"),
    Tensor("x", "x", "rows"),
    Tensor("weight", "weight", "vector"),
    Tensor("rstd", "rstd", "rstd"),
    Tensor("dresidual_out", "dresidual_out", "rows"),
    Tensor("dx", "dx", "rows", True, ("x",)),
    Tensor("dresidual", "dresidual", "rows", True, ("x",)),
    Tensor("dweight", "dweight", "vector", True, ("weight", "x")),
    Tensor("dbias", "dbias", "vector", True, ("weight", "x")),
))


# ---- Running -------------------------------------------------------------------------------------


class New(NamedTuple):
    """An output to be made."""
    position: int
    like: int
    shape: Shape
    dtype: Optional[int]  # None: like's
    axes: _arrays.Axes  # the order of its dimensions in memory; None: as they are


class Plan:
    """All of a call but its pointers."""

    __slots__ = ("context", "handle", "function", "params", "pointers", "copies", "new",
                 "workspace_size", "family", "main", "_free")

    def __init__(self, context: _context.Context, operation: Operation,
                 params: ctypes.Structure) -> None:
        self.context = context
        self.handle = context.handle
        self.function: Callable[..., int] = getattr(context.functions, operation.name)
        self.params = params
        # The present tensors: their positions, and where their pointers stand in params, in 8-byte
        # words.
        self.pointers: List[Tuple[int, int]] = []
        self.copies: List[Tuple[int, Tuple[int, ...]]] = []  # position, axes
        self.new: List[New] = []
        self.workspace_size = 0
        self.family: Optional[Family] = None  # whose stream and workspace it is; None: no stream
        self.main = 0
        self._free: List[Tuple[Any, memoryview]] = []

    def take(self) -> Tuple[Any, memoryview]:
        """A params struct for one call, as an argument and as words. Give it back."""
        try:
            return self._free.pop()
        except IndexError:  # each call that runs at the same time needs its own
            copy = type(self.params).from_buffer_copy(self.params)
            return ctypes.byref(copy), memoryview(copy).cast("B").cast("Q")

    def give_back(self, slot: Tuple[Any, memoryview]) -> None:
        self._free.append(slot)


def _run(operation: Operation, given: Tuple[Array, ...],
         scalars: Scalars) -> List[Optional[Array]]:
    """Runs it on the tensors given: each an array, None or False (absent), or True (to be made).
    Returns them, with the outputs made.
    """
    readers = _arrays.readers
    pointers: List[int] = []
    parts: List[Any] = [scalars]  # of the key
    alive: List[Any] = []
    for array, name in zip(given, operation.names):
        if array is None or array is False or array is True:
            pointers.append(0)
            parts.append(array)
        else:
            read = readers.get(type(array)) or _arrays.find_reader(array, name)
            pointer, signature, keeper = read(array, name)
            pointers.append(pointer)
            parts.append(signature)
            alive.append(keeper)
    key = tuple(parts)
    plan = operation.plans.get(key)
    if plan is None:
        plan = _make_plan(operation, given, key, scalars)
        if len(operation.plans) >= _MOST_PLANS:
            operation.plans.clear()
        operation.plans[key] = plan
    arrays = list(given)
    for position, axes in plan.copies:
        array = _family_of(key[position + 1]).contiguous(given[position], axes)
        pointers[position] = _pointer(array)
        alive.append(array)
    for new in plan.new:
        array = _family_of(key[new.like + 1]).empty(given[new.like], new.shape, new.dtype, new.axes)
        pointers[new.position] = _pointer(array)
        arrays[new.position] = array
    workspace, stream = 0, 0
    if plan.family is not None:
        stream = plan.family.stream(plan.context.ordinal)
    if plan.workspace_size:
        family = _family_of(key[plan.main + 1])
        workspace, keeper = family.scratch(given[plan.main], plan.workspace_size)
        alive.append(keeper)
    slot = plan.take()
    params, words = slot
    for position, word in plan.pointers:
        words[word] = pointers[position]
    status = plan.function(plan.handle, params, workspace, plan.workspace_size, stream)
    if status:
        raise _refusal(operation, plan.context, status)
    plan.give_back(slot)
    return arrays


def _family_of(signature: Tuple[Any, ...]) -> Family:
    return signature[0]


def _pointer(array: Array) -> int:
    read = _arrays.readers.get(type(array)) or _arrays.find_reader(array, "")
    return read(array, "")[0]


def _refusal(operation: Operation, context: _context.Context, status: int) -> _errors.Error:
    """The library's error, with what it calls otherwise than the caller explained."""
    error = _errors.from_status(context.functions, status)
    text = str(error)
    other = [f"{tensor.field} is the argument {tensor.name}" for tensor in operation.tensors
             if tensor.field != tensor.name and re.search(rf"\b{tensor.field}\b", text)]
    return type(error)(f"{text} ({', '.join(other)})", status) if other else error


def _scalars(eps: Any, weight_offset: Any, rounding: int, flags: int) -> Scalars:
    if type(eps) is not float:
        eps = _number("eps", eps)
    if type(weight_offset) is not float:
        weight_offset = _number("weight_offset", weight_offset)
    return eps, weight_offset, rounding, flags


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, not {type(value).__name__}") from None


def _rounding(name: str) -> int:
    try:
        return _ROUNDINGS[name]
    except (KeyError, TypeError):
        raise ArgumentError(f"rounding = {name!r}, but it must be one of "
                            f"{', '.join(map(repr, _ROUNDINGS))}") from None


# ---- Making a plan -------------------------------------------------------------------------------


def forget_plans() -> None:
    """After the contexts have changed."""
    for operation in (FORWARD, BACKWARD):
        operation.plans.clear()


_context.on_change.append(forget_plans)


def _make_plan(operation: Operation, given: Tuple[Array, ...], key: Tuple[Any, ...],
               scalars: Scalars) -> Plan:
    """Checks all that the library cannot see, and lays the arrays out."""
    names = operation.names
    views = _views(operation, given, key)
    main = views[operation.main]
    leading, cols = main.shape[:-1], main.shape[-1]
    # Of each output that is to be made: whose library and dtype, and the dtype if another one.
    made = {tensor.name: _like(tensor, views, operation.main) for tensor, array
            in zip(operation.tensors, given) if tensor.output and array is True}
    per_group = any(tensor.shape == "vector" and len(views[tensor.name].shape) == 2
                    for tensor in operation.tensors if tensor.name in views)
    layout = _lay_out(operation, views, list(made), leading, cols, per_group)

    eps, weight_offset, rounding, flags = scalars
    params = operation.params(rows=layout.rows, groups=layout.groups, cols=cols, eps=eps,
                              weight_offset=weight_offset, rounding=rounding, flags=flags)
    plan = Plan(_context.get(*main.device), operation, params)
    plan.main = names.index(operation.main)
    if main.device[0] != _abi.DEVICE_CPU:
        plan.family = _family_of(key[plan.main + 1])
    vectors_per_group = per_group and operation is BACKWARD
    for position, tensor in enumerate(operation.tensors):
        name, view = tensor.name, views.get(tensor.name)
        if view is None and name not in made:
            continue
        field = getattr(params, tensor.field)
        plan.pointers.append((position, getattr(operation.params, tensor.field).offset // 8))
        copied = name in layout.copied
        shape: Shape
        if tensor.shape == "vector":
            shape = (leading[-1], cols) if vectors_per_group else (cols,)
            axes = tuple(range(len(shape if view is None else view.shape)))
            field.group_stride = cols if vectors_per_group else 0
            if view is not None:
                field.group_stride, copied = _vector(tensor, view, vectors_per_group)
        else:
            field.row_stride, field.group_stride = layout.strides[name]
            shape, axes = leading, layout.axes
            if tensor.shape == "rows":
                shape, axes = main.shape, (*layout.axes, len(leading))
        if view is not None:
            field.dtype = view.dtype
            if copied:
                plan.copies.append((position, axes))
        else:
            like, dtype = made[name]
            field.dtype = views[like].dtype if dtype is None else dtype
            in_order = axes == tuple(sorted(axes))
            plan.new.append(New(position, names.index(like), shape, dtype,
                                None if in_order else axes))
    size = ctypes.c_size_t()
    query = getattr(plan.context.functions, f"{operation.name}_workspace_size")
    status = query(plan.handle, params, size)
    if status:
        raise _refusal(operation, plan.context, status)
    plan.workspace_size = size.value
    return plan


def _views(operation: Operation, given: Tuple[Array, ...],
           key: Tuple[Any, ...]) -> Dict[str, View]:
    """What is known of each array that is there; all of it goes together."""
    views: Dict[str, View] = {}
    for tensor, array, signature in zip(operation.tensors, given, key[1:]):
        if isinstance(signature, tuple):
            views[tensor.name] = _family_of(signature).view(signature, tensor.name)
        elif tensor.name in operation.required or (array is not None and not tensor.output):
            raise TypeError(f"{tensor.name} must be an array, not {array}")
    main = views[operation.main]
    if not main.shape:
        raise ArgumentError(f"{operation.main} has no dimensions, but it must have rows")
    if main.shape[-1] == 0:
        raise ArgumentError(f"{operation.main} has shape {main.shape}: a row has at least 1 column")
    for tensor in operation.tensors:
        if tensor.name in views:
            _check(tensor, views[tensor.name], operation.main, main)
    return views


def _lay_out(operation: Operation, views: Dict[str, View], made: List[str], leading: Shape,
             cols: int, per_group: bool) -> _layout.Layout:
    """The layout of all but the vectors."""
    outputs: _layout.Strides = {}
    inputs: _layout.Strides = {}
    widths: Dict[str, int] = {}
    for tensor in operation.tensors:
        if tensor.shape == "vector":
            continue
        widths[tensor.name] = 1 if tensor.shape == "rstd" else cols
        if tensor.name in views:
            strides = _leading_strides(tensor, views[tensor.name], cols)
            (outputs if tensor.output else inputs)[tensor.name] = strides
    return _layout.lay_out(leading, outputs, inputs, [name for name in made if name in widths],
                           widths, per_group)


def _check(tensor: Tensor, view: View, main_name: str, main: View) -> None:
    """Shape, device, and whether an output can be written."""
    name, shape = tensor.name, main.shape
    if view.device != main.device:
        raise ArgumentError(f"{name} is on {_device(view)}, but {main_name} is on {_device(main)}")
    if tensor.shape == "rows" and view.shape != shape:
        raise ArgumentError(f"{name} has shape {view.shape}, but {main_name} has {shape}")
    if tensor.shape == "rstd" and view.shape != shape[:-1]:
        raise ArgumentError(f"{name} has shape {view.shape}, but {main_name}'s is {shape}: "
                            f"{shape[:-1]} is one for each row")
    if tensor.shape == "vector" and view.shape != shape[-1:] and (
            len(shape) < 2 or view.shape != shape[-2:]):
        groups = f", or {shape[-2:]} for one per group" if len(shape) > 1 else ""
        raise ArgumentError(f"{name} has shape {view.shape}, but with {main_name}'s {shape} it "
                            f"must be {shape[-1:]}{groups}")
    if tensor.shape == "vector" and view.shape[0] == 0:
        raise ArgumentError(f"{name} has shape {view.shape}, but there must be at least one group")
    if tensor.output and not view.writable:
        raise ArgumentError(f"{name} is read-only, but it is an output")


def _device(view: View) -> str:
    kind, ordinal = view.device
    name = _context.DEVICE_NAMES[kind]
    return name if kind == _abi.DEVICE_CPU else f"{name}:{ordinal}"


def _like(tensor: Tensor, views: Dict[str, View], main: str) -> Tuple[str, Optional[int]]:
    """Whose library and dtype an output gets, and the dtype if it is another one."""
    like = next((name for name in tensor.like if name in views), None)
    if like is None:
        raise ArgumentError(f"{tensor.name} is asked for, but {tensor.like[0]} is absent")
    dtype = views[like].dtype
    if tensor.shape == "rstd" or (tensor.shape == "vector" and like == main):
        exact = _abi.DTYPE_F64 if dtype == _abi.DTYPE_F64 else _abi.DTYPE_F32
        return like, None if dtype == exact else exact
    return like, None


def _leading_strides(tensor: Tensor, view: View, cols: int) -> Optional[Shape]:
    """The strides of all dimensions but the columns. None for an input to be copied."""
    strides = view.strides
    if strides is not None and tensor.shape == "rows":
        strides = strides[:-1] if cols == 1 or strides[-1] == 1 else None
    if strides is None and tensor.output:
        raise ArgumentError(f"{tensor.name} is an output whose columns are not next to each other: "
                            "make it contiguous")
    return strides


def _vector(tensor: Tensor, view: View, own_strides: bool) -> Tuple[int, bool]:
    """A vector's group_stride, and whether it has to be copied."""
    per_group, cols = len(view.shape) == 2, view.shape[-1]
    if view.strides is not None and (cols == 1 or view.strides[-1] == 1):
        stride = view.strides[0] if per_group else 0
        # Backward tells sums over groups by a stride of 0: a vector per group must have one.
        if not (own_strides and stride == 0 and per_group):
            return stride, False
    if tensor.output:
        raise ArgumentError(f"{tensor.name} is an output whose elements are not next to each "
                            "other: make it contiguous")
    return cols if per_group else 0, True
