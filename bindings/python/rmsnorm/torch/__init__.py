"""RMSNorm for PyTorch: a drop-in module, functions, operators and a patch for transformers.

    from rmsnorm.torch import RMSNorm, add_rms_norm, patch, rms_norm

RMSNorm is a torch.nn.RMSNorm. The functions are differentiable and may be compiled; they are
torch.ops.rmsnorm's operators where anyone looks on, and go past the dispatcher where nobody does.
"""
from ._functional import add_rms_norm, add_rms_norm_, rms_norm
from ._module import RMSNorm
from ._patch import Changed, patch, unpatch

__all__ = ["Changed", "RMSNorm", "add_rms_norm", "add_rms_norm_", "patch", "rms_norm", "unpatch"]
