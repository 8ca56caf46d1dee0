"""rmsnorm.torch's gated activations and SwiGLU: values, autograd, operators, compiled graphs."""
import copy
import io
import pickle

import devices
import pytest
import reference
from torch_places import (DTYPES, PATHS, PLACES, exactly, find_place, need_compiler, take_path,
                          torch, values)

from rmsnorm import ArgumentError
from rmsnorm.torch import SwiGLU, _glu, _swiglu, _swiglu_parts, gelu_mul, silu_mul

F32, F16, BF16, F64 = torch.float32, torch.float16, torch.bfloat16, torch.float64
F = torch.nn.functional
FUNCTIONS = {"silu": silu_mul, "gelu": gelu_mul,
             "gelu_tanh": lambda gate, up: gelu_mul(gate, up, approximate="tanh")}


@pytest.fixture(params=PLACES)
def place(request):
    return find_place(request.param)


@pytest.fixture(params=PATHS)
def path(request, monkeypatch):
    take_path(request.param, monkeypatch)
    return request.param


def compiled(function, backend="aot_eager", **options):
    torch.compiler.reset()
    return torch.compile(function, fullgraph=True, backend=backend, **options)


# ---- Functions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", FUNCTIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values(place, path, random, dtype, activation):
    gate, up = (values(place, random, 3, 5, 96, dtype=dtype, grad=True) for _ in range(2))
    dy = values(place, random, 3, 5, 96, dtype=dtype)
    y = FUNCTIONS[activation](gate, up)
    assert y.dtype is dtype
    y.backward(dy)
    exact = reference.glu(*map(place.numpy, (gate, up)), activation, place.numpy(dy))
    devices.judge_glu(place, activation, exact, y, gate.grad, up.grad)


def test_mixed_dtypes(place, path, random):
    """The dtype of PyTorch's product; gradients in each one's own."""
    for dtype in DTYPES:
        for other in DTYPES:
            gate = values(place, random, 4, 16, dtype=dtype, grad=True)
            up = values(place, random, 4, 16, dtype=other, grad=True)
            y = silu_mul(gate, up)
            assert y.dtype is (F.silu(gate) * up).dtype
            y.sum().backward()
            assert gate.grad.dtype is dtype and up.grad.dtype is other
            torch.testing.assert_close(y.double(), F.silu(gate.double()) * up.double(),
                                       rtol=(4 if y.dtype is F64 else 1) * torch.finfo(y.dtype).eps,
                                       atol=0)


def test_layouts(place, path, random):
    """Packed halves, transposed, expanded, columns with gaps: as of contiguous copies; y lies as
    gate does."""
    packed = values(place, random, 6, 4, 64)
    for gate, up in (packed.chunk(2, -1), (packed.transpose(0, 1), packed.transpose(0, 1)),
                     (packed[..., ::2], packed[..., 1::2]),
                     (packed[:1].expand(6, 4, 64), packed), (packed[0, 0], packed[0, 1]),
                     (packed[:, :0], packed[:, :0])):
        found = []
        for one, other in ((gate, up), (gate.contiguous(), up.contiguous())):
            leaves = one.detach().requires_grad_(), other.detach().requires_grad_()
            y = silu_mul(*leaves)
            found.append((y, *torch.autograd.grad(y, leaves, torch.ones_like(y))))
        assert all(map(torch.equal, *found))
    turned = packed.transpose(0, 1)
    assert silu_mul(turned, turned).stride() == turned.stride()


def test_only_inputs_are_saved(place, random):
    gate, up = (values(place, random, 4, 32, grad=True) for _ in range(2))
    seen = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: seen.append(tensor) or tensor,
                                                  lambda tensor: tensor):
        silu_mul(gate, up).sum().backward()
    assert [tensor.data_ptr() for tensor in seen] == [gate.data_ptr(), up.data_ptr()]


def test_one_that_needs_no_gradient(place, path, random):
    gate, up = (values(place, random, 4, 32) for _ in range(2))
    for leaf in (gate, up):
        leaf.requires_grad_()
        wanted, = torch.autograd.grad((F.silu(gate) * up).sum(), leaf)
        found, = torch.autograd.grad(silu_mul(gate, up).sum(), leaf)
        torch.testing.assert_close(found, wanted)
        leaf.requires_grad_(False)


