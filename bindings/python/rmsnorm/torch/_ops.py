"""The operators torch.ops.rmsnorm: schemas, kernels for the CPU and CUDA, fake kernels, autograd.

    forward       y and rstd
    forward_out   into out
    add_forward   h = x + residual; y, h and rstd
    add_forward_  the same in place: y in x, h in residual
    backward      dx, dresidual (dx in residual's dtype), dweight, dbias; what was not asked for is
                  empty

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
_REST = "float eps, float weight_offset=0.0, str rounding=\"once\", Tensor? bias=None"
_SCHEMAS = (
    f"forward(Tensor x, Tensor? weight, {_REST}, *, ScalarType dtype) -> (Tensor, Tensor)",
    f"forward_out(Tensor x, Tensor? weight, {_REST}, *, Tensor(a!) out) -> ()",
    f"add_forward(Tensor x, Tensor residual, Tensor? weight, {_REST}, *, ScalarType dtype)"
    " -> (Tensor, Tensor, Tensor)",
    f"add_forward_(Tensor(a!) x, Tensor(b!) residual, Tensor? weight, {_REST}) -> ()",
    "backward(Tensor dy, Tensor h, Tensor? weight, Tensor rstd, Tensor? dh, float eps,"
    " float weight_offset=0.0, *, ScalarType? dx, ScalarType? dresidual, bool dweight,"
    " ScalarType? dbias=None) -> (Tensor, Tensor, Tensor, Tensor)",
)
operators = torch.ops.rmsnorm


def define(schema: str) -> None:
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))


def kernel(name: str) -> Any:
    return torch.library.impl(f"rmsnorm::{name}", ("cpu", "cuda"), lib=_library)


def fake(name: str) -> Any:
    return torch.library.register_fake(f"rmsnorm::{name}", lib=_library)


def autograd(name: str, setup: Any, backward: Any) -> None:
    torch.library.register_autograd(f"rmsnorm::{name}", backward, setup_context=setup,
                                    lib=_library)


for _schema in _SCHEMAS:
    define(_schema)


def or_empty(like: Tensor, tensors: Tuple[Optional[Tensor], ...]) -> List[Tensor]:
    return [like.new_empty(0) if tensor is None else tensor for tensor in tensors]


def _check(x: Tensor, weight: Optional[Tensor], bias: Optional[Tensor] = None,
           **others: Optional[Tensor]) -> None:
    """What the fake kernels can see of the arguments' rules."""
    _calls.check_rows(x)
    for name, vector in (("weight", weight), ("bias", bias)):
        if vector is not None and (vector.dim() != 1 or vector.shape[0] != x.shape[-1]):
            raise ArgumentError(f"{name} has shape {tuple(vector.shape)}, but with x's "
                                f"{tuple(x.shape)} it must be {tuple(x.shape[-1:])}")
    for name, tensor in others.items():
        if tensor is not None and tensor.shape != x.shape:
            raise ArgumentError(f"{name} has shape {tuple(tensor.shape)}, but x has "
                                f"{tuple(x.shape)}")
    for name, tensor in (("weight", weight), ("bias", bias), *others.items()):
        if tensor is not None and tensor.device != x.device:
            raise ArgumentError(f"{name} is on {tensor.device}, but x is on {x.device}")


# ---- forward -------------------------------------------------------------------------------------


@kernel("forward")
def _forward(x: Tensor, weight: Optional[Tensor], eps: float, weight_offset: float = 0.0,
             rounding: str = "once", bias: Optional[Tensor] = None, *,
             dtype: torch.dtype) -> Tuple[Tensor, Tensor]:
    y, rstd = _calls.forward(x, weight, eps, weight_offset, _norm.rounding_code(rounding), dtype,
                             keep_rstd=True, bias=bias)
    assert rstd is not None
    return y, rstd


@fake("forward")
def _forward_fake(x: Tensor, weight: Optional[Tensor], eps: float, weight_offset: float = 0.0,
                  rounding: str = "once", bias: Optional[Tensor] = None, *,
                  dtype: torch.dtype) -> Tuple[Tensor, Tensor]:
    _check(x, weight, bias)
    y = _calls.like(x, dtype)
    return y, _calls.like_rows(y, _calls.exact(x, weight, bias, y))


@kernel("forward_out")
def _forward_out(x: Tensor, weight: Optional[Tensor], eps: float, weight_offset: float = 0.0,
                 rounding: str = "once", bias: Optional[Tensor] = None, *, out: Tensor) -> None:
    _calls.forward(x, weight, eps, weight_offset, _norm.rounding_code(rounding), out.dtype, out,
                   bias=bias)


@fake("forward_out")
def _forward_out_fake(x: Tensor, weight: Optional[Tensor], eps: float, weight_offset: float = 0.0,
                      rounding: str = "once", bias: Optional[Tensor] = None, *,
                      out: Tensor) -> None:
    _check(x, weight, bias, out=out)


# ---- add_forward ---------------------------------------------------------------------------------


