"""RMSNorm, a torch.nn.RMSNorm."""
from typing import Any

import torch
from torch import Tensor

from .. import _norm, _operation
from ._functional import rms_norm


class RMSNorm(torch.nn.RMSNorm):
    """torch.nn.RMSNorm computed by librmsnorm: the same arguments, attributes and state_dict.

    normalized_shape, eps, elementwise_affine, device, dtype: torch.nn.RMSNorm's.
    weight_offset: 1 is Gemma's 1 + weight. A new weight is 1 - weight_offset, which does nothing.
    rounding: "once" or "llama"; rms_norm has what they mean, and the dtypes and errors.
    """

    weight_offset: float
    rounding: str

    def __init__(self, normalized_shape: Any, eps: Any = None, elementwise_affine: bool = True,
                 device: Any = None, dtype: Any = None, *, weight_offset: float = 0.0,
                 rounding: str = "once") -> None:
        _norm.rounding_code(rounding)
        # reset_parameters() reads it, and is called by the base.
        object.__setattr__(self, "weight_offset", _operation.number("weight_offset", weight_offset))
        super().__init__(normalized_shape, eps, elementwise_affine, device, dtype)
        self.rounding = rounding

    def reset_parameters(self) -> None:
        if self.elementwise_affine:
            torch.nn.init.constant_(self.weight, 1 - self.weight_offset)

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., *normalized_shape). Returns a tensor of its shape."""
        parameters = self._parameters
        weight = parameters["weight"] if "weight" in parameters else self.weight
        return rms_norm(x, weight, self.eps, weight_offset=self.weight_offset,
                        rounding=self.rounding,
                        normalized_shape=self.normalized_shape if weight is None else None)

    def extra_repr(self) -> str:
        text = super().extra_repr()
        if self.weight_offset != 0:
            text += f", weight_offset={self.weight_offset}"
        if self.rounding != "once":
            text += f", rounding={self.rounding!r}"
        return text