@pytest.mark.parametrize("activation", FUNCTIONS)
def test_gradcheck(place, path, random, activation):
    function = FUNCTIONS[activation]
    gate, up = (values(place, random, 3, 2, 8, dtype=F64, grad=True) for _ in range(2))
    for one, inputs in ((function, (gate, up)), (lambda x: function(*x.chunk(2, -1)), (gate,)),
                        (lambda x: function(x, x), (gate,)),
                        (lambda x: function(x.transpose(0, 1), up.detach().transpose(0, 1)),
                         (gate,))):
        assert torch.autograd.gradcheck(one, inputs)
        assert torch.autograd.gradgradcheck(one, inputs)
        assert torch.autograd.gradcheck(one, inputs, check_forward_ad=True,
                                        check_backward_ad=False)


def test_torch_func(place, path, random):
    gate, up = (values(place, random, 3, 8, dtype=F64) for _ in range(2))
    wanted = F.silu(gate) * up
    torch.testing.assert_close(torch.func.vmap(silu_mul)(gate, up), wanted)
    leaf = gate.clone().requires_grad_()
    silu_mul(leaf, up).sum().backward()
    found = torch.func.grad(lambda gate: silu_mul(gate, up).sum())(gate)
    torch.testing.assert_close(found, leaf.grad)


def test_autocast(place, path, random):
    """Nothing changes: what came out of a matmul is in autocast's dtype already."""
    gate, up = (values(place, random, 4, 32, dtype=F16) for _ in range(2))
    with torch.autocast(place.where, BF16):
        for other in (up, up.float()):
            assert silu_mul(gate, other).dtype is (F.silu(gate) * other).dtype is other.dtype


def test_the_same_bits_all_ways(place, random, monkeypatch):
    gate, up = (values(place, random, 7, 33, dtype=BF16, grad=True) for _ in range(2))
    found = []
    for path in PATHS:
        with monkeypatch.context() as patch:
            take_path(path, patch)
            y = silu_mul(gate, up)
            found.append((y, *torch.autograd.grad(y.sum(), (gate, up))))
    for others in found[1:]:
        assert all(map(torch.equal, found[0], others))


