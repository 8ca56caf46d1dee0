"""Finds librmsnorm.so, loads it once, and refuses one that these bindings do not fit.

Looked for, in this order:
  1. the file that the environment variable RMSNORM_LIBRARY names; if it is set, that one or none
  2. librmsnorm.so in this package's folder: a wheel's own
  3. the system's, as the dynamic linker finds it (LD_LIBRARY_PATH, ldconfig)

It is loaded when it is first needed, not when the package is imported.
"""
import ctypes
import os
import threading
from typing import Callable, List, NamedTuple, Optional, Tuple

from . import _abi, _errors
from ._errors import LibraryError

SONAME = f"librmsnorm.so.{_abi.ABI_VERSION}"


class Library(NamedTuple):
    path: str
    functions: _abi.Functions

    @property
    def version(self) -> str:
        """Of the library, such as '0.1.0'."""
        number = self.functions.version()
        return f"{number // 10000}.{number // 100 % 100}.{number % 100}"

    @property
    def build_info(self) -> str:
        """key=value pairs: version, CUDA and its architectures, instruction sets."""
        return self.functions.build_info().decode()


_loaded: Optional[Library] = None
_lock = threading.Lock()


def load() -> Library:
    """The library; the same one ever after. LibraryError where there is none that fits."""
    global _loaded
    if _loaded is None:
        with _lock:
            if _loaded is None:
                _loaded = _find()
    return _loaded


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.Lock()  # another thread may have held it


os.register_at_fork(after_in_child=_after_fork_in_child)


def check(status: int) -> None:
    """Raises the exception of a status other than SUCCESS, with this thread's latest text."""
    if status != _abi.SUCCESS:
        raise _errors.from_status(load().functions, status)


def candidates() -> List[Tuple[str, str]]:
    """What is tried, in its order: (why, file)."""
    named = os.environ.get("RMSNORM_LIBRARY")
    if named:
        return [("RMSNORM_LIBRARY", named)]
    from . import __path__ as folders  # several, in an editable installation
    own = [("the package's own", os.path.join(folder, "librmsnorm.so")) for folder in folders]
    return [*own, ("the system's", SONAME)]


def _find() -> Library:
    tried = []
    for why, path in candidates():
        if os.path.dirname(path) and not os.path.exists(path):
            tried.append(f"{why}: {path}: no such file")
            continue
        try:
            library = ctypes.CDLL(path)
        except OSError as error:
            said = str(error)
            tried.append(f"{why}: {said if path in said else f'{path}: {said}'}")
            continue
        return _fit(library, path)
    raise LibraryError("librmsnorm was not found; tried " + "; ".join(tried))


def _fit(library: ctypes.CDLL, path: str) -> Library:
    """Refuses a library of another ABI, in one line."""
    try:
        abi = library.rmsnorm_abi_version()
    except AttributeError:
        raise LibraryError(f"{path} is not librmsnorm: it has no rmsnorm_abi_version") from None
    if abi != _abi.ABI_VERSION:
        raise LibraryError(
            f"{path} has ABI {abi}, but this package is for ABI {_abi.ABI_VERSION}")
    for struct, (size, offsets) in _abi.LAYOUT.items():
        if ctypes.sizeof(struct) != size or any(
                getattr(struct, name).offset != offset for name, offset in offsets.items()):
            raise LibraryError(f"ctypes does not lay out {struct.__name__} as C does: this is not "
                               "64-bit Linux")
    try:
        functions = _abi.Functions(library)
    except AttributeError as error:
        raise LibraryError(f"{path} is older than this package: {error}") from None
    refused = _first_refused_struct(functions)
    if refused:
        raise LibraryError(f"{path} does not know this package's {refused}")
    return Library(path, functions)


def _first_refused_struct(functions: _abi.Functions) -> Optional[str]:
    """Asks the library about the size of each structure; what it says of one that it refuses."""
    context = ctypes.c_void_p()
    size = ctypes.c_size_t()
    # What is otherwise wrong with these calls is found after the size.
    asked: List[Tuple[ctypes.Structure, Callable[[ctypes.Structure], int]]] = [
        (_abi.ContextOptions(), lambda s: functions.context_create(s, context)),
        (_abi.DeviceInfo(), lambda s: functions.device_info(_abi.DEVICE_CPU, 0, s)),
        (_abi.ForwardParams(),
         lambda s: functions.forward_workspace_size(context, s, size)),
        (_abi.BackwardParams(),
         lambda s: functions.backward_workspace_size(context, s, size)),
    ]
    try:
        for struct, call in asked:
            if call(struct) == _abi.ERROR_STRUCT_SIZE:
                return (f"{type(struct).__name__} of {ctypes.sizeof(struct)} bytes: "
                        f"{_errors.last_error(functions)}")
        return None
    finally:
        functions.context_destroy(context)
