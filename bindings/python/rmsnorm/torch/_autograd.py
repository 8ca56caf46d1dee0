"""Gradients: what is saved for backward and what backward runs.

The operators' autograd formulas and the autograd.Functions of the direct path share save() and
gradients(). With create_graph backward is itself to be differentiated: then, and under torch.func,
the gradients are those of the definition in PyTorch's operators.
"""
from typing import Any, Optional, Sequence, Tuple

import torch
from torch import Tensor

from .. import _norm
from . import _calls, _definition, _host, _watch

Grad = Optional[Tensor]

_FORWARD = _calls.FORWARD
_grad_enabled = torch.is_grad_enabled


def save(ctx: Any, x: Tensor, weight: Optional[Tensor], rstd: Tensor, eps: float,
         weight_offset: float, rounding: str, bias: Optional[Tensor]) -> None:
    ctx.save_for_backward(x, weight, rstd)
    ctx.scalars = eps, weight_offset, rounding, None if bias is None else bias.dtype
    ctx.set_materialize_grads(False)


def save_add(ctx: Any, x: Tensor, residual: Tensor, weight: Optional[Tensor], h: Tensor,
             rstd: Tensor, eps: float, weight_offset: float, rounding: str,
             bias: Optional[Tensor]) -> None:
    save(ctx, h, weight, rstd, eps, weight_offset, rounding, bias)
    ctx.scalars += x.dtype, residual.dtype


def gradients(ctx: Any, needs: Sequence[bool], dy: Grad) -> Tuple[Grad, Grad, Grad]:
    """dx, dweight and dbias, as needs has them."""
    if dy is None:
        return None, None, None
    x, weight, rstd = ctx.saved_tensors
    eps, weight_offset, rounding, bias_dtype = ctx.scalars
    wants_dx, wants_dweight, wants_dbias = needs
    if not wants_dbias:
        bias_dtype = None
    if _grad_enabled():
        return (*_of_definition(dy, x, weight, eps, weight_offset, rounding, wants_dx,
                                wants_dweight), _dbias(dy, bias_dtype))
    dx, _, dweight, dbias = _backward(dy, x, weight, rstd, None, eps, weight_offset,
                                      x.dtype if wants_dx else None, None, wants_dweight,
                                      bias_dtype)
    return dx, dweight, dbias


def add_gradients(ctx: Any, needs: Sequence[bool], dy: Grad,
                  dh: Grad) -> Tuple[Grad, Grad, Grad, Grad]:
    """dx, dresidual, dweight and dbias. dh: the gradient that arrives at h by other ways."""
    eps, weight_offset, rounding, bias_dtype, x_dtype, residual_dtype = ctx.scalars
    wants_dx, wants_dresidual, wants_dweight, wants_dbias = needs
    if not wants_dbias:
        bias_dtype = None
    if dy is None:
        return (dh.to(x_dtype) if dh is not None and wants_dx else None,
                dh if wants_dresidual else None, None, None)
    h, weight, rstd = ctx.saved_tensors
    if _grad_enabled():
        wide, dweight = _of_definition(dy, h, weight, eps, weight_offset, rounding,
                                       wants_dx or wants_dresidual, wants_dweight)
        if wide is not None and dh is not None:
            wide = wide + dh
        return (wide.to(x_dtype) if wide is not None and wants_dx else None,
                wide.to(residual_dtype) if wide is not None and wants_dresidual else None, dweight,
                _dbias(dy, bias_dtype))
    dx, dresidual, dweight, dbias = _backward(
        dy, h, weight, rstd, dh, eps, weight_offset,
        *_calls.gradient_dtypes((x_dtype, residual_dtype), needs), wants_dweight, bias_dtype)
    if wants_dresidual and dresidual is None:
        dresidual = dx
    return dx if wants_dx else None, dresidual, dweight, dbias


def _backward(dy: Tensor, h: Tensor, weight: Optional[Tensor], rstd: Tensor, dh: Grad, eps: float,
              weight_offset: float, dx: _calls.Dtype, dresidual: _calls.Dtype, dweight: bool,
              dbias: _calls.Dtype) -> _calls.Gradients:
    if _watch.direct(dy, h, weight, rstd, dh):
        return _calls.backward(dy, h, weight, rstd, dh, eps, weight_offset, dx, dresidual, dweight,
                               dbias)
    made = torch.ops.rmsnorm.backward.default(dy, h, weight, rstd, dh, eps, weight_offset, dx=dx,
                                              dresidual=dresidual, dweight=dweight, dbias=dbias)
    wanted = dx is not None, dresidual is not None, dweight, dbias is not None
    return tuple(tensor if wants else None  # type: ignore[return-value]
                 for tensor, wants in zip(made, wanted))


def _of_definition(dy: Tensor, x: Tensor, weight: Optional[Tensor], eps: float,
                   weight_offset: float, rounding: str, wants_dx: bool,
                   wants_dweight: bool) -> Tuple[Grad, Grad]:
    wanted = [tensor for tensor, wants in ((x, wants_dx), (weight, wants_dweight))
              if wants and tensor is not None]
    if not wanted:
        return None, None
    y = _definition.norm(x, weight, eps, weight_offset, rounding, dy.dtype)
    made = list(torch.autograd.grad(y, wanted, dy, create_graph=True))
    return made.pop(0) if wants_dx else None, made.pop(0) if wants_dweight else None


def _dbias(dy: Tensor, dtype: _calls.Dtype) -> Grad:
    if dtype is None:
        return None
    rows = dy.to(_definition.widest(dy)).flatten(0, -2) if dy.dim() > 1 else dy[None]
    return rows.sum(0).to(dtype)


# ---- The direct path -----------------------------------------------------------------------------


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Optional[Tensor],  # type: ignore[override]
                bias: Optional[Tensor], scalars: Tuple[float, float, str],
                dtype: torch.dtype) -> Tensor:
        eps, weight_offset, rounding = scalars
        code = _norm.ROUNDINGS[rounding]
        y, rstd = (_FORWARD.run((eps, weight_offset, code, dtype, True), x, None, weight, bias)
                   or _calls.forward(x, weight, eps, weight_offset, code, dtype, None, True, bias))
        ctx.save_for_backward(x, weight, rstd)
        ctx.scalars = eps, weight_offset, rounding, None if bias is None else bias.dtype
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:  # type: ignore[override]
        return (*gradients(ctx, ctx.needs_input_grad[:3], dy), None, None)


_host.compile_backward(_Norm, _calls.GRADIENTS)


class _AddNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, residual: Tensor,  # type: ignore[override]
                weight: Optional[Tensor], bias: Optional[Tensor], eps: float, weight_offset: float,
                rounding: str, dtype: torch.dtype) -> Tuple[Tensor, Tensor]:
        y, h, rstd = _calls.add_forward(x, residual, weight, eps, weight_offset,
                                        _norm.ROUNDINGS[rounding], dtype, True, bias)
        assert rstd is not None
        save_add(ctx, x, residual, weight, h, rstd, eps, weight_offset, rounding, bias)
        return y, h

    @staticmethod
    def backward(ctx: Any, dy: Grad, dh: Grad) -> Any:  # type: ignore[override]
        return (*add_gradients(ctx, ctx.needs_input_grad[:4], dy, dh), None, None, None, None)


_host.compile_backward(_AddNorm, _calls.ADD_GRADIENTS)

# Function.apply looks for functorch first: the direct path has done so.
norm = super(torch.autograd.Function, _Norm).apply  # type: ignore[misc]
add_norm = super(torch.autograd.Function, _AddNorm).apply  # type: ignore[misc]
