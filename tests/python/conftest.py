import os
import zlib

import devices
import numpy as np
import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # else it takes the GPU's memory for itself


def pytest_generate_tests(metafunc):
    """device: each library of arrays, on each device that it has here. test_each_device_is_here
    is skipped for the others, once for each."""
    if "device" in metafunc.fixturenames:
        names = [name for name in devices.MAKERS
                 if not isinstance(devices.find(name), ImportError)]
        metafunc.parametrize("device", [pytest.param(
            devices.find(name), id=name, marks=pytest.mark.cuda if name in devices.CUDA_NAMES
            else ()) for name in names])


@pytest.fixture
def random(request):
    """Normally distributed values of a dtype, the same in every run of a test."""
    generator = np.random.default_rng(zlib.crc32(request.node.name.encode()))

    def values(*shape, dtype=np.float32):
        return generator.standard_normal(shape).astype(dtype)

    return values
