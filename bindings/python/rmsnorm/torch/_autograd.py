"""Gradients: what is saved for backward and what backward runs.

The operators' autograd formulas and the autograd.Functions of the direct path share save() and
gradients(). With create_graph backward is itself to be differentiated: then, and under torch.func,
the gradients are those of the definition in PyTorch's operators.
"""
from typing import Any, Optional, Tuple

import torch
from torch import Tensor

from .. import _norm
from . import _calls, _definition, _watch

Grad = Optional[Tensor]

_grad_enabled = torch.is_grad_enabled
_saved_tensors_hooks = torch._C._autograd._top_saved_tensors_default_hooks


def save(ctx: Any, x: Tensor, weight: Optional[Tensor], rstd: Tensor, eps: float,
         weight_offset: float, rounding: str) -> None:
    ctx.save_for_backward(x, weight, rstd)
    ctx.scalars = eps, weight_offset, rounding
    ctx.set_materialize_grads(False)


def save_add(ctx: Any, x: Tensor, residual: Tensor, weight: Optional[Tensor], h: Tensor,
             rstd: Tensor, eps: float, weight_offset: float, rounding: str) -> None:
    save(ctx, h, weight, rstd, eps, weight_offset, rounding)
    ctx.dtypes = x.dtype, residual.dtype


def gradients(ctx: Any, dy: Grad) -> Tuple[Grad, Grad]:
    """dx and dweight."""
    if dy is None:
        return None, None
    x, weight, rstd = ctx.saved_tensors
    eps, weight_offset, rounding = ctx.scalars
    wants_dx, wants_dweight = ctx.needs_input_grad[:2]
    if torch.is_grad_enabled():
        return _of_definition(dy, x, weight, eps, weight_offset, rounding, wants_dx, wants_dweight)
    dx, _, dweight = _backward(dy, x, weight, rstd, None, eps, weight_offset,
                               x.dtype if wants_dx else None, None, wants_dweight)
    return dx, dweight


def add_gradients(ctx: Any, dy: Grad, dh: Grad) -> Tuple[Grad, Grad, Grad]:
    """dx, dresidual and dweight. dh: the gradient that arrives at h by other ways."""
    x_dtype, residual_dtype = ctx.dtypes
    wants_dx, wants_dresidual, wants_dweight = ctx.needs_input_grad[:3]
    if dy is None:
        return (dh.to(x_dtype) if dh is not None and wants_dx else None,
                dh if wants_dresidual else None, None)
    h, weight, rstd = ctx.saved_tensors
    eps, weight_offset, rounding = ctx.scalars
    if torch.is_grad_enabled():
        wide, dweight = _of_definition(dy, h, weight, eps, weight_offset, rounding,
                                       wants_dx or wants_dresidual, wants_dweight)
        if wide is not None and dh is not None:
            wide = wide + dh
        return (wide.to(x_dtype) if wide is not None and wants_dx else None,
                wide.to(residual_dtype) if wide is not None and wants_dresidual else None, dweight)
    same = x_dtype == residual_dtype
    dx, dresidual, dweight = _backward(
        dy, h, weight, rstd, dh, eps, weight_offset,
        x_dtype if wants_dx or (same and wants_dresidual) else None,
        residual_dtype if wants_dresidual and not same else None, wants_dweight)
    if same and wants_dresidual:
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
                plan: _calls._Plan) -> Tensor:
        y, rstd = _calls.run_forward(plan, x, weight, None, True)
        ctx.save_for_backward(x, weight, rstd)
        ctx.plan = plan
        ctx.hooked = _saved_tensors_hooks(True) is not None
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:  # type: ignore[override]
        plan = ctx.plan
        # Hooks may give back something else than was saved.
        if _grad_enabled() or ctx.hooked or not _watch.direct(dy):
            eps, weight_offset, code, _ = plan.scalars
            ctx.scalars = eps, weight_offset, _norm.rounding_name(code)
            return (*gradients(ctx, dy), None)
        x, weight, rstd = ctx.saved_tensors
        wants = ctx.needs_input_grad
        dx, dweight = _calls.backward_of(plan, dy, x, weight, rstd, wants[0], wants[1])
        return dx, dweight, None


def norm(x: Tensor, weight: Optional[Tensor], eps: float, weight_offset: float, rounding: str,
         dtype: torch.dtype) -> Tensor:
    plan = _calls.forward_plan(x, weight, eps, weight_offset, _norm.ROUNDINGS[rounding], dtype,
                               None, True)
    if plan is None:
        return torch.ops.rmsnorm.forward.default(x, weight, eps, weight_offset, rounding,
                                                 dtype=dtype)[0]
    return _apply_norm(x, weight, plan)


class _AddNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, residual: Tensor,  # type: ignore[override]
                weight: Optional[Tensor], eps: float, weight_offset: float, rounding: str,
                dtype: torch.dtype) -> Tuple[Tensor, Tensor]:
        y, h, rstd = _calls.add_forward(x, residual, weight, eps, weight_offset,
                                        _norm.ROUNDINGS[rounding], dtype, False, True)
        assert rstd is not None
        save_add(ctx, x, residual, weight, h, rstd, eps, weight_offset, rounding)
        return y, h

    @staticmethod
    def backward(ctx: Any, dy: Grad, dh: Grad) -> Any:  # type: ignore[override]
        return (*add_gradients(ctx, dy, dh), None, None, None, None)


# Function.apply looks for functorch first: the direct path has done so.
_apply_norm = super(torch.autograd.Function, _Norm).apply  # type: ignore[misc]
add_norm = super(torch.autograd.Function, _AddNorm).apply  # type: ignore[misc]
