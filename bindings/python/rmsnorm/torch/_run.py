"""Runs an operation of the library on the memory of plain tensors. Autograd is not seen here.

What a call means for the library is worked out once per signature (shapes, strides, dtypes, device,
scalars) by rmsnorm._operation; a later call of the same signature allocates its outputs, writes
their pointers into a params struct, and calls C. Outputs, workspaces and copies come from PyTorch's
allocator, and a CUDA call goes into the current stream of its device.
"""
import ctypes
import functools
import struct
from typing import Any, Callable, Dict, Iterable, List, NoReturn, Optional, Sequence, Tuple, Union

import torch
from torch import Tensor

from .. import _arrays, _context, _operation
from .._errors import ArgumentError
from . import _host

Given = Sequence[Optional[Tensor]]  # an operation's tensors
Prepared = Optional[Tuple[_operation.Scalars, Given]]

family = _arrays.find_reader(torch.empty(0), "").__self__  # type: ignore[attr-defined]
_empty_like, _empty_strided = torch.empty_like, torch.empty_strided
_stream = family.stream if family.raw_stream is None else family.raw_stream
_MOST_PLANS = 1024

# The C functions with plain addresses for arguments: ctypes then has the least to do.
_Call = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p,
                         ctypes.c_size_t, ctypes.c_void_p)


class Plan:
    """All of a call but its pointers."""

    __slots__ = ("operation", "plan", "call", "ordinal", "left_out", "makers",
                 "make_workspace", "_free")

    def __init__(self, operation: _operation.Operation, scalars: _operation.Scalars, given: Given,
                 tensors: Given) -> None:
        """tensors: given, and the outputs that each call is to make."""
        self.left_out = (None,) * (len(tensors) - len(given))
        given = (*given, *self.left_out)
        parts = (scalars, *map(_signature, tensors))
        self.operation = operation
        self.plan = _operation.make_plan(operation, tuple(tensors), parts, scalars)
        function: Any = self.plan.function
        self.call = _Call(ctypes.cast(function, ctypes.c_void_p).value)  # type: ignore[arg-type]
        self.ordinal = None if self.plan.family is None else self.plan.context.ordinal
        # Of each output to be made: its position, and how.
        self.makers = [(position, _maker(made, given)) for position, made in enumerate(tensors)
                       if made is not None and given[position] is None]
        main = tensors[self.plan.main]
        assert main is not None
        self.make_workspace = _make((self.plan.workspace_size,), (1,), torch.uint8, main.device)
        self._free: List[Tuple[int, memoryview, Any]] = []

    def run(self, given: Given) -> Tuple[Tensor, ...]:
        """The outputs made."""
        tensors: List[Any] = [*given, *self.left_out]
        made = []
        for position, maker in self.makers:
            tensor = _empty_like(tensors[maker]) if type(maker) is int else maker()
            tensors[position] = tensor
            made.append(tensor)
        plan = self.plan
        for position, axes in plan.copies:
            tensors[position] = family.contiguous(tensors[position], axes)
        slot = self._slot()
        address, words, _ = slot
        for position, word in plan.pointers:
            words[word] = tensors[position].data_ptr()
        size, workspace = plan.workspace_size, 0
        if size:
            scratch = self.make_workspace()
            workspace = scratch.data_ptr()
        stream = 0 if self.ordinal is None else _stream(self.ordinal)
        status = self.call(plan.handle, address, workspace, size, stream)
        if status:
            self.refuse(status)
        self._free.append(slot)
        return tuple(made)

    def _slot(self) -> Tuple[int, memoryview, Any]:
        """A params struct for one call: its address, its words, and what keeps it."""
        try:
            return self._free.pop()
        except IndexError:  # each call that runs at the same time needs its own
            params = type(self.plan.params).from_buffer_copy(self.plan.params)
            return ctypes.addressof(params), memoryview(params).cast("B").cast("Q"), params

    def compiled(self) -> Any:
        """The same for the compiled helper."""
        plan, function = self.plan, ctypes.cast(self.plan.function, ctypes.c_void_p)
        likes = [make if isinstance(make, int) else -1 for _, make in self.makers]
        return _host.module.plan(
            function.value, plan.handle, bytes(plan.params),
            _pairs((position, 8 * word) for position, word in plan.pointers),
            _pairs((position, like) for (position, _), like in zip(self.makers, likes)),
            tuple(make for _, make in self.makers), self.make_workspace, plan.workspace_size,
            -1 if self.ordinal is None else self.ordinal, self.refuse)

    def refuse(self, status: int) -> NoReturn:
        raise _operation.refusal(self.operation, self.plan.context, status)


