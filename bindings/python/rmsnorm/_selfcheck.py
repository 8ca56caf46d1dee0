"""A small forward on one device, judged by exact arithmetic, with the standard library alone."""
import ctypes
import math
from array import array
from decimal import Decimal, localcontext
from typing import List, Tuple

from . import _abi, _context, _library

COLS, EPS = 1000, 1e-6
BOUNDS = {_abi.DEVICE_CPU: 0.501, _abi.DEVICE_CUDA: 1.0}  # include/rmsnorm.h, "Numerics"


def largest_error(device: int, ordinal: int) -> float:
    """In ulps, of y in float32. Raises what the library, or CUDA's driver, has to say."""
    x = array("f", (math.sin(1 + i) * (1 + i % 7) for i in range(COLS)))
    weight = array("f", (1 + math.cos(i) / 2 for i in range(COLS)))
    y = array("f", bytes(4 * COLS))
    context = _context.get(device, ordinal)
    if device == _abi.DEVICE_CPU:
        _forward(context, *(each.buffer_info()[0] for each in (x, weight, y)))
    else:
        _on_cuda(context, x, weight, y)
    return max(_ulps(value, exact) for value, exact in zip(y, _exact(x, weight)))


def _forward(context: _context.Context, x: int, weight: int, y: int) -> None:
    params = _abi.ForwardParams(rows=1, cols=COLS, eps=EPS)
    for field, pointer in (("x", x), ("weight", weight), ("y", y)):
        getattr(params, field).data = pointer
        getattr(params, field).dtype = _abi.DTYPE_F32
    _library.check(context.functions.forward(context.handle, params, None, 0, None))


def _exact(x: "array[float]", weight: "array[float]") -> List[Decimal]:
    with localcontext() as decimal:
        decimal.prec = 60
        squares = sum((Decimal(value) ** 2 for value in x), Decimal(0))
        scale = 1 / (squares / COLS + Decimal(EPS)).sqrt()
        return [Decimal(a) * scale * Decimal(b) for a, b in zip(x, weight)]


def _ulps(value: float, exact: Decimal) -> float:
    """The distance in units of the exact value's last place in float32."""
    if not math.isfinite(value):
        return math.inf
    exponent = max(math.frexp(float(exact))[1], -125)
    return abs(float((Decimal(value) - exact) / Decimal(math.ldexp(1, exponent - 24))))


def _on_cuda(context: _context.Context, x: "array[float]", weight: "array[float]",
             y: "array[float]") -> None:
    """Holds the memory with the driver's own functions: there may be no other library here."""
    driver = ctypes.CDLL("libcuda.so.1")

    def ask(function: str, *arguments: object) -> None:
        status = getattr(driver, function)(*arguments)
        if status != 0:
            raise RuntimeError(f"{function} returned CUDA error {status}")

    size = 4 * COLS
    device, primary, memory = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_uint64()
    ask("cuInit", 0)
    ask("cuDeviceGet", ctypes.byref(device), context.ordinal)
    ask("cuDevicePrimaryCtxRetain", ctypes.byref(primary), device)
    ask("cuCtxPushCurrent_v2", primary)
    try:
        ask("cuMemAlloc_v2", ctypes.byref(memory), ctypes.c_size_t(3 * size))
        try:
            places: List[Tuple[array, int]] = [
                (each, memory.value + i * size) for i, each in enumerate((x, weight, y))]
            for each, place in places:
                ask("cuMemcpyHtoD_v2", ctypes.c_uint64(place),
                    ctypes.c_void_p(each.buffer_info()[0]), ctypes.c_size_t(size))
            _forward(context, *(place for _, place in places))
            ask("cuMemcpyDtoH_v2", ctypes.c_void_p(y.buffer_info()[0]),
                ctypes.c_uint64(places[2][1]), ctypes.c_size_t(size))
        finally:
            ask("cuMemFree_v2", memory)
    finally:
        ask("cuCtxPopCurrent_v2", ctypes.byref(primary))
        ask("cuDevicePrimaryCtxRelease_v2", device)
