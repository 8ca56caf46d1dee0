"""rmsnorm.torch under autograd's rarer modes: gradcheck, create_graph, forward mode, torch.func."""
import pytest
from torch_places import PATHS, PLACES, find_place, take_path, torch, values

from rmsnorm import ArgumentError
from rmsnorm.torch import RMSNorm, add_rms_norm, add_rms_norm_, rms_norm

F32, BF16, F64 = torch.float32, torch.bfloat16, torch.float64
EPS = 1e-2  # of the inputs' size: the gradients depend on it


@pytest.fixture(params=PLACES)
def place(request):
    return find_place(request.param)


@pytest.fixture(params=PATHS, autouse=True)
def path(request, monkeypatch):
    take_path(request.param, monkeypatch)
    return request.param


def norm(x, weight, **options):
    return rms_norm(x, weight, EPS, weight_offset=0.5, **options)


def with_bias(x, weight, bias):
    return rms_norm(x, weight, EPS, bias=bias)


def add(x, residual, weight):
    return add_rms_norm(x, residual, weight, EPS, weight_offset=0.5)


def test_gradcheck(place, random):
    x, residual = (values(place, random, 3, 2, 8, dtype=F64, grad=True) for _ in range(2))
    weight, bias = (values(place, random, 8, dtype=F64, grad=True) for _ in range(2))
    for function, inputs in ((norm, (x, weight)), (lambda x: norm(x, None), (x,)),
                             (lambda w: norm(x.detach(), w), (weight,)),
                             (lambda x: norm(x.transpose(0, 1), None), (x,)),
                             (lambda x: norm(x[..., ::2], None), (x,)),
                             (lambda x: norm(x[:1].expand(4, -1, -1), None), (x,)),
                             (add, (x, residual, weight)),
                             (with_bias, (x, weight, bias)),
                             (lambda b: with_bias(x.detach(), weight.detach(), b), (bias,)),
                             (lambda x, r, w, b: add_rms_norm(x, r, w, EPS, bias=b),
                              (x, residual, weight, bias)),
                             (lambda x, w: add(x, residual.detach(), w)[0], (x, weight)),
                             (lambda r: add(x.detach(), r, weight.detach())[1], (residual,))):
        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(function, inputs)
        assert torch.autograd.gradcheck(function, inputs, check_forward_ad=True,
                                        check_backward_ad=False)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_batches_of_gradients(place, random):
    """is_grads_batched, as a vectorised Jacobian has it."""
    x, other = (values(place, random, 2, 4, dtype=F64) for _ in range(2))
    weight = values(place, random, 4, dtype=F64)
    for function in (lambda x: norm(x, weight), lambda x: torch.cat(add(x, other, weight))):
        wanted, found = (torch.autograd.functional.jacobian(function, x, vectorize=vectorize)
                         for vectorize in (False, True))
        torch.testing.assert_close(found, wanted)


def test_several_dimensions_and_expanded_weight(place, random):
    x = values(place, random, 3, 2, 8, dtype=F64, grad=True)
    weight = values(place, random, 2, 1, dtype=F64, grad=True)
    assert torch.autograd.gradcheck(
        lambda x, w: rms_norm(x, w.expand(2, 8), EPS, normalized_shape=(2, 8)), (x, weight))


def test_create_graph_in_lower_precision(place, random):
    """A penalty on the gradient, as of torch.nn.functional.rms_norm."""
    found = []
    x = values(place, random, 6, 32)
    weight = values(place, random, 32)
    for function in (lambda x, w: rms_norm(x, w, EPS),
                     lambda x, w: torch.nn.functional.rms_norm(x, (32,), w, EPS)):
        leaf, w = x.clone().requires_grad_(), weight.clone().requires_grad_()
        gradients = torch.autograd.grad(function(leaf, w).square().sum(), (leaf, w),
                                        create_graph=True)
        sum(gradient.square().sum() for gradient in gradients).backward()
        found.append((*gradients, leaf.grad, w.grad))
    for one, other in zip(*found):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-2)


def test_torch_func(place, random):
    from torch import func
    x = values(place, random, 5, 8, dtype=F64)
    weight, tangent = values(place, random, 8, dtype=F64), values(place, random, 5, 8, dtype=F64)
    exact = x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * (weight + 0.5)
    torch.testing.assert_close(func.vmap(norm, (0, None))(x, weight), exact)
    biased = func.vmap(lambda x, b: norm(x, weight, bias=b), (0, None))(x, tangent[0])
    torch.testing.assert_close(biased, exact + tangent[0])

    def loss(x, w):
        return norm(x, w).square().sum()

    leaf, w = x.clone().requires_grad_(), weight.clone().requires_grad_()
    loss(leaf, w).backward()
    for wanted, found in zip((leaf.grad, w.grad), func.grad(loss, (0, 1))(x, weight)):
        torch.testing.assert_close(found, wanted)
    per_row = func.vmap(func.grad(loss), (0, None))(x, weight)
    torch.testing.assert_close(per_row, leaf.grad)
    y, along = func.jvp(lambda x: norm(x, weight), (x,), (tangent,))
    torch.testing.assert_close(y, exact)
    small = 1e-6
    torch.testing.assert_close(
        along, (norm(x + small * tangent, weight) - norm(x - small * tangent, weight))
        / (2 * small), rtol=1e-6, atol=1e-8)
    h = func.jvp(lambda x: add(x, tangent, weight), (x,), (tangent,))[1][1]
    torch.testing.assert_close(h, tangent)
    assert func.hessian(loss)(x[0], weight).shape == (8, 8)


