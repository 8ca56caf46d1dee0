"""What the tests of rmsnorm.torch share: the devices, and values on them."""
import shutil

import devices
import numpy as np
import pytest

torch = pytest.importorskip("torch")

PATHS = ["direct", "ctypes", "dispatcher"]
PLACES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def find_place(name):
    """The place of that name; skips the test where there is none."""
    return devices.get(f"torch-{name}")


def take_path(path, monkeypatch):
    """Past the dispatcher, with the compiled helper where it is there, or by ctypes; through it."""
    from rmsnorm.torch import _autograd, _calls, _glu, _glu_calls, _watch
    if path == "dispatcher":
        monkeypatch.setattr(_watch, "direct", lambda *tensors: False)
    if path == "ctypes":
        monkeypatch.setattr(_watch, "_plain", _watch.plain)
        for runner in (_calls.FORWARD, _calls.BACKWARD, _calls.GRADIENTS, _calls.ADD_GRADIENTS,
                       _glu_calls.FORWARD, _glu_calls.GRADIENTS):
            monkeypatch.setattr(runner, "run", runner.by_ctypes)
        for function in (_autograd._Norm, _autograd._AddNorm, _glu._Gated):
            if "apply" in vars(function._backward_cls):
                monkeypatch.delattr(function._backward_cls, "apply")


def need_compiler():
    """torch.compile's default backend builds C++ on the CPU, and a launcher in C on CUDA."""
    if shutil.which("g++") is None:
        pytest.skip("there is no C++ compiler")


def values(place, random, *shape, dtype=torch.float32, grad=False):
    """Normally distributed values."""
    return place.of(random(*shape, dtype=np.float64)).to(dtype).requires_grad_(grad)


def exactly(tensor):
    return tensor.detach().double().cpu().numpy()
