"""rms_norm and rms_norm_backward for arrays of any library."""
from typing import Any, NamedTuple, Optional, Tuple, Union

from . import _abi, _operation
from ._errors import ArgumentError
from ._operation import Array, Tensor

ROUNDINGS = {"once": _abi.ROUNDING_ONCE, "llama": _abi.ROUNDING_LLAMA}
_SCALARS = ("eps", "weight_offset", "rounding", "flags")


class Gradients(NamedTuple):
    """What rms_norm_backward computed; None for what was not asked for."""
    dx: Optional[Array]
    dweight: Optional[Array]
    dbias: Optional[Array]
    dresidual: Optional[Array]


def rms_norm(x: Array, weight: Optional[Array] = None, eps: float = 1e-6, *,
             residual: Optional[Array] = None, bias: Optional[Array] = None,
             weight_offset: float = 0.0, rounding: str = "once", out: Optional[Array] = None,
             residual_out: Union[Array, bool, None] = None,
             rstd: Union[Array, bool] = False) -> Union[Array, Tuple[Array, ...]]:
    """Normalises each row of x, along its last dimension:

        h = x + residual                       (with a residual; else h = x)
        y = h / sqrt(mean(h**2) + eps) * (weight + weight_offset) + bias

    x: an array of one dimension or more, (..., cols). NumPy (bfloat16 is ml_dtypes'), PyTorch on
        the CPU or CUDA, CuPy, whatever has __dlpack__ on the CPU, and, as an input, JAX on the
        CPU, for which results are NumPy's. A CUDA call goes into the stream that the array's
        library works in, and is not waited for.
    weight, bias: (cols,), or (groups, cols) for x (..., groups, cols). Absent: 1 and 0.
    residual: as x. Gemma's 1 + weight is weight_offset=1.
    rounding: "once", at the end; "llama" rounds h / sqrt(...) to h's dtype as well, as Hugging
        Face's LlamaRMSNorm does.
    out: where y goes, of x's shape; x itself is allowed. Absent: a new array of x's dtype.
    residual_out: where h goes; residual and x are allowed. Absent, with a residual: a new array of
        residual's dtype. h is rounded to its dtype before it is normalised. False: h is not kept,
        and rounded to x's and residual's dtype, to float32 where they differ.
    rstd: where 1 / sqrt(...) goes, of x's shape without cols, float32 (float64 where all is), for
        rms_norm_backward. True: a new array.

    dtypes: float32, float16 and bfloat16, each array its own; or float64 for all. Strides: any;
    an input is copied if its columns are not next to each other, or its other dimensions need more
    than two strides. Outputs are never copied: such a one is refused.

    Returns y; with a residual (y, h), unless residual_out is False; rstd comes last if asked for.

    Raises ArgumentError (a ValueError) or TypeError, with the argument's name, before anything is
    written; UnsupportedError where there is no CUDA. Autograd does not see it.

    Zhang and Sennrich, "Root Mean Square Layer Normalization", NeurIPS 2019. Accuracy:
    include/rmsnorm.h, "Numerics"; on the CPU y is within 0.501 ulp of the exact result.
    """
    if out is None:
        out = True
    if residual_out is None:
        residual_out = residual is not None
    scalars = _scalars(eps, weight_offset, rounding_code(rounding), 0)
    arrays = _operation.run(FORWARD, (x, residual, weight, bias, out, residual_out, rstd), scalars)
    if residual_out is False and rstd is False:
        return arrays[4]
    return tuple(array for array in arrays[4:] if array is not None and array is not False)


def rms_norm_backward(dy: Array, x: Array, weight: Optional[Array] = None, eps: float = 1e-6, *,
                      rstd: Optional[Array] = None, dresidual_out: Optional[Array] = None,
                      weight_offset: float = 0.0, dx: Union[Array, bool] = True,
                      dresidual: Union[Array, bool] = False,
                      dweight: Union[Array, bool, None] = None,
                      dbias: Union[Array, bool] = False, accumulate: bool = False) -> Gradients:
    """The gradients of rms_norm. With xhat = x * rstd and w = weight + weight_offset:

        dx      = rstd * (w * dy - xhat * mean(w * dy * xhat)) + dresidual_out
        dweight = the sum of dy * xhat over all rows
        dbias   = the sum of dy over all rows

    dy: the gradient of y. x: what was normalised: rms_norm's x, or its residual_out where there
        was a residual; dx is then the gradient of both. Both of one shape, (..., cols).
    weight, weight_offset, eps: as in rms_norm.
    rstd: rms_norm's; absent, it is computed from x and eps.
    dresidual_out: the gradient that arrives at residual_out by other ways.
    dx, dresidual, dweight, dbias: where results go. True: a new array. False: not computed. dweight
        is new if weight is given and dweight is not. dx may be dy, x or dresidual_out. dresidual
        is dx once more, for a residual of another dtype. dweight and dbias are (cols,), or
        (groups, cols) where weight is, new ones of weight's dtype (float32 without a weight).
    accumulate: adds to what dweight and dbias hold; both must be given then.

    Arrays, dtypes, strides and errors are those of rms_norm. The same bits every time.
    """
    if dweight is None:
        dweight = weight is not None
    flags = 0
    if accumulate:
        flags = _abi.FLAG_ACCUMULATE
        for name, array in (("dweight", dweight), ("dbias", dbias)):
            if array is True:
                raise ArgumentError(f"{name} must be given with accumulate: it is added to")
    scalars = _scalars(eps, weight_offset, _abi.ROUNDING_ONCE, flags)
    given = dy, x, weight, rstd, dresidual_out, dx, dresidual, dweight, dbias
    arrays = _operation.run(BACKWARD, given, scalars)
    dx, dresidual, dweight, dbias = (None if array is False else array for array in arrays[5:])
    return Gradients(dx, dweight, dbias, dresidual)


# ---- The operations ------------------------------------------------------------------------------

FORWARD = _operation.define("forward", _abi.ForwardParams, "x", ("x",), _SCALARS, (
    Tensor("x", "x", "rows"),
    Tensor("residual", "residual", "rows"),
    Tensor("weight", "weight", "vector"),
    Tensor("bias", "bias", "vector"),
    Tensor("out", "y", "rows", True, ("x",)),
    Tensor("residual_out", "residual_out", "rows", True, ("residual",)),
    Tensor("rstd", "rstd", "rstd", True, ("x",)),
))

BACKWARD = _operation.define("backward", _abi.BackwardParams, "x", ("dy", "x"), _SCALARS, (
    Tensor("dy", "dy", "rows"),
    Tensor("x", "x", "rows"),
    Tensor("weight", "weight", "vector"),
    Tensor("rstd", "rstd", "rstd"),
    Tensor("dresidual_out", "dresidual_out", "rows"),
    Tensor("dx", "dx", "rows", True, ("x",)),
    Tensor("dresidual", "dresidual", "rows", True, ("x",)),
    Tensor("dweight", "dweight", "vector", True, ("weight", "x")),
    Tensor("dbias", "dbias", "vector", True, ("weight", "x")),
))


def _scalars(eps: Any, weight_offset: Any, rounding: int, flags: int) -> _operation.Scalars:
    if type(eps) is not float:
        eps = _operation.number("eps", eps)
    if type(weight_offset) is not float:
        weight_offset = _operation.number("weight_offset", weight_offset)
    return eps, weight_offset, rounding, flags


def rounding_code(name: str) -> int:
    return _operation.choice("rounding", name, ROUNDINGS)


def rounding_name(code: int) -> str:
    return next(name for name, each in ROUNDINGS.items() if each == code)
