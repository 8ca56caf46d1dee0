"""Libraries of arrays: mixed in a call, by DLPack, JAX's; aliases; what PyTorch adds."""
import subprocess
import sys

import devices
import ml_dtypes
import numpy as np
import pytest
import reference
from devices import judge_y

import rmsnorm
from rmsnorm import ArgumentError, _arrays


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


NUMPY = devices.Device()


@pytest.mark.parametrize("name", devices.MAKERS)
def test_each_device_is_here(name):
    """Where it is not, no other test knows it."""
    devices.get(name)


def test_in_place(device, random):
    x, residual, weight = random(5, 48), random(5, 48), random(48)
    y = device.of(x)
    assert rmsnorm.rms_norm(y, device.of(weight), out=y) is y
    judge_y(device, y, reference.forward(x, weight).y)

    exact = reference.forward(x, weight, residual=residual, h_dtype=np.float32)
    for aliases in ("x", "residual"):
        given = {"x": device.of(x), "residual": device.of(residual)}
        y, h = rmsnorm.rms_norm(**given, weight=device.of(weight), residual_out=given[aliases])
        assert h is given[aliases]
        judge_y(device, y, exact.y)
        assert (device.numpy(h).astype(reference.L) == exact.h).all()

    dy = random(5, 48)
    exact = reference.backward(dy, x, weight)
    for aliases in ("dy", "x"):
        given = {"dy": device.of(dy), "x": device.of(x)}
        found = rmsnorm.rms_norm_backward(**given, weight=device.of(weight), dx=given[aliases])
        assert found.dx is given[aliases]
        devices.judge_gradients(device, found, exact)


def test_numpy_and_torch_in_one_call(torch, random):
    x, weight = random(3, 16), random(16)
    y = rmsnorm.rms_norm(torch.from_numpy(x), weight)
    assert isinstance(y, torch.Tensor)
    judge_y(NUMPY, y.numpy(), reference.forward(x, weight).y)
    y = rmsnorm.rms_norm(x, torch.from_numpy(weight))
    assert isinstance(y, np.ndarray)
    out = torch.empty(3, 16)
    assert rmsnorm.rms_norm(x, weight, out=out) is out
    found = rmsnorm.rms_norm_backward(x, x, torch.from_numpy(weight))
    assert isinstance(found.dx, np.ndarray) and isinstance(found.dweight, torch.Tensor)


def test_autograd_is_not_ignored(torch, random):
    x, weight = torch.ones(2, 8), torch.nn.Parameter(torch.ones(8))
    with pytest.raises(ArgumentError, match="^weight requires grad"):
        rmsnorm.rms_norm(x, weight)
    with torch.no_grad():
        assert rmsnorm.rms_norm(x, weight).shape == (2, 8)
    assert rmsnorm.rms_norm(x, weight.detach()).shape == (2, 8)


def test_torch_tensors_that_are_not_plain(torch):
    with pytest.raises(ArgumentError, match="x is on meta"):
        rmsnorm.rms_norm(torch.empty(2, 8, device="meta"))
    with pytest.raises(ArgumentError, match="x has dtype torch.int32"):
        rmsnorm.rms_norm(torch.ones(2, 8, dtype=torch.int32))
    negative = torch.ones(2, 8, dtype=torch.complex64).conj().imag
    assert negative.is_neg()
    with pytest.raises(ArgumentError, match="x has its negative bit set"):
        rmsnorm.rms_norm(negative)
    with pytest.raises(ArgumentError, match="^x: "):
        rmsnorm.rms_norm(torch.ones(2, 8).to_sparse())


@pytest.mark.cuda
@pytest.mark.parametrize("name", devices.CUDA_NAMES)
def test_the_current_stream(name, random):
    """A call is ordered after what its library has put into the current stream."""
    device = devices.get(name)
    x, weight = random(4096, 4096), random(4096)
    exact = reference.forward(x, weight).y
    if name == "cupy":
        stream = device.cupy.cuda.Stream(non_blocking=True)
    else:
        stream = device.torch.cuda.Stream()
    given, weight = device.of(x / 2), device.of(weight)
    (device.torch.cuda.synchronize if name != "cupy" else device.cupy.cuda.Device().synchronize)()
    with (stream if name == "cupy" else device.torch.cuda.stream(stream)):
        for _ in range(20):
            given = given * 2
            given = given / 2
        y = rmsnorm.rms_norm(given * 2, weight)
    stream.synchronize()
    judge_y(device, y, exact)


# ---- DLPack --------------------------------------------------------------------------------------


class Dlpack:
    """An array that shows itself by DLPack alone."""

    def __init__(self, array, versioned=True):
        self.array, self.versioned, self.given = array, versioned, 0

    def __dlpack__(self, **options):
        if not self.versioned and options:
            raise TypeError("__dlpack__() got an unexpected keyword argument 'max_version'")
        self.given += 1
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


with_versions = pytest.mark.skipif(np.lib.NumpyVersion(np.__version__) < "2.1.0",
                                   reason="this NumPy has no DLPack 1.0")


