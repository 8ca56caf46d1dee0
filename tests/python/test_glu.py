"""glu and glu_backward: values, layouts, memory that is shared, bad arguments."""
import devices
import numpy as np
import pytest
import reference
from devices import judge_glu
from reference import BF16, DTYPES, F16, F32, F64
from test_forward import ids

import rmsnorm
from rmsnorm import ArgumentError

ACTIVATIONS = ("silu", "gelu_tanh", "gelu")


def both(device, activation, gate, up, dy):
    """Forward and backward, judged."""
    y = rmsnorm.glu(device.of(gate), device.of(up), activation)
    found = rmsnorm.glu_backward(device.of(dy), device.of(gate), device.of(up), activation)
    judge_glu(device, activation, reference.glu(gate, up, activation, dy), y, *found)
    return y, found


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=ids)
@pytest.mark.parametrize("shape", [(7,), (1, 1), (5, 33), (2, 3, 500)])
def test_values(device, random, shape, dtype, activation):
    gate, up, dy = ((3 * random(*shape)).astype(dtype) for _ in range(3))
    y, found = both(device, activation, gate, up, dy)
    assert [device.numpy(each).dtype for each in (y, *found)] == [dtype] * 3


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=ids)
def test_tails(device, random, dtype, activation):
    """Where 1 + erf, 1 + tanh and 1 / (1 + exp) have lost everything."""
    ends = {F16: 10, BF16: 80, F32: 80, F64: 600}[dtype]
    if activation != "silu":
        ends = {F16: 5, BF16: 12, F32: 12, F64: 37}[dtype]
    gate = np.concatenate((np.linspace(-ends, ends, 400), [0, -0.0, 1e-3, -1e-3])).astype(dtype)
    up = random(gate.size, dtype=dtype)
    both(device, activation, gate, up, random(gate.size, dtype=dtype))


def test_infinities_and_nans(device):
    gate = np.array([np.inf, -np.inf, np.nan, 1, 1], F32)
    up = np.array([2, 2, 2, np.inf, np.nan], F32)
    for activation in ACTIVATIONS:
        y = device.numpy(rmsnorm.glu(device.of(gate), device.of(up), activation))
        assert y[0] == np.inf and y[3] == np.inf and np.isnan(y[[1, 2, 4]]).all()


@pytest.mark.parametrize("up_dtype", [F32, F16, BF16], ids=ids)
@pytest.mark.parametrize("dtype", [F32, F16, BF16], ids=ids)
def test_mixed_dtypes(device, random, dtype, up_dtype):
    """Each array has its own; results have gate's and up's."""
    gate, up, dy = random(6, 96, dtype=dtype), random(6, 96, dtype=up_dtype), random(6, 96)
    y, (dgate, dup) = both(device, "silu", gate, up, dy)
    assert device.numpy(y).dtype == device.numpy(dgate).dtype == dtype
    assert device.numpy(dup).dtype == up_dtype
    out = device.empty((6, 96), BF16)
    assert rmsnorm.glu(device.of(gate), device.of(up), out=out) is out
    judge_glu(device, "silu", reference.glu(gate, up, "silu"), out)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_packed_rows(device, random, activation):
    """[gate | up] in one array, read and written in place without a copy."""
    values = random(4, 5, 2 * 48)
    packed, dy = device.of(values), random(4, 5, 48)
    gate, up = values[..., :48], values[..., 48:]
    exact = reference.glu(gate, up, activation, dy)
    views = packed[..., :48], packed[..., 48:]
    judge_glu(device, activation, exact, rmsnorm.glu(*views, activation))
    gradient = device.empty(values.shape, F32)
    found = rmsnorm.glu_backward(device.of(dy), *views, activation, dgate=gradient[..., :48],
                                 dup=gradient[..., 48:])
    judge_glu(device, activation, exact, None, *found)
    rmsnorm.glu_backward(device.of(dy), *views, activation, dgate=views[0], dup=views[1])
    assert device.numpy(packed).tobytes() == device.numpy(gradient).tobytes()


def test_in_place(device, random):
    """y over gate or up; dgate over dy, dup over dy."""
    gate, up, dy = random(3, 40), random(3, 40), random(3, 40)
    exact = reference.glu(gate, up, "gelu", dy)
    for name in ("gate", "up"):
        given = {"gate": device.of(gate), "up": device.of(up)}
        out = given[name]
        judge_glu(device, "gelu", exact, rmsnorm.glu(**given, activation="gelu", out=out))
    for name in ("dgate", "dup"):
        place = device.of(dy)
        found = rmsnorm.glu_backward(place, device.of(gate), device.of(up), "gelu",
                                     **{name: place})
        assert getattr(found, name) is place
        judge_glu(device, "gelu", exact, None, *found)


