"""patch(model): a model's RMSNorm modules compute with librmsnorm; unpatch(model): no longer.

A module is recognised by its class's name and its structure: it ends with RMSNorm, and its one
parameter is weight, beside an eps. What it computes (where it rounds, what is added to weight, what
dtype comes out) is then seen from what it does: on a few random rows on the CPU its own forward has
to give what one of _SEMANTICS gives, else it is left alone.

A patched module stays the object that it is: its class becomes a subclass of its own. Parameters,
state_dict, hooks and isinstance() are as before.
"""
import copy
import inspect
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from ._functional import rms_norm


class Changed(NamedTuple):
    """A module that patch or unpatch has changed."""
    name: str  # in the model
    type: str  # the name of its class


class _Semantics(NamedTuple):
    weight_offset: float
    rounding: str
    promotes: bool  # y has the dtype that weight * x has; else x's


_SEMANTICS = (
    _Semantics(0.0, "llama", True),  # Llama, Mistral, Qwen2, Qwen3: weight * (x * rstd).to(x.dtype)
    _Semantics(1.0, "once", False),  # Gemma 1-3: (x * rstd * (1 + weight)).to(x.dtype), in float32
    _Semantics(0.0, "once", False),  # OLMo 2, GPT-OSS: (x * rstd * weight).to(x.dtype), in float32
)


def patch(model: torch.nn.Module) -> List[Changed]:
    """Makes the RMSNorm modules of a model, such as those of Hugging Face transformers (Llama,
    Mistral, Qwen2, Qwen3, Gemma 1-3, and others that compute the same), run on librmsnorm, each
    with the roundings, dtypes and weight offset of its own. torch.nn.RMSNorm is one as well.

    Returns what was changed, in the model's order. A second call changes nothing.
    """
    changed = []
    for name, module in model.named_modules():
        original = type(module)
        kind = _kind(module)
        if kind is not None:
            module.__class__ = _patched_class(original, *kind)
            changed.append(Changed(name, original.__name__))
    return changed


def unpatch(model: torch.nn.Module) -> List[Changed]:
    """Undoes patch(). Returns what was changed."""
    changed = []
    for name, module in model.named_modules():
        original = vars(type(module)).get("_rmsnorm_original")
        if original is not None:
            module.__class__ = original
            changed.append(Changed(name, original.__name__))
    return changed


# ---- Patched classes -----------------------------------------------------------------------------

_Kind = Tuple[Optional[_Semantics], str]  # None: torch.nn.RMSNorm's; the name of eps
_classes: Dict[Tuple[type, Optional[_Semantics], str], type] = {}


def _patched_class(original: type, semantics: Optional[_Semantics], eps_name: str) -> type:
    key = original, semantics, eps_name
    if key not in _classes:
        _classes[key] = type(original.__name__, (original,), {
            "__module__": original.__module__, "__qualname__": original.__qualname__,
            "__doc__": original.__doc__, "__reduce_ex__": _reduce, "extra_repr": _extra_repr,
            "forward": (_torch_forward if semantics is None else _forward(semantics, eps_name)),
            "_rmsnorm_original": original, "_rmsnorm_kind": (semantics, eps_name)})
    return _classes[key]


def _forward(semantics: _Semantics, eps_name: str) -> Any:
    weight_offset, rounding, promotes = semantics

    def forward(self: Any, hidden_states: Tensor) -> Tensor:
        weight = self.weight
        dtype = hidden_states.dtype
        if promotes and weight.dtype != dtype:
            dtype = torch.promote_types(weight.dtype, dtype)
        return rms_norm(hidden_states, weight, getattr(self, eps_name),
                        weight_offset=weight_offset, rounding=rounding, out_dtype=dtype)

    return forward


def _torch_forward(self: Any, x: Tensor) -> Tensor:
    weight = self.weight
    return rms_norm(x, weight, self.eps,
                    normalized_shape=self.normalized_shape if weight is None else None)


def _extra_repr(self: Any) -> str:
    return f"{self._rmsnorm_original.extra_repr(self)}, rmsnorm"


def _reduce(self: Any, protocol: Any) -> Tuple[Any, ...]:
    """For pickle and copy: the class itself is found nowhere by name."""
    return _rebuild, (self._rmsnorm_original, *self._rmsnorm_kind), self.__getstate__() if hasattr(
        self, "__getstate__") else self.__dict__


def _rebuild(original: type, semantics: Optional[_Semantics], eps_name: str) -> Any:
    return object.__new__(_patched_class(original, semantics, eps_name))


# ---- Recognition ---------------------------------------------------------------------------------


def _kind(module: Any) -> Optional[_Kind]:
    """How to compute what it does; None for what is no RMSNorm, or is patched already."""
    if type(module) is torch.nn.RMSNorm:
        return None if "forward" in vars(module) else (None, "eps")
    if not type(module).__name__.endswith("RMSNorm") or "forward" in vars(module):
        return None
    if "_rmsnorm_original" in vars(type(module)) or isinstance(module, torch.nn.RMSNorm):
        return None
    if list(module._parameters) != ["weight"] or module._buffers or module._modules:
        return None
    eps_name = next((name for name in ("variance_epsilon", "eps")
                     if isinstance(getattr(module, name, None), float)), None)
    if (eps_name is None or module.weight is None or module.weight.dim() != 1
            or len(inspect.signature(module.forward).parameters) != 1):
        return None
    for semantics in _SEMANTICS:
        if _behaves(module, semantics, eps_name):
            return semantics, eps_name
    return None


_PROBES = ((torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16),
           (torch.float16, torch.float16), (torch.bfloat16, torch.float32))


def _behaves(module: Any, semantics: _Semantics, eps_name: str) -> bool:
    """Whether its own forward gives what ours does, for each pair of dtypes of x and weight."""
    cols = module.weight.shape[0]
    generator = torch.Generator().manual_seed(cols)
    eps = max(getattr(module, eps_name), 1e-8)
    scales = torch.tensor([1.0, 1.0, 8.0, 2 * eps**0.5], device="cpu").unsqueeze(1)
    values = torch.randn(4, cols, generator=generator, device="cpu") * scales
    weights = torch.randn(cols, generator=generator, device="cpu") * 0.3 + 0.7
    ours = _forward(semantics, eps_name)
    stand_in = copy.copy(module)
    with torch.no_grad():
        for x_dtype, weight_dtype in _PROBES:
            vars(stand_in)["_parameters"] = {"weight": torch.nn.Parameter(weights.to(weight_dtype))}
            x = values.to(x_dtype)
            wanted = ours(stand_in, x)
            try:
                found = type(module).forward(stand_in, x)
            except Exception:  # whatever it wants, it is not what an RMSNorm takes
                return False
            if not isinstance(found, Tensor) or found.dtype != wanted.dtype:
                return False
            if not torch.allclose(found, wanted, rtol=2 * torch.finfo(x_dtype).eps + 1e-5, atol=0):
                return False
            # Each rounds in the same places: they differ where float32 errors decide alone.
            if found.dtype == x_dtype != torch.float32 and \
                    (found != wanted).sum() > 1 + 0.03 * found.numel():
                return False
    return True
