"""Runs the library on the memory of plain tensors on the CPU and CUDA. Autograd is not seen here.

What a call means for the library is worked out once per signature (shapes, strides, dtypes, device,
scalars) by rmsnorm._norm; a later call of the same signature allocates its outputs, writes their
pointers into the params struct that is kept, and calls C. Outputs, workspaces and copies come from
PyTorch's allocator, and a CUDA call goes into the current stream of x's device.

Outputs have x's order of dimensions in memory (like()): then a transposed x needs no copy. The
fake kernels use the same functions, so that a compiled graph sees the strides that come.
"""
import ctypes
import re
from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch
from torch import Tensor

from .. import _abi, _arrays, _context, _norm, _operation
from .._errors import ArgumentError

Signature = Tuple[Any, ...]

_increment_version = torch._C._increment_version
_empty, _empty_like, _empty_strided = torch.empty, torch.empty_like, torch.empty_strided
_float32, _float64, _uint8 = torch.float32, torch.float64, torch.uint8
_MOST_PLANS = 1024
_MOST_LAYOUTS = 16  # of dy, for one forward plan
_plans: Dict[Signature, "_Plan"] = {}
_context.on_change.append(_plans.clear)

_family = _arrays.find_reader(torch.empty(0), "").__self__  # type: ignore[attr-defined]
_stream = _family.stream if _family.raw_stream is None else _family.raw_stream


# The C functions with plain addresses for arguments: ctypes then has the least to do.
_Call = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p,
                         ctypes.c_size_t, ctypes.c_void_p)


class _Plan:
    """A call's plan, with the layout of the outputs to be made."""

    __slots__ = ("operation", "scalars", "plan", "call", "handle", "ordinal", "copies",
                 "workspace_size", "device", "shape", "strides", "dtype", "same", "rows_shape",
                 "rows_strides", "rows_dtype", "backward", "free")

    def __init__(self, operation: _operation.Operation, scalars: _operation.Scalars,
                 plan: _operation.Plan, main: Tensor, made: Optional[Tensor],
                 rstd: Optional[Tensor]) -> None:
        """made: one of the outputs of main's shape; all have its strides."""
        self.operation, self.scalars, self.plan = operation, scalars, plan
        function: Any = plan.function
        self.call = _Call(ctypes.cast(function, ctypes.c_void_p).value)  # type: ignore[arg-type]
        self.handle = plan.handle
        self.ordinal = plan.context.ordinal if plan.family is not None else None
        self.copies, self.workspace_size = plan.copies, plan.workspace_size
        self.backward: Dict[Signature, "_Plan"] = {}  # of forward's: those of its gradients
        self.device, self.dtype, self.same = main.device, main.dtype, False
        if made is not None:
            self.shape, self.strides, self.dtype = made.shape, made.stride(), made.dtype
            # Whether empty_like(main) makes such a one, which is quicker than output().
            self.same = main.is_contiguous() and made.dtype is main.dtype
        if rstd is not None:
            self.rows_shape, self.rows_strides = rstd.shape, rstd.stride()
            self.rows_dtype = rstd.dtype
        self.free: List[_Slot] = []

    def output(self, dtype: torch.dtype) -> Tensor:
        """What like() makes; empty_strided is the quickest way."""
        return _empty_strided(self.shape, self.strides, dtype=dtype, device=self.device)

    def rstd(self) -> Tensor:
        """What like_rows() makes."""
        return _empty_strided(self.rows_shape, self.rows_strides, dtype=self.rows_dtype,
                              device=self.device)

    def slot(self) -> "_Slot":
        """A params struct for one call: its address, its words, and what keeps it. It goes back
        to free."""
        try:
            return self.free.pop()
        except IndexError:  # each call that runs at the same time needs its own
            pass
        params = type(self.plan.params).from_buffer_copy(self.plan.params)
        scratch, workspace = None, 0
        if self.ordinal is None and self.workspace_size:  # the CPU is done when a call returns
            scratch = ctypes.create_string_buffer(self.workspace_size)
            workspace = ctypes.addressof(scratch)
        return (ctypes.addressof(params), memoryview(params).cast("B").cast("Q"), workspace,
                (params, scratch))

    def run(self, slot: "_Slot") -> None:
        """Calls C; slot has the pointers."""
        ordinal, size = self.ordinal, self.workspace_size
        if ordinal is None:
            status = self.call(self.handle, slot[0], slot[2], size, 0)
        elif size:
            scratch = _empty_strided((size,), (1,), dtype=_uint8, device=self.device)
            status = self.call(self.handle, slot[0], scratch.data_ptr(), size, _stream(ordinal))
        else:
            status = self.call(self.handle, slot[0], 0, 0, _stream(ordinal))
        if status:
            raise _operation.refusal(self.operation, self.plan.context, status)
        self.free.append(slot)


