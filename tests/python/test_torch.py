"""rmsnorm.torch: values, layouts, the module beside torch.nn.RMSNorm, bad arguments."""
import copy
import inspect
import io
import pickle

import devices
import numpy as np
import pytest
import reference
from torch_places import DTYPES, PATHS, PLACES, find_place, take_path, torch, values

import rmsnorm
from rmsnorm import ArgumentError, _context
from rmsnorm.torch import RMSNorm, _calls, _host, _run, add_rms_norm, add_rms_norm_, rms_norm

F32, BF16, F64 = torch.float32, torch.bfloat16, torch.float64


@pytest.fixture(params=PLACES)
def place(request):
    return find_place(request.param)


@pytest.fixture(params=PATHS)
def path(request, monkeypatch):
    take_path(request.param, monkeypatch)
    return request.param


# ---- Values --------------------------------------------------------------------------------------


# In the header float64 is all or nothing; test_float64_with_others has the rest.
PAIRS = [(one, other) for one in DTYPES for other in (None, *DTYPES)
         if other is None or (one is F64) == (other is F64)]


@pytest.mark.parametrize("dtype, weight_dtype", PAIRS, ids=str)
def test_forward_and_backward(place, path, random, dtype, weight_dtype):
    x = values(place, random, 3, 5, 96, dtype=dtype, grad=True)
    weight = weight_dtype and values(place, random, 96, dtype=weight_dtype, grad=True)
    dy = values(place, random, 3, 5, 96, dtype=dtype)
    y = rms_norm(x, weight, 1e-5, weight_offset=0.5)
    assert y.dtype is dtype
    y.backward(dy)
    given = [None if each is None else place.numpy(each) for each in (x, weight, dy)]
    exact = reference.forward(*given[:2], 1e-5, weight_offset=0.5)
    devices.judge_y(place, y, exact.y)
    # Backward goes by the rstd that was saved, which is rounded to float32.
    rstd = place.numpy(_calls.forward(x.detach(), None, 1e-5, 0.0, 0, dtype, None, True)[1])
    exact = reference.backward(given[2], *given[:2], rstd=rstd, weight_offset=0.5)
    found = rmsnorm.Gradients(x.grad, None if weight is None else weight.grad, None, None)
    devices.judge_gradients(place, found, exact)


@pytest.mark.parametrize("dtype, residual_dtype", [(F32, F32), (BF16, BF16), (BF16, F32),
                                                   (F32, torch.float16), (F64, F64)], ids=str)
def test_add(place, path, random, dtype, residual_dtype):
    x = values(place, random, 7, 64, dtype=dtype, grad=True)
    residual = values(place, random, 7, 64, dtype=residual_dtype, grad=True)
    weight = values(place, random, 64, dtype=dtype, grad=True)
    y, h = add_rms_norm(x, residual, weight, 1e-6)
    assert (y.dtype, h.dtype) == (dtype, residual_dtype)
    wide = F64 if dtype is F64 else F32
    assert torch.equal(h, (x.to(wide) + residual.to(wide)).to(residual_dtype))
    dy = values(place, random, 7, 64, dtype=dtype)
    dh = values(place, random, 7, 64, dtype=residual_dtype)
    torch.autograd.backward((y, h), (dy, dh))
    exact = reference.forward(place.numpy(h), place.numpy(weight), 1e-6)
    devices.judge_y(place, y, exact.y)
    rstd = place.numpy(_calls.forward(h.detach(), None, 1e-6, 0.0, 0, residual_dtype, None,
                                      True)[1])
    exact = reference.backward(place.numpy(dy), place.numpy(h), place.numpy(weight), rstd=rstd,
                               dresidual_out=place.numpy(dh))
    devices.judge_gradients(place, rmsnorm.Gradients(x.grad, weight.grad, None, None), exact)
    devices.judge_gradients(place, rmsnorm.Gradients(residual.grad, None, None, None), exact)
    # In place: the same bits.
    with torch.no_grad():
        x2, residual2 = x.clone(), residual.clone()
        returned = add_rms_norm_(x2, residual2, weight, 1e-6)
        assert returned[0] is x2 and returned[1] is residual2
        assert torch.equal(x2, y) and torch.equal(residual2, h)


@pytest.mark.parametrize("dtype, bias_dtype", [(F32, F32), (BF16, F32), (torch.float16, BF16),
                                               (F64, F64)], ids=str)
