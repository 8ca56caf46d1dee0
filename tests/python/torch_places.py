"""What the tests of rmsnorm.torch share: the devices, and values on them."""
import shutil

import devices
import numpy as np
import pytest

torch = pytest.importorskip("torch")

PLACES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def find_place(name):
    """The place of that name; skips the test where there is none."""
    return devices.get(f"torch-{name}")


def need_compiler():
    """torch.compile's default backend builds C++ on the CPU, and a launcher in C on CUDA."""
    if shutil.which("g++") is None:
        pytest.skip("there is no C++ compiler")


def values(place, random, *shape, dtype=torch.float32, grad=False):
    """Normally distributed values."""
    return place.of(random(*shape, dtype=np.float64)).to(dtype).requires_grad_(grad)


def exactly(tensor):
    return tensor.detach().double().cpu().numpy()
