"""rms_norm's values against the definition, in every dtype, for each library of arrays."""
import numpy as np
import pytest
import reference
from devices import judge, judge_y
from reference import BF16, DTYPES, F16, F32, F64, nearest, ulp

import rmsnorm


def ids(dtype):
    return np.dtype(dtype).name


@pytest.mark.parametrize("dtype", DTYPES, ids=ids)
@pytest.mark.parametrize("shape", [(7,), (1, 1), (5, 33), (4, 1024), (2, 3, 500), (2, 2, 2, 129)])
def test_plain(device, random, shape, dtype):
    x = random(*shape, dtype=dtype)
    weight = random(shape[-1], dtype=dtype)
    exact = reference.forward(x, weight)
    judge_y(device, rmsnorm.rms_norm(device.of(x), device.of(weight)), exact.y)


@pytest.mark.parametrize("dtype", DTYPES, ids=ids)
def test_everything(device, random, dtype):
    x, residual = random(6, 257, dtype=dtype), random(6, 257, dtype=dtype)
    weight, bias = random(257, dtype=dtype), random(257, dtype=dtype)
    exact = reference.forward(x, weight, 1e-3, residual=residual, bias=bias, weight_offset=1,
                              h_dtype=dtype)
    y, h, rstd = rmsnorm.rms_norm(
        device.of(x), device.of(weight), 1e-3, residual=device.of(residual), bias=device.of(bias),
        weight_offset=1, rstd=True)
    judge_y(device, y, exact.y, exact.y - bias.astype(reference.L))
    assert (device.numpy(h).astype(reference.L) == exact.h).all()
    assert device.numpy(rstd).dtype == (F64 if dtype == F64 else F32)
    if device.cuda and dtype in (F16, BF16):
        judge(device, "rstd", rstd, exact.rstd, 0.5, 2.0**-20 * exact.rstd)
    else:
        judge(device, "rstd", rstd, exact.rstd, 2 if dtype == F64 else device.bounds.rstd)


@pytest.mark.parametrize("weight_dtype", [F32, F16, BF16], ids=ids)
@pytest.mark.parametrize("dtype", [F32, F16, BF16], ids=ids)
def test_mixed_dtypes(device, random, dtype, weight_dtype):
    x, weight = random(3, 96, dtype=dtype), random(96, dtype=weight_dtype)
    y = rmsnorm.rms_norm(device.of(x), device.of(weight))
    assert device.numpy(y).dtype == dtype
    judge_y(device, y, reference.forward(x, weight).y)


def test_a_residual_stream_in_float32(device, random):
    """h keeps residual's dtype, as a residual stream does."""
    x, residual = random(5, 64, dtype=BF16), random(5, 64)
    y, h = rmsnorm.rms_norm(device.of(x), residual=device.of(residual))
    exact = reference.forward(x, residual=residual, h_dtype=F32)
    assert device.numpy(h).dtype == F32 and device.numpy(y).dtype == BF16
    assert (device.numpy(h).astype(reference.L) == exact.h).all()
    judge_y(device, y, exact.y)


def test_h_is_not_kept_if_not_wanted(device, random):
    x, residual = random(5, 64), random(5, 64)
    y = rmsnorm.rms_norm(device.of(x), residual=device.of(residual), residual_out=False)
    judge_y(device, y, reference.forward(x, residual=residual, h_dtype=F32).y)


@pytest.mark.parametrize("dtype", [F16, BF16], ids=ids)
def test_llama_rounds_twice(device, random, dtype):
    x, weight = random(9, 200, dtype=dtype), random(200, dtype=dtype)
    y = device.numpy(rmsnorm.rms_norm(device.of(x), device.of(weight), rounding="llama"))
    inner = reference.forward(x).y
    rounded = nearest(inner, dtype)
    # Near a tie the first rounding may go either way, within its bound.
    unit = ulp(inner, dtype)
    bound = device.bounds.y[np.dtype(dtype)]
    off = np.full(y.shape, np.inf, reference.L)
    for candidate in (rounded, rounded + unit, rounded - unit):
        allowed = np.abs(candidate - inner) <= bound * unit
        off = np.where(allowed, np.minimum(off, reference.ulps(y, candidate * weight)), off)
    assert off.max() <= bound
    once = device.numpy(rmsnorm.rms_norm(device.of(x), device.of(weight)))
    assert (once != y).any(), "the two roundings are told apart by this test's values"


@pytest.mark.parametrize("dtype", DTYPES, ids=ids)
def test_small_and_large_values(device, random, dtype):
    tiny, huge = {F32: (1e-38, 1e37), BF16: (1e-38, 1e37), F16: (1e-4, 3e4),
                  F64: (1e-300, 1e300)}[np.dtype(dtype)]
    for scale in (tiny, huge, 1e-4):
        x = np.clip(random(3, 70, dtype=np.float64), -2, 2) * scale
        x = x.astype(dtype)
        for eps in (0.0, 1e-12):
            if dtype == F64 and scale == tiny and eps == 0:
                continue  # its squares are beyond what this reference can hold on every machine
            y = rmsnorm.rms_norm(device.of(x), eps=eps)
            judge_y(device, y, reference.forward(x, eps=eps).y)


def test_nan_stays_in_its_row(device, random):
    x = random(3, 40)
    x[1, 7] = np.nan
    y = device.numpy(rmsnorm.rms_norm(device.of(x)))
    assert np.isnan(y[1]).all() and np.isfinite(y[[0, 2]]).all()


@pytest.mark.parametrize("shape", [(0, 8), (3, 0, 8), (0, 0, 8)])
def test_no_rows(device, shape):
    x = device.of(np.zeros(shape, np.float32))
    y, h, rstd = rmsnorm.rms_norm(x, residual=x, rstd=True)
    assert tuple(y.shape) == shape == tuple(h.shape) and tuple(rstd.shape) == shape[:-1]


def test_the_same_bits_every_time(device, random):
    x, weight = device.of(random(64, 768, dtype=BF16)), device.of(random(768, dtype=BF16))
    first = device.numpy(rmsnorm.rms_norm(x, weight)).tobytes()
    assert all(device.numpy(rmsnorm.rms_norm(x, weight)).tobytes() == first for _ in range(5))
    assert device.numpy(rmsnorm.rms_norm(x[:1], weight)).tobytes() == first[:768 * 2]


@pytest.mark.parametrize("eps", [np.float32(1e-5), np.array(1e-5), 0, 1])
def test_any_number_is_an_eps(device, random, eps):
    x = random(2, 16)
    judge_y(device, rmsnorm.rms_norm(device.of(x), eps=eps), reference.forward(x, eps=float(eps)).y)


def test_an_eps_that_changes_in_place(device, random):
    x, eps = random(2, 16), np.array(1e-5)
    for value in (1e-5, 0.5):
        eps[...] = value
        judge_y(device, rmsnorm.rms_norm(device.of(x), eps=eps), reference.forward(x, eps=value).y)
