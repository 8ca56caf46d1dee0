"""The gated activations' operations on plain tensors; as _calls has the norm's."""
from typing import Any, Optional, Tuple

import torch
from torch import Tensor

from .. import _arrays, _glu
from .._errors import ArgumentError
from . import _calls
from ._run import Prepared, Runner, check, family

_float64 = torch.float64


def _prepare_forward(scalars: Tuple[Any, ...], gate: Tensor, up: Tensor,
                     out: Optional[Tensor] = None) -> Prepared:
    activation, dtype = scalars
    if _calls.mixes_float64(gate, up, out) or (dtype is _float64) is not (gate.dtype is _float64):
        if out is not None:
            raise ArgumentError("gate, up and out must all be float64, or none of them")
        return None
    return (activation, 0), (gate, up, _output(gate, dtype) if out is None else out)


def _output(gate: Tensor, dtype: torch.dtype) -> Tensor:
    """A new tensor for what has gate's shape."""
    check(gate, "gate")
    check_rows(gate)
    if gate.dtype not in family.dtypes:
        raise _arrays.unknown_dtype("gate", gate.dtype)
    return _calls.like(gate, dtype)


def check_rows(gate: Tensor) -> None:
    if gate.dim() == 0 or gate.shape[-1] == 0:
        raise ArgumentError(f"gate has shape {tuple(gate.shape)}, but a row has at least 1 column")


FORWARD = Runner(_glu.FORWARD, _prepare_forward)


def forward(gate: Tensor, up: Tensor, activation: int, dtype: torch.dtype,
            out: Optional[Tensor] = None) -> Tensor:
    """act(gate) * up, in out or a new tensor of dtype. activation: _abi.ACTIVATION_*."""
    made = FORWARD.run((activation, dtype), gate, up, out)
    if made is None:
        plain = _calls.resolve_negative(gate, up)
        if plain is not None:
            return forward(*plain, activation, dtype, out)
        return forward(*_calls.double(gate, up), activation, _float64).to(dtype)
    return made[0] if out is None else out


def _prepare_backward(scalars: Tuple[Any, ...], dy: Tensor, gate: Tensor, up: Tensor,
                      dgate: Optional[Tensor] = None, dup: Optional[Tensor] = None) -> Prepared:
    activation, (wants_dgate, wants_dup, *_) = scalars
    if dgate is None and dup is None:
        if _calls.mixes_float64(dy, gate, up):
            return None
        dgate = _calls.like(gate, gate.dtype) if wants_dgate else None
        dup = _calls.like(gate, up.dtype) if wants_dup else None
    return (activation, 0), (dy, gate, up, dgate, dup)


GRADIENTS = Runner(_glu.BACKWARD, _prepare_backward)


def backward(dy: Tensor, gate: Tensor, up: Tensor, activation: int, wants_dgate: bool = True,
             wants_dup: bool = True,
             out: Tuple[Optional[Tensor], Optional[Tensor]] = (None, None)) -> Tuple[
                 Optional[Tensor], Optional[Tensor]]:
    """dgate and dup, where they are asked for, in gate's and up's dtypes; out: where both go."""
    made = GRADIENTS.run((activation, (wants_dgate, wants_dup)), dy, gate, up, *out)
    if made is None:
        plain = _calls.resolve_negative(dy, gate, up)
        if plain is not None:
            return backward(*plain, activation, wants_dgate, wants_dup, out)
        dgate, dup = backward(*_calls.double(dy, gate, up), activation, wants_dgate, wants_dup)
        return (None if dgate is None else dgate.to(gate.dtype),
                None if dup is None else dup.to(up.dtype))
    if out[0] is not None:
        return out
    found = iter(made)
    return next(found) if wants_dgate else None, next(found) if wants_dup else None
