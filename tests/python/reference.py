"""The definition in NumPy's long double, and errors in ulps against it."""
from typing import NamedTuple, Optional

import ml_dtypes
import numpy as np
import pytest

L = np.longdouble
PI = "3.14159265358979323846264338327950288"
BF16 = np.dtype(ml_dtypes.bfloat16)
F16, F32, F64 = np.dtype("float16"), np.dtype("float32"), np.dtype("float64")
DTYPES = (F32, F16, BF16, F64)

# Bits of the mantissa, and the exponent of the smallest normal number (as frexp has it).
_FORMATS = {F32: (24, -125), F16: (11, -13), BF16: (8, -125), F64: (53, -1021)}


def ulp(exact: np.ndarray, dtype: np.dtype) -> np.ndarray:
    bits, least = _FORMATS[np.dtype(dtype)]
    _, exponents = np.frexp(exact)
    return np.ldexp(L(1), np.maximum(exponents, least) - bits)


def ulps(found: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """The distance in ulps of the exact value, in found's dtype."""
    return np.abs(found.astype(L) - exact) / ulp(exact, found.dtype)


def nearest(exact: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Rounded once to dtype (as long double)."""
    unit = ulp(exact, dtype)
    return np.rint(exact / unit) * unit


class Forward(NamedTuple):
    y: np.ndarray
    h: np.ndarray
    rstd: np.ndarray


def vector(values: Optional[np.ndarray], absent: float) -> np.ndarray:
    return L(absent) if values is None else values.astype(L)


def forward(x, weight=None, eps=1e-6, *, residual=None, bias=None, weight_offset=0.0,
            h_dtype=None) -> Forward:
    """h_dtype: residual_out's; given with a residual."""
    h = x.astype(L)
    if residual is not None:
        h = nearest(h + residual.astype(L), h_dtype)
    rstd = 1 / np.sqrt((h * h).mean(-1) + L(eps))
    w = vector(weight, 1) + L(weight_offset)
    return Forward(h * rstd[..., None] * w + vector(bias, 0), h, rstd)


class Backward(NamedTuple):
    """Gradients, and the sums of absolute terms that the header's bounds speak of."""
    dx: np.ndarray
    dx_terms: np.ndarray
    dweight: np.ndarray
    dweight_terms: np.ndarray
    dbias: np.ndarray
    dbias_terms: np.ndarray


def backward(dy, x, weight=None, eps=1e-6, *, rstd=None, dresidual_out=None, weight_offset=0.0,
             per_group=False) -> Backward:
    dy, x = dy.astype(L), x.astype(L)
    if rstd is None:
        rstd = 1 / np.sqrt((x * x).mean(-1) + L(eps))
    scale = rstd.astype(L)[..., None]
    xhat = x * scale
    wdy = (vector(weight, 1) + L(weight_offset)) * dy
    mean = (wdy * xhat).mean(-1)[..., None]
    more = L(0) if dresidual_out is None else dresidual_out.astype(L)
    rows = tuple(range(dy.ndim - (2 if per_group else 1)))
    return Backward(
        scale * (wdy - xhat * mean) + more,
        scale * (np.abs(wdy) + np.abs(xhat) * np.abs(wdy * xhat).mean(-1)[..., None])
        + np.abs(more),
        (dy * xhat).sum(rows), np.abs(dy * xhat).sum(rows), dy.sum(rows), np.abs(dy).sum(rows))


# ---- Gated activations ---------------------------------------------------------------------------


def _erfc(values: np.ndarray) -> np.ndarray:
    """By mpmath: NumPy has none that is exact in the tail."""
    mpmath = pytest.importorskip("mpmath")
    with mpmath.workdps(25):
        found = [mpmath.nstr(mpmath.erfc(mpmath.mpf(np.format_float_scientific(value))), 22)
                 for value in values.ravel()]
    return np.array([L(text) for text in found], L).reshape(values.shape)


def _sigmoid(g: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-g))


class Gate(NamedTuple):
    """act(g), and the two terms of its derivative: s(g) and g * s'(g)."""
    act: np.ndarray
    s: np.ndarray
    more: np.ndarray


def gate_of(gate: np.ndarray, activation: str) -> Gate:
    """In long double; s is never 1 + something, which would lose its tail."""
    g = gate.astype(L)
    with np.errstate(over="ignore", under="ignore"):
        if activation == "silu":
            s = _sigmoid(g)
            slope = s * _sigmoid(-g)
        elif activation == "gelu_tanh":
            root = np.sqrt(L(8) / L(PI))
            u = root * (g + L("0.044715") * g**3)
            s = _sigmoid(u)
            slope = s * _sigmoid(-u) * root * (1 + 3 * L("0.044715") * g**2)
        else:
            s = _erfc(-g / np.sqrt(L(2))) / 2
            slope = np.exp(-g * g / 2) / np.sqrt(2 * L(PI))
    return Gate(g * s, s, g * slope)


class Glu(NamedTuple):
    y: np.ndarray
    dgate: np.ndarray
    dgate_terms: np.ndarray
    dup: np.ndarray


def glu(gate: np.ndarray, up: np.ndarray, activation: str,
        dy: Optional[np.ndarray] = None) -> Glu:
    known = gate_of(gate, activation)
    up, dy = up.astype(L), L(0) if dy is None else dy.astype(L)
    return Glu(known.act * up, dy * up * (known.s + known.more),
               np.abs(dy * up) * (known.s + np.abs(known.more)), dy * known.act)
