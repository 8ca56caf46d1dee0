"""Where the tests run: each library of arrays on each device, and the header's bounds there."""
import importlib
from typing import Any, Callable, Dict, NamedTuple, Optional, Sequence, Union

import numpy as np
import pytest
from reference import BF16, F16, F32, F64, ulp, ulps

import rmsnorm


class Bounds(NamedTuple):
    """include/rmsnorm.h, "Numerics". In ulps, and as shares of the absolute terms."""
    y: Dict[np.dtype, float]
    bias: float  # of the product, where there is a bias
    rstd: float  # where x, y or h is float32
    gradient: Dict[np.dtype, float]
    dx: float
    vectors: float
    glu: Dict[np.dtype, float]  # y and dup
    gelu: Dict[np.dtype, float]
    dgate: Dict[np.dtype, float]  # of the absolute terms


CPU = Bounds({F32: 0.501, F16: 0.501, BF16: 0.501, F64: 2}, 2.0**-48, 0.501,
             {F32: 0.501, F16: 0.501, BF16: 0.501, F64: 2}, 2.0**-40, 2.0**-40,
             {F32: 0.501, F16: 0.501, BF16: 0.501, F64: 2},
             {F32: 0.501, F16: 0.501, BF16: 0.501, F64: 2},
             {F32: 2.0**-40, F16: 2.0**-40, BF16: 2.0**-40, F64: 2.0**-48})
CUDA = Bounds({F32: 1, F16: 0.51, BF16: 0.51, F64: 2}, 2.0**-22, 1,
              {F32: 1, F16: 0.51, BF16: 0.51, F64: 2}, 2.0**-19, 2.0**-18,
              {F32: 2, F16: 0.51, BF16: 0.51, F64: 8},
              {F32: 4, F16: 0.51, BF16: 0.51, F64: 8},
              {F32: 2.0**-20, F16: 2.0**-17, BF16: 2.0**-17, F64: 2.0**-48})