def test_bias(place, path, random, dtype, bias_dtype):
    x, residual, dy = (values(place, random, 7, 64, dtype=dtype, grad=grad)
                       for grad in (True, True, False))
    weight = values(place, random, 64, dtype=dtype, grad=True)
    bias = values(place, random, 64, dtype=bias_dtype, grad=True)
    for added in (False, True):
        if added:
            y, h = add_rms_norm(x, residual, weight, 1e-5, bias=bias, weight_offset=1)
        else:
            y, h = rms_norm(x, weight, 1e-5, bias=bias, weight_offset=1), x
        leaves = (x, weight, bias)
        dx, dweight, dbias = torch.autograd.grad(y, leaves, dy)
        assert dbias.dtype is bias_dtype
        given = [place.numpy(each) for each in (h, weight, bias, dy)]
        exact = reference.forward(*given[:2], 1e-5, bias=given[2], weight_offset=1)
        devices.judge_y(place, y, exact.y, exact.y - given[2].astype(reference.L))
        rstd = place.numpy(_calls.forward(h.detach(), None, 1e-5, 0.0, 0, dtype, None, True)[1])
        exact = reference.backward(given[3], *given[:2], rstd=rstd, weight_offset=1)
        devices.judge_gradients(place, rmsnorm.Gradients(dx, dweight, dbias, None), exact)
        with torch.no_grad():
            a, b = x.clone(), residual.clone()
            if added:
                add_rms_norm_(a, b, weight, 1e-5, bias=bias, weight_offset=1)
                assert torch.equal(b, h)
            else:
                rms_norm(a, weight, 1e-5, bias=bias, weight_offset=1, out=a)
            assert torch.equal(a, y)
    wide = bias.view(8, 8)  # over two dimensions, as its shape says
    assert torch.equal(rms_norm(x.view(7, 8, 8), bias=wide), rms_norm(x, bias=bias).view(7, 8, 8))


def test_some_gradients_alone(place, path, random, monkeypatch):
    """What needs no gradient is not computed."""
    asked = []
    backward_outputs = _calls.backward_outputs

    def spy(*args):
        found = backward_outputs(*args)
        asked.append([tensor is not None for tensor in found])
        return found

    monkeypatch.setattr(_calls, "backward_outputs", spy)  # called where a plan is made
    _context._changed()
    for x_grad, weight_grad in ((True, False), (False, True), (True, True)):
        x = values(place, random, 4, 32, grad=x_grad)
        weight = values(place, random, 32, grad=weight_grad)
        rms_norm(x, weight).backward(values(place, random, 4, 32))
        assert (x.grad is not None, weight.grad is not None) == (x_grad, weight_grad)
        assert asked.pop() == [x_grad, False, weight_grad, False] and not asked
    bias = values(place, random, 32, grad=True)
    rms_norm(x.detach(), bias=bias).backward(values(place, random, 4, 32))
    assert asked.pop() == [False, False, False, True] and not asked
    x, residual = (values(place, random, 4, 32, grad=True) for _ in range(2))
    y, h = add_rms_norm(x, residual)
    h.sum().backward()  # y takes no part
    assert not asked and (x.grad == 1).all() and (residual.grad == 1).all()


def test_rstd_is_saved_in_float32(place, random):
    x = values(place, random, 4, 32, dtype=BF16, grad=True)
    y = rms_norm(x)
    saved = y.grad_fn.saved_tensors
    assert saved[0] is x and saved[2].dtype is F32 and saved[2].shape == (4,)


@pytest.mark.parametrize("dtype", (F32, torch.float16, BF16), ids=str)
def test_eps_none_and_small_inputs(place, path, random, dtype):
    """As torch.nn.functional.rms_norm: at inputs of 1e-4, eps is what decides."""
    x = values(place, random, 8, 64, dtype=F32).mul(1e-4).to(dtype)
    weight = values(place, random, 64, dtype=dtype)
    wanted = torch.nn.functional.rms_norm(x, (64,), weight)
    torch.testing.assert_close(rms_norm(x, weight), wanted,
                               rtol=2 * torch.finfo(dtype).eps + 1e-6, atol=1e-7)
    assert not torch.allclose(rms_norm(x, weight, 1e-10).float(), wanted.float(), rtol=0.5)


