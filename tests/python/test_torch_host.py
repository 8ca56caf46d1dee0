"""rmsnorm.torch's compiled helper beside ctypes: the same bits, and what is left to Python."""
import gc
import importlib.machinery
import sys
import threading
import weakref

import pytest
from torch_places import PLACES, find_place, take_path, torch, values

from rmsnorm import ArgumentError, _context, _library
from rmsnorm.torch import (RMSNorm, _autograd, _calls, _glu, _glu_calls, _host, _watch,
                          add_rms_norm,
                           add_rms_norm_, gelu_mul, rms_norm, silu_mul)

F32, F16, BF16, F64 = torch.float32, torch.float16, torch.bfloat16, torch.float64
EPS = 1e-5

pytestmark = pytest.mark.skipif(_host.module is None, reason="there is no compiled helper")


@pytest.fixture(params=PLACES)
def place(request):
    return find_place(request.param)


@pytest.fixture
def by_ctypes(monkeypatch):
    """The arguments of each call that is left to ctypes."""
    calls = []
    for runner in (_calls.FORWARD, _calls.BACKWARD, _calls.GRADIENTS, _calls.ADD_GRADIENTS,
                   _glu_calls.FORWARD, _glu_calls.GRADIENTS):
        def spy(*args, real=runner.by_ctypes):
            calls.append(args)
            return real(*args)
        monkeypatch.setattr(runner, "run", _host.module.bind({}, runner._compiled_plan, spy))
    for function, runner in ((_autograd._Norm, _calls.GRADIENTS),
                             (_autograd._AddNorm, _calls.ADD_GRADIENTS),
                             (_glu._Gated, _glu_calls.GRADIENTS)):
        monkeypatch.setattr(function._backward_cls, "run", runner.run)
    return calls


# ---- The same bits -------------------------------------------------------------------------------


def norm(x, weight, other, dtype):
    return rms_norm(x, weight, EPS, weight_offset=0.5, rounding="llama")


def norm_with_bias(x, weight, other, dtype):
    return rms_norm(x, None, EPS, bias=weight)


def norm_without_weight(x, weight, other, dtype):
    return rms_norm(x, None, EPS)


def norm_of_another_dtype(x, weight, other, dtype):
    return rms_norm(x, weight, EPS, out_dtype=dtype)


def add(x, weight, other, dtype):
    return torch.cat(add_rms_norm(x, other, weight, EPS, bias=weight))


def silu(x, weight, other, dtype):
    return silu_mul(x, other)


def gelu(x, weight, other, dtype):
    return gelu_mul(x, other, "tanh")


FUNCTIONS = (norm, norm_with_bias, norm_without_weight, norm_of_another_dtype, add, silu, gelu)
LAYOUTS = {
    "plain": lambda x: x, "rows": lambda x: x.select(0, 1), "gaps": lambda x: x[..., 8:40],
    "transposed": lambda x: x.transpose(0, 1), "steps": lambda x: x[..., ::2],
    "one row": lambda x: x[:1, :1], "none": lambda x: x[:0], "one column": lambda x: x[..., :1],
    "vector": lambda x: x[0, 0], "expanded": lambda x: x[:, :1].expand(-1, 7, -1),
    "9 dimensions": lambda x: x.view(1, 1, 1, 1, 1, 1, *x.shape)}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", (F32, F16, BF16, F64), ids=str)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_same_bits(place, random, monkeypatch, function, dtype, layout):
    view = LAYOUTS[layout]
    x, other = (values(place, random, 3, 5, 48, dtype=dtype, grad=True) for _ in range(2))
    cols = view(x).shape[-1]
    weight = values(place, random, cols, dtype=F64 if dtype is F64 else F32, grad=True)
    wanted = F64 if dtype is F64 else F16
    dy = values(place, random, *function(view(x), weight, view(other), wanted).shape, dtype=dtype)
    found = []
    for path in ("direct", "direct", "ctypes"):  # with a new plan, with an old one
        with monkeypatch.context() as patch:
            take_path(path, patch)
            y = function(view(x), weight, view(other), wanted)
            found.append((y, *torch.autograd.grad(y, (x, weight, other), dy.to(y.dtype),
                                                  allow_unused=True)))
            with torch.no_grad():
                found[-1] += (function(view(x), weight, view(other), wanted),)
    for others in found[1:]:
        for one, another in zip(found[0], others):
            if one is None:
                assert another is None
            else:
                assert torch.equal(one, another) and one.stride() == another.stride()
                assert one.dtype is another.dtype


@pytest.mark.parametrize("function", (rms_norm, silu_mul))
def test_in_place_and_out(place, random, monkeypatch, function):
    x, other, weight = (values(place, random, 4, 32, dtype=BF16) for _ in range(3))
    found = []
    for path in ("direct", "ctypes"):
        with monkeypatch.context() as patch:
            take_path(path, patch)
            a, b, out = x.clone(), other.clone(), torch.empty(4, 64, dtype=F32,
                                                              device=place.where)[:, 16:48]
            add_rms_norm_(a, b, weight[0], EPS)
            version = out._version
            rms_norm(x, weight[0], EPS, out=out)
            assert out._version > version
            found.append((a, b, out))
    assert all(map(torch.equal, *found))


