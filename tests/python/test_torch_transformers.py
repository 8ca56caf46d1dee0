"""patch(): models of Hugging Face transformers with random weights, each beside its own norms.

Each model's norms see the hidden states that its own layers make. What is counted: the elements of
all norms' outputs that differ from the model's own, and by how many ulps.
"""
import copy
import io
import pickle
from typing import Any, NamedTuple

import pytest
from torch_places import PLACES, exactly, find_place, torch, values

import rmsnorm.torch
from rmsnorm.torch import patch, unpatch

transformers = pytest.importorskip("transformers")

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16


@pytest.fixture(params=PLACES)
def place(request):
    return find_place(request.param)


class Family(NamedTuple):
    config: str
    model: str
    norm: str
    norms: int  # in two layers and at the end
    rounds_once: bool
    more: Any = {}


FAMILIES = {family.model: family for family in (
    Family("LlamaConfig", "LlamaForCausalLM", "LlamaRMSNorm", 5, False),
    Family("MistralConfig", "MistralForCausalLM", "MistralRMSNorm", 5, False),
    Family("Qwen2Config", "Qwen2ForCausalLM", "Qwen2RMSNorm", 5, False),
    Family("Qwen3Config", "Qwen3ForCausalLM", "Qwen3RMSNorm", 9, False, {"head_dim": 32}),
    Family("GemmaConfig", "GemmaForCausalLM", "GemmaRMSNorm", 5, True, {"head_dim": 32}),
    Family("Gemma2Config", "Gemma2ForCausalLM", "Gemma2RMSNorm", 9, True, {"head_dim": 32}),
    Family("Gemma3TextConfig", "Gemma3ForCausalLM", "Gemma3RMSNorm", 13, True, {"head_dim": 32}),
    Family("Olmo2Config", "Olmo2ForCausalLM", "Olmo2RMSNorm", 9, True),
)}
VOCABULARY = 128


def build(name, place, dtype=F32):
    family = FAMILIES[name]
    torch.manual_seed(17)
    config = getattr(transformers, family.config)(
        vocab_size=VOCABULARY, hidden_size=128, intermediate_size=192, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, **family.more)
    model = getattr(transformers, family.model)(config)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "norm" in parameter_name:
                parameter.add_(torch.randn_like(parameter) * 0.3)
            elif "embed" in parameter_name:
                parameter.normal_()
    return model.to(place.where, dtype).eval()


def tokens(place):
    generator = torch.Generator().manual_seed(5)
    return torch.randint(3, VOCABULARY, (4, 48), generator=generator).to(place.where)


def norms_of(model, names):
    return {name: module for name, module in model.named_modules() if name in names}


def seen_by(model, names, ids):
    """What each norm was given and gave."""
    seen = {}

    def keep(name):
        def hook(module, given, y):
            seen[name] = given[0], y
        return hook

    hooks = [module.register_forward_hook(keep(name))
             for name, module in norms_of(model, names).items()]
    with torch.no_grad():
        logits = model(ids).logits
    for hook in hooks:
        hook.remove()
    return seen, logits


# The share of elements that may differ from the model's own, whose sums and reciprocal roots are
# float32's: in half precision few come so near to a rounding's edge that this decides.
RATES = {F32: 0.75, F16: 3e-4, BF16: 1e-4}


def most_ulps(family, dtype):
    """An edge crossed is 1 ulp; where weight multiplies what was rounded, up to 2 of y's."""
    if dtype is F32:
        return 6
    return 1 if family.rounds_once else 2


def in_ulps(found, wanted):
    """The difference in units of the last place of wanted."""
    unit = torch.finfo(wanted.dtype)
    _, exponents = torch.frexp(wanted.double().abs().clamp_min(unit.tiny))
    return (found.double() - wanted.double()).abs() / torch.ldexp(
        torch.full_like(wanted, unit.eps, dtype=torch.float64), exponents - 1)