@kernel("add_forward")
def _add_forward(x: Tensor, residual: Tensor, weight: Optional[Tensor], eps: float,
                 weight_offset: float = 0.0, rounding: str = "once", bias: Optional[Tensor] = None,
                 *, dtype: torch.dtype) -> Tuple[Tensor, Tensor, Tensor]:
    y, h, rstd = _calls.add_forward(x, residual, weight, eps, weight_offset,
                                    _norm.rounding_code(rounding), dtype, keep_rstd=True,
                                    bias=bias)
    assert rstd is not None
    return y, h, rstd


@fake("add_forward")
def _add_forward_fake(x: Tensor, residual: Tensor, weight: Optional[Tensor], eps: float,
                      weight_offset: float = 0.0, rounding: str = "once",
                      bias: Optional[Tensor] = None, *,
                      dtype: torch.dtype) -> Tuple[Tensor, Tensor, Tensor]:
    _check(x, weight, bias, residual=residual)
    y = _calls.like(x, dtype)
    h = torch.empty_like(y, dtype=residual.dtype)
    return y, h, _calls.like_rows(y, _calls.exact(x, residual, weight, bias, y))


@kernel("add_forward_")
def _add_forward_in_place(x: Tensor, residual: Tensor, weight: Optional[Tensor], eps: float,
                          weight_offset: float = 0.0, rounding: str = "once",
                          bias: Optional[Tensor] = None) -> None:
    _calls.add_forward_(x, residual, weight, eps, weight_offset, _norm.rounding_code(rounding),
                        bias)


@fake("add_forward_")
def _add_forward_in_place_fake(x: Tensor, residual: Tensor, weight: Optional[Tensor], eps: float,
                               weight_offset: float = 0.0, rounding: str = "once",
                               bias: Optional[Tensor] = None) -> None:
    _check(x, weight, bias, residual=residual)


# ---- backward ------------------------------------------------------------------------------------


@kernel("backward")
def _backward(dy: Tensor, h: Tensor, weight: Optional[Tensor], rstd: Tensor, dh: Optional[Tensor],
              eps: float, weight_offset: float = 0.0, *, dx: Dtype, dresidual: Dtype,
              dweight: bool, dbias: Dtype = None) -> List[Tensor]:
    return or_empty(h, _calls.backward(dy, h, weight, rstd, dh, eps, weight_offset, dx, dresidual,
                                       dweight, dbias))


@fake("backward")
def _backward_fake(dy: Tensor, h: Tensor, weight: Optional[Tensor], rstd: Tensor,
                   dh: Optional[Tensor], eps: float, weight_offset: float = 0.0, *, dx: Dtype,
                   dresidual: Dtype, dweight: bool,
                   dbias: Dtype = None) -> List[Tensor]:
    _check(h, weight, dy=dy, dh=dh)
    return or_empty(h, _calls.backward_outputs(h, weight, dx, dresidual, dweight, dbias))


# ---- Autograd ------------------------------------------------------------------------------------


def _setup(ctx: Any, inputs: Tuple[Any, ...], keyword_only_inputs: Any, output: Any) -> None:
    x, weight, eps, weight_offset, rounding, bias = inputs
    _, rstd = output
    ctx.mark_non_differentiable(rstd)
    _autograd.save(ctx, x, weight, rstd, eps, weight_offset, rounding, bias)


def _setup_add(ctx: Any, inputs: Tuple[Any, ...], keyword_only_inputs: Any, output: Any) -> None:
    x, residual, weight, eps, weight_offset, rounding, bias = inputs
    _, h, rstd = output
    ctx.mark_non_differentiable(rstd)
    _autograd.save_add(ctx, x, residual, weight, h, rstd, eps, weight_offset, rounding, bias)


def _gradients(ctx: Any, dy: Optional[Tensor], drstd: None) -> Tuple[Optional[Tensor], ...]:
    needs = ctx.needs_input_grad  # without the arguments that were left out
    dx, dweight, dbias = _autograd.gradients(ctx, (*needs[:2], any(needs[5:])), dy)
    return dx, dweight, None, None, None, dbias


def _add_gradients(ctx: Any, dy: Optional[Tensor], dh: Optional[Tensor],
                   drstd: None) -> Tuple[Optional[Tensor], ...]:
    needs = ctx.needs_input_grad
    *made, dbias = _autograd.add_gradients(ctx, (*needs[:3], any(needs[6:])), dy, dh)
    return *made, None, None, None, dbias


autograd("forward", _setup, _gradients)
autograd("add_forward", _setup_add, _add_gradients)

SECOND_ORDER = ("has no gradient of its own: autograd with create_graph=True differentiates the "
                "definition instead")


def not_differentiable(name: str, why: str) -> None:
    """Instead of a silent lack of gradients."""
    operator = getattr(operators, name).default

    def refuse(keys: Any, *args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*args, *kwargs.values()):
            raise RuntimeError(f"rmsnorm::{name} {why}")
        with torch._C._AutoDispatchBelowAutograd():
            return operator.redispatch(keys & torch._C._after_autograd_keyset, *args, **kwargs)

    _library.impl(name, refuse, "Autograd", with_keyset=True)


not_differentiable("forward_out", "has no gradient: call it without out, or under torch.no_grad()")
not_differentiable("add_forward_",
                   "has no gradient: use add_forward, or call it under torch.no_grad()")
not_differentiable("backward", SECOND_ORDER)
