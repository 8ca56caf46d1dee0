"""patch(model): a model's RMSNorm modules, and if wished its gated MLPs, compute with librmsnorm;
unpatch(model): no longer.

A module is recognised by its class's name and its structure. A norm's ends with RMSNorm, and its
one parameter is weight, beside an eps; an MLP's ends with MLP, and it has gate_proj, up_proj and
down_proj. What it computes (where it rounds, what is added to weight, what dtype comes out, which
activation it has) is then seen from what it does: on a few random rows on the CPU its own forward
has to give what one of _SEMANTICS or ACTIVATIONS gives, else it is left alone.

A patched module stays the object that it is: its class becomes a subclass of its own. Parameters,
state_dict, hooks and isinstance() are as before.
"""
import copy
import inspect
from typing import Any, Dict, List, NamedTuple, Optional, Tuple, Union

import torch
from torch import Tensor

from ._functional import rms_norm
from ._glu import ACTIVATIONS, gated


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


def patch(model: torch.nn.Module, mlp: bool = False) -> List[Changed]:
    """Makes the RMSNorm modules of a model, such as those of Hugging Face transformers (Llama,
    Mistral, Qwen2, Qwen3, Gemma 1-3, and others that compute the same), run on librmsnorm, each
    with the roundings, dtypes and weight offset of its own. torch.nn.RMSNorm is one as well.

    mlp: the gated MLPs of these models too, down_proj(act(gate_proj(x)) * up_proj(x)) with SiLU or
        GELU: the activation and the product become silu_mul or gelu_mul, which round once where
        the original rounds twice, and save gate and up alone. The three layers are called as they
        are, whatever they are.

    Returns what was changed, in the model's order. A second call changes nothing.
    """
    changed = []
    for name, module in model.named_modules():
        original = type(module)
        kind = _norm_kind(module) or (_mlp_kind(module) if mlp else None)
        if kind is not None:
            module.__class__ = _patched_class(original, kind)
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


class _Norm(NamedTuple):
    """How to compute what a norm does."""
    semantics: Optional[_Semantics]  # None: torch.nn.RMSNorm's
    eps_name: str

    def forward(self) -> Any:
        if self.semantics is None:
            return _torch_forward
        eps_name, (weight_offset, rounding, promotes) = self.eps_name, self.semantics

        def forward(self: Any, hidden_states: Tensor) -> Tensor:
            weight = self.weight
            dtype = hidden_states.dtype
            if promotes and weight.dtype != dtype:
                dtype = torch.promote_types(weight.dtype, dtype)
            return rms_norm(hidden_states, weight, getattr(self, eps_name),
                            weight_offset=weight_offset, rounding=rounding, out_dtype=dtype)

        return forward


class _Mlp(NamedTuple):
    """How to compute what an MLP does."""
    activation: str

    def forward(self) -> Any:
        activation = self.activation

        def forward(self: Any, x: Tensor) -> Tensor:
            return self.down_proj(gated(self.gate_proj(x), self.up_proj(x), activation))

        return forward


_Kind = Union[_Norm, _Mlp]
_classes: Dict[Tuple[type, _Kind], type] = {}


def _patched_class(original: type, kind: _Kind) -> type:
    key = original, kind
    if key not in _classes:
        _classes[key] = type(original.__name__, (original,), {
            "__module__": original.__module__, "__qualname__": original.__qualname__,
            "__doc__": original.__doc__, "__reduce_ex__": _reduce, "extra_repr": _extra_repr,
            "forward": kind.forward(), "_rmsnorm_original": original, "_rmsnorm_kind": kind})
    return _classes[key]


def _torch_forward(self: Any, x: Tensor) -> Tensor:
    weight = self.weight
    return rms_norm(x, weight, self.eps,
                    normalized_shape=self.normalized_shape if weight is None else None)


def _extra_repr(self: Any) -> str:
    return ", ".join(filter(None, (self._rmsnorm_original.extra_repr(self), "rmsnorm")))


def _reduce(self: Any, protocol: Any) -> Tuple[Any, ...]:
    """For pickle and copy: the class itself is found nowhere by name."""
    return _rebuild, (self._rmsnorm_original, self._rmsnorm_kind), self.__getstate__() if hasattr(
        self, "__getstate__") else self.__dict__