def test_llama_rounding(place, path, random):
    x = values(place, random, 64, 128, dtype=BF16)
    weight = values(place, random, 128, dtype=F32)
    y = rms_norm(x, weight, 1e-6, rounding="llama", out_dtype=F32)
    plain = rms_norm(x, None, 1e-6)
    assert y.dtype is F32
    torch.testing.assert_close(y, plain.float() * weight, rtol=2e-7, atol=0)


# ---- Layouts -------------------------------------------------------------------------------------

LAYOUTS = {
    "transposed": lambda t: t.transpose(0, 1),
    "sliced columns": lambda t: t[..., 8:40],
    "gap in rows": lambda t: t[:, ::2],
    "expanded": lambda t: t[:1].expand(4, -1, -1, -1),
    "expanded scalar": lambda t: t[:1, :1, :1, :1].expand(3, 2, 4, 16),
    "columns apart": lambda t: t.transpose(-1, -2),
    "every other column": lambda t: t[..., ::2],
    "four strides": lambda t: t[::2, 1:, ::2].permute(2, 0, 1, 3),
    "one row": lambda t: t[0, 0, 0],
    "no rows": lambda t: t[:0],
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(place, path, random, name):
    """Of x, of dy, and of both, beside contiguous ones."""
    view = LAYOUTS[name]
    base, dbase = (values(place, random, 4, 3, 6, 48) for _ in range(2))
    x, dy = view(base), view(dbase)
    weight = values(place, random, x.shape[-1])
    wanted = None
    for strided_x, strided_dy in ((False, False), (True, False), (False, True), (True, True)):
        leaf = (x if strided_x else x.contiguous()).detach().requires_grad_()
        w = weight.clone().requires_grad_()
        y = rms_norm(leaf, w)
        y.backward(dy if strided_dy else dy.contiguous())
        found = y, leaf.grad, w.grad
        wanted = wanted or found
        assert torch.equal(y, wanted[0]) and torch.equal(leaf.grad, wanted[1])
        # On CUDA the order of dweight's sum depends on rows x groups.
        tolerance = dict(rtol=1e-5, atol=1e-4) if place.cuda else dict(rtol=0, atol=0)
        torch.testing.assert_close(w.grad, wanted[2], **tolerance)


def test_transposed_x_is_not_copied(place, random, monkeypatch):
    copies = []
    monkeypatch.setattr(_run.family, "contiguous",
                        lambda array, axes: copies.append(array.shape) or array.contiguous())
    x = values(place, random, 2, 8, 4, 32).transpose(1, 2).requires_grad_()
    y = rms_norm(x)
    y.backward(torch.ones_like(y))
    assert not copies and y.stride() == x.stride() == x.grad.stride()
    packed = values(place, random, 6, 5, 96).requires_grad_()
    y = rms_norm(packed[..., 32:64], values(place, random, 32))
    y.backward(torch.ones_like(y))
    assert not copies
    rms_norm(x[..., ::2])
    assert copies == [(2, 4, 8, 16)]


def test_out(place, path, random):
    x, weight = values(place, random, 4, 32), values(place, random, 32)
    wanted = rms_norm(x, weight)
    wide = values(place, random, 4, 64)
    before = wide.clone()
    out = wide[:, 16:48]
    version = wide._version
    assert rms_norm(x, weight, out=out) is out and torch.equal(out, wanted)
    assert wide._version > version
    assert torch.equal(wide[:, :16], before[:, :16]) and torch.equal(wide[:, 48:], before[:, 48:])
    half = torch.empty_like(x, dtype=BF16)
    rms_norm(x, weight, out=half)
    assert torch.equal(half, rms_norm(x, weight, out_dtype=BF16))
    rms_norm(x, weight, out=x)
    assert torch.equal(x, wanted)
    block = values(place, random, 4, 2, 16)
    assert torch.equal(rms_norm(block, weight.view(2, 16), out=torch.empty_like(block)),
                       rms_norm(block.flatten(1), weight).view(4, 2, 16))
    with torch.inference_mode():
        made = torch.empty_like(x)
        rms_norm(x, weight, out=made)


def test_a_saved_tensor_that_was_overwritten_is_noticed(place, path, random):
    x = values(place, random, 4, 32, grad=True)
    square = x * x
    cube = square * square
    with torch.no_grad():
        rms_norm(x, out=square)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        cube.sum().backward()


@pytest.mark.parametrize("dtypes", [(F32, F64), (F64, F32), (BF16, F64)], ids=str)
def test_float64_with_others(place, path, random, dtypes):
    """torch takes them, so this does."""
    x = values(place, random, 4, 32, dtype=dtypes[0], grad=True)
    weight = values(place, random, 32, dtype=dtypes[1], grad=True)
    y = rms_norm(x, weight, 1e-6)
    y.sum().backward()
    wanted = torch.nn.functional.rms_norm(x, (32,), weight, 1e-6)
    assert y.dtype is wanted.dtype and x.grad.dtype is dtypes[0] and weight.grad.dtype is dtypes[1]
    torch.testing.assert_close(y, wanted, rtol=2 * torch.finfo(dtypes[0]).eps + 1e-12, atol=0)


# ---- The module ----------------------------------------------------------------------------------

ARGUMENTS = [dict(normalized_shape=48), dict(normalized_shape=(6, 48), eps=1e-3),
             dict(normalized_shape=[48], elementwise_affine=False), dict(normalized_shape=48,
                                                                         dtype=BF16)]


@pytest.mark.parametrize("arguments", ARGUMENTS, ids=str)
def test_module_beside_torchs(place, path, random, arguments):
    ours = RMSNorm(**arguments, device=place.where)
    theirs = torch.nn.RMSNorm(**arguments, device=place.where)
    assert repr(ours) == repr(theirs) and isinstance(ours, torch.nn.RMSNorm)
    for name in ("normalized_shape", "eps", "elementwise_affine"):
        assert getattr(ours, name) == getattr(theirs, name)
    if ours.weight is not None:
        assert torch.equal(ours.weight, theirs.weight) and ours.weight.requires_grad
        theirs.weight.data.copy_(values(place, random, *theirs.weight.shape))
    ours.load_state_dict(theirs.state_dict())
    assert list(ours.state_dict()) == list(theirs.state_dict())
    dtype = arguments.get("dtype", F32)
    x = values(place, random, 3, 6, 48, dtype=dtype)
    tolerance = 2 * torch.finfo(dtype).eps + 2e-6
    torch.testing.assert_close(ours(x), theirs(x), rtol=tolerance, atol=1e-7)
    with pytest.raises(ArgumentError, match="^(x|weight) has shape"):
        ours(x[..., :-1])


def test_constructors_agree():
    ours = inspect.signature(RMSNorm).parameters
    theirs = inspect.signature(torch.nn.RMSNorm).parameters
    assert list(ours)[:len(theirs)] == list(theirs)
    for name, each in theirs.items():
        assert ours[name].default == each.default
    assert all(each.kind is each.KEYWORD_ONLY for each in list(ours.values())[len(theirs):])


def test_gemma_module(place, random):
    module = RMSNorm(32, 1e-6, weight_offset=1, rounding="llama", device=place.where)
    assert (module.weight == 0).all()
    assert repr(module).endswith("weight_offset=1.0, rounding='llama')")
    x = values(place, random, 4, 32)
    assert torch.equal(module(x), rms_norm(x, None, 1e-6))
    with pytest.raises(ArgumentError, match="rounding = 'twice'"):
        RMSNorm(32, rounding="twice")


def test_copies_of_the_module(place, random):
    module = RMSNorm((2, 16), weight_offset=0.25, rounding="llama", device=place.where)
    module.weight.data.copy_(values(place, random, 2, 16))
    x = values(place, random, 3, 2, 16, dtype=BF16)
    saved = io.BytesIO()
    torch.save(module, saved)
    saved.seek(0)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)),
                  torch.load(saved, weights_only=False)):
        assert repr(other) == repr(module) and torch.equal(other(x), module(x))
        assert other.weight is not module.weight


