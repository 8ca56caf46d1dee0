"""What the functions for arrays of any library share: how a call becomes one of the C library's.

What a call's arguments mean for the library (their layout, what to copy, what to make) is worked
out once per combination of shapes, strides, dtypes, devices and scalars: a Plan. A call then reads
pointers, writes them into the plan's struct and calls C.
"""
import ctypes
import re
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple, Type

from . import _abi, _arrays, _context, _errors, _layout
from ._arrays import Family, Shape, View
from ._errors import ArgumentError

Array = Any  # of NumPy, PyTorch, CuPy, or with __dlpack__
Scalars = Tuple[Any, ...]  # the values of an operation's scalars

_MOST_PLANS = 1024


# ---- Operations and their tensors ----------------------------------------------------------------


class Tensor(NamedTuple):
    """A tensor of an operation."""
    name: str  # as the caller knows it
    field: str  # as C does
    shape: str  # "rows": main's; "vector": cols, or groups x cols; "rstd": main's without cols
    output: bool = False
    # For an output that is not given: whose library, device and dtype it gets, by preference.
    like: Tuple[str, ...] = ()


class Operation(NamedTuple):
    name: str  # of the C function
    params: Type[ctypes.Structure]
    main: str  # the tensor that all others must go with
    required: Tuple[str, ...]
    scalars: Tuple[str, ...]  # fields of params
    tensors: Tuple[Tensor, ...]
    names: Tuple[str, ...]
    sums: bool  # a vector is among the outputs
    plans: Dict[Tuple[Any, ...], "Plan"]


operations: List[Operation] = []


def define(name: str, params: Type[ctypes.Structure], main: str, required: Tuple[str, ...],
           scalars: Tuple[str, ...], tensors: Tuple[Tensor, ...]) -> Operation:
    made = Operation(name, params, main, required, scalars, tensors,
                     tuple(t.name for t in tensors),
                     any(t.output and t.shape == "vector" for t in tensors), {})
    operations.append(made)
    return made


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


def run(operation: Operation, given: Tuple[Array, ...],
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
        plan = make_plan(operation, given, key, scalars)
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
        raise refusal(operation, plan.context, status)
    plan.give_back(slot)
    return arrays


def _family_of(signature: Tuple[Any, ...]) -> Family:
    return signature[0]


def _pointer(array: Array) -> int:
    read = _arrays.readers.get(type(array)) or _arrays.find_reader(array, "")
    return read(array, "")[0]


def refusal(operation: Operation, context: _context.Context, status: int) -> _errors.Error:
    """The library's error, with what it calls otherwise than the caller explained."""
    error = _errors.from_status(context.functions, status)
    text = str(error)
    other = [f"{tensor.field} is the argument {tensor.name}" for tensor in operation.tensors
             if tensor.field != tensor.name and re.search(rf"\b{tensor.field}\b", text)]
    return type(error)(f"{text} ({', '.join(other)})", status) if other else error


def number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, not {type(value).__name__}") from None


def choice(name: str, value: str, codes: Dict[str, int]) -> int:
    """The C library's code for one of a few names."""
    try:
        return codes[value]
    except (KeyError, TypeError):
        raise ArgumentError(f"{name} = {value!r}, but it must be one of "
                            f"{', '.join(map(repr, codes))}") from None


# ---- Making a plan -------------------------------------------------------------------------------


def forget_plans() -> None:
    """After the contexts have changed."""
    for operation in operations:
        operation.plans.clear()


_context.on_change.append(forget_plans)


def make_plan(operation: Operation, given: Tuple[Array, ...], key: Tuple[Any, ...],
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

    params = operation.params(rows=layout.rows, groups=layout.groups, cols=cols,
                              **dict(zip(operation.scalars, scalars)))
    plan = Plan(_context.get(*main.device), operation, params)
    plan.main = names.index(operation.main)
    if main.device[0] != _abi.DEVICE_CPU:
        plan.family = _family_of(key[plan.main + 1])
    vectors_per_group = per_group and operation.sums
    for position, tensor in enumerate(operation.tensors):
        name, view = tensor.name, views.get(tensor.name)
        if view is None and name not in made:
            continue
        field = getattr(params, tensor.field)
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
        if 0 not in (shape if view is None else view.shape):  # an empty array may point anywhere
            plan.pointers.append((position, getattr(operation.params, tensor.field).offset // 8))
    size = ctypes.c_size_t()
    query = getattr(plan.context.functions, f"{operation.name}_workspace_size")
    status = query(plan.handle, params, size)
    if status:
        raise refusal(operation, plan.context, status)
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
