"""Runs the library's gated activations on the memory of plain tensors; as _calls does the norms."""
from typing import List, Optional, Tuple

import torch
from torch import Tensor

from .. import _arrays, _glu
from .._errors import ArgumentError
from . import _calls


def forward(gate: Tensor, up: Tensor, activation: int, dtype: torch.dtype,
            out: Optional[Tensor] = None) -> Tensor:
    """act(gate) * up, in out or a new tensor of dtype. activation: _abi.ACTIVATION_*."""
    key = ("glu", activation, dtype,
           gate.shape, gate.is_contiguous() or _calls._strides(gate), gate.dtype, gate.device,
           up.shape, up.is_contiguous() or _calls._strides(up), up.dtype, up.device,
           None if out is None else (out.shape, out.is_contiguous() or _calls._strides(out),
                                     out.dtype, out.device))
    found = _calls._plans.get(key)
    if found is None:
        if _calls._any_negative(gate, up):
            gate, up = _calls._resolved(gate, up)
            return forward(gate, up, activation, dtype, out)
        if _calls._mixes_float64(gate, up, out) or (dtype is torch.float64) is not (
                gate.dtype is torch.float64):
            if out is not None:
                raise ArgumentError("gate, up and out must all be float64, or none of them")
            gate, up = _calls._double(gate, up)
            return forward(gate, up, activation, torch.float64).to(dtype)
    y = out
    if y is None:
        y = output(gate, dtype) if found is None else found.output(dtype)
    given: List[Optional[Tensor]] = [gate, up, y]
    if found is None:
        found = _calls._make(_glu.FORWARD, key, given, (activation, 0), y)
    _calls._run(found, given)
    return y


def output(gate: Tensor, dtype: torch.dtype) -> Tensor:
    """A new tensor for what has gate's shape."""
    _calls.check(gate, "gate")
    check_rows(gate)
    if gate.dtype not in _calls._family.dtypes:
        raise _arrays.unknown_dtype("gate", gate.dtype)
    return _calls.like(gate, dtype)


def check_rows(gate: Tensor) -> None:
    if gate.dim() == 0 or gate.shape[-1] == 0:
        raise ArgumentError(f"gate has shape {tuple(gate.shape)}, but a row has at least 1 column")


def backward(dy: Tensor, gate: Tensor, up: Tensor, activation: int, wants_dgate: bool = True,
             wants_dup: bool = True,
             out: Optional[Tuple[Tensor, Tensor]] = None) -> Tuple[Optional[Tensor],
                                                                   Optional[Tensor]]:
    """dgate and dup, where they are asked for, in gate's and up's dtypes; out: where both go."""
    key = ("glu_backward", activation, wants_dgate, wants_dup,
           dy.shape, dy.is_contiguous() or _calls._strides(dy), dy.dtype, dy.device,
           gate.shape, gate.is_contiguous() or _calls._strides(gate), gate.dtype, gate.device,
           up.shape, up.is_contiguous() or _calls._strides(up), up.dtype, up.device,
           None if out is None else tuple((each.shape, each.is_contiguous() or
                                           _calls._strides(each), each.dtype, each.device)
                                          for each in out))
    found = _calls._plans.get(key)
    if found is None:
        if _calls._any_negative(dy, gate, up):
            dy, gate, up = _calls._resolved(dy, gate, up)
            return backward(dy, gate, up, activation, wants_dgate, wants_dup, out)
        if out is None and _calls._mixes_float64(dy, gate, up):
            wide_dy, wide_gate, wide_up = _calls._double(dy, gate, up)
            made = backward(wide_dy, wide_gate, wide_up, activation, wants_dgate, wants_dup)
            return (None if made[0] is None else made[0].to(gate.dtype),
                    None if made[1] is None else made[1].to(up.dtype))
    dgate, dup = out or (None, None)
    if out is None:
        if wants_dgate:
            dgate = _calls.like(gate, gate.dtype) if found is None else found.output(gate.dtype)
        if wants_dup:
            dup = _calls.like(gate, up.dtype) if found is None else found.output(up.dtype)
    given: List[Optional[Tensor]] = [dy, gate, up, dgate, dup]
    if found is None:
        found = _calls._make(_glu.BACKWARD, key, given, (activation, 0),
                             dup if dgate is None else dgate)
    _calls._run(found, given)
    return dgate, dup
