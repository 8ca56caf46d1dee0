"""Who looks on: decides whether a call may go past the dispatcher.

It may where the tensors are plain ones and nothing is active that sees operators go by: no dispatch
or function mode (fake tensors, selective checkpointing, a default device, ...), no functorch
level, no forward-mode AD, no tracing. Each test is one that PyTorch itself makes.
"""
from typing import Optional

import torch
from torch import Tensor
from torch.autograd import forward_ad

_TENSORS = {Tensor, torch.nn.Parameter}
_PLAIN = {*_TENSORS, type(None)}
compiling = torch.compiler.is_dynamo_compiling
_dispatch_modes = torch._C._len_torch_dispatch_stack
_function_modes = torch._C._len_torch_function_stack
_functorch = torch._C._are_functorch_transforms_active
_tracing = torch._C._is_tracing


def direct(x: Tensor, y: Optional[Tensor] = None, z: Optional[Tensor] = None,
           *others: Optional[Tensor]) -> bool:
    """Whether a call with these tensors may go past the dispatcher."""
    if compiling():
        return False
    if type(x) not in _TENSORS or type(y) not in _PLAIN or type(z) not in _PLAIN:
        return False
    for tensor in others:
        if type(tensor) not in _PLAIN:
            return False
    return not (_dispatch_modes() or _function_modes() or _functorch() or _tracing()
                or forward_ad._current_level >= 0)


def transformed() -> bool:
    """Whether torch.func or forward-mode AD is at work, which want PyTorch's own operators."""
    return _functorch() or forward_ad._current_level >= 0
