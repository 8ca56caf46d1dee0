"""Strides: what is read in place, what is copied, what is refused; and groups."""
import numpy as np
import pytest
import reference
from devices import get, judge_gradients, judge_y
from reference import BF16, F32

import rmsnorm
from rmsnorm import _norm


def copies(call):
    """What a call returns, and the names of the inputs that it copied."""
    for operation in (_norm.FORWARD, _norm.BACKWARD):
        operation.plans.clear()
    result = call()
    (operation, plan), = [(operation, plan) for operation in (_norm.FORWARD, _norm.BACKWARD)
                          for plan in operation.plans.values()]
    return result, [operation.names[position] for position, _ in plan.copies]


# Of an array of shape (4, 6, 10, 32): (name, view, copied)
VIEWS = [
    ("whole", lambda d, a: a, False),
    ("rows with gaps", lambda d, a: a[:, ::2, 0], False),
    ("a slice of the columns", lambda d, a: a[..., 8:24], False),
    ("two dimensions with gaps", lambda d, a: a[:, :, 1:3], False),
    ("heads before tokens", lambda d, a: d.permuted(a, (0, 2, 1, 3)), False),
    ("all dimensions turned around", lambda d, a: d.permuted(a, (2, 1, 0, 3)), False),
    ("two turned around, with a gap", lambda d, a: d.permuted(a[:, 1:], (1, 0, 2, 3)), False),
    ("one row for all", lambda d, a: d.expanded(a[0, 0, 0], (5, 7, 32)), False),
    ("some rows for all", lambda d, a: d.expanded(a[0, 0], (3, 4, 10, 32)), False),
    ("a dimension of 1 with an odd stride", lambda d, a: a[:, 2:3, ::3], False),
    ("one row", lambda d, a: a[1, 2, 3], False),
    ("three dimensions with gaps", lambda d, a: a[::2, ::2, ::2], True),
    ("columns with gaps", lambda d, a: a[..., ::2], True),
    ("columns that are rows", lambda d, a: d.permuted(a, (0, 1, 3, 2)), True),
    ("one element for all", lambda d, a: d.expanded(a[0, 0, 0, :1], (5, 8)), True),
    ("a column of one element", lambda d, a: a[0, :, :, 3:4], False),
]


@pytest.mark.parametrize("view, copied", [pytest.param(view, copied, id=name)
                                          for name, view, copied in VIEWS])
def test_views(device, random, view, copied):
    x = view(device, device.of(random(4, 6, 10, 32)))
    values = device.numpy(x)
    weight = random(values.shape[-1])
    (y, rstd), found = copies(lambda: rmsnorm.rms_norm(x, device.of(weight), rstd=True))
    assert found == (["x"] if copied else [])
    judge_y(device, y, reference.forward(values, weight).y)
    gradients, found = copies(lambda: rmsnorm.rms_norm_backward(x, x, device.of(weight), rstd=rstd))
    assert found == (["dy", "x"] if copied else [])
    judge_gradients(device, gradients, reference.backward(values, values, weight,
                                                          rstd=device.numpy(rstd)))


@pytest.mark.parametrize("rows", [slice(None, None, -1), slice(None, None, -2)])
def test_backwards_in_memory(random, rows):
    x = random(8, 40)[rows]
    y, found = copies(lambda: rmsnorm.rms_norm(x))
    assert not found
    judge_y(get("numpy"), y, reference.forward(x).y)


def test_only_what_is_in_the_way_is_copied(device, random):
    x = device.of(random(4, 6, 5, 16))
    residual = device.of(random(8, 12, 10, 16))[::2, ::2, ::2]
    (y, h), found = copies(lambda: rmsnorm.rms_norm(x, residual=residual))
    assert found == ["residual"]
    judge_y(device, y, reference.forward(device.numpy(x), residual=device.numpy(residual),
                                         h_dtype=F32).y)


def test_new_arrays_lie_as_x_does_where_that_saves_a_copy(device, random):
    x = device.permuted(device.of(random(2, 5, 3, 16)), (0, 2, 1, 3))
    y, found = copies(lambda: rmsnorm.rms_norm(x))
    assert not found and list(device.strides(y)) == list(device.strides(x))
    straight = device.of(random(2, 5, 16))
    turned = device.permuted(straight, (1, 0, 2))
    y = rmsnorm.rms_norm(turned)
    assert list(device.strides(y)) == [32, 16, 1]


def test_outputs_with_gaps_are_written_in_place(device, random):
    """Nothing between the rows is touched."""
    x, weight = random(3, 4, 20), random(20)
    buffer = device.empty((3, 8, 32), F32)
    out = buffer[:, ::2, 5:25]
    assert rmsnorm.rms_norm(device.of(x), device.of(weight), out=out) is out
    judge_y(device, out, reference.forward(x, weight).y)
    values = device.numpy(buffer)
    assert np.isnan(values[:, 1::2]).all() and np.isnan(values[..., :5]).all()
    assert np.isnan(values[..., 25:]).all()


