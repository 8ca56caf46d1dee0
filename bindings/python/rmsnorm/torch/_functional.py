"""rms_norm, add_rms_norm and add_rms_norm_ for PyTorch's tensors."""
from typing import Any, Dict, Optional, Sequence, Tuple

import torch
from torch import Tensor

from .. import _norm, _operation
from .._errors import ArgumentError
from . import _autograd, _calls, _definition, _ops, _watch

_ROUNDINGS = _norm.ROUNDINGS
_grad_enabled = torch.is_grad_enabled
any_autocast = torch._C._is_any_autocast_enabled
_operators = _ops.operators
_FORWARD = _calls.FORWARD


def rms_norm(x: Tensor, weight: Optional[Tensor] = None, eps: Optional[float] = None, *,
             bias: Optional[Tensor] = None, weight_offset: float = 0.0, rounding: str = "once",
             normalized_shape: Optional[Sequence[int]] = None, out: Optional[Tensor] = None,
             out_dtype: Optional[torch.dtype] = None) -> Tensor:
    """Normalises x over its last dimensions, as torch.nn.functional.rms_norm does:

        y = x / sqrt(mean(x**2) + eps) * (weight + weight_offset) + bias

    x: (..., *normalized_shape), on the CPU or CUDA, float32, float16, bfloat16 or float64, of any
        strides; it is copied only if they are no rows x groups of neighbouring columns.
    weight, bias: of normalized_shape, of any of these dtypes, read as they are. Absent: 1 and 0.
    eps: None is the installed torch's: finfo(float32).eps with 2.11, for float64 its own.
    weight_offset: 1 is Gemma's 1 + weight.
    rounding: "once", at the end; "llama" rounds x / sqrt(...) to x's dtype too, before weight.
    normalized_shape: absent, weight's shape; without a weight, the last dimension.
    out: where y goes, x itself is allowed; not while gradients are recorded.
    out_dtype: y's, if not the one that torch.nn.functional.rms_norm would give: x's dtype, or what
        autocast makes of it.

    Differentiable in x, weight and bias, any number of times, in forward mode, under torch.func and
    torch.compile. Raises ArgumentError (a ValueError) or TypeError with the argument's name; then
    nothing has been written.
    """
    if type(eps) is not float:
        eps = _epsilon(x, eps)
    if type(weight_offset) is not float:
        weight_offset = _operation.number("weight_offset", weight_offset)
    if (not _watch.direct(x, weight, out, bias) or normalized_shape is not None
            or (weight is not None and weight.dim() != 1)
            or (bias is not None and bias.dim() != 1) or rounding not in _ROUNDINGS):
        return _rms_norm(x, weight, bias, eps, weight_offset, rounding, normalized_shape, out,
                         out_dtype)
    dtype = out_dtype or (_result_dtype(x) if any_autocast() else x.dtype)
    if records(x, weight, bias):
        if out is not None:
            raise _no_gradient("out")
        return _autograd.norm(x, weight, bias, (eps, weight_offset, rounding), dtype)
    if out is not None and (out_dtype is not None or out.requires_grad):
        _check_out(out, out_dtype)
    code = _ROUNDINGS[rounding]
    made = _FORWARD.run((eps, weight_offset, code, dtype, False), x, None, weight, bias, out)
    if made is None:
        return _calls.forward(x, weight, eps, weight_offset, code, dtype, out, bias=bias)[0]
    if out is None:
        return made[0]
    _calls.written(out)
    return out


def add_rms_norm(x: Tensor, residual: Tensor, weight: Optional[Tensor] = None,
                 eps: Optional[float] = None, *, bias: Optional[Tensor] = None,
                 weight_offset: float = 0.0, rounding: str = "once",
                 out_dtype: Optional[torch.dtype] = None) -> Tuple[Tensor, Tensor]:
    """y and h, where h = x + residual, rounded to residual's dtype, and y is its norm.

    x, residual: (..., cols), each of its own dtype. weight, bias: (cols,). The rest is rms_norm's;
    eps None goes by x's dtype. Both results are differentiable in x, residual, weight and bias.
    """
    if type(eps) is not float:
        eps = _epsilon(x, eps)
    if type(weight_offset) is not float:
        weight_offset = _operation.number("weight_offset", weight_offset)
    if (residual is None or not _watch.direct(x, residual, weight, bias)
            or rounding not in _ROUNDINGS or (weight is not None and weight.dim() != 1)
            or (bias is not None and bias.dim() != 1)):
        return _add_rms_norm(x, residual, weight, bias, eps, weight_offset, rounding, out_dtype)
    dtype = out_dtype or (_result_dtype(x) if any_autocast() else x.dtype)
    if records(x, weight, residual, bias):
        return _autograd.add_norm(x, residual, weight, bias, eps, weight_offset, rounding, dtype)
    return _calls.add_forward(x, residual, weight, eps, weight_offset, _ROUNDINGS[rounding], dtype,
                              bias=bias)[:2]


