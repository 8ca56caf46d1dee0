"""The norm's operations on plain tensors, forward and backward. Autograd is not seen here.

Outputs have x's order of dimensions in memory (like()): then a transposed x needs no copy. The
fake kernels use the same functions, so that a compiled graph sees the strides that come.
"""
import re
from typing import Any, List, Optional, Sequence, Tuple

import torch
from torch import Tensor

from .. import _abi, _arrays, _norm
from .._errors import ArgumentError
from ._run import Prepared, Runner, check, family

Dtype = Optional[torch.dtype]
Gradients = Tuple[Optional[Tensor], Optional[Tensor], Optional[Tensor], Optional[Tensor]]

_increment_version = torch._C._increment_version
_empty, _empty_like = torch.empty, torch.empty_like
_float32, _float64 = torch.float32, torch.float64


# ---- Outputs -------------------------------------------------------------------------------------


def like(x: Tensor, dtype: torch.dtype) -> Tensor:
    """A new tensor of x's shape without gaps, its columns next to each other; the other dimensions
    lie as x's do."""
    made = _empty_like(x, dtype=dtype)
    if made.dim() > 0 and made.stride(-1) == 1:
        return made
    return _empty(x.shape, dtype=dtype, device=x.device)


def like_rows(y: Tensor, dtype: torch.dtype) -> Tensor:
    """A new tensor with one element for each row of y, which like() has made."""
    return _empty_like(y.select(-1, 0), dtype=dtype)


def exact(*tensors: Optional[Tensor]) -> torch.dtype:
    """rstd's dtype."""
    return _float64 if any(t is not None and t.dtype is _float64 for t in tensors) else _float32


def check_rows(x: Tensor) -> None:
    if x.dim() == 0 or x.shape[-1] == 0:
        raise ArgumentError(f"x has shape {tuple(x.shape)}, but a row has at least 1 column")


def _output_like(x: Tensor, dtype: torch.dtype) -> Tensor:
    check(x, "x")
    check_rows(x)
    for name, each in (("x", x.dtype), ("out_dtype", dtype)):
        if each not in family.dtypes:
            raise _arrays.unknown_dtype(name, each)
    return like(x, dtype)


# ---- What the library does not take as it is -----------------------------------------------------


def resolve_negative(*tensors: Optional[Tensor]) -> Optional[List[Any]]:
    """The tensors without negative bits; None if there were none."""
    if not any(tensor is not None and tensor.is_neg() for tensor in tensors):
        return None
    return [tensor if tensor is None else tensor.resolve_neg() for tensor in tensors]


def mixes_float64(*tensors: Optional[Tensor]) -> bool:
    kinds = {tensor.dtype is _float64 for tensor in tensors if isinstance(tensor, Tensor)}
    return len(kinds) > 1


def double(*tensors: Optional[Tensor]) -> List[Any]:
    return [None if tensor is None else tensor.double() for tensor in tensors]


def written(tensor: Tensor) -> None:
    """Tells autograd that it was changed in place."""
    if not tensor.is_inference():
        _increment_version((tensor,))


# ---- Forward -------------------------------------------------------------------------------------


def _prepare_forward(scalars: Tuple[Any, ...], x: Tensor, residual: Optional[Tensor],
                     weight: Optional[Tensor], bias: Optional[Tensor] = None,
                     out: Optional[Tensor] = None,
                     residual_out: Optional[Tensor] = None) -> Prepared:
    eps, weight_offset, rounding, dtype, keep_rstd = scalars
    if out is None and (mixes_float64(x, residual, weight, bias)
                        or (dtype is _float64) is not (x.dtype is _float64)):
        return None
    y = _output_like(x, dtype) if out is None else out
    if residual is not None and residual_out is None:
        residual_out = _empty_like(y, dtype=residual.dtype)
    kept = like_rows(y, exact(x)) if keep_rstd else None
    return ((eps, weight_offset, rounding, 0),
            (x, residual, weight, bias, y, residual_out, kept))


FORWARD = Runner(_norm.FORWARD, _prepare_forward)


