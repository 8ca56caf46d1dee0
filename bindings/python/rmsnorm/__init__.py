"""RMSNorm, fused residual add and gated activations (SwiGLU, GeGLU), forward and backward, on the
CPU and on NVIDIA GPUs.

Importing needs neither a GPU nor any array library. `python -m rmsnorm` says what is there.
"""
from . import _abi
from ._context import Device, devices, get_cpu_threads, set_cpu_threads
from ._errors import (ArgumentError, CudaError, Error, InternalError, LibraryError,
                      OutOfMemoryError, UnsupportedError)
from ._glu import GluGradients, glu, glu_backward
from ._norm import Gradients, rms_norm, rms_norm_backward

__version__ = f"{_abi.VERSION_MAJOR}.{_abi.VERSION_MINOR}.{_abi.VERSION_PATCH}"

__all__ = [
    "ArgumentError", "CudaError", "Device", "Error", "GluGradients", "Gradients", "InternalError",
    "LibraryError", "OutOfMemoryError", "UnsupportedError", "devices", "get_cpu_threads", "glu",
    "glu_backward", "rms_norm", "rms_norm_backward", "set_cpu_threads",
]