def add_rms_norm_(x: Tensor, residual: Tensor, weight: Optional[Tensor] = None,
                  eps: Optional[float] = None, *, bias: Optional[Tensor] = None,
                  weight_offset: float = 0.0, rounding: str = "once") -> Tuple[Tensor, Tensor]:
    """add_rms_norm in place, for inference: residual becomes x + residual, and x its norm.

    Returns x and residual. Has no gradients: RuntimeError where one would be recorded, and under
    torch.func and forward mode.
    """
    if type(eps) is not float:
        eps = _epsilon(x, eps)
    if type(weight_offset) is not float:
        weight_offset = _operation.number("weight_offset", weight_offset)
    if (residual is None or not _watch.direct(x, residual, weight, bias)
            or rounding not in _ROUNDINGS or (weight is not None and weight.dim() != 1)
            or (bias is not None and bias.dim() != 1) or records(x, weight, residual, bias)):
        _add_rms_norm_in_place(x, residual, weight, bias, eps, weight_offset, rounding)
    else:
        _calls.add_forward_(x, residual, weight, eps, weight_offset, _ROUNDINGS[rounding], bias)
    return x, residual


def records(x: Tensor, y: Optional[Tensor], z: Optional[Tensor] = None,
            u: Optional[Tensor] = None) -> bool:
    """Whether autograd wants to know of a call with these."""
    return _grad_enabled() and (x.requires_grad or (y is not None and y.requires_grad)
                                or (z is not None and z.requires_grad)
                                or (u is not None and u.requires_grad))


# ---- Calls that someone looks on, or of unusual arguments ----------------------------------------


def _rms_norm(x: Tensor, weight: Optional[Tensor], bias: Optional[Tensor], eps: float,
              weight_offset: float, rounding: str, normalized_shape: Optional[Sequence[int]],
              out: Optional[Tensor], out_dtype: Optional[torch.dtype]) -> Tensor:
    _check_tensors(x=x, weight=weight, bias=bias, out=out)
    _norm.rounding_code(rounding)
    dims = _normalized_dims(x, weight, bias, normalized_shape)
    dtype = out_dtype or _result_dtype(x)
    if out is not None:
        if records(x, weight, bias):
            raise _no_gradient("out")
        _check_out(out, out_dtype)
        if out.shape != x.shape:
            raise ArgumentError(f"out has shape {tuple(out.shape)}, but x has {tuple(x.shape)}")
    if _watch.transformed():
        if out is not None:
            raise RuntimeError("out is written to, which torch.func and forward mode do not follow")
        y = _definition.norm(x.flatten(-dims), _flat(weight), eps, weight_offset, rounding, dtype,
                             _flat(bias))
        return y.view(x.shape)
    if dims == 1:
        return _flat_norm(x, weight, bias, eps, weight_offset, rounding, out, dtype)
    flat_out = None
    if out is not None:
        try:
            flat_out = out.view(*out.shape[:-dims], -1)
        except RuntimeError:
            raise ArgumentError("out is an output whose normalised dimensions do not lie next to "
                                "each other: make it contiguous") from None
    y = _flat_norm(x.flatten(-dims), _flat(weight), _flat(bias), eps, weight_offset, rounding,
                   flat_out, dtype)
    return y.view(x.shape) if out is None else out


def _flat(vector: Optional[Tensor]) -> Optional[Tensor]:
    return None if vector is None else vector.flatten()


def _flat_norm(x: Tensor, weight: Optional[Tensor], bias: Optional[Tensor], eps: float,
               weight_offset: float, rounding: str, out: Optional[Tensor],
               dtype: torch.dtype) -> Tensor:
    """Over the last dimension alone."""
    if _watch.direct(x, weight, out, bias):
        if records(x, weight, bias):
            return _autograd.norm(x, weight, bias, (eps, weight_offset, rounding), dtype)
        return _calls.forward(x, weight, eps, weight_offset, _ROUNDINGS[rounding], dtype, out,
                              bias=bias)[0]
    if out is not None:
        _operators.forward_out.default(x, weight, eps, weight_offset, rounding, bias, out=out)
        return out
    return _operators.forward.default(x, weight, eps, weight_offset, rounding, bias,
                                      dtype=dtype)[0]


def _add_rms_norm(x: Tensor, residual: Tensor, weight: Optional[Tensor], bias: Optional[Tensor],
                  eps: float, weight_offset: float, rounding: str,
                  out_dtype: Optional[torch.dtype]) -> Tuple[Tensor, Tensor]:
    _check_add(x, residual, weight, bias, rounding)
    dtype = out_dtype or _result_dtype(x)
    if _watch.transformed():
        return _definition.add_norm(x, residual, weight, eps, weight_offset, rounding, dtype, bias)
    if _watch.direct(x, residual, weight, bias):
        return _autograd.add_norm(x, residual, weight, bias, eps, weight_offset, rounding, dtype)
    return _operators.add_forward.default(x, residual, weight, eps, weight_offset, rounding, bias,
                                          dtype=dtype)[:2]


