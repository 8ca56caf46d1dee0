"""The operators torch.ops.rmsnorm: schemas, kernels for the CPU and CUDA, fake kernels, autograd.

    forward       y and rstd
    forward_out   into out
    add_forward   h = x + residual; y, h and rstd
    add_forward_  the same in place: y in x, h in residual
    backward      dx, dresidual (dx in residual's dtype), dweight; what was not asked for is empty

What writes to its arguments has no gradient. eps is a number here, rounding "once" or "llama".
"""
from typing import Any, List, Optional, Tuple

import torch
from torch import Tensor

from .. import _norm
from .._errors import ArgumentError
from . import _autograd, _calls

Dtype = Optional[torch.dtype]

_library = torch.library.Library("rmsnorm", "DEF")
_SCALARS = "float eps, float weight_offset=0.0, str rounding=\"once\""
_SCHEMAS = (
    f"forward(Tensor x, Tensor? weight, {_SCALARS}, *, ScalarType dtype) -> (Tensor, Tensor)",
    f"forward_out(Tensor x, Tensor? weight, {_SCALARS}, *, Tensor(a!) out) -> ()",
    f"add_forward(Tensor x, Tensor residual, Tensor? weight, {_SCALARS}, *, ScalarType dtype)"
    " -> (Tensor, Tensor, Tensor)",
    f"add_forward_(Tensor(a!) x, Tensor(b!) residual, Tensor? weight, {_SCALARS}) -> ()",
    "backward(Tensor dy, Tensor h, Tensor? weight, Tensor rstd, Tensor? dh, float eps,"
    " float weight_offset=0.0, *, ScalarType? dx, ScalarType? dresidual, bool dweight)"
    " -> (Tensor, Tensor, Tensor)",
)
for _schema in _SCHEMAS:
    _library.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))
operators = torch.ops.rmsnorm


def _kernel(name: str) -> Any:
    return torch.library.impl(f"rmsnorm::{name}", ("cpu", "cuda"), lib=_library)


def _fake(name: str) -> Any:
    return torch.library.register_fake(f"rmsnorm::{name}", lib=_library)


def _or_empty(like: Tensor, tensors: Tuple[Optional[Tensor], ...]) -> List[Tensor]:
    return [like.new_empty(0) if tensor is None else tensor for tensor in tensors]


def _check(x: Tensor, weight: Optional[Tensor], **others: Optional[Tensor]) -> None:
    """What the fake kernels can see of the arguments' rules."""
    _calls.check_rows(x)
    if weight is not None and (weight.dim() != 1 or weight.shape[0] != x.shape[-1]):
        raise ArgumentError(f"weight has shape {tuple(weight.shape)}, but with x's "
                            f"{tuple(x.shape)} it must be {tuple(x.shape[-1:])}")
    for name, tensor in others.items():
        if tensor is not None and tensor.shape != x.shape:
            raise ArgumentError(f"{name} has shape {tuple(tensor.shape)}, but x has "
                                f"{tuple(x.shape)}")
    for name, tensor in (("weight", weight), *others.items()):
        if tensor is not None and tensor.device != x.device:
            raise ArgumentError(f"{name} is on {tensor.device}, but x is on {x.device}")


# ---- forward -------------------------------------------------------------------------------------


@_kernel("forward")
def _forward(x: Tensor, weight: Optional[Tensor], eps: float, weight_offset: float = 0.0,
             rounding: str = "once", *, dtype: torch.dtype) -> Tuple[Tensor, Tensor]:
    y, rstd = _calls.forward(x, weight, eps, weight_offset, _norm._rounding(rounding), dtype,
                             keep_rstd=True)
    assert rstd is not None
    return y, rstd


@_fake("forward")
def _forward_fake(x: Tensor, weight: Optional[Tensor], eps: float, weight_offset: float = 0.0,
                  rounding: str = "once", *, dtype: torch.dtype) -> Tuple[Tensor, Tensor]:
    _check(x, weight)
    y = _calls.like(x, dtype)
    return y, _calls.like_rows(y, _calls.exact(x, weight, y))


@_kernel("forward_out")
def _forward_out(x: Tensor, weight: Optional[Tensor], eps: float, weight_offset: float = 0.0,
                 rounding: str = "once", *, out: Tensor) -> None:
    _calls.forward(x, weight, eps, weight_offset, _norm._rounding(rounding), out.dtype, out)


@_fake("forward_out")
def _forward_out_fake(x: Tensor, weight: Optional[Tensor], eps: float, weight_offset: float = 0.0,
                      rounding: str = "once", *, out: Tensor) -> None:
    _check(x, weight, out=out)


# ---- add_forward ---------------------------------------------------------------------------------