BAD = {
    "gate: list": (lambda g, u: silu_mul([1.0], u), TypeError, "gate must be a tensor"),
    "gate: None": (lambda g, u: silu_mul(None, u), TypeError, "gate must be a tensor"),
    "up: None": (lambda g, u: silu_mul(g, None), TypeError, "up must be a tensor"),
    "up: number": (lambda g, u: silu_mul(g, 2.0), TypeError, "up must be a tensor"),
    "up: shape": (lambda g, u: silu_mul(g, u[1:]), ArgumentError, "up has shape"),
    "up: one for all": (lambda g, u: silu_mul(g, u[:1]), ArgumentError, "up has shape"),
    "gate: no dimension": (lambda g, u: silu_mul(g[0, 0], u[0, 0]), ArgumentError, "gate has"),
    "gate: no columns": (lambda g, u: silu_mul(g[:, :0], u[:, :0]), ArgumentError,
                         "gate has shape"),
    "gate: ints": (lambda g, u: silu_mul(g.int(), u.int()), ArgumentError, "gate has dtype"),
    "up: ints": (lambda g, u: silu_mul(g, u.int()), ArgumentError, "up has dtype"),
    "gate: sparse": (lambda g, u: silu_mul(g.to_sparse(), u), ArgumentError, "gate has layout"),
    "up: on meta": (lambda g, u: silu_mul(g, u.to("meta")), ArgumentError, "up is on meta"),
    "approximate": (lambda g, u: gelu_mul(g, u, "erf"), ArgumentError, "approximate = 'erf'"),
    "activation": (lambda g, u: torch.ops.rmsnorm.glu_forward(g, u, "relu", dtype=F32),
                   ArgumentError, "activation = 'relu'"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(path, random, name):
    call, error, words = BAD[name]
    with pytest.raises(error, match=words):
        call(torch.from_numpy(random(4, 32)), torch.from_numpy(random(4, 32)))


# ---- Operators and compiled graphs ---------------------------------------------------------------


def test_opcheck(place, random):
    def make(*shape, dtype=F32, grad=False):
        return values(place, random, *shape, dtype=dtype, grad=grad)

    operators = torch.ops.rmsnorm
    for grad in (False, True):
        for gate, up in ((make(4, 3, 16, grad=grad), make(4, 3, 16, grad=grad)),
                         (make(4, 3, 16, dtype=BF16, grad=grad), make(4, 3, 16)),
                         make(4, 32, grad=grad).chunk(2, -1),
                         (make(4, 3, 16).transpose(0, 1), make(3, 4, 16, grad=grad))):
            for activation in _glu.ACTIVATIONS:
                torch.library.opcheck(operators.glu_forward.default, (gate, up, activation),
                                      {"dtype": F32})
        torch.library.opcheck(operators.glu_linear.default, (
            make(4, 3, 32, grad=grad), make(8, 16, grad=grad), make(8, grad=grad), "silu"))
        torch.library.opcheck(operators.glu_linear.default, (
            make(4, 3, 32, grad=grad).transpose(0, 1), make(8, 16), None, "gelu"))
    for wants in ((True, True), (False, True), (True, False)):
        torch.library.opcheck(operators.glu_backward.default, (make(4, 8), *make(4, 16).chunk(2, 1),
                                                               "gelu"),
                              dict(zip(("dgate", "dup"), wants)))
    for wants in ((True, True, True), (False, True, False), (True, False, True)):
        torch.library.opcheck(
            operators.glu_linear_backward.default,
            (make(4, 3, 8), make(4, 3, 32), make(8, 16), "silu"),
            dict(zip(("dpacked", "dweight", "dbias"), wants)))


def test_operators_refuse_silent_zeros(place, random):
    gate, up = (values(place, random, 4, 8, grad=True) for _ in range(2))
    with pytest.raises(RuntimeError, match="glu_backward has no gradient of its own"):
        torch.ops.rmsnorm.glu_backward(gate, gate, up, "silu", dgate=True, dup=True)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_compile(place, random, backend, dtype):
    """The bits of eager; a second shape, which makes the graph dynamic; inference."""
    if backend == "inductor":
        need_compiler()

    def function(packed, weight):
        gate, up = packed.chunk(2, -1)
        return gelu_mul(silu_mul(gate, up), up, "tanh") * 2, _swiglu.glu_linear(
            packed, weight, None, "silu")

    run = compiled(function, backend)
    weight = values(place, random, 24, 48, dtype=dtype, grad=True)
    for rows in (6, 9):
        found = []
        packed = values(place, random, 5, rows, 96, dtype=dtype)
        for call in (function, run):
            leaf = packed.clone().requires_grad_()
            y, z = call(leaf, weight)
            found.append((y, z, *torch.autograd.grad((y.square().sum() + z.square().sum()),
                                                     (leaf, weight))))
        for one, other in zip(*found):
            torch.testing.assert_close(other, one, rtol=4 * torch.finfo(dtype).eps, atol=1e-5)
        with torch.no_grad():
            assert torch.equal(run(packed, weight)[0], function(packed, weight)[0])


# ---- SwiGLU --------------------------------------------------------------------------------------


def separate(module, x):
    """The layer as three, with the module's weights."""
    gate, up = (F.linear(x, weight, None if bias is None else bias) for weight, bias in zip(
        module.w12.weight.chunk(2), (None, None) if module.w12.bias is None
        else module.w12.bias.chunk(2)))
    return F.linear(F.silu(gate) * up, module.w3.weight, module.w3.bias)


def layer(place, dtype=F32, bias=False):
    torch.manual_seed(3)
    return SwiGLU(24, 40, bias, place.where, dtype)


def in_two_parts(module, x):
    return _swiglu_parts.fits(x, module.w12, module.w3)


@pytest.mark.parametrize("rows", [6, 7], ids=["in two parts", "in one"])
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
def test_swiglu(place, path, random, dtype, bias, rows):
    """Nearer to the float64 result than the layer as three, or as near; gradients as well."""
    module = layer(place, dtype, bias)
    x = values(place, random, 5, rows, 24, dtype=dtype, grad=True)
    assert path == "dispatcher" or in_two_parts(module, x) is (rows == 6)
    dy = values(place, random, 5, rows, 24, dtype=dtype)
    wide, wide_x = copy.deepcopy(module).double(), x.detach().double().requires_grad_()
    results = []
    for call, net, given, dout in ((separate, wide, wide_x, dy.double()), (separate, module, x, dy),
                                   (lambda net, x: net(x), module, x, dy)):
        y = call(net, given)
        results.append([y, *torch.autograd.grad(y, (given, *net.parameters()), dout)])
    assert results[2][0].dtype is dtype
    for exact, theirs, ours in zip(*results):
        error, allowed = ((exactly(each) - exactly(exact)) for each in (ours, theirs))
        unit = torch.finfo(dtype).eps * float(exact.detach().abs().max())
        assert abs(error).max() <= 1.5 * abs(allowed).max() + unit


def test_swiglu_gradcheck(place, path, random):
    module = layer(place, F64, True)
    x = values(place, random, 2, 3, 24, dtype=F64, grad=True)

    def function(x, *parameters):
        names = [name for name, _ in module.named_parameters()]
        return torch.func.functional_call(module, dict(zip(names, parameters)), (x,))

    inputs = (x, *(p.detach().requires_grad_() for p in module.parameters()))
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)
    for index in range(len(inputs)):  # each alone
        given = [each.detach().requires_grad_(i == index) for i, each in enumerate(inputs)]
        assert torch.autograd.gradcheck(function, given, fast_mode=True)


def test_swiglu_saves_the_inputs_alone(place, random):
    """x, the matmul's output, and parameters: no activation."""
    module = layer(place)
    weights = {(80, 24), (24, 80), (24, 40), (40, 24)}
    for rows, expected in ((6, [(6, 24), (6, 24), (6, 56)]), (5, [(5, 24), (5, 80)])):
        x = values(place, random, rows, 24, grad=True)
        assert in_two_parts(module, x) is (rows == 6)
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
                lambda tensor: sizes.append(tuple(tensor.shape)) or tensor, lambda tensor: tensor):
            module(x).sum().backward()
        assert sorted(size for size in sizes if size not in weights) == expected


