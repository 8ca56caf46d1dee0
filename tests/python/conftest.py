import zlib

import devices
import numpy as np
import pytest

ON_EACH_DEVICE = [pytest.param(name, marks=pytest.mark.cuda if name in ("torch-cuda", "cupy")
                               else ()) for name in devices.MAKERS]


@pytest.fixture(params=ON_EACH_DEVICE)
def device(request):
    """Each library of arrays, on each device that it has here."""
    return devices.get(request.param)


@pytest.fixture
def random(request):
    """Normally distributed values of a dtype, the same in every run of a test."""
    generator = np.random.default_rng(zlib.crc32(request.node.name.encode()))

    def values(*shape, dtype=np.float32):
        return generator.standard_normal(shape).astype(dtype)

    return values