def _add_rms_norm_in_place(x: Tensor, residual: Tensor, weight: Optional[Tensor],
                           bias: Optional[Tensor], eps: float, weight_offset: float,
                           rounding: str) -> None:
    if _watch.transformed():
        raise RuntimeError("add_rms_norm_ writes to its arguments, which torch.func and forward "
                           "mode do not follow: use add_rms_norm")
    _check_add(x, residual, weight, bias, rounding)
    if records(x, weight, residual, bias):
        raise RuntimeError("add_rms_norm_ has no gradient: use add_rms_norm, or call it under "
                           "torch.no_grad()")
    _operators.add_forward_.default(x, residual, weight, eps, weight_offset, rounding, bias)


# ---- Arguments -----------------------------------------------------------------------------------


def _installed_epsilon(dtype: torch.dtype) -> float:
    """What the installed torch takes for eps = None: with some versions it is finfo(dtype).eps,
    with others the float32's for half precision too."""
    x = torch.full((1, 1), 2.0**-12, dtype=dtype, device="cpu")
    y = torch.nn.functional.rms_norm(x, (1,))
    seen = float((x.double() / y.double()).square() - x.double().square())
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    return min((torch.finfo(dtype).eps, torch.finfo(wide).eps), key=lambda eps: abs(eps - seen))


_EPSILONS = {dtype: _installed_epsilon(dtype) for dtype in
             (torch.float32, torch.float16, torch.bfloat16, torch.float64)}


def _epsilon(x: Any, eps: Optional[float]) -> float:
    if eps is not None:
        return _operation.number("eps", eps)
    _calls.check(x, "x")
    return _EPSILONS.get(x.dtype, 0.0)  # other dtypes are refused later


_autocast_dtypes: Dict[Tuple[torch.device, torch.dtype, torch.dtype], torch.dtype] = {}


def _result_dtype(x: Tensor) -> torch.dtype:
    """What the installed torch.nn.functional.rms_norm gives for x, by its own account: autocast's
    rules are not the same in all versions."""
    device = x.device.type
    if device not in ("cpu", "cuda") or not torch.is_autocast_enabled(device):
        return x.dtype
    key = x.device, x.dtype, torch.get_autocast_dtype(device)
    if _watch.compiling() or key not in _autocast_dtypes:
        with torch.no_grad():
            nothing = torch.empty(0, 1, dtype=x.dtype, device=x.device)
            dtype = torch.nn.functional.rms_norm(nothing, (1,), nothing.new_empty(1), 1.0).dtype
        if _watch.compiling():
            return dtype
        _autocast_dtypes[key] = dtype
    return _autocast_dtypes[key]


def _normalized_dims(x: Tensor, weight: Optional[Tensor], bias: Optional[Tensor],
                     normalized_shape: Optional[Sequence[int]]) -> int:
    """How many dimensions are normalised."""
    if normalized_shape is None:
        vector = bias if weight is None else weight
        dims = 1 if vector is None else vector.dim()
    else:
        wanted = tuple(normalized_shape)
        dims = len(wanted)
        if dims == 0 or tuple(x.shape[-dims:]) != wanted:
            raise ArgumentError(f"x has shape {tuple(x.shape)}, which does not end with "
                                f"normalized_shape = {wanted}")
    _check_vectors(x, dims, weight=weight, bias=bias)
    return dims


def _check_vectors(x: Tensor, dims: int, **vectors: Optional[Tensor]) -> None:
    if x.dim() < max(dims, 1):
        raise ArgumentError(f"x has shape {tuple(x.shape)}, which is no row")
    for name, vector in vectors.items():
        if vector is not None and (dims == 0 or vector.shape != x.shape[-dims:]):
            raise ArgumentError(f"{name} has shape {tuple(vector.shape)}, but with x's "
                                f"{tuple(x.shape)} it must be {tuple(x.shape[-max(dims, 1):])}")


def _check_add(x: Tensor, residual: Tensor, weight: Optional[Tensor], bias: Optional[Tensor],
               rounding: str) -> None:
    _check_tensors(x=x, residual=residual, weight=weight, bias=bias)
    _norm.rounding_code(rounding)
    _check_vectors(x, 1, weight=weight, bias=bias)
    if residual.shape != x.shape:
        raise ArgumentError(f"residual has shape {tuple(residual.shape)}, but x has "
                            f"{tuple(x.shape)}")


def _check_tensors(**tensors: Any) -> None:
    for name, tensor in tensors.items():
        if tensor is not None or name in ("x", "residual"):
            _calls.check(tensor, name)


def _check_out(out: Tensor, out_dtype: Optional[torch.dtype]) -> None:
    if out_dtype is not None and out.dtype is not out_dtype:
        raise ArgumentError(f"out has dtype {out.dtype}, but out_dtype is {out_dtype}")
    if _grad_enabled() and out.requires_grad:
        raise _no_gradient("out")


def _no_gradient(name: str) -> RuntimeError:
    return RuntimeError(f"{name} is written to, and gradients are being recorded: call without it, "
                        "or under torch.no_grad()")
