"""RMSNorm in PyTorch's own operators: what create_graph, forward mode and torch.func run."""
from typing import Optional, Tuple

import torch
from torch import Tensor


def norm(h: Tensor, weight: Optional[Tensor], eps: float, weight_offset: float, rounding: str,
         dtype: torch.dtype, bias: Optional[Tensor] = None) -> Tensor:
    """h / sqrt(mean(h**2) + eps) * (weight + weight_offset) + bias, of dtype, in float32 (float64
    where h, weight or bias is)."""
    wide = widest(h, weight, bias)
    exact = h.to(wide)
    y = exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + eps)
    if rounding == "llama":
        y = y.to(h.dtype).to(wide)
    if weight is not None:
        y = y * (weight.to(wide) + weight_offset)
    elif weight_offset != 0:
        y = y * (1 + weight_offset)
    if bias is not None:
        y = y + bias.to(wide)
    return y.to(dtype)


def add_norm(x: Tensor, residual: Tensor, weight: Optional[Tensor], eps: float,
             weight_offset: float, rounding: str, dtype: torch.dtype,
             bias: Optional[Tensor] = None) -> Tuple[Tensor, Tensor]:
    """The norm of h = x + residual, and h, which is rounded to residual's dtype."""
    wide = torch.promote_types(torch.promote_types(x.dtype, residual.dtype), torch.float32)
    h = (x.to(wide) + residual.to(wide)).to(residual.dtype)
    return norm(h, weight, eps, weight_offset, rounding, dtype, bias), h


def widest(*tensors: Optional[Tensor]) -> torch.dtype:
    """float64 where a tensor is, else float32."""
    return (torch.float64 if any(tensor is not None and tensor.dtype is torch.float64
                                 for tensor in tensors) else torch.float32)