def _pairs(pairs: Iterable[Tuple[int, int]]) -> bytes:
    return b"".join(struct.pack("=ii", *pair) for pair in pairs)


def _signature(tensor: Optional[Tensor]) -> Any:
    """What rmsnorm._operation knows a tensor by."""
    if tensor is None:
        return None
    return family, tensor.shape, tensor.stride(), tensor.dtype, tensor.device, False


def _maker(made: Tensor, given: Given) -> Union[int, Callable[[], Tensor]]:
    """How to make another such tensor: the position of one that it is like, or a function.
    empty_like is the quickest way, then empty_strided."""
    for position, tensor in enumerate(given):
        if (tensor is not None and tensor.shape == made.shape and tensor.dtype is made.dtype
                and tensor.is_contiguous() and made.is_contiguous()):
            return position
    return _make(made.shape, made.stride(), made.dtype, made.device)


def _make(shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype,
          device: torch.device) -> Callable[[], Tensor]:
    return functools.partial(_empty_strided, shape, strides, dtype=dtype, device=device)


class Runner:
    """An operation with its plans.

    prepare(scalars, *tensors) gives a call's scalars and tensors as the library wants them, with
    the outputs that are to be made; None for tensors that it does not take as they are.
    run(scalars, *tensors) gives the outputs made, or None, as prepare does. Of the operation's
    tensors, None is an absent one or an output to be made; the last may be left out.
    """

    def __init__(self, operation: _operation.Operation,
                 prepare: Callable[..., Prepared]) -> None:
        self.operation, self._prepare = operation, prepare
        self.plans: Dict[Tuple[Any, ...], Plan] = {}
        self.run = self.by_ctypes
        _context.on_change.append(self.plans.clear)
        if _host.module is not None:
            self.compiled_plans: Dict[Tuple[Any, bytes], Any] = {}
            self.run = _host.module.bind(self.compiled_plans, self._compiled_plan, self.by_ctypes)
            _context.on_change.append(self.compiled_plans.clear)

    def by_ctypes(self, scalars: Tuple[Any, ...],
                  *given: Optional[Tensor]) -> Optional[Tuple[Tensor, ...]]:
        key = (scalars, *[
            tensor if tensor is None else (tensor.shape, tensor.is_contiguous()
                                           or (tensor.stride(), tensor.is_neg()),
                                           tensor.dtype, tensor.device) for tensor in given])
        plan = self.plans.get(key)
        if plan is None:
            plan = self._plan(scalars, given)
            if plan is None:
                return None
            if plan.plan.params.cols > 1:  # one column may be contiguous and have a negative bit
                if len(self.plans) >= _MOST_PLANS:
                    self.plans.clear()
                self.plans[key] = plan
        return plan.run(given)

    def _plan(self, scalars: Tuple[Any, ...], given: Given) -> Optional[Plan]:
        for tensor, rule in zip(given, self.operation.tensors):
            if isinstance(tensor, Tensor) and tensor.is_neg():
                if rule.output:
                    raise ArgumentError(f"{rule.name} has its negative bit set: resolve_neg() "
                                        "makes it plain")
                return None
        prepared = self._prepare(scalars, *given)
        if prepared is None:
            return None
        for tensor, name in zip(prepared[1], self.operation.names):
            if tensor is not None:
                check(tensor, name)
        return Plan(self.operation, prepared[0], given, prepared[1])

    def _compiled_plan(self, scalars: Tuple[Any, ...], *given: Optional[Tensor]) -> Any:
        """None for calls that by_ctypes is to do: rare ones."""
        plan = self._plan(scalars, given)
        return None if plan is None or plan.plan.copies else plan.compiled()


def check(tensor: Any, name: str) -> None:
    """TypeError or ArgumentError for what is no tensor in strided memory."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, not {type(tensor).__name__}")
    if tensor.layout is not torch.strided or tensor.is_nested:
        raise ArgumentError(f"{name} has layout {tensor.layout}, but it must be strided memory")
