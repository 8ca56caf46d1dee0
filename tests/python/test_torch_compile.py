"""rmsnorm.torch's operators: opcheck, torch.compile without graph breaks, export, tracing."""
import pytest
from torch_places import PLACES, find_place, need_compiler, torch, values

from rmsnorm.torch import RMSNorm, _watch, add_rms_norm, add_rms_norm_, rms_norm

F32, BF16, F64 = torch.float32, torch.bfloat16, torch.float64
EPS = 1e-5


@pytest.fixture(params=PLACES)
def place(request):
    return find_place(request.param)


@pytest.fixture(autouse=True)
def reset():
    torch.compiler.reset()


def compiled(function, backend="aot_eager", **options):
    return torch.compile(function, fullgraph=True, backend=backend, **options)


def calls(place, random):
    """Of each operator: arguments and keywords."""
    def make(*shape, dtype=F32, grad=False):
        return values(place, random, *shape, dtype=dtype, grad=grad)

    rstd = torch.ones(4, 3, device=place.where)
    for grad in (False, True):
        yield "forward", (make(4, 3, 16, grad=grad), make(16, grad=grad), EPS), {"dtype": F32}
        yield "forward", (make(4, 3, 16, dtype=BF16, grad=grad), make(16, grad=grad), EPS, 1.0,
                          "llama"), {"dtype": F32}
        yield "forward", (make(4, 3, 16, grad=grad).transpose(0, 1), None, EPS), {"dtype": BF16}
        yield "forward", (make(4, 3, 32, grad=grad)[..., ::2], None, EPS), {"dtype": F32}
        yield "add_forward", (make(4, 16, dtype=BF16, grad=grad), make(4, 16, grad=grad),
                              make(16, grad=grad), EPS), {"dtype": BF16}
        bias = {"bias": make(16, dtype=BF16, grad=grad)}
        yield "forward", (make(4, 3, 16, grad=grad), None, EPS), {**bias, "dtype": F32}
        yield "add_forward", (make(4, 16), make(4, 16), make(16), EPS), {**bias, "dtype": F32}
    bias = {"bias": make(16)}
    yield "forward_out", (make(4, 3, 16), make(16), EPS), {"out": make(4, 3, 32)[..., :16]}
    yield "forward_out", (make(4, 16), make(16), EPS), {**bias, "out": make(4, 16)}
    yield "add_forward_", (make(4, 16), make(4, 16, dtype=BF16), None, EPS, 1.0), {}
    yield "add_forward_", (make(4, 16), make(4, 16), None, EPS), bias
    yield "backward", (make(4, 3, 16), make(4, 3, 16), make(16, dtype=BF16), rstd, None, EPS), \
        dict(dx=F32, dresidual=None, dweight=True)
    yield "backward", (make(4, 3, 16), make(4, 3, 16), None, rstd, make(4, 3, 16), EPS, 1.0), \
        dict(dx=F32, dresidual=BF16, dweight=False)
    yield "backward", (make(1, 1, 1).expand(4, 3, 16), make(3, 4, 16).transpose(0, 1), make(16),
                       rstd, None, EPS), dict(dx=None, dresidual=None, dweight=True, dbias=BF16)


def test_opcheck(place, random):
    for name, arguments, keywords in calls(place, random):
        torch.library.opcheck(getattr(torch.ops.rmsnorm, name).default, arguments, keywords)


def block(module, x, residual):
    """Every way in: the module, the function, the fused add, and one in place."""
    y, h = add_rms_norm(module(x), residual, module.weight, EPS, bias=module.weight,
                        weight_offset=1.0)
    y = rms_norm(y.transpose(0, 1), None, bias=module.weight, rounding="llama")
    return y * 2, h


def in_place(x, residual, weight):
    x, residual = x.clone(), residual.clone()
    add_rms_norm_(x, residual, weight, EPS, bias=weight)
    out = torch.empty_like(x)
    rms_norm(x, weight, EPS, bias=weight, out=out)
    return x + 1, residual, out


def results(function, module, x, residual):
    leaves = [x.clone().requires_grad_(), residual.clone().requires_grad_(), module.weight]
    module.weight.grad = None
    y, h = function(module, leaves[0], leaves[1])
    (y.square().sum() + h.sum()).backward()
    return [y, h, *(leaf.grad for leaf in leaves)]


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_forward_and_backward(place, random, backend, dtype):
    """The bits of eager; a second shape, which makes the graph dynamic; inference."""
    if backend == "inductor":
        need_compiler()
    module = RMSNorm(32, EPS, device=place.where)
    function = compiled(block, backend)
    for rows in (6, 8, 9):
        x = values(place, random, rows, 3, 32, dtype=dtype)
        residual = values(place, random, rows, 3, 32, dtype=dtype)
        wanted = results(block, module, x, residual)
        found = results(function, module, x, residual)
        for one, other in zip(wanted, found):
            assert one.dtype is other.dtype and one.stride() == other.stride()
            # What is multiplied around the norm may be rounded elsewhere when it is fused.
            torch.testing.assert_close(one, other, rtol=0 if backend == "aot_eager" else 2e-2,
                                       atol=0 if backend == "aot_eager" else 2e-2)
        with torch.no_grad():
            assert torch.equal(function(module, x, residual)[1], wanted[1])


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_in_place(place, random, backend):
    if backend == "inductor":
        need_compiler()
    x, residual = values(place, random, 6, 32), values(place, random, 6, 32)
    weight = values(place, random, 32)
    before = x.clone(), residual.clone()
    found = compiled(in_place, backend)(x, residual, weight)
    assert torch.equal(x, before[0]) and torch.equal(residual, before[1])
    for one, other in zip(in_place(x, residual, weight), found):
        assert torch.equal(one, other)
    # Of the graph's own inputs.
    wanted = add_rms_norm(x, residual, weight, EPS)
    compiled(lambda *args: add_rms_norm_(*args, EPS), backend)(x, residual, weight)
    assert torch.equal(x, wanted[0]) and torch.equal(residual, wanted[1])


