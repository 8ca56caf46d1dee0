"""The compiled helper, rmsnorm_torch_host.abi3.so: what costs the host most, without ctypes.

It is optional: module is None where it was not built, or Python (3.10), PyTorch (a Tensor with
DLPack's exchange API, 2.10) or the kind of interpreter does not suit it. Then _run.py and _watch.py
do all in Python, with the same results. It is looked for beside each librmsnorm.so that would be.
"""
import importlib.machinery
import importlib.util
import os
import sys
from typing import Any, Optional

import torch
from torch.autograd import forward_ad
from torch.autograd.function import BackwardCFunction

from .. import _library

NAME = "rmsnorm_torch_host"

# Each is true while someone sees operators go by. They are the tests that PyTorch itself makes.
watchers = (torch._C._len_torch_dispatch_stack, torch._C._len_torch_function_stack,
            torch._C._are_functorch_transforms_active, torch._C._is_tracing)


def _find() -> Optional[str]:
    if sys.version_info < (3, 10) or ".abi3.so" not in importlib.machinery.EXTENSION_SUFFIXES:
        return None
    for _, library in _library.candidates():
        path = os.path.join(os.path.dirname(library), f"{NAME}.abi3.so")
        if os.path.dirname(library) and os.path.exists(path):
            return path
    return None


def _load() -> Any:
    exchange = getattr(torch.Tensor, "__dlpack_c_exchange_api__", None)
    path = _find()
    if exchange is None or path is None:
        return None
    spec = importlib.util.spec_from_file_location(NAME, path)
    assert spec is not None and spec.loader is not None
    try:
        made = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(made)
        made.setup(exchange, torch.Tensor, torch.nn.Parameter, torch.empty_like,
                   torch.Tensor.is_neg, watchers, forward_ad, torch.is_grad_enabled,
                   BackwardCFunction.apply)
    except ImportError:
        return None
    return made


module = _load()


def compile_backward(function: Any, runner: Any) -> None:
    """Spares an autograd.Function's backward() the way through Python, where nobody looks on: its
    gradients are what runner.run((ctx.scalars, ctx.needs_input_grad), grads[0], *ctx.saved_tensors,
    *grads[1:]) makes, in the order of its inputs."""
    backward_class = getattr(function, "_backward_cls", None)
    if module is not None and backward_class is not None:
        backward_class.run = runner.run
        backward_class.apply = module.apply_of(backward_class)