@pytest.mark.parametrize("dtype", [F32, F16, BF16], ids=str)
@pytest.mark.parametrize("name", FAMILIES)
def test_each_models_own_rounding(place, name, dtype):
    family, ids = FAMILIES[name], tokens(place)
    model = build(name, place, dtype)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    classes = {key: type(module) for key, module in model.named_modules()}
    changed = patch(model)
    assert len(changed) == family.norms and {each.type for each in changed} == {family.norm}
    names = [each.name for each in changed]
    assert names == [key for key, kind in classes.items() if kind.__name__ == family.norm]
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(isinstance(module, classes[key]) for key, module in norms_of(model, names).items())
    assert patch(model) == []
    assert unpatch(model) == changed and unpatch(model) == []
    assert {key: type(module) for key, module in model.named_modules()} == classes

    seen, logits = seen_by(model, names, ids)
    patch(model)
    differ = total = worst = 0
    for key, module in norms_of(model, names).items():
        x, wanted = seen[key]
        with torch.no_grad():
            found = module(x)
        assert found.dtype is wanted.dtype and found.shape == wanted.shape
        differ += int((found != wanted).sum())
        total += found.numel()
        worst = max(worst, float(in_ulps(found, wanted).max()))
    _, patched = seen_by(model, names, ids)
    distance = float((patched - logits).abs().max() / logits.abs().max())
    print(f"{name} {dtype}: {differ / total:.3%} of {total} elements differ, by at most "
          f"{worst:.2f} ulps; logits by {distance:.1e} of the largest")
    assert differ <= RATES[dtype] * total and worst <= most_ulps(family, dtype)
    # The model as a whole is no farther from the original than the dtype's own error.
    assert distance <= 8 * torch.finfo(dtype).eps


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "Gemma3ForCausalLM"])
def test_mixed_dtypes(place, random, name):
    """float32 weights beside bfloat16 rows, as with float32 norms: dtypes as in the original."""
    model = build(name, place)
    norm = model.model.norm
    x = values(place, random, 64, 128, dtype=BF16)
    with torch.no_grad():
        wanted = norm(x)
        patch(model)
        found = norm(x)
    assert found.dtype is wanted.dtype is (F32 if name.startswith("Llama") else BF16)
    torch.testing.assert_close(found, wanted, rtol=2.0**-7, atol=0)
    assert (found - wanted).abs().gt(1e-6 * wanted.abs()).float().mean() < RATES[BF16]


@pytest.mark.parametrize("name", ["Qwen3ForCausalLM", "Gemma2ForCausalLM"])
def test_training(place, name):
    """Gradients of every parameter, beside the original's; also compiled, without graph breaks."""
    ids = tokens(place)
    found = []
    for how in ("original", "patched", "compiled"):
        model = build(name, place).train()
        if how != "original":
            patch(model)
        run = model
        if how == "compiled":
            torch.compiler.reset()
            run = torch.compile(model, fullgraph=True, backend="aot_eager")
        loss = run(ids, labels=ids).loss
        loss.backward()
        found.append({"loss": loss.detach(), **{key: parameter.grad for key, parameter
                                                in model.named_parameters()}})
    for other in found[1:]:
        for key, wanted in found[0].items():
            scale = float(wanted.abs().max())
            torch.testing.assert_close(other[key], wanted, rtol=1e-4, atol=2e-5 * scale,
                                       msg=lambda text, key=key: f"{key}: {text}")


def test_copies(place):
    model = build("Qwen3ForCausalLM", place)
    changed = patch(model)
    ids = tokens(place)
    with torch.no_grad():
        wanted = model(ids).logits
        saved = io.BytesIO()
        torch.save(model, saved)
        saved.seek(0)
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)),
                      torch.load(saved, weights_only=False)):
            assert torch.equal(other(ids).logits, wanted)
            assert unpatch(other) == changed
    assert "rmsnorm" in repr(model.model.norm) and "rmsnorm" not in repr(other.model.norm)