@pytest.mark.parametrize("versioned", [False, pytest.param(True, marks=with_versions)])
def test_dlpack(random, versioned):
    x, weight, out = random(3, 4, 16)[:, ::2], random(16), np.empty((3, 2, 16), np.float32)
    given = [Dlpack(each, versioned) for each in (x, weight, out)]
    for _ in range(3):
        assert rmsnorm.rms_norm(given[0], given[1], out=given[2]) is given[2]
    assert [each.given for each in given] == [3, 3, 3]
    judge_y(NUMPY, out, reference.forward(x, weight).y)
    count = sys.getrefcount(x)
    rmsnorm.rms_norm(given[0], given[1], out=given[2])
    assert sys.getrefcount(x) == count, "the capsule was not freed"


def test_dlpack_bfloat16(torch, random):
    x = random(3, 16, dtype=ml_dtypes.bfloat16)
    device = devices.get("torch-cpu")
    tensor, out = device.of(x), device.empty((3, 16), x.dtype)
    rmsnorm.rms_norm(Dlpack(tensor), out=Dlpack(out))
    judge_y(device, out, reference.forward(x).y)


def test_dlpack_makes_no_arrays(random):
    x = Dlpack(random(3, 16))
    with pytest.raises(TypeError, match="every output must be given"):
        rmsnorm.rms_norm(x)
    with pytest.raises(ArgumentError, match="must be contiguous"):
        rmsnorm.rms_norm(Dlpack(random(3, 32)[:, ::2]), out=np.empty((3, 16), np.float32))


@with_versions
def test_dlpack_read_only(random):
    out = random(3, 16)
    out.flags.writeable = False
    x = random(3, 16)
    x.flags.writeable = False
    with pytest.raises(ArgumentError, match="out is read-only"):
        rmsnorm.rms_norm(Dlpack(x), out=Dlpack(out))
    assert rmsnorm.rms_norm(Dlpack(x), out=np.empty_like(x)).shape == (3, 16)


def test_dlpack_of_other_kinds(random):
    with pytest.raises(ArgumentError, match="^x: .*native"):
        rmsnorm.rms_norm(Dlpack(np.zeros((2, 8), ">f4")))
    with pytest.raises(ArgumentError, match="x has no dimensions"):
        rmsnorm.rms_norm(Dlpack(np.zeros((), np.float32)))
    with pytest.raises(ArgumentError, match="x has dtype of DLPack code 0 with 32 bits"):
        rmsnorm.rms_norm(Dlpack(np.zeros((2, 8), np.int32)))


# ---- JAX -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_jax_on_the_cpu(random, dtype):
    jax = pytest.importorskip("jax")
    cpu = jax.devices("cpu")[0]
    values, weight = random(3, 16, dtype=np.dtype(dtype)), random(16, dtype=np.dtype(dtype))
    x, w = jax.device_put(values, cpu), jax.device_put(weight, cpu)
    y = rmsnorm.rms_norm(x, w)
    assert isinstance(y, np.ndarray) and y.dtype == x.dtype
    judge_y(NUMPY, y, reference.forward(values, weight).y)
    found = rmsnorm.rms_norm_backward(x, x, w)
    devices.judge_gradients(NUMPY, found, reference.backward(values, values, weight))


def test_jax_is_not_written(random):
    jax = pytest.importorskip("jax")
    x = jax.device_put(random(3, 16), jax.devices("cpu")[0])
    before = np.array(x)
    with pytest.raises(ArgumentError, match="out is read-only"):
        rmsnorm.rms_norm(x, out=x)
    assert (np.asarray(x) == before).all()


def test_jax_is_not_traced(random):
    jax = pytest.importorskip("jax")
    with pytest.raises(TypeError, match="x is a JAX tracer"):
        jax.jit(rmsnorm.rms_norm)(random(3, 16))


# ---- Importing -----------------------------------------------------------------------------------


def test_imports_no_library_of_arrays():
    said = subprocess.run([sys.executable, "-c", """
import sys, rmsnorm
rmsnorm.devices()
print(sorted({"numpy", "torch", "cupy", "jax", "ml_dtypes"} & set(sys.modules)))
try:
    rmsnorm.rms_norm([1.0])
except TypeError as error:
    print(error)"""], stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
    assert said[0] == "[]" and said[1].startswith("x must be an array"), said


def test_plans_are_bounded(random):
    from rmsnorm import _norm, _operation
    for rows in range(1, _operation._MOST_PLANS + 10):
        rmsnorm.rms_norm(np.ones((rows, 1), np.float32))
    assert len(_norm.FORWARD.plans) <= _operation._MOST_PLANS


def test_every_reader_is_of_a_family():
    assert all(isinstance(read.__self__, _arrays.Family) for read in _arrays.readers.values())


def test_empty_arrays_may_point_anywhere():
    x = np.zeros(9, np.uint8)[1:].view(np.float32)[:0].reshape(0, 4)
    assert x.ctypes.data % 4 == 1
    assert rmsnorm.rms_norm(x).shape == (0, 4)
    found = rmsnorm.rms_norm_backward(x, x, np.ones(4, np.float32))
    assert found.dx.shape == (0, 4) and (found.dweight == 0).all()
