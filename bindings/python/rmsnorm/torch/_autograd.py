"""Gradients: what is saved for backward and what backward runs.

The operators' autograd formulas and the autograd.Functions of the direct path share save() and
gradients(). With create_graph backward is itself to be differentiated: then, and under torch.func,
the gradients are those of the definition in PyTorch's operators.
"""
from typing import Any, Optional, Tuple

import torch
from torch import Tensor

from .. import _norm
from . import _calls, _definition, _host, _watch

Grad = Optional[Tensor]

_FORWARD = _calls.FORWARD
_grad_enabled = torch.is_grad_enabled


def save(ctx: Any, x: Tensor, weight: Optional[Tensor], rstd: Tensor, eps: float,
         weight_offset: float, rounding: str) -> None:
    ctx.save_for_backward(x, weight, rstd)
    ctx.scalars = eps, weight_offset, rounding
    ctx.set_materialize_grads(False)


def save_add(ctx: Any, x: Tensor, residual: Tensor, weight: Optional[Tensor], h: Tensor,
             rstd: Tensor, eps: float, weight_offset: float, rounding: str) -> None:
    save(ctx, h, weight, rstd, eps, weight_offset, rounding)
    ctx.scalars += x.dtype, residual.dtype


def gradients(ctx: Any, dy: Grad) -> Tuple[Grad, Grad]:
    """dx and dweight."""
    if dy is None:
        return None, None
    x, weight, rstd = ctx.saved_tensors
    eps, weight_offset, rounding = ctx.scalars
    wants_dx, wants_dweight = ctx.needs_input_grad[:2]
    if _grad_enabled():
        return _of_definition(dy, x, weight, eps, weight_offset, rounding, wants_dx, wants_dweight)
    dx, _, dweight = _backward(dy, x, weight, rstd, None, eps, weight_offset,
                               x.dtype if wants_dx else None, None, wants_dweight)
    return dx, dweight


def add_gradients(ctx: Any, dy: Grad, dh: Grad) -> Tuple[Grad, Grad, Grad]:
    """dx, dresidual and dweight. dh: the gradient that arrives at h by other ways."""
    eps, weight_offset, rounding, x_dtype, residual_dtype = ctx.scalars
    wants_dx, wants_dresidual, wants_dweight = ctx.needs_input_grad[:3]
    if dy is None:
        return (dh.to(x_dtype) if dh is not None and wants_dx else None,
                dh if wants_dresidual else None, None)
    h, weight, rstd = ctx.saved_tensors
    if _grad_enabled():
        wide, dweight = _of_definition(dy, h, weight, eps, weight_offset, rounding,
                                       wants_dx or wants_dresidual, wants_dweight)
        if wide is not None and dh is not None:
            wide = wide + dh
        return (wide.to(x_dtype) if wide is not None and wants_dx else None,
                wide.to(residual_dtype) if wide is not None and wants_dresidual else None, dweight)
    dx, dresidual, dweight = _backward(
        dy, h, weight, rstd, dh, eps, weight_offset,
        *_calls.gradient_dtypes((x_dtype, residual_dtype), ctx.needs_input_grad), wants_dweight)
    if wants_dresidual and dresidual is None:
        dresidual = dx
    return dx if wants_dx else None, dresidual, dweight


def _backward(dy: Tensor, h: Tensor, weight: Optional[Tensor], rstd: Tensor, dh: Grad, eps: float,
              weight_offset: float, dx: Optional[torch.dtype], dresidual: Optional[torch.dtype],
              dweight: bool) -> Tuple[Grad, Grad, Grad]:
    if _watch.direct(dy, h, weight, rstd, dh):
        return _calls.backward(dy, h, weight, rstd, dh, eps, weight_offset, dx, dresidual, dweight)
    made = torch.ops.rmsnorm.backward.default(dy, h, weight, rstd, dh, eps, weight_offset, dx=dx,
                                              dresidual=dresidual, dweight=dweight)
    wanted = dx is not None, dresidual is not None, dweight
    return tuple(tensor if wants else None  # type: ignore[return-value]
                 for tensor, wants in zip(made, wanted))


def _of_definition(dy: Tensor, x: Tensor, weight: Optional[Tensor], eps: float,
                   weight_offset: float, rounding: str, wants_dx: bool,
                   wants_dweight: bool) -> Tuple[Grad, Grad]:
    y = _definition.norm(x, weight, eps, weight_offset, rounding, dy.dtype)
    wanted = [tensor for tensor, wants in ((x, wants_dx), (weight, wants_dweight))
              if wants and tensor is not None]
    made = list(torch.autograd.grad(y, wanted, dy, create_graph=True))
    return made.pop(0) if wants_dx else None, made.pop(0) if wants_dweight else None


# ---- The direct path -----------------------------------------------------------------------------


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Optional[Tensor],  # type: ignore[override]
                scalars: Tuple[float, float, str], dtype: torch.dtype) -> Tensor:
        eps, weight_offset, rounding = scalars
        code = _norm.ROUNDINGS[rounding]
        y, rstd = (_FORWARD.run((eps, weight_offset, code, dtype, True), x, None, weight)
                   or _calls.forward(x, weight, eps, weight_offset, code, dtype, None, True))
        ctx.save_for_backward(x, weight, rstd)
        ctx.scalars = scalars
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:  # type: ignore[override]
        return (*gradients(ctx, dy), None, None)


_host.compile_backward(_Norm, _calls.GRADIENTS)


def norm(x: Tensor, weight: Optional[Tensor], eps: float, weight_offset: float, rounding: str,
         dtype: torch.dtype) -> Tensor:
    return _apply_norm(x, weight, (eps, weight_offset, rounding), dtype)


class _AddNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, residual: Tensor,  # type: ignore[override]
                weight: Optional[Tensor], eps: float, weight_offset: float, rounding: str,
                dtype: torch.dtype) -> Tuple[Tensor, Tensor]:
        y, h, rstd = _calls.add_forward(x, residual, weight, eps, weight_offset,
                                        _norm.ROUNDINGS[rounding], dtype, True)
        assert rstd is not None
        save_add(ctx, x, residual, weight, h, rstd, eps, weight_offset, rounding)
        return y, h

    @staticmethod
    def backward(ctx: Any, dy: Grad, dh: Grad) -> Any:  # type: ignore[override]
        return (*add_gradients(ctx, dy, dh), None, None, None, None)


_host.compile_backward(_AddNorm, _calls.ADD_GRADIENTS)

# Function.apply looks for functorch first: the direct path has done so.
_apply_norm = super(torch.autograd.Function, _Norm).apply  # type: ignore[misc]
add_norm = super(torch.autograd.Function, _AddNorm).apply  # type: ignore[misc]