def forward(x: Tensor, weight: Optional[Tensor], eps: float, weight_offset: float, rounding: int,
            dtype: torch.dtype, out: Optional[Tensor] = None, keep_rstd: bool = False,
            bias: Optional[Tensor] = None) -> Tuple[Tensor, Optional[Tensor]]:
    """y, in out or a new tensor of dtype, and rstd if it is kept.

    x: (..., cols). weight, bias: (cols,) or None. rounding: _abi.ROUNDING_*.
    """
    made = FORWARD.run((eps, weight_offset, rounding, dtype, keep_rstd), x, None, weight, bias, out)
    if made is None:
        plain = resolve_negative(x, weight, bias)
        if plain is not None:
            x, weight, bias = plain
            return forward(x, weight, eps, weight_offset, rounding, dtype, out, keep_rstd, bias)
        return _forward_in_double(x, weight, bias, eps, weight_offset, rounding, dtype, keep_rstd)
    if out is None:
        return made[0], made[1] if keep_rstd else None
    written(out)
    return out, made[0] if keep_rstd else None


def _forward_in_double(x: Tensor, weight: Optional[Tensor], bias: Optional[Tensor], eps: float,
                       weight_offset: float, rounding: int, dtype: torch.dtype,
                       keep_rstd: bool) -> Tuple[Tensor, Optional[Tensor]]:
    """The library wants all or nothing in float64."""
    x, weight, bias = double(x, weight, bias)
    y, rstd = forward(x, weight, eps, weight_offset, rounding, _float64, None, keep_rstd, bias)
    return y.to(dtype), rstd


def add_forward(x: Tensor, residual: Tensor, weight: Optional[Tensor], eps: float,
                weight_offset: float, rounding: int, dtype: torch.dtype, keep_rstd: bool = False,
                bias: Optional[Tensor] = None) -> Tuple[Tensor, Tensor, Optional[Tensor]]:
    """y, h and rstd if it is kept."""
    made = FORWARD.run((eps, weight_offset, rounding, dtype, keep_rstd), x, residual, weight, bias)
    if made is None:
        plain = resolve_negative(x, residual, weight, bias)
        if plain is not None:
            x, residual, weight, bias = plain
            return add_forward(x, residual, weight, eps, weight_offset, rounding, dtype, keep_rstd,
                               bias)
        h = (x.double() + residual.double()).to(residual.dtype)
        y, rstd = _forward_in_double(h, weight, bias, eps, weight_offset, rounding, dtype,
                                     keep_rstd)
        return y, h, rstd
    return made[0], made[1], made[2] if keep_rstd else None


def add_forward_(x: Tensor, residual: Tensor, weight: Optional[Tensor], eps: float,
                 weight_offset: float, rounding: int, bias: Optional[Tensor] = None) -> None:
    """y goes into x, and h into residual."""
    weight, bias = (each if each is None else each.resolve_neg() for each in (weight, bias))
    try:
        FORWARD.run((eps, weight_offset, rounding, x.dtype, False), x, residual, weight, bias, x,
                    residual)
    except ArgumentError as error:
        raise _in_place(error) from None
    written(x)
    written(residual)


def _in_place(error: ArgumentError) -> ArgumentError:
    """In the caller's words, who knows of no outputs."""
    text = re.sub(r"\bresidual_out\b", "residual", re.sub(r"\bout\b", "x", str(error)))
    return ArgumentError(text, error.status)


# ---- Backward ------------------------------------------------------------------------------------


def _prepare_backward(scalars: Tuple[Any, ...], dy: Tensor, h: Tensor, weight: Optional[Tensor],
                      rstd: Optional[Tensor], dh: Optional[Tensor] = None) -> Prepared:
    eps, weight_offset, *wanted = scalars
    if (mixes_float64(dy, h, weight, rstd, dh)
            or (_float64 in wanted and h.dtype is not _float64)):
        return None
    made = backward_outputs(h, weight, *wanted)
    return (eps, weight_offset, _abi.ROUNDING_ONCE, 0), (dy, h, weight, rstd, dh, *made)


BACKWARD = Runner(_norm.BACKWARD, _prepare_backward)