_Slot = Tuple[int, memoryview, int, Any]


def _word(params: Any, field: str) -> int:
    """Where a tensor's pointer stands in its struct."""
    return getattr(params, field).offset // 8


_X, _WEIGHT, _Y, _RSTD = (_word(_abi.ForwardParams, field)
                          for field in ("x", "weight", "y", "rstd"))
_B_DY, _B_X, _B_WEIGHT, _B_RSTD, _B_DX, _B_DWEIGHT = (
    _word(_abi.BackwardParams, field)
    for field in ("dy", "x", "weight", "rstd", "dx", "dweight"))


# ---- Outputs -------------------------------------------------------------------------------------


def like(x: Tensor, dtype: torch.dtype) -> Tensor:
    """A new tensor of x's shape without gaps, its columns next to each other; the other dimensions
    lie as x's do."""
    made = _empty_like(x, dtype=dtype)
    if made.dim() > 0 and made.stride(-1) == 1:
        return made
    return _empty(x.shape, dtype=dtype, device=x.device)


def like_rows(y: Tensor, dtype: torch.dtype) -> Tensor:
    """A new tensor with one element for each row of y, which like() has made."""
    return _empty_like(y.select(-1, 0), dtype=dtype)


def exact(*tensors: Optional[Tensor]) -> torch.dtype:
    """rstd's dtype."""
    return _float64 if any(t is not None and t.dtype is _float64 for t in tensors) else _float32


# ---- Signatures and plans ------------------------------------------------------------------------


def _signature(tensor: Optional[Tensor]) -> Any:
    """What _norm knows a tensor by."""
    if tensor is None:
        return None
    return _family, tensor.shape, tensor.stride(), tensor.dtype, tensor.device, False


def _strides(tensor: Tensor) -> Any:
    """What a key has of a tensor that is not contiguous; one that is has no negative bit."""
    return tensor.stride(), tensor.is_neg()


def _any_negative(*tensors: Optional[Tensor]) -> bool:
    return any(isinstance(tensor, Tensor) and tensor.is_neg() for tensor in tensors)


def _resolved(*tensors: Optional[Tensor]) -> List[Any]:
    return [tensor if tensor is None else tensor.resolve_neg() for tensor in tensors]