def test_meta(path):
    module = RMSNorm(32, device="meta")
    x = torch.empty(2, 3, 32, device="meta", dtype=BF16)
    y = module(x)
    assert y.is_meta and y.shape == x.shape and y.dtype is BF16
    y, h = add_rms_norm(x, x, module.weight)
    assert y.is_meta and h.is_meta
    with pytest.raises(ArgumentError, match="weight has shape"):
        rms_norm(x, module.weight[:-1])


@pytest.mark.parametrize("dtype", (F32, torch.float16, BF16), ids=str)
@pytest.mark.parametrize("weight_dtype", (F32, BF16), ids=str)
@pytest.mark.parametrize("fast", (torch.float16, BF16), ids=str)
def test_autocast(place, random, dtype, weight_dtype, fast):
    """The output dtype is that of the installed torch.nn.RMSNorm."""
    ours = RMSNorm(32, 1e-6, device=place.where, dtype=weight_dtype)
    theirs = torch.nn.RMSNorm(32, 1e-6, device=place.where, dtype=weight_dtype)
    x = values(place, random, 4, 32, dtype=dtype, grad=True)
    torch.compiler.reset()
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    with torch.autocast(place.where, fast):
        wanted = theirs(x)
        for module in (ours, compiled):
            y = module(x)
            assert y.dtype is wanted.dtype
            torch.testing.assert_close(y, wanted, rtol=2 * torch.finfo(dtype).eps + 1e-6, atol=1e-6)
    assert ours(x).dtype is theirs(x).dtype


