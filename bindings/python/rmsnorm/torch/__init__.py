"""RMSNorm and SwiGLU for PyTorch: modules, functions, operators and a patch for transformers.

    from rmsnorm.torch import RMSNorm, SwiGLU, add_rms_norm, patch, rms_norm, silu_mul

RMSNorm is a torch.nn.RMSNorm. The functions are differentiable and may be compiled; they are
torch.ops.rmsnorm's operators where anyone looks on, and go past the dispatcher where nobody does.
"""
from ._functional import add_rms_norm, add_rms_norm_, rms_norm
from ._glu import gelu_mul, silu_mul
from ._module import RMSNorm
from ._patch import Changed, patch, unpatch
from ._swiglu import SwiGLU

__all__ = ["Changed", "RMSNorm", "SwiGLU", "add_rms_norm", "add_rms_norm_", "gelu_mul", "patch",
           "rms_norm", "silu_mul", "unpatch"]