def peak_of(place, call):
    """The most bytes that a call has at once, above what was there."""
    if place.where == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_stats()["requested_bytes.all.current"]
        torch.cuda.reset_peak_memory_stats()
        call()
        return torch.cuda.memory_stats()["requested_bytes.all.peak"] - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU],
                                profile_memory=True) as profile:
        call()
    now = most = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("share", [0.25, 0.5, 1, 1.2, 1.25, 3])
def test_swiglu_peak(place, random, share, bias):
    """What both gradients of the first matmul need: packed and its gradient, and w3's; or, of few
    rows, the gradients of all weights, and of packed. dx has its place in them. From as many rows
    as d_model that is no more than three matmuls need whose activation is saved."""
    if bias and place.where == "cuda":
        pytest.skip("cuBLAS takes a workspace for a bias, which would count")
    width, hidden = (1024, 2752) if place.where == "cuda" else (128, 344)
    rows = int(share * width)
    module = SwiGLU(width, hidden, bias, place.where)
    x, dy = values(place, random, rows, width, grad=True), values(place, random, rows, width)

    def both():
        torch.autograd.grad(module(x), (x, *module.parameters()), dy)

    both()
    weights, y = hidden * width, rows * width
    allowed = max(4 * rows * hidden + weights, 2 * rows * hidden + 3 * weights) + y
    biases = 2 * hidden + width if bias else 0
    assert peak_of(place, both) <= 4 * (allowed + biases) + 8
    if rows >= width:
        assert allowed <= 4 * rows * hidden + weights + y


def test_swiglu_backward_twice(place, path, random):
    """What is saved is as it was."""
    module = layer(place, bias=True)
    x, dy = values(place, random, 6, 24, grad=True), values(place, random, 6, 24)
    inputs = (x, *module.parameters())
    y = module(x)
    kept = y.detach().clone(), dy.clone()
    first = torch.autograd.grad(y, inputs, dy, retain_graph=True)
    copies = [each.clone() for each in first]
    second = torch.autograd.grad(y, inputs, dy)
    assert all(map(torch.equal, copies, second)) and all(map(torch.equal, copies, first))
    assert torch.equal(y, kept[0]) and torch.equal(dy, kept[1])
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(y, inputs, dy)


def test_swiglu_one_gradient_at_a_time(place, path, random):
    """Each is what it is beside the others."""
    module = layer(place, bias=True)
    for rows in (6, 5):
        x, dy = values(place, random, rows, 24, grad=True), values(place, random, rows, 24)
        inputs = (x, *module.parameters())
        y = module(x)
        for one, wanted in zip(inputs, torch.autograd.grad(y, inputs, dy, retain_graph=True)):
            found, = torch.autograd.grad(y, one, dy, retain_graph=True)
            torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("reentrant", [False, True])
def test_swiglu_checkpointed(place, random, reentrant):
    module = layer(place, bias=True)
    x, dy = values(place, random, 6, 24, grad=True), values(place, random, 6, 24)
    found = []
    for call in (module, lambda x: torch.utils.checkpoint.checkpoint(module, x,
                                                                     use_reentrant=reentrant)):
        module.zero_grad()
        x.grad = None
        call(x).backward(dy)
        found.append([x.grad, *(p.grad for p in module.parameters())])
    assert all(map(torch.equal, *found))