def test_the_same_bits_whatever_was_before(place, random):
    """A row's result depends on neither the other rows nor the calls before."""
    x = values(place, random, 64, 64)
    first = rms_norm(x)
    for rows in range(1, 64):
        assert torch.equal(rms_norm(x[:rows]), first[:rows])
    assert torch.equal(rms_norm(x), first)


@pytest.mark.parametrize("path", PATHS[:2], indirect=True)
def test_plans_do_not_pile_up(random, path):
    forward = _calls.FORWARD
    plans = forward.plans if path == "ctypes" or _host.module is None else forward.compiled_plans
    x = torch.from_numpy(random(2048, 4))
    for rows in range(1, 2048):
        rms_norm(x[:rows])
    assert 0 < len(plans) <= 1024


def test_contexts_that_changed(random):
    x = torch.from_numpy(random(512, 256))
    wanted = rms_norm(x)
    before = rmsnorm.get_cpu_threads()
    try:
        rmsnorm.set_cpu_threads(2)
        assert torch.equal(rms_norm(x), wanted)
    finally:
        rmsnorm.set_cpu_threads(before)
    assert torch.equal(rms_norm(x), wanted)


# ---- Bad arguments -------------------------------------------------------------------------------


def overlapping():
    memory = torch.full((5, 32), 7.0)
    return dict(x=memory[:4], out=memory[1:]), memory