def test_one_gradient_alone(device, random):
    gate, up, dy = random(3, 40), random(3, 40), random(3, 40)
    exact = reference.glu(gate, up, "silu", dy)
    for name in ("dgate", "dup"):
        found = rmsnorm.glu_backward(device.of(dy), device.of(gate), device.of(up),
                                     **{name: False})
        assert getattr(found, name) is None
        judge_glu(device, "silu", exact, None, *found)


def test_strides(device, random):
    """A transposed array needs no copy; columns with gaps do."""
    values = random(6, 4, 64)
    turned = device.permuted(device.of(values), (1, 0, 2))
    exact = reference.glu(values.transpose(1, 0, 2), values.transpose(1, 0, 2), "silu")
    judge_glu(device, "silu", exact, rmsnorm.glu(turned, turned))
    gaps = device.of(values)[..., ::2]
    judge_glu(device, "silu", reference.glu(values[..., ::2], values[..., ::2], "silu"),
              rmsnorm.glu(gaps, gaps))
    with pytest.raises(ArgumentError, match="out is an output whose columns"):
        rmsnorm.glu(gaps, gaps, out=device.of(values)[..., 1::2])


def test_no_rows(device):
    nothing = device.empty((0, 8), F32)
    assert device.numpy(rmsnorm.glu(nothing, nothing)).shape == (0, 8)
    assert device.numpy(rmsnorm.glu_backward(nothing, nothing, nothing).dup).shape == (0, 8)


BAD = {
    "activation": (dict(activation="relu"), ArgumentError, "activation = 'relu'"),
    "activation: None": (dict(activation=None), ArgumentError, "activation = None"),
    "gate: None": (dict(gate=None), TypeError, "gate must be an array"),
    "up: None": (dict(up=None), TypeError, "up must be an array"),
    "up: True": (dict(up=True), TypeError, "up must be an array"),
    "up: list": (dict(up=[1.0]), TypeError, "up must be an array"),
    "up: shape": (dict(up=(4, 31)), ArgumentError, r"up has shape \(4, 31\), but gate has"),
    "gate: no columns": (dict(gate=(4, 0)), ArgumentError, "gate has shape"),
    "out: shape": (dict(out=(3, 32)), ArgumentError, r"out has shape \(3, 32\), but gate has"),
    "dtype": (dict(up=np.ones((4, 32), np.int16)), ArgumentError, "up has dtype"),
    "float64": (dict(up=np.ones((4, 32), F64)), ArgumentError, "fp64"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(device, random, name):
    changed, error, words = BAD[name]
    given = {"gate": device.of(random(4, 32)), "up": device.of(random(4, 32)),
             "out": device.empty((4, 32), F32)}
    out = given["out"]
    for key, value in changed.items():
        if isinstance(value, tuple):
            value = np.zeros(value, F32)
        given[key] = device.of(value) if isinstance(value, np.ndarray) else value
    with pytest.raises(error, match=words):
        rmsnorm.glu(**given)
    assert np.isnan(device.numpy(out)).all()


def test_overlaps(device, random):
    """Nothing is written, and the argument is named."""
    values = random(5, 32)
    memory = device.of(values)
    with pytest.raises(ArgumentError, match="argument out"):
        rmsnorm.glu(memory[:4], memory[:4], out=memory[1:])
    with pytest.raises(ArgumentError, match="dgate"):
        rmsnorm.glu_backward(memory[:4], memory[:4], memory[:4], dgate=memory[1:])
    dy = device.of(values)
    with pytest.raises(ArgumentError, match="dup"):
        rmsnorm.glu_backward(dy, memory, memory, dup=dy, dgate=dy)
    assert device.numpy(memory).tobytes() == device.numpy(dy).tobytes() == values.tobytes()
    with pytest.raises(ArgumentError, match="no output is asked for"):
        rmsnorm.glu_backward(memory, memory, memory, dgate=False, dup=False)


def test_tensors_that_require_grad(random):
    place = devices.get("torch-cpu")
    with pytest.raises(ArgumentError, match="gate requires grad"):
        rmsnorm.glu(place.of(random(2, 4)).requires_grad_(), place.of(random(2, 4)))
