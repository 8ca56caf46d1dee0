"""SwiGLU whose backward needs no memory for dx.

The peak of its backward is where dpacked, the gradient of the first matmul's output, gives dx and
w12's gradient: all three are there at once, and w3's gradient. Here that output and its gradient
are two parts, each with memory of its own:

    main   all columns but the last d_model
    rest   those, as many as x has

rest's gradient moves into that part of w12's gradient that is written last, and dx takes its place:
rows x d_model elements less at the peak.
"""
from typing import Any, Iterator, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import _functional, _glu, _glu_calls, _watch

Grad = Optional[Tensor]
Part = Tuple[Tensor, Tensor, slice]
_SILU = _glu.ACTIVATIONS["silu"]


def fits(x: Tensor, w12: nn.Linear, w3: nn.Linear) -> bool:
    """Whether the layer can be computed so, and gains from it."""
    if not torch.is_grad_enabled() or _functional.any_autocast():
        return False
    if type(w12) is not nn.Linear or type(w3) is not nn.Linear or _is_seen(w12):
        return False
    if not _watch.direct(x, w12.weight, w12.bias, w3.weight, w3.bias):
        return False
    if not (x.requires_grad and w12.weight.requires_grad):
        return False
    if not x.dtype is w12.weight.dtype is w3.weight.dtype:
        return False
    width, hidden = w12.in_features, w3.in_features
    main, rows = 2 * hidden - width, x.numel() // width
    # Fewer rows: dx is next to nothing. More: the peak is before, while packed is still there.
    return (x.dim() > 0 and x.shape[-1] == width <= hidden and 4 * rows >= width
            and rows <= main and rows * main <= 2 * hidden * width)


def _is_seen(layer: nn.Linear) -> bool:
    """Whether someone sees the layer's calls, who would miss this one."""
    return bool(layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks
                or layer._backward_pre_hooks or "forward" in vars(layer))


def swiglu(x: Tensor, w12: nn.Linear, w3: nn.Linear) -> Tensor:
    """w3(silu(gate) * up), gate | up = w12(x)."""
    rows = x.reshape(-1, w12.in_features)
    main, rest = _first(rows, w12.weight, w12.bias)
    return _second(main, rest, w3.weight, w3.bias).view(x.shape)


def _columns(main: Tensor, rest: Tensor, hidden: int) -> Iterator[Part]:
    """Gate and up of some columns, and which; where up is in two, so are these."""
    cut = main.shape[1] - hidden
    if cut > 0:
        yield main[:, :cut], main[:, hidden:], slice(0, cut)
    yield main[:, cut:hidden], rest, slice(cut, hidden)


def _activation(main: Tensor, rest: Tensor, y: Tensor) -> Tensor:
    """silu(gate) * up, in y."""
    for gate, up, columns in _columns(main, rest, y.shape[1]):
        _glu_calls.forward(gate, up, _SILU, y.dtype, y[:, columns])
    return y


class _First(torch.autograd.Function):
    """linear(x, weight, bias), in two parts. x: (rows, d_model)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor,  # type: ignore[override]
                bias: Optional[Tensor]) -> Tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, weight)
        ctx.set_materialize_grads(False)
        packed = F.linear(x, weight, bias)
        cut = len(weight) - x.shape[1]
        return packed[:, :cut], packed[:, cut:]

    @staticmethod
    def backward(ctx: Any, dmain: Grad, drest: Grad) -> Tuple[Grad, ...]:  # type: ignore[override]
        if dmain is None or drest is None:
            return None, None, None
        x, weight = ctx.saved_tensors
        wants_dx, wants_dweight, wants_dbias = ctx.needs_input_grad
        if torch.is_grad_enabled():
            dpacked = torch.cat((dmain, drest), 1)
            return (dpacked @ weight if wants_dx else None,
                    dpacked.t() @ x if wants_dweight else None,
                    dpacked.sum(0) if wants_dbias else None)
        cut = dmain.shape[1]
        dx, dweight, dbias, home = None, None, None, drest
        with torch._C._DisableAutocast():
            if wants_dbias:
                dbias = torch.cat((dmain.sum(0), drest.sum(0)))
            if wants_dweight:
                dweight = torch.empty_like(weight, memory_format=torch.contiguous_format)
            if wants_dx and dweight is not None:
                home = dweight.view(-1)[:drest.numel()].view(drest.shape).copy_(drest)
            if wants_dx:  # drest came from _Second alone, and goes nowhere else
                dx = drest if dweight is not None else torch.empty_like(x)
                torch.mm(dmain, weight[:cut], out=dx)
                dx.addmm_(home, weight[cut:])
            if dweight is not None:
                torch.mm(home.t(), x, out=dweight[cut:])
                torch.mm(dmain.t(), x, out=dweight[:cut])
        return dx, dweight, dbias


class _Second(torch.autograd.Function):
    """linear(silu(gate) * up, weight, bias)."""

    @staticmethod
    def forward(ctx: Any, main: Tensor, rest: Tensor, weight: Tensor,  # type: ignore[override]
                bias: Optional[Tensor]) -> Tensor:
        ctx.save_for_backward(main, rest, weight, bias)
        ctx.set_materialize_grads(False)
        return F.linear(_activation(main, rest, main.new_empty(len(main), weight.shape[1])),
                        weight, bias)

    @staticmethod
    def backward(ctx: Any, dy: Grad) -> Tuple[Grad, ...]:  # type: ignore[override]
        if dy is None:
            return None, None, None, None
        main, rest, weight, bias = ctx.saved_tensors
        wants = ctx.needs_input_grad
        if torch.is_grad_enabled():
            gate, up = torch.cat((main, rest), 1).chunk(2, 1)
            y = F.linear(_glu.definition(gate, up, "silu", main.dtype), weight, bias)
            inputs = [each for each, wanted in zip(ctx.saved_tensors, wants) if wanted]
            made = list(torch.autograd.grad(y, inputs, dy, create_graph=True))
            return tuple(made.pop(0) if wanted else None for wanted in wants)
        hidden = weight.shape[1]
        dmain, drest, dweight = None, None, None
        with torch._C._DisableAutocast():
            if wants[0]:
                dmain = torch.empty_like(main, memory_format=torch.contiguous_format)
                drest = torch.empty_like(rest, memory_format=torch.contiguous_format)
            if wants[2]:
                y = main.new_empty(len(main), hidden) if dmain is None else dmain[:, :hidden]
                dweight = torch.mm(dy.t(), _activation(main, rest, y))
            if dmain is not None and drest is not None:
                for inputs, outputs in zip(_columns(main, rest, hidden),
                                           _columns(dmain, drest, hidden)):
                    gate, up, columns = inputs
                    torch.mm(dy, weight[:, columns], out=outputs[1])  # the activation's gradient
                    _glu_calls.backward(outputs[1], gate, up, _SILU, out=outputs[:2])
        return dmain, drest, dweight, dy.sum(0) if wants[3] else None


_first = super(torch.autograd.Function, _First).apply  # type: ignore[misc]
_second = super(torch.autograd.Function, _Second).apply  # type: ignore[misc]
