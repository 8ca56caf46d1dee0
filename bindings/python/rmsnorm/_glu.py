"""glu and glu_backward for arrays of any library."""
from typing import NamedTuple, Optional, Union

from . import _abi, _operation
from ._operation import Array, Tensor

ACTIVATIONS = {"silu": _abi.ACTIVATION_SILU, "gelu_tanh": _abi.ACTIVATION_GELU_TANH,
               "gelu": _abi.ACTIVATION_GELU_ERF}
_SCALARS = ("activation", "flags")


class GluGradients(NamedTuple):
    """What glu_backward computed; None for what was not asked for."""
    dgate: Optional[Array]
    dup: Optional[Array]


def glu(gate: Array, up: Array, activation: str = "silu", *, out: Optional[Array] = None) -> Array:
    """The gated activation of SwiGLU and GeGLU:

        y = act(gate) * up          act(g) = g * s(g)

    gate, up: arrays of one shape, (..., cols): of any library that rms_norm takes, each of its own
        dtype. The halves of packed rows, packed[..., :n] and packed[..., n:], are not copied.
    activation: "silu", s(g) = 1 / (1 + exp(-g)); "gelu", s(g) = (1 + erf(g / sqrt(2))) / 2;
        "gelu_tanh", s(g) = (1 + tanh(sqrt(2 / pi) * (g + 0.044715 g**3))) / 2, which is near it.
    out: where y goes, of gate's shape; gate and up are allowed. Absent: a new array of gate's
        dtype.

    dtypes, strides and errors are rms_norm's. Accuracy: include/rmsnorm.h, "Gated activations"; on
    the CPU y is within 0.501 ulp of the exact result (float64: 2), in the tails too. Autograd does
    not see it.

    Shazeer, "GLU Variants Improve Transformer", 2020.
    """
    scalars = activation_code(activation), 0
    return _operation.run(FORWARD, (gate, up, True if out is None else out), scalars)[2]


def glu_backward(dy: Array, gate: Array, up: Array, activation: str = "silu", *,
                 dgate: Union[Array, bool] = True, dup: Union[Array, bool] = True) -> GluGradients:
    """The gradients of glu, from its inputs alone:

        dgate = dy * up * act'(gate)          dup = dy * act(gate)

    dy: the gradient of y. gate, up, activation: glu's. All of one shape, (..., cols).
    dgate, dup: where results go. True: a new array. False: not computed. dgate may be gate or dy,
        dup may be up or dy.

    Arrays, dtypes, strides and errors are those of glu.
    """
    scalars = activation_code(activation), 0
    arrays = _operation.run(BACKWARD, (dy, gate, up, dgate, dup), scalars)
    return GluGradients(*(None if array is False else array for array in arrays[3:]))


FORWARD = _operation.define("glu_forward", _abi.GluForwardParams, "gate", ("gate", "up"), _SCALARS,
                            (Tensor("gate", "gate", "rows"),
                             Tensor("up", "up", "rows"),
                             Tensor("out", "y", "rows", True, ("gate",))))

BACKWARD = _operation.define("glu_backward", _abi.GluBackwardParams, "gate", ("dy", "gate", "up"),
                             _SCALARS,
                             (Tensor("dy", "dy", "rows"),
                              Tensor("gate", "gate", "rows"),
                              Tensor("up", "up", "rows"),
                              Tensor("dgate", "dgate", "rows", True, ("gate",)),
                              Tensor("dup", "dup", "rows", True, ("up",))))


def activation_code(name: str) -> int:
    return _operation.choice("activation", name, ACTIVATIONS)