# ---- What is unusual -----------------------------------------------------------------------------


def test_what_is_left_to_ctypes(place, random, by_ctypes):
    x = values(place, random, 4, 6, 32)
    weight = values(place, random, 32)
    for plain in (x, x.transpose(0, 1), x[..., 8:16], x[:0], torch.nn.Parameter(x)):
        with torch.no_grad():
            rms_norm(plain, weight[:plain.shape[-1]])
            rms_norm(plain, out=torch.empty_like(plain))
            silu_mul(plain, plain)
    leaf = x.clone().requires_grad_()
    rms_norm(leaf, weight).backward(x)
    add_rms_norm(leaf, x, weight)[0].backward(x)
    silu_mul(leaf, x).backward(x)
    assert not by_ctypes
    z = torch.view_as_complex(torch.stack((x, x), -1))
    for unusual in (x[..., ::2], z.conj().imag, x.view(1, 1, 1, 1, 1, 1, *x.shape)):
        rms_norm(unusual)
        assert by_ctypes
        by_ctypes.clear()


def test_negative_bit(place, random):
    """Of the same shape and strides as one without it."""
    z = torch.view_as_complex(values(place, random, 4, 32, 2))
    for _ in range(2):
        assert torch.equal(rms_norm(z.imag), rms_norm(z.imag.contiguous()))
        assert torch.equal(rms_norm(z.conj().imag), rms_norm(-z.imag.contiguous()))
        column, conjugate = z.imag[:, :1], z.conj().imag[:, :1]
        assert torch.equal(rms_norm(column), -rms_norm(conjugate))


