"""The parts of the decoder that are swapped: norms and gated activations, by their flags' names.

Each is imported and tried on the device when it is asked for: Unavailable says why one is missing.
"""
from typing import Any, Callable, Dict

import torch
from torch import Tensor, nn

EPS = 1e-6
Activation = Callable[[Tensor, Tensor], Tensor]


class Unavailable(Exception):
    """One of the parts cannot be had here."""


class AddNorm(nn.Module):
    """The residual add before a norm, and the norm: (branch, stream) -> (y, stream + branch)."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, branch: Tensor, stream: Tensor) -> Any:
        stream = stream + branch
        return self.norm(stream), stream


class FusedAddNorm(AddNorm):
    """AddNorm as one kernel of librmsnorm, y in autocast's dtype: what comes next is a matmul."""

    def forward(self, branch: Tensor, stream: Tensor) -> Any:
        from rmsnorm.torch import add_rms_norm
        kind = stream.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        return add_rms_norm(branch, stream, self.norm.weight, EPS, out_dtype=dtype)


class Composite(nn.Module):
    """The norm in PyTorch's elementary operators, in float32, as models' own code has it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        y = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + EPS)
        return (y * self.weight).to(x.dtype)


def _liger_norm(width: int) -> nn.Module:
    from liger_kernel.transformers.rms_norm import LigerRMSNorm
    return LigerRMSNorm(width, eps=EPS)


def _our_norm(width: int) -> nn.Module:
    from rmsnorm.torch import RMSNorm
    return RMSNorm(width, EPS)


NORMS: Dict[str, Callable[[int], nn.Module]] = {
    "composite": Composite,
    "torch": lambda width: nn.RMSNorm(width, EPS),
    "liger": _liger_norm,
    "rmsnorm": _our_norm,
    "rmsnorm-add": _our_norm,  # and the residual add before it in the same kernel
}


def norm(name: str, width: int) -> nn.Module:
    return NORMS[name](width)


def add_norm(name: str, width: int) -> AddNorm:
    return (FusedAddNorm if name == "rmsnorm-add" else AddNorm)(norm(name, width))


def _torch_silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    return nn.functional.silu(gate) * up


def _liger_silu_mul() -> Activation:
    from liger_kernel.ops.swiglu import LigerSiLUMulFunction
    return LigerSiLUMulFunction.apply


def _our_silu_mul() -> Activation:
    from rmsnorm.torch import silu_mul
    return silu_mul


GLUS: Dict[str, Callable[[], Activation]] = {
    "torch": lambda: _torch_silu_mul, "liger": _liger_silu_mul, "rmsnorm": _our_silu_mul}


class Glu(nn.Module):
    """silu(gate) * up; a module, so that the profiler sees its name."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.function = GLUS[name]()

    def forward(self, gate: Tensor, up: Tensor) -> Tensor:
        return self.function(gate, up)


def probe(norm_name: str, glu_name: str, device: torch.device) -> None:
    """Runs both once, forward and backward. Unavailable, with what they said."""
    def values(*shape: int) -> Tensor:
        return torch.ones(shape, device=device, dtype=torch.float16, requires_grad=True)

    for name, run in ((f"--norm {norm_name}",
                       lambda: add_norm(norm_name, 64).to(device)(values(2, 64), values(2, 64))[0]),
                      (f"--glu {glu_name}", lambda: Glu(glu_name)(values(2, 64), values(2, 64)))):
        try:
            run().sum().backward()
        except Exception as error:  # whatever is missing: the others can still run
            text = f"{type(error).__name__}: {error}".splitlines()[0]
            raise Unavailable(f"{name}: {text}") from None