def test_functional_call(place, random):
    module = RMSNorm(8, EPS, device=place.where)
    weight = values(place, random, 8)
    x = values(place, random, 3, 8)
    assert torch.equal(torch.func.functional_call(module, {"weight": weight}, (x,)),
                       rms_norm(x, weight, EPS))


def test_in_place_variants_refuse(place, random):
    x, residual = values(place, random, 3, 8), values(place, random, 3, 8)
    before = x.clone()
    with pytest.raises(RuntimeError, match="add_rms_norm_ writes to its arguments"):
        torch.func.vmap(add_rms_norm_)(x, residual)
    with pytest.raises(RuntimeError, match="out is written to"):
        torch.func.vmap(lambda x: rms_norm(x, out=torch.empty_like(x)))(x)
    with torch.autograd.forward_ad.dual_level():
        with pytest.raises(RuntimeError, match="add_rms_norm_ writes to its arguments"):
            add_rms_norm_(x, residual)
    with pytest.raises(RuntimeError, match="add_rms_norm_ has no gradient"):
        add_rms_norm_(x, residual.requires_grad_())
    operators = torch.ops.rmsnorm
    with pytest.raises(RuntimeError, match="rmsnorm::add_forward_ has no gradient"):
        operators.add_forward_(x, residual, None, EPS)
    with pytest.raises(RuntimeError, match="rmsnorm::forward_out has no gradient"):
        operators.forward_out(residual, None, EPS, out=x)
    with pytest.raises(RuntimeError, match="rmsnorm::backward has no gradient of its own"):
        operators.backward(x, residual, None, torch.ones(3, device=place.where), None, EPS,
                           dx=F32, dresidual=None, dweight=False)
    assert torch.equal(x, before)


def test_saved_tensor_hooks(place, random):
    """Offloading, and checkpoints that compute again."""
    x = values(place, random, 3, 8, grad=True)
    weight = values(place, random, 8, grad=True)
    wanted = torch.autograd.grad(norm(x, weight).square().sum(), (x, weight))
    with torch.autograd.graph.save_on_cpu():
        y = norm(x, weight)
    found = torch.autograd.grad(y.square().sum(), (x, weight))
    assert all(map(torch.equal, wanted, found))
    from torch.utils.checkpoint import checkpoint
    for reentrant in (False, True):
        y = checkpoint(norm, x, weight, use_reentrant=reentrant)
        y.square().sum().backward()
        assert torch.equal(x.grad, wanted[0]) and torch.equal(weight.grad, wanted[1])
        x.grad = weight.grad = None


def test_hooks_that_change_what_was_saved(place, path, random):
    """In another dtype, other strides, or another shape: read as it is, or refused."""
    x = values(place, random, 6, 8, grad=True)
    weight = values(place, random, 8)
    wanted, = torch.autograd.grad(norm(x, weight).sum(), x)
    for change in (lambda t: t.to(BF16) if t.dim() == 2 else t,
                   lambda t: t.t().contiguous().t() if t.dim() == 2 else t):
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, change):
            y = norm(x, weight)
        found, = torch.autograd.grad(y.sum(), x)
        torch.testing.assert_close(found, wanted.to(found.dtype), rtol=0.05, atol=0.02,
                                   check_dtype=False)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor[:1]):
        y = norm(x, weight)
    with pytest.raises((ArgumentError, RuntimeError), match="shape|size"):
        torch.autograd.grad(y.sum(), x)
    y = norm(x, weight)
    if path == "direct":
        with torch.no_grad(), pytest.raises(ArgumentError, match="shape"):
            y.grad_fn.apply(values(place, random, 1, 8))


def test_gradients_twice_and_accumulated(place, random):
    x = values(place, random, 3, 8, grad=True)
    y = norm(x, None)
    y.sum().backward(retain_graph=True)
    first = x.grad.clone()
    y.sum().backward()
    torch.testing.assert_close(x.grad, 2 * first)
    with pytest.raises(RuntimeError, match="second time"):
        y.sum().backward()


def test_one_tensor_twice(place, random):
    """x is its own residual: gradients add up, and do not share memory."""
    x = values(place, random, 3, 8, grad=True)
    y, h = add(x, x, None)
    (y.sum() + h.sum()).backward()
    other = (2 * x.detach()).requires_grad_()
    (norm(other, None).sum() + other.sum()).backward()
    torch.testing.assert_close(x.grad, 2 * other.grad)
    first, second = (values(place, random, 3, 8, grad=True) for _ in range(2))
    add(first, second, None)[0].sum().backward()
    assert torch.equal(first.grad, second.grad)
    assert first.grad.data_ptr() != second.grad.data_ptr()


def test_threads_of_backward(place, random):
    """Several graphs at once."""
    import threading
    weight = values(place, random, 64)
    inputs = [values(place, random, 32, 64, grad=True) for _ in range(8)]
    wanted = [torch.autograd.grad(norm(x, weight).square().sum(), x)[0] for x in inputs]
    found = [None] * len(inputs)

    def work(index):
        for _ in range(50):
            found[index] = torch.autograd.grad(norm(inputs[index], weight).square().sum(),
                                               inputs[index])[0]

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(map(torch.equal, wanted, found))
