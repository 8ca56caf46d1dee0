"""What goes wrong, as exceptions: one class per group of the library's status codes."""
import ctypes
from typing import Optional

from . import _abi


class Error(Exception):
    """Base of what this package raises by itself.

    status is the library's code (an ERROR_* constant of include/rmsnorm.h), or None where the
    library was not asked.
    """

    def __init__(self, text: str, status: Optional[int] = None) -> None:
        super().__init__(text)
        self.status = status


class LibraryError(Error, ImportError):
    """No librmsnorm.so could be loaded, or the one that was found is of another ABI."""


class ArgumentError(Error, ValueError):
    """An argument breaks a rule; the text names both. Nothing has been written. (Status 1xxx.)"""


class UnsupportedError(Error, RuntimeError):
    """Not supported, or not available here: no CUDA in the build, no driver, .... (2xxx.)"""


class OutOfMemoryError(Error, MemoryError):
    """Out of memory. (3xxx.)"""


class CudaError(Error, RuntimeError):
    """CUDA failed, in this call or, as the text then says, in work before it. (4xxx.)"""


class InternalError(Error, RuntimeError):
    """A bug in the library. (5xxx.)"""


_GROUPS = {1: ArgumentError, 2: UnsupportedError, 3: OutOfMemoryError, 4: CudaError}


def last_error(functions: _abi.Functions) -> str:
    """The text of this thread's latest failure."""
    size = functions.last_error(None, 0)
    text = ctypes.create_string_buffer(size)
    functions.last_error(text, size)
    return text.value.decode(errors="replace")


def from_status(functions: _abi.Functions, status: int) -> Error:
    """The exception for a status other than SUCCESS, with the library's text."""
    text = last_error(functions) or functions.status_name(status).decode()
    return _GROUPS.get(status // 1000, InternalError)(text, status)