def test_swiglu_written_to_meanwhile(place, path, random):
    """An error, not another gradient."""
    module = layer(place)
    x = values(place, random, 6, 24, grad=True)
    y = module(x)
    with torch.no_grad():
        module.w3.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_swiglu_calls_its_layers(place, random):
    """Where someone looks on: hooks, and a layer of another kind in the place of w12."""
    module = layer(place)
    x = values(place, random, 6, 24, grad=True)
    plain = module(x)
    seen = []
    handle = module.w12.register_forward_hook(lambda *of: seen.append(of[2].shape))
    torch.testing.assert_close(module(x), plain)
    handle.remove()
    assert seen == [(6, 80)]
    module.w12 = torch.nn.Sequential(module.w12, torch.nn.Identity())
    torch.testing.assert_close(module(x), plain)


@pytest.mark.parametrize("dtype", [F16, BF16], ids=str)
def test_swiglu_autocast(place, path, random, dtype):
    module = layer(place, bias=True)
    x = values(place, random, 6, 24, grad=True)
    with torch.autocast(place.where, dtype):
        y, wanted = module(x), separate(module, x)
        again = compiled(module)(x)
    assert y.dtype is wanted.dtype is again.dtype is dtype
    for found in (y, again):
        torch.testing.assert_close(found, wanted, rtol=0.02, atol=0.01)
        gradients = torch.autograd.grad(found.float().square().sum(), list(module.parameters()))
        assert {gradient.dtype for gradient in gradients} == {F32}


def test_swiglu_compiled(place, random):
    module = layer(place, bias=True)
    run = compiled(module)
    for rows in (6, 9):
        x = values(place, random, rows, 24)
        leaves = [x.clone().requires_grad_() for _ in range(2)]
        for call, leaf in zip((module, run), leaves):
            module.zero_grad()
            y = call(leaf)
            y.square().sum().backward()
            leaf.results = [y, leaf.grad, *(p.grad.clone() for p in module.parameters())]
        for one, other in zip(*(leaf.results for leaf in leaves)):
            torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("names", [("w1", "w2", "w3"), ("gate_proj", "up_proj", "down_proj")],
                         ids=str)
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
def test_checkpoints_of_separate_layers(place, random, names, bias):
    module = layer(place, bias=bias)
    other = layer(place, bias=bias)
    torch.nn.init.normal_(other.w12.weight)
    state = {}
    for kind in ("weight", "bias") if bias else ("weight",):
        gate, up = getattr(other.w12, kind).detach().chunk(2)
        state.update({f"0.{names[0]}.{kind}": gate, f"0.{names[1]}.{kind}": up,
                      f"0.{names[2]}.{kind}": getattr(other.w3, kind).detach()})
    before = dict(state)
    torch.nn.Sequential(module).load_state_dict(state)
    assert state == before, "the caller's dictionary is as it was"
    x = values(place, random, 3, 24)
    assert torch.equal(module(x), other(x))
    del state[f"0.{names[1]}.weight"]
    with pytest.raises(RuntimeError, match=f"0.{names[0]}.weight"):
        torch.nn.Sequential(module).load_state_dict(state)


def test_swiglu_is_a_module_like_others(place, random):
    module = layer(place, BF16, True)
    assert list(module.state_dict()) == ["w12.weight", "w12.bias", "w3.weight", "w3.bias"]
    assert [p.dtype for p in module.parameters()] == [BF16] * 4
    x = values(place, random, 3, 24, dtype=BF16)
    saved = io.BytesIO()
    torch.save(module, saved)
    saved.seek(0)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)),
                  torch.load(saved, weights_only=False)):
        assert torch.equal(other(x), module(x)) and repr(other) == repr(module)
    assert SwiGLU(4096, device="meta").d_hidden == 11008
    assert SwiGLU(16, 8, device="meta")(torch.empty(2, 16, device="meta")).shape == (2, 16)


@pytest.mark.parametrize("arguments, words", [
    (dict(d_model=0), "d_model = 0"), (dict(d_model=8, d_hidden=-1), "d_hidden = -1"),
    (dict(d_model=8, d_hidden=2.5), "d_hidden = 2.5")])
def test_swiglu_refuses(arguments, words):
    with pytest.raises(ArgumentError, match=words):
        SwiGLU(**arguments)


def test_glu_linear_refuses(path, random):
    packed, weight = torch.from_numpy(random(3, 16)), torch.from_numpy(random(4, 8))
    for given, words in (((packed[:, 1:], weight, None), "packed has shape"),
                         ((packed, weight.half(), None), "weight has dtype"),
                         ((packed, weight, weight[0, :4].double()), "bias has dtype"),
                         ((packed, weight[0], None), "packed has shape")):
        with pytest.raises(ArgumentError, match=words):
            _swiglu.glu_linear(*given, "silu")