BAD = {
    "x: list": (lambda x, w: rms_norm([1.0], w), TypeError, "x must be a tensor"),
    "x: None": (lambda x, w: rms_norm(None, w), TypeError, "x must be a tensor"),
    "x: None, eps given": (lambda x, w: rms_norm(None, w, 1e-6), TypeError, "x must be a tensor"),
    "x: None, added": (lambda x, w: add_rms_norm(None, x, w, 1e-6), TypeError,
                       "x must be a tensor"),
    "x: None, in place": (lambda x, w: add_rms_norm_(None, x, w, 1e-6), TypeError,
                          "x must be a tensor"),
    "x: no dimension": (lambda x, w: rms_norm(x[0, 0]), ArgumentError, "x has"),
    "x: ints": (lambda x, w: rms_norm(x.int(), w), ArgumentError, "x has dtype torch.int32"),
    "x: no columns": (lambda x, w: rms_norm(x[:, :0]), ArgumentError, "x has shape"),
    "x: sparse": (lambda x, w: rms_norm(x.to_sparse(), w), ArgumentError, "x has layout"),
    "weight: list": (lambda x, w: rms_norm(x, [1.0] * 32), TypeError, "weight must be a tensor"),
    "weight: short": (lambda x, w: rms_norm(x, w[1:]), ArgumentError, "weight has shape"),
    "weight: long": (lambda x, w: rms_norm(x, torch.cat([w, w])), ArgumentError,
                     "weight has shape"),
    "weight: no dimension": (lambda x, w: rms_norm(x, w[0]), ArgumentError, "weight has shape"),
    "weight: ints": (lambda x, w: rms_norm(x, w.long()), ArgumentError, "weight has dtype"),
    "weight: on meta": (lambda x, w: rms_norm(x, w.to("meta")), ArgumentError, "weight is on meta"),
    "bias: list": (lambda x, w: rms_norm(x, bias=[1.0] * 32), TypeError, "bias must be a tensor"),
    "bias: short": (lambda x, w: rms_norm(x, w, bias=w[1:]), ArgumentError, "bias has shape"),
    "bias: short, added": (lambda x, w: add_rms_norm(x, x, bias=w[1:]), ArgumentError,
                           "bias has shape"),
    "bias: ints": (lambda x, w: rms_norm(x, bias=w.long()), ArgumentError, "bias has dtype"),
    "bias: on meta": (lambda x, w: rms_norm(x, bias=w.to("meta")), ArgumentError,
                      "bias is on meta"),
    "bias: of another shape": (lambda x, w: rms_norm(x.view(4, 2, 16), w.view(2, 16), bias=w),
                               ArgumentError, "bias has shape"),
    "eps: text": (lambda x, w: rms_norm(x, w, "small"), TypeError, "eps must be a number"),
    "eps: negative": (lambda x, w: rms_norm(x, w, -1.0), ArgumentError, "eps"),
    "eps: NaN": (lambda x, w: rms_norm(x, w, float("nan")), ArgumentError, "eps"),
    "weight_offset: Inf": (lambda x, w: rms_norm(x, w, weight_offset=float("inf")), ArgumentError,
                           "weight_offset"),
    "weight_offset: text": (lambda x, w: rms_norm(x, w, weight_offset="one"), TypeError,
                            "weight_offset must be a number"),
    "rounding": (lambda x, w: rms_norm(x, w, rounding="twice"), ArgumentError, "rounding"),
    "out: shape": (lambda x, w: rms_norm(x, w, out=x[:2].clone()), ArgumentError, "out has shape"),
    "out: ints": (lambda x, w: rms_norm(x, w, out=x.int()), ArgumentError, "out has dtype"),
    "out: expanded": (lambda x, w: rms_norm(x, w, out=x[:1].clone().expand(4, 32)), ArgumentError,
                      "out"),
    "out: columns apart": (lambda x, w: rms_norm(x, w, out=torch.ones(32, 4).t()), ArgumentError,
                           "out is an output whose columns"),
    "out: blocks apart": (lambda x, w: rms_norm(x.view(4, 2, 16), w.view(2, 16),
                                                out=torch.ones(4, 16, 2).transpose(1, 2)),
                          ArgumentError, "out is an output"),
    "out: another dtype": (lambda x, w: rms_norm(x, w, out=x.clone(), out_dtype=BF16),
                           ArgumentError, "out has dtype torch.float32, but out_dtype"),
    "out: recorded by bias": (lambda x, w: rms_norm(x, bias=w.requires_grad_(), out=x.clone()),
                              RuntimeError, "out is written to"),
    "in place: recorded by bias": (lambda x, w: add_rms_norm_(x, x.clone(),
                                                              bias=w.requires_grad_()),
                                   RuntimeError, "add_rms_norm_ has no gradient"),
    "out: recorded": (lambda x, w: rms_norm(x, w.requires_grad_(), out=x.clone()), RuntimeError,
                      "out is written to"),
    "out: overlaps": (lambda x, w: rms_norm(**overlapping()[0]), ArgumentError, "argument out"),
    "out_dtype: ints": (lambda x, w: rms_norm(x, w, out_dtype=torch.int8), ArgumentError,
                        "out_dtype has dtype"),
    "normalized_shape": (lambda x, w: rms_norm(x, w, normalized_shape=(4, 32)), ArgumentError,
                         "weight has shape"),
    "normalized_shape: none": (lambda x, w: rms_norm(x, normalized_shape=()), ArgumentError,
                               "normalized_shape"),
    "residual: shape": (lambda x, w: add_rms_norm(x, x[1:], w), ArgumentError,
                        "residual has shape"),
    "residual: None": (lambda x, w: add_rms_norm(x, None, w), TypeError, "residual"),
    "residual: ints": (lambda x, w: add_rms_norm(x, x.int(), w), ArgumentError,
                       "residual has dtype"),
    "in place: one tensor": (lambda x, w: add_rms_norm_(x, x, w), ArgumentError, "residual"),
    "in place: expanded": (lambda x, w: add_rms_norm_(x, w.expand(4, 32), w), ArgumentError,
                           "residual"),
    "in place: columns apart": (lambda x, w: add_rms_norm_(torch.ones(32, 4).t(), x, w),
                                ArgumentError, "^x is an output whose columns"),
    "in place: residual apart": (lambda x, w: add_rms_norm_(x, torch.ones(32, 4).t(), w),
                                 ArgumentError, "^residual is an output whose columns"),
    "in place: recorded": (lambda x, w: add_rms_norm_(x, x.clone(), w.requires_grad_()),
                           RuntimeError, "add_rms_norm_ has no gradient"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(path, random, name):
    call, error, words = BAD[name]
    x, weight = torch.from_numpy(random(4, 32)), torch.from_numpy(random(32))
    before = x.clone()
    with pytest.raises(error, match=words):
        call(x, weight)
    assert torch.equal(x, before)


def test_nothing_is_written_by_a_refused_call(path):
    given, memory = overlapping()
    with pytest.raises(ArgumentError):
        rms_norm(**given)
    assert (memory == 7).all()


@pytest.mark.cuda
def test_two_devices(random):
    place = find_place("cuda")
    here, there = torch.from_numpy(random(4, 32)), values(place, random, 4, 32)
    for call, words in ((lambda: rms_norm(here, there[0]), "weight is on cuda:0, but x is on cpu"),
                        (lambda: rms_norm(there, here[0]), "weight is on cpu, but x is on cuda:0"),
                        (lambda: rms_norm(here, out=there), "out is on cuda:0, but x is on cpu"),
                        (lambda: add_rms_norm(there, here), "residual is on cpu"),
                        (lambda: add_rms_norm_(there, here), "residual")):
        with pytest.raises(ArgumentError, match=words):
            call()


# ---- CUDA ----------------------------------------------------------------------------------------


@pytest.mark.cuda
def test_streams(random):
    """A call goes into the stream that is current, also the backward of one."""
    place = find_place("cuda")
    weight = values(place, random, 4096)
    slow = torch.randn(4096, 4096, device="cuda")
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        x = slow
        for _ in range(20):
            x = (x @ slow) * 2.0**-6
        x = x.detach().requires_grad_()
        y = rms_norm(x, weight)
        y.sum().backward()
        copied = x.detach().clone(), y.detach().clone(), x.grad.clone()
    stream.synchronize()
    late = copied[0].requires_grad_()
    wanted = rms_norm(late, weight)
    wanted.sum().backward()
    assert torch.equal(copied[1], wanted) and torch.equal(copied[2], late.grad)


@pytest.mark.cuda
@pytest.mark.parametrize("graphed", ["forward", "in place", "backward"])
def test_cuda_graphs(random, graphed):
    place = find_place("cuda")
    x, residual = (values(place, random, 64, 1024, dtype=BF16) for _ in range(2))
    weight = values(place, random, 1024, dtype=F32).requires_grad_(graphed == "backward")
    if graphed == "backward":
        x.requires_grad_()

    def call():
        if graphed == "forward":
            return add_rms_norm(x, residual, weight)
        if graphed == "in place":
            y, h = x.clone(), residual.clone()
            return add_rms_norm_(y, h, weight)
        return torch.autograd.grad(rms_norm(x, weight).sum(), (x, weight))

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()  # the first use of a kernel loads it
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = call()
    for _ in range(2):
        with torch.no_grad():
            x.copy_(values(place, random, 64, 1024, dtype=BF16))
        graph.replay()
        assert all(torch.equal(one, other) for one, other in zip(captured, call()))


@pytest.mark.cuda
def test_the_current_device_stays(random):
    place = find_place("cuda")
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU")
    x = values(place, random, 4, 64).to("cuda:1").requires_grad_()
    y = rms_norm(x)
    y.sum().backward()
    assert torch.cuda.current_device() == 0 and y.device.index == x.grad.device.index == 1
    assert torch.equal(y.cpu(), rms_norm(x.detach().to("cuda:0")).cpu())


@pytest.mark.cuda
def test_large_on_cuda(random):
    """Workspaces come from torch's allocator; two calls give the same bits."""
    place = find_place("cuda")
    x = values(place, random, 2048, 4096, dtype=BF16, grad=True)
    weight = values(place, random, 4096, dtype=BF16, grad=True)
    first = torch.autograd.grad(rms_norm(x, weight).sum(), (x, weight))
    again = torch.autograd.grad(rms_norm(x, weight).sum(), (x, weight))
    assert all(map(torch.equal, first, again))
    assert np.isfinite(first[1].float().cpu().numpy()).all()
