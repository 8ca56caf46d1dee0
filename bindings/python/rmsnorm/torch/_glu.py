"""silu_mul and gelu_mul: gated activations for PyTorch's tensors, as operators and past them.

    torch.ops.rmsnorm.glu_forward    act(gate) * up
    torch.ops.rmsnorm.glu_backward   dgate and dup; what was not asked for is empty

Backward computes all from gate and up: nothing else is saved.
"""
from typing import Any, List, Optional, Tuple

import torch
from torch import Tensor

from .. import _glu
from .._errors import ArgumentError
from . import _calls, _functional, _glu_calls, _host, _ops, _watch

ACTIVATIONS = _glu.ACTIVATIONS
operators = _ops.operators
Grad = Optional[Tensor]


def silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, the gated activation of SwiGLU, in one kernel and rounded once.

    gate, up: of one shape, (..., cols), on the CPU or CUDA, float32, float16, bfloat16 or float64,
        of any strides: the halves of a packed tensor are not copied.

    Returns a tensor of their shape and of the dtype to which theirs promote, as PyTorch's product
    would be; autocast changes nothing. Differentiable any number of times, in forward mode, under
    torch.func and torch.compile; gate and up alone are saved for backward. Raises ArgumentError (a
    ValueError) or TypeError with the argument's name.
    """
    return gated(gate, up, "silu")


def gelu_mul(gate: Tensor, up: Tensor, approximate: str = "none") -> Tensor:
    """gelu(gate) * up, the gated activation of GeGLU; approximate, "none" or "tanh", is that of
    torch.nn.functional.gelu. The rest is silu_mul's."""
    if approximate not in ("none", "tanh"):
        raise ArgumentError(f"approximate = {approximate!r}, but it must be 'none' or 'tanh'")
    return gated(gate, up, "gelu" if approximate == "none" else "gelu_tanh")


def gated(gate: Tensor, up: Tensor, activation: str) -> Tensor:
    """act(gate) * up; activation: a key of ACTIVATIONS."""
    if up is None or not _watch.direct(gate, up):
        return _watched(gate, up, activation)
    dtype = gate.dtype
    if up.dtype is not dtype:
        dtype = torch.promote_types(dtype, up.dtype)
    if _functional.records(gate, up):
        return _direct(gate, up, ACTIVATIONS[activation], activation, dtype)
    return _glu_calls.forward(gate, up, ACTIVATIONS[activation], dtype)


def _watched(gate: Tensor, up: Tensor, activation: str) -> Tensor:
    _calls.check(gate, "gate")
    _calls.check(up, "up")
    _check(gate, up=up)
    dtype = torch.promote_types(gate.dtype, up.dtype)
    if _watch.transformed():
        return definition(gate, up, activation, dtype)
    return operators.glu_forward.default(gate, up, activation, dtype=dtype)


def definition(gate: Tensor, up: Tensor, activation: str, dtype: torch.dtype) -> Tensor:
    """In PyTorch's own operators: what create_graph, forward mode and torch.func run."""
    wide = torch.promote_types(torch.promote_types(gate.dtype, up.dtype), torch.float32)
    return (act(gate.to(wide), activation) * up.to(wide)).to(dtype)


def act(gate: Tensor, activation: str) -> Tensor:
    if activation == "silu":
        return torch.nn.functional.silu(gate)
    return torch.nn.functional.gelu(gate, approximate="none" if activation == "gelu" else "tanh")


# ---- Operators -----------------------------------------------------------------------------------

_ops.define("glu_forward(Tensor gate, Tensor up, str activation, *, ScalarType dtype) -> Tensor")
_ops.define("glu_backward(Tensor dy, Tensor gate, Tensor up, str activation, *, bool dgate,"
            " bool dup) -> (Tensor, Tensor)")


def _check(gate: Tensor, **others: Tensor) -> None:
    """What can be seen of the arguments' rules without their memory."""
    _glu_calls.check_rows(gate)
    for name, tensor in others.items():
        if tensor.shape != gate.shape:
            raise ArgumentError(f"{name} has shape {tuple(tensor.shape)}, but gate has "
                                f"{tuple(gate.shape)}")
        if tensor.device != gate.device:
            raise ArgumentError(f"{name} is on {tensor.device}, but gate is on {gate.device}")


@_ops.kernel("glu_forward")
def _forward(gate: Tensor, up: Tensor, activation: str, *, dtype: torch.dtype) -> Tensor:
    return _glu_calls.forward(gate, up, _glu.activation_code(activation), dtype)


@_ops.fake("glu_forward")
def _forward_fake(gate: Tensor, up: Tensor, activation: str, *, dtype: torch.dtype) -> Tensor:
    _check(gate, up=up)
    return _calls.like(gate, dtype)


@_ops.kernel("glu_backward")
def _backward(dy: Tensor, gate: Tensor, up: Tensor, activation: str, *, dgate: bool,
              dup: bool) -> List[Tensor]:
    made = _glu_calls.backward(dy, gate, up, _glu.activation_code(activation), dgate, dup)
    return _ops.or_empty(gate, made)


@_ops.fake("glu_backward")
def _backward_fake(dy: Tensor, gate: Tensor, up: Tensor, activation: str, *, dgate: bool,
                   dup: bool) -> List[Tensor]:
    _check(gate, up=up, dy=dy)
    return _ops.or_empty(gate, (_calls.like(gate, gate.dtype) if dgate else None,
                                _calls.like(gate, up.dtype) if dup else None))


# ---- Autograd ------------------------------------------------------------------------------------


def gradients(ctx: Any, dy: Grad) -> Tuple[Grad, Grad]:
    """dgate and dup."""
    if dy is None:
        return None, None
    gate, up = ctx.saved_tensors
    wants_dgate, wants_dup = ctx.needs_input_grad[:2]
    if torch.is_grad_enabled():
        y = definition(gate, up, ctx.activation, dy.dtype)
        wanted = [each for each, wants in ((gate, wants_dgate), (up, wants_dup)) if wants]
        made = list(torch.autograd.grad(y, wanted, dy, create_graph=True))
        return made.pop(0) if wants_dgate else None, made.pop(0) if wants_dup else None
    if _watch.direct(dy, gate, up):
        return _glu_calls.backward(dy, gate, up, ACTIVATIONS[ctx.activation], wants_dgate,
                                   wants_dup)
    dgate, dup = operators.glu_backward.default(dy, gate, up, ctx.activation, dgate=wants_dgate,
                                                dup=wants_dup)
    return dgate if wants_dgate else None, dup if wants_dup else None


def _save(ctx: Any, gate: Tensor, up: Tensor, activation: str) -> None:
    ctx.save_for_backward(gate, up)
    ctx.activation = activation
    ctx.set_materialize_grads(False)


_ops.autograd("glu_forward",
              lambda ctx, inputs, keyword_only_inputs, output: _save(ctx, *inputs),
              lambda ctx, dy: (*gradients(ctx, dy), None))
_ops.not_differentiable("glu_backward", _ops.SECOND_ORDER)


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, code: int,  # type: ignore[override]
                activation: str, dtype: torch.dtype) -> Tensor:
        y = _glu_calls.forward(gate, up, code, dtype)
        _save(ctx, gate, up, activation)
        ctx.scalars = code
        return y

    @staticmethod
    def backward(ctx: Any, dy: Grad) -> Any:  # type: ignore[override]
        return (*gradients(ctx, dy), None, None, None)


_host.compile_backward(_Gated, _glu_calls.GRADIENTS)
_direct = super(torch.autograd.Function, _Gated).apply  # type: ignore[misc]