def _rebuild(original: type, kind: _Kind) -> Any:
    return object.__new__(_patched_class(original, kind))


# ---- Recognition ---------------------------------------------------------------------------------


def _norm_kind(module: Any) -> Optional[_Norm]:
    """None for what is no RMSNorm, or is patched already."""
    if type(module) is torch.nn.RMSNorm:
        return None if "forward" in vars(module) else _Norm(None, "eps")
    if not _may_be(module, "RMSNorm") or isinstance(module, torch.nn.RMSNorm):
        return None
    if list(module._parameters) != ["weight"] or module._buffers or module._modules:
        return None
    eps_name = next((name for name in ("variance_epsilon", "eps")
                     if isinstance(getattr(module, name, None), float)), None)
    if eps_name is None or module.weight is None or module.weight.dim() != 1:
        return None
    kinds = (_Norm(semantics, eps_name) for semantics in _SEMANTICS)
    return next((kind for kind in kinds if _norm_behaves(module, kind)), None)


def _may_be(module: Any, ending: str) -> bool:
    """By its class's name, and that its forward is its class's own and takes one argument."""
    return (type(module).__name__.endswith(ending) and "forward" not in vars(module)
            and "_rmsnorm_original" not in vars(type(module))
            and len(inspect.signature(module.forward).parameters) == 1)


_PROBES = ((torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16),
           (torch.float16, torch.float16), (torch.bfloat16, torch.float32))


def _norm_behaves(module: Any, kind: _Norm) -> bool:
    """Whether its own forward gives what ours does, for each pair of dtypes of x and weight."""
    cols = module.weight.shape[0]
    generator = torch.Generator().manual_seed(cols)
    eps = max(getattr(module, kind.eps_name), 1e-8)
    scales = torch.tensor([1.0, 1.0, 8.0, 2 * eps**0.5], device="cpu").unsqueeze(1)
    values = torch.randn(4, cols, generator=generator, device="cpu") * scales
    weights = torch.randn(cols, generator=generator, device="cpu") * 0.3 + 0.7
    ours = kind.forward()
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


class _Part(torch.nn.Module):
    """Stands in for one of an MLP's layers: a part of the columns."""

    def __init__(self, columns: slice) -> None:
        super().__init__()
        self.columns = columns

    def forward(self, x: Tensor) -> Tensor:
        return x[..., self.columns]


_COLS = 64
_LAYERS = {"gate_proj": slice(None, _COLS), "up_proj": slice(_COLS, None),
           "down_proj": slice(None)}


def _mlp_kind(module: Any) -> Optional[_Mlp]:
    """None for what is no gated MLP, or is patched already."""
    if not _may_be(module, "MLP") or module._parameters or module._buffers:
        return None
    if not set(_LAYERS) <= set(module._modules) <= {*_LAYERS, "act_fn"}:
        return None
    return next((kind for kind in map(_Mlp, ACTIVATIONS) if _mlp_behaves(module, kind)), None)


def _mlp_behaves(module: Any, kind: _Mlp) -> bool:
    """Whether its own forward, with layers that hand on a part of what they get, gives what ours
    does."""
    stand_in = copy.copy(module)
    vars(stand_in)["_modules"] = {**module._modules, **{
        name: _Part(columns) for name, columns in _LAYERS.items()}}
    generator = torch.Generator().manual_seed(_COLS)
    values = torch.randn(8, 2 * _COLS, generator=generator, device="cpu") * 2
    ours = kind.forward()
    with torch.no_grad():
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            x = values.to(dtype)
            wanted = ours(stand_in, x)
            try:
                found = type(module).forward(stand_in, x)
            except Exception:  # whatever it wants, it is not what such an MLP takes
                return False
            if not isinstance(found, Tensor) or found.dtype != dtype:
                return False
            # It rounds act(gate) and the product; in float32 its 1 + erf has lost the tail.
            if not torch.allclose(found, wanted, rtol=2 * torch.finfo(dtype).eps + 1e-6, atol=1e-6):
                return False
    return True