def check(tensor: Any, name: str) -> None:
    """TypeError or ArgumentError for what is no tensor in strided memory."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, not {type(tensor).__name__}")
    if tensor.layout is not torch.strided or tensor.is_nested:
        raise ArgumentError(f"{name} has layout {tensor.layout}, but it must be strided memory")


def check_rows(x: Tensor) -> None:
    if x.dim() == 0 or x.shape[-1] == 0:
        raise ArgumentError(f"x has shape {tuple(x.shape)}, but a row has at least 1 column")


def _make(operation: _operation.Operation, key: Signature, given: Sequence[Optional[Tensor]],
          scalars: _operation.Scalars, made: Optional[Tensor],
          rstd: Optional[Tensor] = None) -> _Plan:
    for tensor, name in zip(given, operation.names):
        if tensor is not None:
            check(tensor, name)
            if tensor.is_neg():
                raise ArgumentError(f"{name} has its negative bit set: resolve_neg() makes it "
                                    "plain")
    parts = (scalars, *map(_signature, given))
    main = given[operation.names.index(operation.main)]
    assert main is not None
    plan = _Plan(operation, scalars, _operation.make_plan(operation, tuple(given), parts, scalars),
                 main, made, rstd)
    if plan.plan.params.cols > 1:  # one column alone may be contiguous and yet have a negative bit
        if len(_plans) >= _MOST_PLANS:
            _plans.clear()
        _plans[key] = plan
    return plan


def _run(found: _Plan, given: List[Optional[Tensor]]) -> None:
    for position, axes in found.copies:
        given[position] = _family.contiguous(given[position], axes)
    slot = found.slot()
    words = slot[1]
    for position, word in found.plan.pointers:
        words[word] = given[position].data_ptr()  # type: ignore[union-attr]
    found.run(slot)


def _mixes_float64(*tensors: Optional[Tensor]) -> bool:
    kinds = {tensor.dtype is _float64 for tensor in tensors if isinstance(tensor, Tensor)}
    return len(kinds) > 1


def _double(*tensors: Optional[Tensor]) -> List[Any]:
    return [None if tensor is None else tensor.double() for tensor in tensors]


def _written(tensor: Tensor) -> None:
    """Tells autograd that it was changed in place."""
    if not tensor.is_inference():
        _increment_version((tensor,))


# ---- The three operations ------------------------------------------------------------------------


def forward(x: Tensor, weight: Optional[Tensor], eps: float, weight_offset: float, rounding: int,
            dtype: torch.dtype, out: Optional[Tensor] = None,
            keep_rstd: bool = False) -> Tuple[Tensor, Optional[Tensor]]:
    """y, in out or a new tensor of dtype, and rstd if it is kept.

    x: (..., cols). weight: (cols,) or None. rounding: _abi.ROUNDING_*.
    """
    found = forward_plan(x, weight, eps, weight_offset, rounding, dtype, out, keep_rstd)
    if found is None:
        if _any_negative(x, weight):
            x, weight = _resolved(x, weight)
            return forward(x, weight, eps, weight_offset, rounding, dtype, out, keep_rstd)
        return _forward_in_double(x, weight, eps, weight_offset, rounding, dtype, out, keep_rstd)
    y, rstd = run_forward(found, x, weight, out, keep_rstd)
    if out is not None:
        _written(out)
    return y, rstd


def forward_plan(x: Tensor, weight: Optional[Tensor], eps: float, weight_offset: float,
                 rounding: int, dtype: torch.dtype, out: Optional[Tensor] = None,
                 keep_rstd: bool = False) -> Optional[_Plan]:
    """None for tensors that the library does not take as they are."""
    key = (eps, weight_offset, rounding, dtype, keep_rstd,
           x.shape, x.is_contiguous() or _strides(x), x.dtype, x.device,
           None if weight is None else (weight.shape, weight.is_contiguous() or _strides(weight),
                                        weight.dtype, weight.device),
           None if out is None else (out.shape, out.is_contiguous() or _strides(out), out.dtype,
                                     out.device))
    found = _plans.get(key)
    if found is not None:
        return found
    if (_any_negative(x, weight) or _mixes_float64(x, weight, out)
            or (dtype is _float64) is not (x.dtype is _float64)):
        return None
    y = _output_like(x, dtype) if out is None else out
    rstd = like_rows(y, exact(x)) if keep_rstd else None
    return _make(_norm.FORWARD, key, [x, None, weight, None, y, None, rstd],
                 (eps, weight_offset, rounding, 0), y, rstd)


def run_forward(found: _Plan, x: Tensor, weight: Optional[Tensor], out: Optional[Tensor],
                keep_rstd: bool) -> Tuple[Tensor, Optional[Tensor]]:
    """y and rstd; found is the plan of these arguments."""
    y = out
    if y is None:
        y = _empty_like(x) if found.same else found.output(found.dtype)
    rstd = found.rstd() if keep_rstd else None
    if found.copies:
        _run(found, [x, None, weight, None, y, None, rstd])
        return y, rstd
    slot = found.slot()  # _run(), without its loop
    words = slot[1]
    words[_X], words[_Y] = x.data_ptr(), y.data_ptr()
    if weight is not None:
        words[_WEIGHT] = weight.data_ptr()
    if rstd is not None:
        words[_RSTD] = rstd.data_ptr()
    found.run(slot)
    return y, rstd


def _output_like(x: Tensor, dtype: torch.dtype) -> Tensor:
    check(x, "x")
    check_rows(x)
    for name, each in (("x", x.dtype), ("out_dtype", dtype)):
        if each not in _family.dtypes:
            raise _arrays.unknown_dtype(name, each)
    return like(x, dtype)


def _forward_in_double(x: Tensor, weight: Optional[Tensor], eps: float, weight_offset: float,
                       rounding: int, dtype: torch.dtype, out: Optional[Tensor],
                       keep_rstd: bool) -> Tuple[Tensor, Optional[Tensor]]:
    """The library wants all or nothing in float64."""
    if out is not None:
        raise ArgumentError("x, weight and out must all be float64, or none of them")
    x, weight = _double(x, weight)
    y, rstd = forward(x, weight, eps, weight_offset, rounding, _float64, None, keep_rstd)
    return y.to(dtype), rstd


def add_forward(x: Tensor, residual: Tensor, weight: Optional[Tensor], eps: float,
                weight_offset: float, rounding: int, dtype: torch.dtype, in_place: bool = False,
                keep_rstd: bool = False) -> Tuple[Tensor, Tensor, Optional[Tensor]]:
    """y, h and rstd if it is kept. in_place: y is x and h is residual; dtype is not used."""
    key = (eps, weight_offset, rounding, dtype, keep_rstd, in_place,
           x.shape, x.is_contiguous() or _strides(x), x.dtype, x.device,
           residual.shape, residual.is_contiguous() or _strides(residual), residual.dtype,
           residual.device,
           None if weight is None else (weight.shape, weight.is_contiguous() or _strides(weight),
                                        weight.dtype, weight.device))
    found = _plans.get(key)
    if found is None and not in_place and _any_negative(x, residual, weight):
        x, residual, weight = _resolved(x, residual, weight)
        return add_forward(x, residual, weight, eps, weight_offset, rounding, dtype, False,
                           keep_rstd)
    if found is None and not in_place and (_mixes_float64(x, residual, weight) or
                                           (dtype is _float64) is not (x.dtype is _float64)):
        return _add_forward_in_double(x, residual, weight, eps, weight_offset, rounding, dtype,
                                      keep_rstd)
    y, h, rstd = x, residual, None
    if not in_place:
        y = _output_like(x, dtype) if found is None else found.output(dtype)
        h = _empty_like(y, dtype=residual.dtype)
    if keep_rstd:
        rstd = like_rows(y, exact(x)) if found is None else found.rstd()
    given = [x, residual, weight, None, y, h, rstd]
    try:
        if found is None:
            found = _make(_norm.FORWARD, key, given, (eps, weight_offset, rounding, 0), y, rstd)
        _run(found, given)
    except ArgumentError as error:
        if in_place:
            raise _in_place(error) from None
        raise
    if in_place:
        _written(x)
        _written(residual)
    return y, h, rstd


def _in_place(error: ArgumentError) -> ArgumentError:
    """In the caller's words, who knows of no outputs."""
    text = re.sub(r"\bresidual_out\b", "residual", re.sub(r"\bout\b", "x", str(error)))
    return ArgumentError(text, error.status)