def test_dynamic_shapes_do_not_recompile(place, random):
    from torch._dynamo.testing import CompileCounterWithBackend
    counter = CompileCounterWithBackend("aot_eager")
    function = torch.compile(lambda x: rms_norm(x).sum(), fullgraph=True, backend=counter,
                             dynamic=True)
    function(values(place, random, 2, 3, 32, grad=True)).backward()
    first = counter.frame_count
    for rows in range(3, 12):
        function(values(place, random, rows, 3, 32, grad=True)).backward()
    assert counter.frame_count == first


def test_wrong_shapes_are_refused_while_compiling(place, random):
    with pytest.raises(Exception, match="has shape"):
        compiled(lambda x, w: rms_norm(x, w))(values(place, random, 4, 32),
                                              values(place, random, 31))


def test_functorch_under_compile(place, random):
    x, weight = values(place, random, 4, 32), values(place, random, 32)

    def gradients(x):
        return torch.func.vmap(torch.func.grad(lambda x: rms_norm(x, weight).sum()))(x)

    torch.testing.assert_close(compiled(gradients)(x), gradients(x))


def test_export(place, random):
    module = RMSNorm(32, EPS, device=place.where)
    x = values(place, random, 4, 32)
    program = torch.export.export(module, (x,))
    assert "rmsnorm.forward" in str(program.graph)
    assert torch.equal(program.module()(x), module(x))


def test_dispatch_modes_see_the_operators(place, random):
    from torch.utils._python_dispatch import TorchDispatchMode
    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    x = values(place, random, 4, 32, grad=True)
    y = rms_norm(x)
    with Watch():
        again = rms_norm(x)
        again.backward(torch.ones_like(again))
    assert torch.equal(y, again)
    assert "rmsnorm.forward.default" in seen and "rmsnorm.backward.default" in seen


def test_fake_tensors_and_make_fx(place, random):
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx
    x = values(place, random, 4, 3, 32)
    with FakeTensorMode() as mode:
        y = rms_norm(mode.from_tensor(x).transpose(0, 1))
        assert y.shape == (3, 4, 32) and y.stride() == (32, 96, 1) and y.device == x.device
    graph = make_fx(lambda x: rms_norm(x))(x)
    assert "rmsnorm.forward" in graph.code and torch.equal(graph(x), rms_norm(x))


def test_jit_trace(place, random):
    x = values(place, random, 4, 32)
    traced = torch.jit.trace(lambda x: rms_norm(x) + 1, (x,))
    other = values(place, random, 4, 32)
    assert torch.equal(traced(other), rms_norm(other) + 1)


def test_a_default_device_and_subclasses(place, random):
    x = values(place, random, 4, 32)
    with torch.device("meta"):
        assert torch.equal(rms_norm(x), rms_norm(x.clone()))

    class Tagged(torch.Tensor):
        pass

    y = rms_norm(x.as_subclass(Tagged))
    assert torch.equal(y.as_subclass(torch.Tensor), rms_norm(x))


def test_negative_bit(place, random):
    """Of the imaginary part of a conjugate, whose memory has the other sign."""
    def make():
        return torch.complex(values(place, random, 4, 32), values(place, random, 4, 32))

    for size in (32, 1):
        z, weight = make()[:, :size], make()[0, :size]
        x, dy = z.conj().imag, make()[:, :size].conj().imag
        assert x.is_neg() and dy.is_neg()
        for function in (rms_norm, torch.ops.rmsnorm.forward):
            found = []
            for resolve in (lambda tensor: tensor, lambda tensor: tensor.resolve_neg()):
                options = {} if function is rms_norm else {"dtype": F32}
                rms_norm(z.imag, weight.imag, EPS)  # of the same shapes and strides
                leaf = resolve(x).detach().requires_grad_()
                y = function(leaf, resolve(weight.conj().imag), EPS, **options)
                y = y if function is rms_norm else y[0]
                y.backward(resolve(dy))
                found.append((y, leaf.grad))
            assert all(map(torch.equal, *found))


def test_direct_path_is_taken(place, random, monkeypatch):
    """Where nobody looks on, no operator is called."""
    def refuse(*args, **kwargs):
        raise AssertionError("the dispatcher was called")

    refuse.default = refuse
    monkeypatch.setattr(torch.ops.rmsnorm, "forward", refuse)
    monkeypatch.setattr(torch.ops.rmsnorm, "backward", refuse)
    x = values(place, random, 4, 32, grad=True)
    module = RMSNorm(32, device=place.where)
    module(x).sum().backward()
    with torch.no_grad():
        module(x)
        rms_norm(x, out=torch.empty_like(x))
    monkeypatch.setattr(_watch, "direct", lambda *tensors: False)
    with pytest.raises(AssertionError, match="the dispatcher was called"):
        rms_norm(x)