def test_heads_of_a_packed_qkv_in_place(device, random):
    """QK norm: the heads of q inside (tokens, 3 * heads * head_dim), without a copy."""
    tokens, heads, head_dim = 7, 4, 16
    values = random(tokens, 3 * heads * head_dim, dtype=BF16)
    weight = random(head_dim, dtype=BF16)
    packed = device.of(values)
    q = packed[:, :heads * head_dim].reshape(tokens, heads, head_dim)
    assert device.pointer(q) == device.pointer(packed)
    _, found = copies(lambda: rmsnorm.rms_norm(q, device.of(weight), out=q))
    assert not found
    before = values[:, :heads * head_dim].reshape(tokens, heads, head_dim)
    judge_y(device, q, reference.forward(before, weight).y)
    assert (device.numpy(packed)[:, heads * head_dim:] == values[:, heads * head_dim:]).all()


@pytest.mark.parametrize("shape", [(3, 24), (5, 3, 24), (2, 5, 3, 24), (0, 3, 24)])
def test_a_weight_per_group(device, random, shape):
    x, dy, weight, bias = random(*shape), random(*shape), random(3, 24), random(3, 24)
    y = rmsnorm.rms_norm(device.of(x), device.of(weight), bias=device.of(bias))
    exact = reference.forward(x, weight, bias=bias)
    judge_y(device, y, exact.y, exact.y - bias)
    found = rmsnorm.rms_norm_backward(device.of(dy), device.of(x), device.of(weight), dbias=True)
    assert tuple(found.dweight.shape) == (3, 24) == tuple(found.dbias.shape)
    if x.size:
        judge_gradients(device, found, reference.backward(dy, x, weight, per_group=True))


def test_a_weight_per_group_that_is_the_same_for_all(device, random):
    """Strides of 0, which mean something else to backward: dweight is per group all the same."""
    x, dy, weight = random(5, 3, 24), random(5, 3, 24), random(24)
    spread = device.expanded(device.of(weight), (3, 24))
    y, found = copies(lambda: rmsnorm.rms_norm(device.of(x), spread))
    judge_y(device, y, reference.forward(x, weight).y)
    assert not found
    found = rmsnorm.rms_norm_backward(device.of(dy), device.of(x), spread)
    judge_gradients(device, found, reference.backward(dy, x, weight, per_group=True))


def test_a_weight_per_group_over_turned_dimensions(device, random):
    x = device.permuted(device.of(random(4, 3, 5, 24)), (2, 0, 1, 3))
    weight = random(3, 24)
    y, found = copies(lambda: rmsnorm.rms_norm(x, device.of(weight)))
    judge_y(device, y, reference.forward(device.numpy(x), weight).y)
    x = device.permuted(device.of(random(4, 5, 3, 24)), (1, 0, 2, 3))
    y, found = copies(lambda: rmsnorm.rms_norm(x, device.of(weight)))
    judge_y(device, y, reference.forward(device.numpy(x), weight).y)


@pytest.mark.parametrize("view", [lambda a: a[::2], lambda a: a[:1]])
def test_vectors_with_gaps_are_copied(device, random, view):
    weight = device.expanded(view(device.of(random(40))), (20,))
    x = random(3, 20)
    y, found = copies(lambda: rmsnorm.rms_norm(device.of(x), weight))
    assert found == ["weight"]
    judge_y(device, y, reference.forward(x, device.numpy(weight)).y)


def test_random_views(device, random):
    """Slices and transpositions of every array of a call, drawn at random."""
    draw = np.random.default_rng(1)
    for _ in range(150):
        ndim = draw.integers(1, 5)
        shape = [int(size) for size in draw.integers(1, 5, ndim)]

        def drawn():
            steps = [int(step) for step in draw.integers(1, 3, ndim)]
            if draw.random() < 0.7:
                steps[-1] = 1
            array = device.of(random(*(size * step for size, step in zip(shape, steps))))
            order = [int(axis) for axis in draw.permutation(ndim - 1)] + [ndim - 1]
            turned = device.permuted(array, order)
            back = device.permuted(turned, np.argsort(order).tolist())
            straight = device.of(device.numpy(turned))
            if draw.random() < 0.5:  # other dimensions first in memory
                back = device.permuted(straight, np.argsort(order).tolist())
            return back[tuple(slice(None, None, step) for step in steps)]

        x, residual, dy = drawn(), drawn(), drawn()
        weight = random(shape[-1])
        y, h, rstd = rmsnorm.rms_norm(x, device.of(weight), residual=residual, rstd=True)
        exact = reference.forward(device.numpy(x), weight, residual=device.numpy(residual),
                                  h_dtype=F32)
        judge_y(device, y, exact.y)
        assert (device.numpy(h).astype(reference.L) == exact.h).all()
        found = rmsnorm.rms_norm_backward(dy, h, device.of(weight), rstd=rstd, dresidual_out=x)
        judge_gradients(device, found, reference.backward(
            device.numpy(dy), device.numpy(h), weight, rstd=device.numpy(rstd),
            dresidual_out=device.numpy(x)))