def _add_forward_in_double(x: Tensor, residual: Tensor, weight: Optional[Tensor], eps: float,
                           weight_offset: float, rounding: int, dtype: torch.dtype,
                           keep_rstd: bool) -> Tuple[Tensor, Tensor, Optional[Tensor]]:
    h = (x.double() + residual.double()).to(residual.dtype)
    y, rstd = _forward_in_double(h, weight, eps, weight_offset, rounding, dtype, None, keep_rstd)
    return y, h, rstd


def backward(dy: Tensor, h: Tensor, weight: Optional[Tensor], rstd: Optional[Tensor],
             dh: Optional[Tensor], eps: float, weight_offset: float,
             dx_dtype: Optional[torch.dtype], dresidual_dtype: Optional[torch.dtype],
             dweight: bool) -> Tuple[Optional[Tensor], Optional[Tensor], Optional[Tensor]]:
    """dx, dresidual (dx once more, in another dtype) and dweight, where they are asked for.

    h: what was normalised. dh: the gradient that arrives at h by other ways.
    """
    found = backward_plan(dy, h, weight, rstd, dh, eps, weight_offset, dx_dtype, dresidual_dtype,
                          dweight)
    if found is None:
        if _any_negative(dy, h, weight, dh):
            dy, h, weight, dh = _resolved(dy, h, weight, dh)
            return backward(dy, h, weight, rstd, dh, eps, weight_offset, dx_dtype, dresidual_dtype,
                            dweight)
        return _backward_in_double(dy, h, weight, rstd, dh, eps, weight_offset, dx_dtype,
                                   dresidual_dtype, dweight)
    made = (None if dx_dtype is None else found.output(dx_dtype),
            None if dresidual_dtype is None else found.output(dresidual_dtype),
            _dweight(weight) if dweight else None)
    _run(found, [dy, h, weight, rstd, dh, *made, None])
    return made


def backward_plan(dy: Tensor, h: Tensor, weight: Optional[Tensor], rstd: Optional[Tensor],
                  dh: Optional[Tensor], eps: float, weight_offset: float,
                  dx_dtype: Optional[torch.dtype], dresidual_dtype: Optional[torch.dtype],
                  dweight: bool) -> Optional[_Plan]:
    """None for tensors that the library does not take as they are."""
    key = (eps, weight_offset, dx_dtype, dresidual_dtype, dweight,
           dy.shape, dy.is_contiguous() or _strides(dy), dy.dtype, dy.device,
           h.shape, h.is_contiguous() or _strides(h), h.dtype, h.device,
           None if weight is None else (weight.shape, weight.is_contiguous() or _strides(weight),
                                        weight.dtype, weight.device),
           None if rstd is None else (rstd.shape, rstd.is_contiguous() or _strides(rstd),
                                      rstd.dtype, rstd.device),
           None if dh is None else (dh.shape, dh.is_contiguous() or _strides(dh), dh.dtype,
                                    dh.device))
    found = _plans.get(key)
    if found is not None:
        return found
    if (_any_negative(dy, h, weight, dh) or _mixes_float64(dy, h, weight, rstd, dh)
            or (_float64 in (dx_dtype, dresidual_dtype) and h.dtype is not _float64)):
        return None
    made = backward_outputs(h, weight, dx_dtype, dresidual_dtype, dweight)
    return _make(_norm.BACKWARD, key, [dy, h, weight, rstd, dh, *made, None],
                 (eps, weight_offset, _abi.ROUNDING_ONCE, 0),
                 made[1] if dx_dtype is None else made[0])