def test_hooks_and_save_pretrained(place, tmp_path):
    model = build("LlamaForCausalLM", place)
    calls = []
    model.model.norm.register_forward_hook(lambda *args: calls.append(1))
    patch(model)
    ids = tokens(place)
    with torch.no_grad():
        wanted = model(ids).logits
    assert calls == [1]
    model.save_pretrained(tmp_path)
    other = transformers.LlamaForCausalLM.from_pretrained(tmp_path).to(place.where)
    patch(other)
    with torch.no_grad():
        assert torch.equal(other(ids).logits, wanted)


def test_what_is_left_alone():
    from torch import nn

    class Llama(nn.Module):
        """LlamaRMSNorm's shape; subclasses have its name or not, and do as it does or not."""

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(32))
            self.variance_epsilon = 1e-6

        def forward(self, x):
            wide = x.float()
            y = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
            return self.weight * y.to(x.dtype)

    class RMSNorm(Llama):
        pass

    class MeanRMSNorm(Llama):  # takes the mean off first
        def forward(self, x):
            return super().forward(x - x.mean(-1, keepdim=True))

    class EpsOutsideRMSNorm(Llama):
        def forward(self, x):
            wide = x.float()
            y = wide / (wide.pow(2).mean(-1, keepdim=True).sqrt() + self.variance_epsilon)
            return self.weight * y.to(x.dtype)

    class BiasRMSNorm(Llama):
        def __init__(self):
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(32))

    class GatedRMSNorm(Llama):
        def forward(self, x, gate=None):
            return super().forward(x)

    model = nn.ModuleDict({"norm": RMSNorm(), "mean": MeanRMSNorm(), "outside": EpsOutsideRMSNorm(),
                           "bias": BiasRMSNorm(), "gated": GatedRMSNorm(), "layer":
                           nn.LayerNorm(32), "unnamed": Llama(), "torch": nn.RMSNorm((2, 16)),
                           "own": rmsnorm.torch.RMSNorm(32), "replaced": RMSNorm()})
    model["replaced"].forward = lambda x: x
    state = torch.get_rng_state()
    changed = patch(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert [each.name for each in changed] == ["norm", "torch"]
    x = torch.randn(3, 2, 16)
    wanted = nn.RMSNorm((2, 16))(x)
    torch.testing.assert_close(model["torch"](x), wanted)
    assert isinstance(model["torch"], nn.RMSNorm)
    assert unpatch(model) == changed
    assert [each.name for each in patch(model["norm"])] == [""]


def test_a_model_without_memory():
    """On meta, before its weights are there."""
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(
            vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=2))
    assert len(patch(model)) == 3
    assert model.model.norm(torch.empty(4, 32, device="meta")).shape == (4, 32)


def test_exactness(place, random):
    """Ours is nearer to the exact result than the original, wherever the two differ."""
    norm = build("LlamaForCausalLM", place).model.norm
    x = values(place, random, 256, 128)
    with torch.no_grad():
        theirs = norm(x)
        patch(norm)
        ours = norm(x)
    wide = x.double()
    exact = wide / (wide.square().mean(-1, keepdim=True) + norm.variance_epsilon).sqrt()
    exact = exactly(exact * norm.weight.double())
    assert abs(exactly(ours) - exact).max() < abs(exactly(theirs) - exact).max()


# ---- MLPs ----------------------------------------------------------------------------------------

MLPS = {"LlamaForCausalLM": "LlamaMLP", "MistralForCausalLM": "MistralMLP",
        "Qwen2ForCausalLM": "Qwen2MLP", "Qwen3ForCausalLM": "Qwen3MLP",
        "GemmaForCausalLM": "GemmaMLP", "Gemma2ForCausalLM": "Gemma2MLP",
        "Gemma3ForCausalLM": "Gemma3MLP", "Olmo2ForCausalLM": "Olmo2MLP"}