@_kernel("add_forward")
def _add_forward(x: Tensor, residual: Tensor, weight: Optional[Tensor], eps: float,
                 weight_offset: float = 0.0, rounding: str = "once", *,
                 dtype: torch.dtype) -> Tuple[Tensor, Tensor, Tensor]:
    y, h, rstd = _calls.add_forward(x, residual, weight, eps, weight_offset,
                                    _norm._rounding(rounding), dtype, keep_rstd=True)
    assert rstd is not None
    return y, h, rstd


@_fake("add_forward")
def _add_forward_fake(x: Tensor, residual: Tensor, weight: Optional[Tensor], eps: float,
                      weight_offset: float = 0.0, rounding: str = "once", *,
                      dtype: torch.dtype) -> Tuple[Tensor, Tensor, Tensor]:
    _check(x, weight, residual=residual)
    y = _calls.like(x, dtype)
    h = torch.empty_like(y, dtype=residual.dtype)
    return y, h, _calls.like_rows(y, _calls.exact(x, residual, weight, y))


@_kernel("add_forward_")
def _add_forward_in_place(x: Tensor, residual: Tensor, weight: Optional[Tensor], eps: float,
                          weight_offset: float = 0.0, rounding: str = "once") -> None:
    _calls.add_forward(x, residual, weight, eps, weight_offset, _norm._rounding(rounding), x.dtype,
                       in_place=True)


@_fake("add_forward_")
def _add_forward_in_place_fake(x: Tensor, residual: Tensor, weight: Optional[Tensor], eps: float,
                               weight_offset: float = 0.0, rounding: str = "once") -> None:
    _check(x, weight, residual=residual)


# ---- backward ------------------------------------------------------------------------------------


@_kernel("backward")
def _backward(dy: Tensor, h: Tensor, weight: Optional[Tensor], rstd: Tensor, dh: Optional[Tensor],
              eps: float, weight_offset: float = 0.0, *, dx: Dtype, dresidual: Dtype,
              dweight: bool) -> List[Tensor]:
    return _or_empty(h, _calls.backward(dy, h, weight, rstd, dh, eps, weight_offset, dx, dresidual,
                                        dweight))


@_fake("backward")
def _backward_fake(dy: Tensor, h: Tensor, weight: Optional[Tensor], rstd: Tensor,
                   dh: Optional[Tensor], eps: float, weight_offset: float = 0.0, *, dx: Dtype,
                   dresidual: Dtype, dweight: bool) -> List[Tensor]:
    _check(h, weight, dy=dy, dh=dh)
    return _or_empty(h, _calls.backward_outputs(h, weight, dx, dresidual, dweight))


# ---- Autograd ------------------------------------------------------------------------------------


def _setup(ctx: Any, inputs: Tuple[Any, ...], keyword_only_inputs: Any, output: Any) -> None:
    x, weight, eps, weight_offset, rounding = inputs
    _, rstd = output
    ctx.mark_non_differentiable(rstd)
    _autograd.save(ctx, x, weight, rstd, eps, weight_offset, rounding)


def _setup_add(ctx: Any, inputs: Tuple[Any, ...], keyword_only_inputs: Any, output: Any) -> None:
    x, residual, weight, eps, weight_offset, rounding = inputs
    _, h, rstd = output
    ctx.mark_non_differentiable(rstd)
    _autograd.save_add(ctx, x, residual, weight, h, rstd, eps, weight_offset, rounding)


torch.library.register_autograd(
    "rmsnorm::forward",
    lambda ctx, dy, drstd: (*_autograd.gradients(ctx, dy), None, None, None),
    setup_context=_setup, lib=_library)
torch.library.register_autograd(
    "rmsnorm::add_forward",
    lambda ctx, dy, dh, drstd: (*_autograd.add_gradients(ctx, dy, dh), None, None, None),
    setup_context=_setup_add, lib=_library)


def _not_differentiable(name: str, why: str) -> None:
    """Instead of a silent lack of gradients."""
    operator = getattr(operators, name).default

    def refuse(keys: Any, *args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*args, *kwargs.values()):
            raise RuntimeError(f"rmsnorm::{name} {why}")
        with torch._C._AutoDispatchBelowAutograd():
            return operator.redispatch(keys & torch._C._after_autograd_keyset, *args, **kwargs)

    _library.impl(name, refuse, "Autograd", with_keyset=True)


_not_differentiable("forward_out", "has no gradient: call it without out, or under torch.no_grad()")
_not_differentiable("add_forward_",
                    "has no gradient: use add_forward, or call it under torch.no_grad()")
_not_differentiable("backward", "has no gradient of its own: autograd with create_graph=True "
                    "differentiates the definition instead")