def _prepare_gradients(scalars: Tuple[Any, ...], dy: Tensor, x: Tensor, weight: Optional[Tensor],
                       rstd: Tensor) -> Prepared:
    (eps, weight_offset, _, bias_dtype), needs = scalars
    return _prepare_backward((eps, weight_offset, x.dtype if needs[0] else None, None, needs[1],
                              bias_dtype if needs[2] else None), dy, x, weight, rstd)


def _prepare_add_gradients(scalars: Tuple[Any, ...], dy: Tensor, h: Tensor,
                           weight: Optional[Tensor], rstd: Tensor,
                           dh: Optional[Tensor]) -> Prepared:
    (eps, weight_offset, _, bias_dtype, *dtypes), needs = scalars
    return _prepare_backward((eps, weight_offset, *gradient_dtypes(dtypes, needs), needs[2],
                              bias_dtype if needs[3] else None), dy, h, weight, rstd, dh)


def gradient_dtypes(dtypes: Sequence[torch.dtype], needs: Sequence[bool]) -> Tuple[Dtype, Dtype]:
    """dx's and dresidual's, of x's and residual's; one tensor is both where these are the same."""
    x, residual = dtypes
    same = x is residual
    return (x if needs[0] or (same and needs[1]) else None,
            residual if needs[1] and not same else None)


# Of the autograd.Functions, whose scalars are their own and needs_input_grad.
GRADIENTS = Runner(_norm.BACKWARD, _prepare_gradients)
ADD_GRADIENTS = Runner(_norm.BACKWARD, _prepare_add_gradients)


def backward(dy: Tensor, h: Tensor, weight: Optional[Tensor], rstd: Optional[Tensor],
             dh: Optional[Tensor], eps: float, weight_offset: float,
             dx: Dtype, dresidual: Dtype, dweight: bool, dbias: Dtype = None) -> Gradients:
    """dx, dresidual (dx once more, in another dtype), dweight and dbias, where they are asked for:
    by a dtype, dweight of weight's.

    h: what was normalised. dh: the gradient that arrives at h by other ways.
    """
    wanted = dx, dresidual, dweight, dbias
    made = BACKWARD.run((eps, weight_offset, *wanted), dy, h, weight, rstd, dh)
    if made is None:
        plain = resolve_negative(dy, h, weight, rstd, dh)
        if plain is not None:
            return backward(*plain, eps, weight_offset, *wanted)
        return _backward_in_double(dy, h, weight, rstd, dh, eps, weight_offset, *wanted)
    found = iter(made)
    return tuple(next(found) if each else None for each in wanted)  # type: ignore[return-value]


def backward_outputs(h: Tensor, weight: Optional[Tensor], dx: Dtype, dresidual: Dtype,
                     dweight: bool, dbias: Dtype = None) -> Gradients:
    if dweight and weight is None:
        raise ArgumentError("dweight is asked for, but weight is absent")
    return (None if dx is None else like(h, dx), None if dresidual is None else like(h, dresidual),
            _vector(h, weight.dtype) if dweight else None,  # type: ignore[union-attr]
            None if dbias is None else _vector(h, dbias))


def _vector(h: Tensor, dtype: torch.dtype) -> Tensor:
    return _empty(h.shape[-1:], dtype=dtype, device=h.device)


def _backward_in_double(dy: Tensor, h: Tensor, weight: Optional[Tensor], rstd: Optional[Tensor],
                        dh: Optional[Tensor], eps: float, weight_offset: float, dx: Dtype,
                        dresidual: Dtype, dweight: bool, dbias: Dtype) -> Gradients:
    dtypes = dx, dresidual, None if weight is None else weight.dtype, dbias
    dy, h, weight, rstd, dh = double(dy, h, weight, rstd, dh)
    made = backward(dy, h, weight, rstd, dh, eps, weight_offset, dx and _float64,
                    dresidual and _float64, dweight, dbias and _float64)
    return tuple(gradient if gradient is None else gradient.to(dtype)  # type: ignore[return-value]
                 for gradient, dtype in zip(made, dtypes))