def backward_of(forward: _Plan, dy: Tensor, x: Tensor, weight: Optional[Tensor], rstd: Tensor,
                wants_dx: bool, wants_dweight: bool) -> Tuple[Optional[Tensor], Optional[Tensor]]:
    """dx, in x's dtype, and dweight. forward: the plan of the call that saved x, weight and rstd,
    which are as they were then.

    It finds its own plan there, by what may differ between two backward calls.
    """
    found = None
    if x.is_contiguous() and (weight is None or weight.is_contiguous()) and rstd.is_contiguous():
        key = (wants_dx, wants_dweight, dy.shape, dy.is_contiguous() or _strides(dy), dy.dtype,
               dy.device)
        found = forward.backward.get(key)
        if found is None:
            eps, weight_offset, _, _ = forward.scalars
            found = backward_plan(dy, x, weight, rstd, None, eps, weight_offset,
                                  x.dtype if wants_dx else None, None, wants_dweight)
            # As in _make(): one column alone may have a negative bit that no key shows.
            if found is not None and not found.copies and found.plan.params.cols > 1:
                if len(forward.backward) >= _MOST_LAYOUTS:
                    forward.backward.clear()
                forward.backward[key] = found
            else:
                found = None
    if found is None:
        eps, weight_offset, _, _ = forward.scalars
        dx, _, dweight = backward(dy, x, weight, rstd, None, eps, weight_offset,
                                  x.dtype if wants_dx else None, None, wants_dweight)
        return dx, dweight
    slot = found.slot()
    words = slot[1]
    words[_B_DY], words[_B_X], words[_B_RSTD] = dy.data_ptr(), x.data_ptr(), rstd.data_ptr()
    dx = dweight = None
    if weight is not None:
        words[_B_WEIGHT] = weight.data_ptr()
        if wants_dweight:
            dweight = _empty_like(weight)
            words[_B_DWEIGHT] = dweight.data_ptr()
    if wants_dx:
        dx = _empty_like(x)
        words[_B_DX] = dx.data_ptr()
    found.run(slot)
    return dx, dweight


def backward_outputs(
        h: Tensor, weight: Optional[Tensor], dx_dtype: Optional[torch.dtype],
        dresidual_dtype: Optional[torch.dtype],
        dweight: bool) -> Tuple[Optional[Tensor], Optional[Tensor], Optional[Tensor]]:
    dx = None if dx_dtype is None else like(h, dx_dtype)
    dresidual = None if dresidual_dtype is None else like(h, dresidual_dtype)
    return dx, dresidual, _dweight(weight) if dweight else None


def _dweight(weight: Optional[Tensor]) -> Tensor:
    if weight is None:
        raise ArgumentError("dweight is asked for, but weight is absent")
    return _empty_strided(weight.shape, (1,), dtype=weight.dtype, device=weight.device)


def _backward_in_double(
        dy: Tensor, h: Tensor, weight: Optional[Tensor], rstd: Optional[Tensor],
        dh: Optional[Tensor], eps: float, weight_offset: float, dx_dtype: Optional[torch.dtype],
        dresidual_dtype: Optional[torch.dtype],
        dweight: bool) -> Tuple[Optional[Tensor], Optional[Tensor], Optional[Tensor]]:
    dtypes = (dx_dtype, dresidual_dtype, None if weight is None else weight.dtype)
    dy, h, weight, rstd, dh = _double(dy, h, weight, rstd, dh)
    gradients = backward(dy, h, weight, rstd, dh, eps, weight_offset, dx_dtype and _float64,
                         dresidual_dtype and _float64, dweight)
    dx, dresidual, dw = (gradient if gradient is None else gradient.to(dtype)
                         for gradient, dtype in zip(gradients, dtypes))
    return dx, dresidual, dw
