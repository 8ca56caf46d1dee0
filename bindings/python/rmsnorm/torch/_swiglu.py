"""SwiGLU, a module; and what it is made of, a gated activation and the matmul after it as one
operator with a backward of its own:

    torch.ops.rmsnorm.glu_linear            linear(act(gate) * up, weight, bias), packed = gate | up
    torch.ops.rmsnorm.glu_linear_backward   dpacked, dweight, dbias; what was not asked for is empty

What is saved for backward is packed, the first matmul's output. The activation is computed again
for weight's gradient, in the buffer that dpacked then takes, and no other memory is needed. The
module takes another way where its first matmul's gradients are what needs most (_swiglu_parts).
"""
from typing import Any, Dict, List, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import _glu as _names
from .._errors import ArgumentError
from . import _calls, _functional, _glu, _glu_calls, _ops, _swiglu_parts, _watch

Grad = Optional[Tensor]
operators = _ops.operators


class SwiGLU(nn.Module):
    """w3(silu(w1(x)) * w2(x)), the feed-forward layer of Llama and others.

    d_model: the width of x and of the result. d_hidden: that of the activation; absent, 8/3 of
        d_model, the next multiple of 256 from there: then it has as many weights as a plain layer
        of 4 d_model.
    bias, device, dtype: torch.nn.Linear's.

    w12, a torch.nn.Linear, has w1 (gate) and w2 (up) as the first and the second half of its
    outputs: one matmul computes both. w3 leads back. load_state_dict takes its own w12 and w3 and
    those of separate layers: w1, w2, w3, or gate_proj, up_proj, down_proj. For backward x and the
    first matmul's output are saved, the activation is not.

    Shazeer, "GLU Variants Improve Transformer", 2020.
    """

    def __init__(self, d_model: int, d_hidden: Optional[int] = None, bias: bool = False,
                 device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        if d_hidden is None:
            d_hidden = -(-8 * d_model // (3 * 256)) * 256
        for name, value in (("d_model", d_model), ("d_hidden", d_hidden)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ArgumentError(f"{name} = {value!r}, but it must be a whole number from 1 on")
        self.d_model, self.d_hidden = d_model, d_hidden
        self.w12 = nn.Linear(d_model, 2 * d_hidden, bias, device, dtype)
        self.w3 = nn.Linear(d_hidden, d_model, bias, device, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., d_model). Returns a tensor of its shape."""
        if _swiglu_parts.fits(x, self.w12, self.w3):
            return _swiglu_parts.swiglu(x, self.w12, self.w3)
        return glu_linear(self.w12(x), self.w3.weight, self.w3.bias, "silu")

    def _load_from_state_dict(self, state_dict: Dict[str, Any], prefix: str, *args: Any) -> None:
        for gate, up, down in (("w1", "w2", "w3"), ("gate_proj", "up_proj", "down_proj")):
            for kind in ("weight", "bias"):
                halves = [f"{prefix}{name}.{kind}" for name in (gate, up)]
                if all(half in state_dict for half in halves):
                    state_dict[f"{prefix}w12.{kind}"] = torch.cat(
                        [state_dict.pop(half) for half in halves])
                if f"{prefix}{down}.{kind}" in state_dict:
                    state_dict[f"{prefix}w3.{kind}"] = state_dict.pop(f"{prefix}{down}.{kind}")
        super()._load_from_state_dict(state_dict, prefix, *args)


def glu_linear(packed: Tensor, weight: Tensor, bias: Optional[Tensor], activation: str) -> Tensor:
    """linear(act(gate) * up, weight, bias). packed: (..., 2 * cols), gate | up; weight: (n, cols);
    bias: (n,). Under autocast in its dtype, as linear."""
    kind = packed.device.type
    if _functional.any_autocast() and torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        packed, weight, bias = (_cast(each, dtype) for each in (packed, weight, bias))
    _check(packed, weight, bias)
    if _watch.transformed():
        return _definition(packed, weight, bias, activation)
    if _watch.direct(packed, weight, bias):
        if _functional.records(packed, weight, bias):
            return _direct(packed, weight, bias, activation)
        return _forward(packed, weight, bias, activation)
    return operators.glu_linear.default(packed, weight, bias, activation)


def _cast(tensor: Any, dtype: torch.dtype) -> Any:
    """As autocast does, which leaves float64 alone."""
    if tensor is None or tensor.dtype in (dtype, torch.float64):
        return tensor
    return tensor.to(dtype)


def _check(packed: Tensor, weight: Tensor, bias: Optional[Tensor]) -> None:
    for name, tensor in (("packed", packed), ("weight", weight), ("bias", bias)):
        if tensor is not None or name != "bias":
            _calls.check(tensor, name)
    if packed.dim() == 0 or weight.dim() != 2 or packed.shape[-1] != 2 * weight.shape[1]:
        raise ArgumentError(f"packed has shape {tuple(packed.shape)}, but with weight's "
                            f"{tuple(weight.shape)} its rows must be {2 * weight.shape[-1]} wide")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.dtype is not packed.dtype:
            raise ArgumentError(f"{name} has dtype {tensor.dtype}, but packed has {packed.dtype}")


def _definition(packed: Tensor, weight: Tensor, bias: Optional[Tensor], activation: str) -> Tensor:
    gate, up = packed.chunk(2, -1)
    return F.linear(_glu.definition(gate, up, activation, packed.dtype), weight, bias)


# ---- The two operators ---------------------------------------------------------------------------

_ops.define("glu_linear(Tensor packed, Tensor weight, Tensor? bias, str activation) -> Tensor")
_ops.define("glu_linear_backward(Tensor dy, Tensor packed, Tensor weight, str activation, *,"
            " bool dpacked, bool dweight, bool dbias) -> (Tensor, Tensor, Tensor)")


def _halves(rows: Tensor) -> Tuple[Tensor, Tensor]:
    middle = rows.shape[-1] // 2
    return rows[..., :middle], rows[..., middle:]


def _forward(packed: Tensor, weight: Tensor, bias: Optional[Tensor], activation: str) -> Tensor:
    y = _glu_calls.forward(*_halves(packed), _names.activation_code(activation), packed.dtype)
    with torch._C._DisableAutocast():
        return F.linear(y, weight, bias)


_ops.kernel("glu_linear")(_forward)


@_ops.fake("glu_linear")
def _forward_fake(packed: Tensor, weight: Tensor, bias: Optional[Tensor],
                  activation: str) -> Tensor:
    _check(packed, weight, bias)
    return F.linear(_calls.like(_halves(packed)[0], packed.dtype), weight, bias)


def _backward(dy: Tensor, packed: Tensor, weight: Tensor, activation: str, dpacked: bool,
              dweight: bool, dbias: bool) -> Tuple[Grad, Grad, Grad]:
    code = _names.activation_code(activation)
    dy = dy.reshape(-1, weight.shape[0])
    rows = packed.reshape(-1, packed.shape[-1])
    made, dw = None, None
    with torch._C._DisableAutocast():
        if dpacked:
            made = torch.empty_like(rows, memory_format=torch.contiguous_format)
            left, right = _halves(made)
            torch.mm(dy, weight, out=right)  # the activation's gradient
            if dweight:
                y = _glu_calls.forward(*_halves(rows), code, rows.dtype, left)
                dw = torch.mm(dy.t(), y)
            _glu_calls.backward(right, *_halves(rows), code, out=(left, right))
            made = made.view(packed.shape)
        elif dweight:
            dw = torch.mm(dy.t(), _glu_calls.forward(*_halves(rows), code, rows.dtype))
        return made, dw, dy.sum(0) if dbias else None


@_ops.kernel("glu_linear_backward")
def _backward_kernel(dy: Tensor, packed: Tensor, weight: Tensor, activation: str, *, dpacked: bool,
                     dweight: bool, dbias: bool) -> List[Tensor]:
    return _ops.or_empty(packed, _backward(dy, packed, weight, activation, dpacked, dweight,
                                           dbias))


@_ops.fake("glu_linear_backward")
def _backward_fake(dy: Tensor, packed: Tensor, weight: Tensor, activation: str, *, dpacked: bool,
                   dweight: bool, dbias: bool) -> List[Tensor]:
    return _ops.or_empty(packed, (packed.new_empty(packed.shape) if dpacked else None,
                                  weight.new_empty(weight.shape) if dweight else None,
                                  weight.new_empty(weight.shape[:1]) if dbias else None))


# ---- Autograd ------------------------------------------------------------------------------------


def _save(ctx: Any, packed: Tensor, weight: Tensor, bias: Optional[Tensor],
          activation: str) -> None:
    ctx.save_for_backward(packed, weight, bias)
    ctx.activation = activation
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, dy: Grad) -> Tuple[Grad, ...]:
    if dy is None:
        return None, None, None
    packed, weight, bias = ctx.saved_tensors
    wants = ctx.needs_input_grad[:3]
    if torch.is_grad_enabled():
        y = _definition(packed, weight, bias, ctx.activation)
        wanted = [each for each, wanted in zip((packed, weight, bias), wants) if wanted]
        made = list(torch.autograd.grad(y, wanted, dy, create_graph=True))
        return tuple(made.pop(0) if wanted else None for wanted in wants)
    if _watch.direct(dy, packed, weight):
        return _backward(dy, packed, weight, ctx.activation, *wants)
    found = operators.glu_linear_backward.default(dy, packed, weight, ctx.activation,
                                                  dpacked=wants[0], dweight=wants[1],
                                                  dbias=wants[2])
    return tuple(each if wanted else None for each, wanted in zip(found, wants))


_ops.autograd("glu_linear", lambda ctx, inputs, output: _save(ctx, *inputs),
              lambda ctx, dy: (*_gradients(ctx, dy), None))
_ops.not_differentiable("glu_linear_backward", _ops.SECOND_ORDER)


class _GluLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, packed: Tensor, weight: Tensor,  # type: ignore[override]
                bias: Optional[Tensor], activation: str) -> Tensor:
        _save(ctx, packed, weight, bias, activation)
        return _forward(packed, weight, bias, activation)

    @staticmethod
    def backward(ctx: Any, dy: Grad) -> Any:  # type: ignore[override]
        return (*_gradients(ctx, dy), None)


_direct = super(torch.autograd.Function, _GluLinear).apply  # type: ignore[misc]
