"""Who looks on: decides whether a call may go past the dispatcher.

It may where the tensors are plain ones and nothing is active that sees operators go by: no dispatch
or function mode (fake tensors, selective checkpointing, a default device, ...), no functorch
level, no forward-mode AD, no tracing.
"""
from typing import Optional

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import _host

_TENSORS = {Tensor, torch.nn.Parameter}
_in_old_vmap = torch._C._functorch.is_legacy_batchedtensor  # is_grads_batched's, vectorize's
compiling = torch.compiler.is_dynamo_compiling


def plain(x: Tensor, *others: Optional[Tensor]) -> bool:
    """Whether the tensors are plain ones, x with memory on the CPU or CUDA, and nobody looks on.
    Not for what Dynamo traces."""
    if type(x) not in _TENSORS or not (x.is_cuda or x.is_cpu) or _in_old_vmap(x):
        return False
    for tensor in others:
        if tensor is not None and type(tensor) not in _TENSORS:
            return False
    for looks_on in _host.watchers:
        if looks_on():
            return False
    return forward_ad._current_level < 0


_plain = plain if _host.module is None else _host.module.plain


def direct(x: Tensor, y: Optional[Tensor] = None, z: Optional[Tensor] = None,
           u: Optional[Tensor] = None, v: Optional[Tensor] = None) -> bool:
    """Whether a call with these tensors may go past the dispatcher."""
    return not compiling() and _plain(x, y, z, u, v)


def transformed() -> bool:
    """Whether torch.func or forward-mode AD is at work, which want PyTorch's own operators."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