@pytest.mark.parametrize("dtype", [F32, F16, BF16], ids=str)
@pytest.mark.parametrize("name", MLPS)
def test_mlps(place, name, dtype):
    """Patched beside the norms and undone; no farther from float64 than the original."""
    model = build(name, place, dtype)
    classes = {key: type(module) for key, module in model.named_modules()}
    state = {key: value.clone() for key, value in model.state_dict().items()}
    norms = len(patch(model))
    changed = patch(model, mlp=True)
    assert [each.type for each in changed] == [MLPS[name]] * 2 and patch(model, mlp=True) == []
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    mlp = model.get_submodule(changed[0].name)
    assert isinstance(mlp, classes[changed[0].name]) and "rmsnorm" in repr(mlp)
    copied = pickle.loads(pickle.dumps(mlp))
    x = torch.randn(4, 48, 128, generator=torch.Generator().manual_seed(2)).to(place.where, dtype)
    with torch.no_grad():
        ours = mlp(x)
        assert torch.equal(copied(x), ours)
        assert len(unpatch(model)) == norms + 2
        assert {key: type(module) for key, module in model.named_modules()} == classes
        theirs = mlp(x)
        exact = copy.deepcopy(mlp).double()(x.double())
    assert ours.dtype is theirs.dtype
    errors = [float((each.double() - exact).norm()) for each in (ours, theirs)]
    assert errors[0] <= 1.02 * errors[1]


def test_training_with_mlps(place):
    ids, found = tokens(place), []
    for how in ("original", "patched", "compiled"):
        model = build("GemmaForCausalLM", place).train()
        if how != "original":
            assert len(patch(model, mlp=True)) == 7
        run = model
        if how == "compiled":
            torch.compiler.reset()
            run = torch.compile(model, fullgraph=True, backend="aot_eager")
        run(ids, labels=ids).loss.backward()
        found.append({key: parameter.grad for key, parameter in model.named_parameters()})
    for other in found[1:]:
        for key, wanted in found[0].items():
            torch.testing.assert_close(other[key], wanted, rtol=1e-4,
                                       atol=2e-5 * float(wanted.abs().max()))


def test_mlps_that_are_left_alone():
    from torch import nn

    class GatedMLP(nn.Module):
        def __init__(self, act):
            super().__init__()
            self.gate_proj, self.up_proj, self.down_proj = (nn.Linear(8, 8) for _ in range(3))
            self.act_fn = act

        def forward(self, x):
            return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))

    class ReversedMLP(GatedMLP):
        def forward(self, x):
            return self.down_proj(self.gate_proj(x) * self.act_fn(self.up_proj(x)))

    class MaskedMLP(GatedMLP):
        def forward(self, x, mask=None):
            return super().forward(x)

    class WideMLP(GatedMLP):
        def forward(self, x):
            return self.down_proj(self.act_fn(self.gate_proj(x).float()) * self.up_proj(x))

    class Gated(GatedMLP):
        pass

    model = nn.ModuleDict({
        "silu": GatedMLP(nn.SiLU()), "gelu": GatedMLP(nn.GELU()),
        "tanh": GatedMLP(nn.GELU("tanh")), "relu": GatedMLP(nn.ReLU()),
        "sigmoid": GatedMLP(nn.Sigmoid()), "reversed": ReversedMLP(nn.SiLU()),
        "masked": MaskedMLP(nn.SiLU()), "wide": WideMLP(nn.SiLU()), "unnamed": Gated(nn.SiLU()),
        "replaced": GatedMLP(nn.SiLU()), "function": GatedMLP(None)})
    model["function"].act_fn = nn.functional.silu
    model["replaced"].forward = lambda x: x
    x = torch.randn(3, 8)
    wanted = {name: model[name](x) for name in ("silu", "gelu", "tanh", "function")}
    assert patch(model) == []
    assert [each.name for each in patch(model, mlp=True)] == list(wanted)
    for name, y in wanted.items():
        torch.testing.assert_close(model[name](x), y)