class Device:
    """Arrays of NumPy on the CPU; the base of the others."""

    name, bounds, cuda = "numpy", CPU, False

    def of(self, values: Optional[np.ndarray]) -> Any:
        """The values in an array of this library, contiguous."""
        return None if values is None else np.array(values, order="C")

    def numpy(self, array: Any) -> np.ndarray:
        return np.asarray(array)

    def empty(self, shape: Sequence[int], dtype: np.dtype) -> Any:
        """An array of NaNs: what was not written shows."""
        return self.of(np.full(shape, np.nan, dtype))

    def permuted(self, array: Any, axes: Sequence[int]) -> Any:
        return array.transpose(axes)

    def expanded(self, array: Any, shape: Sequence[int]) -> Any:
        return np.broadcast_to(array, shape)

    def pointer(self, array: Any) -> int:
        return array.ctypes.data

    def strides(self, array: Any) -> Sequence[int]:
        """In elements."""
        return [stride // array.itemsize for stride in array.strides]


class Torch(Device):
    def __init__(self, where: str) -> None:
        self.torch = importlib.import_module("torch")
        if where == "cuda" and not self.torch.cuda.is_available():
            raise ImportError("PyTorch sees no GPU")
        self.name, self.where, self.cuda = f"torch-{where}", where, where == "cuda"
        self.bounds = CUDA if self.cuda else CPU

    def of(self, values: Optional[np.ndarray]) -> Any:
        if values is None:
            return None
        values = np.array(values, order="C")
        if values.dtype == BF16:
            made = self.torch.from_numpy(values.view(np.int16)).view(self.torch.bfloat16)
        else:
            made = self.torch.from_numpy(values)
        return made.to(self.where)

    def numpy(self, array: Any) -> np.ndarray:
        array = array.detach().cpu()
        if array.dtype == self.torch.bfloat16:
            return array.view(self.torch.int16).numpy().view(BF16)
        return array.numpy()

    def permuted(self, array: Any, axes: Sequence[int]) -> Any:
        return array.permute(tuple(axes))

    def expanded(self, array: Any, shape: Sequence[int]) -> Any:
        return array.expand(tuple(shape))

    def pointer(self, array: Any) -> int:
        return array.data_ptr()

    def strides(self, array: Any) -> Sequence[int]:
        return list(array.stride())


class Cupy(Device):
    name, bounds, cuda = "cupy", CUDA, True

    def __init__(self) -> None:
        self.cupy = importlib.import_module("cupy")
        if not self.cupy.is_available():
            raise ImportError("CuPy sees no GPU")

    def of(self, values: Optional[np.ndarray]) -> Any:
        if values is None:
            return None
        if values.dtype == BF16:
            try:
                return self.cupy.asarray(values)
            except (TypeError, ValueError):
                pytest.skip("this CuPy has no bfloat16")
        return self.cupy.asarray(values)

    def numpy(self, array: Any) -> np.ndarray:
        return self.cupy.asnumpy(array)

    def expanded(self, array: Any, shape: Sequence[int]) -> Any:
        return self.cupy.broadcast_to(array, tuple(shape))

    def pointer(self, array: Any) -> int:
        return array.data.ptr


MAKERS: Dict[str, Callable[[], Device]] = {
    "numpy": Device, "torch-cpu": lambda: Torch("cpu"), "torch-cuda": lambda: Torch("cuda"),
    "cupy": Cupy}
CUDA_NAMES = ("torch-cuda", "cupy")
_made: Dict[str, Union[Device, ImportError]] = {}


def find(name: str) -> Union[Device, ImportError]:
    """A device, or why it is not there."""
    if name not in _made:
        try:
            device = MAKERS[name]()
            if device.cuda and not any(each.type == "cuda" for each in rmsnorm.devices()):
                raise ImportError("librmsnorm was built without CUDA")
            _made[name] = device
        except ImportError as error:
            _made[name] = error
    return _made[name]


def get(name: str) -> Device:
    """Skips the test where there is no such library or GPU."""
    found = find(name)
    if isinstance(found, ImportError):
        pytest.skip(f"{name}: {found}")
    return found


# ---- Judging -------------------------------------------------------------------------------------


def judge(device: Device, name: str, found: Any, exact: np.ndarray, bound: float,
          more: Any = 0) -> None:
    """found is within bound ulps of exact, plus more."""
    values = device.numpy(found)
    assert values.shape == exact.shape, name
    assert np.isfinite(values.astype("float64")).all(), f"{name} is not finite everywhere"
    excess = ulps(values, exact) - more / ulp(exact, values.dtype)
    assert excess.size == 0 or excess.max() <= bound, \
        f"{name} on {device.name} is {excess.max():.4f} ulps off, allowed are {bound}"


def judge_y(device: Device, found: Any, exact: np.ndarray, product: Any = None) -> None:
    """product: h * rstd * weight, where there is a bias."""
    more = 0 if product is None else np.abs(product) * device.bounds.bias
    judge(device, "y", found, exact, device.bounds.y[device.numpy(found).dtype], more)


def judge_gradients(device: Device, found: rmsnorm.Gradients, exact: Any) -> None:
    for name in ("dx", "dweight", "dbias"):
        gradient = getattr(found, name)
        if gradient is None:
            continue
        dtype = device.numpy(gradient).dtype
        share = device.bounds.dx if name == "dx" else device.bounds.vectors
        if dtype == F64:
            share = 2.0**-40
        judge(device, name, gradient, getattr(exact, name), device.bounds.gradient[dtype],
              share * getattr(exact, f"{name}_terms"))


def judge_glu(device: Device, activation: str, exact: Any, y: Any = None, dgate: Any = None,
              dup: Any = None) -> None:
    """Those that are there."""
    bounds = device.bounds.glu if activation == "silu" else device.bounds.gelu
    for name, found in (("y", y), ("dgate", dgate), ("dup", dup)):
        if found is None:
            continue
        dtype = device.numpy(found).dtype
        more = device.bounds.dgate[dtype] * exact.dgate_terms if name == "dgate" else 0
        judge(device, name, found, getattr(exact, name), bounds[dtype], more)
