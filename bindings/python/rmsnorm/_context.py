"""Contexts, one per device, made when a device is first used and shared by all threads."""
import ctypes
import os
import threading
from typing import Callable, Dict, List, NamedTuple, Tuple

from . import _abi, _library
from ._errors import ArgumentError

DEVICE_NAMES = {_abi.DEVICE_CPU: "cpu", _abi.DEVICE_CUDA: "cuda"}


class Context:
    """A rmsnorm_context_t. It is destroyed with the last reference; calls hold one.

    device: _abi.DEVICE_*. ordinal: of a CUDA device; the CPU's is 0. cpu_threads: CPU alone, how
    many threads a call may use (0 and 1: its caller's). flags: _abi.CONTEXT_*.
    Raises UnsupportedError where there is no such backend, driver or device.
    """

    def __init__(self, device: int, ordinal: int = 0, cpu_threads: int = 0,
                 flags: int = 0) -> None:
        self.handle = None  # for __del__, should the rest fail
        self.functions = _library.load().functions
        self.device, self.ordinal = device, ordinal
        options = _abi.ContextOptions(device=device, ordinal=ordinal, cpu_threads=cpu_threads,
                                      flags=flags)
        handle = ctypes.c_void_p()
        _library.check(self.functions.context_create(options, handle))
        self.handle = handle.value
        self.process = os.getpid()

    def __repr__(self) -> str:
        return f"<rmsnorm context {DEVICE_NAMES[self.device]}:{self.ordinal}>"

    def __del__(self, getpid: Callable[[], int] = os.getpid, cpu: int = _abi.DEVICE_CPU) -> None:
        # In a child after fork CUDA is not usable: what the parent made there is left alone.
        if self.handle is not None and (self.device == cpu or self.process == getpid()):
            self.functions.context_destroy(self.handle)


_contexts: Dict[Tuple[int, int], Context] = {}
_cpu_threads = 0
_lock = threading.Lock()
on_change: List[Callable[[], None]] = []  # called when contexts of calls to come are other ones


def get(device: int, ordinal: int = 0) -> Context:
    """The shared context of a device."""
    found = _contexts.get((device, ordinal))
    if found is None:
        with _lock:
            found = _contexts.get((device, ordinal))
            if found is None:
                threads = _cpu_threads if device == _abi.DEVICE_CPU else 0
                found = Context(device, ordinal, threads)
                _contexts[device, ordinal] = found
    return found


def set_cpu_threads(count: int) -> None:
    """Lets calls on the CPU use up to count threads, the caller's among them.

    0 and 1, the default, run on the caller's thread alone. The others sleep between calls; one call
    at a time has them, calls that run meanwhile do without. Results do not depend on it, not in one
    bit. Raises ArgumentError if count is negative or above 1024.
    """
    global _cpu_threads
    if not isinstance(count, int):
        raise TypeError(f"count must be an int, not {type(count).__name__}")
    if not 0 <= count <= 1024:
        raise ArgumentError(f"count = {count}, but it must be from 0 to 1024")
    with _lock:
        _contexts[_abi.DEVICE_CPU, 0] = Context(_abi.DEVICE_CPU, 0, count)
        _cpu_threads = count
    _changed()


def get_cpu_threads() -> int:
    """What set_cpu_threads was told; 0 before."""
    return _cpu_threads


class Device(NamedTuple):
    """What the library knows of a device."""
    type: str  # "cpu", "cuda"
    ordinal: int
    name: str
    isa: str  # the code that runs there: "avx2", "sm_90"
    supported: bool
    processors: int  # CUDA: multiprocessors; CPU: logical processors
    compute_capability: Tuple[int, int]  # CUDA; (0, 0) for the CPU
    memory_bytes: int
    cache_bytes: int


def devices() -> List[Device]:
    """All devices, the CPU first. A build without CUDA, or no driver, means no CUDA devices."""
    functions = _library.load().functions
    found = []
    for device, name in DEVICE_NAMES.items():
        count = ctypes.c_int32()
        status = functions.device_count(device, count)
        if status in (_abi.ERROR_BACKEND_NOT_BUILT, _abi.ERROR_DRIVER_TOO_OLD):
            continue
        _library.check(status)
        for ordinal in range(count.value):
            info = _abi.DeviceInfo()
            _library.check(functions.device_info(device, ordinal, info))
            found.append(Device(
                name, ordinal, info.name.decode(errors="replace"), info.isa.decode(),
                bool(info.supported), info.processors, divmod(info.compute_capability, 10),
                info.memory_bytes, info.cache_bytes))
    return found


def _changed() -> None:
    for call in on_change:
        call()


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.Lock()  # another thread may have held it
    for key in [key for key in _contexts if key[0] != _abi.DEVICE_CPU]:
        del _contexts[key]
    _changed()


os.register_at_fork(after_in_child=_after_fork_in_child)