class Watching(torch.utils._python_dispatch.TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


class WatchingFunctions(torch.overrides.TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


class Subclass(torch.Tensor):
    pass


def test_who_looks_on(place, random):
    """The compiled test agrees with the one in Python, which each case turns."""
    x, weight = values(place, random, 4, 32), values(place, random, 32)
    plain = (_host.module.plain, _watch.plain)
    assert all(look(x, torch.nn.Parameter(weight), None) is True for look in plain)

    def refused(*tensors):
        return all(look(*tensors) is False for look in plain)

    for mode in (Watching(), WatchingFunctions(), torch.device("cpu")):
        with mode:
            assert refused(x, weight)
    with torch.autograd.forward_ad.dual_level():
        assert refused(x, weight)
    inside = []
    torch.func.vmap(lambda each: inside.append(refused(each)) or each)(x)
    torch.jit.trace(lambda each: inside.append(refused(each)) or each + 1, x, check_trace=False)
    assert inside == [True, True]
    assert refused(x.as_subclass(Subclass)) and refused(x, weight.as_subclass(Subclass))
    assert refused(x.to("meta"), weight) and refused(None) and refused([1.0]) and refused(x, 1.0)
    assert all(look(x, weight) is True for look in plain)


def test_bad_arguments_name_themselves(place, random):
    x, weight = values(place, random, 4, 32), values(place, random, 32)
    wide = values(place, random, 4, 64)
    for call, text in ((lambda: rms_norm(x, weight[:-1]), "weight has shape"),
                       (lambda: rms_norm(x, out=x[:2]), "out has shape"),
                       (lambda: rms_norm(x, eps=-1.0), "eps"),
                       (lambda: rms_norm(wide[:, :32], out=wide[:, 16:48]), "out"),
                       (lambda: rms_norm(x.to_sparse()), "x has layout"),
                       (lambda: rms_norm(x.int()), "x has dtype"),
                       (lambda: silu_mul(x, x[:2]), "up has shape")):
        for _ in range(2):
            with pytest.raises((ArgumentError, TypeError), match=text):
                call()
    with pytest.raises(TypeError, match="must be a tuple|not a tuple|must be tuple"):
        _host.module.plan(0, 0, b"", b"", b"", [], None, 0, -1, None)
    with pytest.raises(ValueError, match="no such plan"):
        _host.module.plan(0, 0, b"\0" * 4096, b"", b"", (), None, 0, -1, None)
    with pytest.raises(TypeError, match="not a class"):
        _host.module.apply_of(1)


# ---- Autograd ------------------------------------------------------------------------------------


def test_backward_again(place, random):
    x, weight = values(place, random, 4, 32, grad=True), values(place, random, 32, grad=True)
    dy = values(place, random, 4, 32)
    y = rms_norm(x, weight, EPS)
    first = torch.autograd.grad(y, (x, weight), dy, retain_graph=True)
    second = torch.autograd.grad(y, (x, weight), dy)
    assert all(map(torch.equal, first, second))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(y, (x, weight), dy)
    y = rms_norm(x, weight, EPS)
    with torch.no_grad():
        weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward(dy)


def test_backward_that_is_left_to_python(place, random, monkeypatch):
    """create_graph, modes and batches of gradients: then the Python function runs."""
    x, weight = values(place, random, 4, 32, grad=True), values(place, random, 32, grad=True)
    dy = values(place, random, 3, 4, 32)
    calls = []
    real = _autograd._Norm.backward
    monkeypatch.setattr(_autograd._Norm, "backward",
                        staticmethod(lambda *args: calls.append(1) or real(*args)))
    wanted = torch.autograd.grad(rms_norm(x, weight, EPS), (x, weight), dy[0])
    assert not calls
    found = torch.autograd.grad(rms_norm(x, weight, EPS), (x, weight), dy[0], create_graph=True)
    assert calls.pop() and found[0].requires_grad
    y = rms_norm(x, weight, EPS)
    with Watching():
        assert torch.equal(torch.autograd.grad(y, x, dy[0])[0], wanted[0])
    assert calls.pop()
    y = rms_norm(x, weight, EPS)
    batch = torch.autograd.grad(y, x, dy, is_grads_batched=True)[0]
    assert calls.pop() and not calls
    torch.testing.assert_close(batch[0], wanted[0])


def test_saved_tensor_hooks(place, random):
    """What they give back is what is used, whatever its layout."""
    x, weight = values(place, random, 4, 32, grad=True), values(place, random, 32, grad=True)
    dy = values(place, random, 4, 32)
    wanted = torch.autograd.grad(rms_norm(x, weight, EPS), (x, weight), dy)

    def strided(tensor):
        return tensor.repeat_interleave(2, -1)[..., ::2]

    def subclass(tensor):
        return tensor.detach().as_subclass(Subclass)

    for unpack in (torch.clone, strided, subclass):
        packed = []
        with torch.autograd.graph.saved_tensors_hooks(
                lambda tensor: packed.append(1) or tensor.detach(), unpack):
            y = rms_norm(x, weight, EPS)
        assert len(packed) == 3
        assert all(map(torch.equal, torch.autograd.grad(y, (x, weight), dy), wanted))


# ---- Memory, threads, contexts -------------------------------------------------------------------


def test_nothing_is_kept(place, random):
    """Neither tensors nor references, on the way that works and on the one that fails."""
    x, weight, dy = (values(place, random, *shape) for shape in ((4, 32), (32,), (4, 32)))
    leaf, parameter = x.clone().requires_grad_(), torch.nn.Parameter(weight)

    def use():
        rms_norm(x, weight, EPS)
        y = rms_norm(leaf, parameter, EPS)
        torch.autograd.grad(y, (leaf, parameter), dy)
        silu_mul(leaf, x).backward(dy)
        with pytest.raises(ArgumentError):
            rms_norm(x[:, :16], out=x[:, 8:24])
        return weakref.ref(y)

    def kept():
        """What 100 uses leave: references to one of these, or objects."""
        gc.collect()
        before = [sys.getrefcount(each) for each in tensors], len(gc.get_objects())
        for _ in range(100):
            assert use()() is None
        gc.collect()
        after = [sys.getrefcount(each) for each in tensors], len(gc.get_objects())
        return max(abs(before[1] - after[1]),
                   *(abs(one - other) for one, other in zip(before[0], after[0])))

    use()
    tensors = (x, weight, dy, leaf, parameter, None, True, F32)
    # What is left over of other tests may go meanwhile, once; what a use keeps it keeps each time.
    assert min(kept() for _ in range(3)) < 50


def test_plans_are_freed(random, monkeypatch):
    """With them, and what refuses for them, the context."""
    x = torch.from_numpy(random(4, 32))
    rms_norm(x)
    plan = next(iter(_calls.FORWARD.compiled_plans.values()))
    assert sys.getrefcount(plan) == 3
    _context._changed()
    assert sys.getrefcount(plan) == 2 and not _calls.FORWARD.compiled_plans


def test_threads(place, random):
    module = RMSNorm(64, EPS, device=place.where)
    x, dy = values(place, random, 8, 64), values(place, random, 8, 64)
    wanted = None
    failed = []

    def work():
        leaf = x.clone().requires_grad_()
        for turn in range(200):
            y = module(leaf)
            dx, = torch.autograd.grad(y, leaf, dy)
            if not (torch.equal(y, wanted[0]) and torch.equal(dx, wanted[1])):
                failed.append(turn)
            if turn % 20 == 0:
                _context._changed()

    leaf = x.clone().requires_grad_()
    y = module(leaf)
    wanted = y, torch.autograd.grad(y, leaf, dy)[0]
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


# ---- Where it is looked for ----------------------------------------------------------------------


def test_where_it_is_looked_for(monkeypatch, tmp_path):
    found = _host._find()
    assert found is not None and found.endswith("rmsnorm_torch_host.abi3.so")
    monkeypatch.setattr(_library, "candidates",
                        lambda: [("", "librmsnorm.so.0"), ("", str(tmp_path / "librmsnorm.so"))])
    assert _host._find() is None and _host._load() is None
    broken = tmp_path / "rmsnorm_torch_host.abi3.so"
    broken.write_bytes(b"no library")
    assert _host._find() == str(broken) and _host._load() is None
    monkeypatch.setattr(importlib.machinery, "EXTENSION_SUFFIXES", [".so"])
    assert _host._find() is None


def test_another_pytorch(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "__dlpack_c_exchange_api__", None)
    assert _host._load() is None
