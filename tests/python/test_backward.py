"""rms_norm_backward's values against the definition, for each library of arrays."""
import numpy as np
import pytest
import reference
from devices import judge, judge_gradients
from reference import BF16, DTYPES, F16, F32, F64
from test_forward import ids

import rmsnorm


@pytest.mark.parametrize("dtype", DTYPES, ids=ids)
@pytest.mark.parametrize("shape", [(9,), (3, 1), (5, 33), (40, 1024), (2, 3, 500)])
def test_plain(device, random, shape, dtype):
    dy, x, weight = random(*shape, dtype=dtype), random(*shape, dtype=dtype), random(shape[-1])
    weight = weight.astype(dtype)
    found = rmsnorm.rms_norm_backward(device.of(dy), device.of(x), device.of(weight), dbias=True)
    assert found.dresidual is None
    for gradient in (found.dx, found.dweight, found.dbias):
        assert device.numpy(gradient).dtype == dtype
    judge_gradients(device, found, reference.backward(dy, x, weight))


@pytest.mark.parametrize("dtype", DTYPES, ids=ids)
def test_everything(device, random, dtype):
    dy, x, more = (random(12, 130, dtype=dtype) for _ in range(3))
    weight = random(130, dtype=F64 if dtype == F64 else F32)
    _, rstd = rmsnorm.rms_norm(device.of(x), eps=1e-2, rstd=True)
    found = rmsnorm.rms_norm_backward(
        device.of(dy), device.of(x), device.of(weight), rstd=rstd,
        dresidual_out=device.of(more), weight_offset=1, dbias=True, dresidual=True)
    exact = reference.backward(dy, x, weight, rstd=device.numpy(rstd), dresidual_out=more,
                               weight_offset=1)
    judge_gradients(device, found, exact)
    assert device.numpy(found.dweight).dtype == weight.dtype
    assert device.numpy(found.dresidual).tobytes() == device.numpy(found.dx).tobytes()


def test_dresidual_in_a_dtype_of_its_own(device, random):
    dy, x = random(6, 32, dtype=BF16), random(6, 32, dtype=BF16)
    dresidual = device.empty((6, 32), F32)
    found = rmsnorm.rms_norm_backward(device.of(dy), device.of(x), dresidual=dresidual)
    assert found.dresidual is dresidual and found.dweight is None
    exact = reference.backward(dy, x)
    judge(device, "dresidual", dresidual, exact.dx, device.bounds.gradient[F32],
          device.bounds.dx * exact.dx_terms)


def test_without_a_weight(device, random):
    """dweight is still defined, and float32 by itself."""
    dy, x = random(6, 32, dtype=F16), random(6, 32, dtype=F16)
    found = rmsnorm.rms_norm_backward(device.of(dy), device.of(x), dweight=True, dx=False)
    assert found.dx is None and device.numpy(found.dweight).dtype == F32
    judge_gradients(device, found, reference.backward(dy, x))


def test_accumulate(device, random):
    dy, x, weight = random(20, 64, dtype=BF16), random(20, 64, dtype=BF16), random(64, dtype=BF16)
    dweight, dbias = device.of(np.full(64, 3, F32)), device.of(np.full(64, -5, F32))
    exact = reference.backward(dy, x, weight)
    for _ in range(2):
        before = [device.numpy(each).astype(reference.L) for each in (dweight, dbias)]
        found = rmsnorm.rms_norm_backward(device.of(dy), device.of(x), device.of(weight), dx=False,
                                          dweight=dweight, dbias=dbias, accumulate=True)
        assert found.dweight is dweight and found.dbias is dbias
        judge_gradients(device, found, exact._replace(
            dweight=before[0] + exact.dweight, dbias=before[1] + exact.dbias,
            dweight_terms=np.abs(before[0]) + exact.dweight_terms,
            dbias_terms=np.abs(before[1]) + exact.dbias_terms))


@pytest.mark.parametrize("accumulate", [False, True])
def test_no_rows(device, accumulate):
    nothing = device.of(np.zeros((0, 8), np.float32))
    dweight = device.of(np.full(8, 2, F32))
    found = rmsnorm.rms_norm_backward(nothing, nothing, dweight=dweight, accumulate=accumulate)
    assert (device.numpy(found.dweight) == (2 if accumulate else 0)).all()
    assert tuple(found.dx.shape) == (0, 8)


def test_the_gradient_of_the_loss(device, random):
    """Against finite differences of rms_norm itself, in float64."""
    x, weight, bias, dy = random(2, 9), random(9), random(9), random(2, 9)
    x, weight, bias, dy = (each.astype(F64) for each in (x, weight, bias, dy))

    def loss(x, weight, bias):
        y = rmsnorm.rms_norm(device.of(x), device.of(weight), bias=device.of(bias),
                             weight_offset=0.5)
        return (device.numpy(y) * dy).sum()

    found = rmsnorm.rms_norm_backward(device.of(dy), device.of(x), device.of(weight),
                                      weight_offset=0.5, dbias=True)
    for i, gradient in enumerate((found.dx, found.dweight, found.dbias)):
        arguments = [x, weight, bias]
        gradient = device.numpy(gradient)
        for index in np.ndindex(gradient.shape):
            step = np.zeros(gradient.shape)
            step[index] = 1e-5
            up = loss(*[a + step if j == i else a for j, a in enumerate(arguments)])
            down = loss(*[a - step if j == i else a for j, a in enumerate(arguments)])
            assert abs((up - down) / 2e-5 - gradient[index]) < 1e-8
