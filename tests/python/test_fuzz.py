"""Arguments drawn at random out of shared memory: right results and nothing else written, or an
exception and nothing written at all."""
import numpy as np
import reference
from devices import get, judge, judge_gradients, judge_y
from reference import F32

import rmsnorm

SIZE = 400


class Memory:
    """Two buffers, views of them drawn at random, and what may have been written."""

    def __init__(self, draw):
        self.draw = draw
        self.buffers = [draw.standard_normal(SIZE).astype(F32) for _ in range(2)]
        self.before = [buffer.copy() for buffer in self.buffers]
        self.masks = [np.zeros(SIZE, bool) for _ in self.buffers]
        self.places = {}

    def view(self, name, shape):
        """Mostly contiguous, or with gaps; sometimes over each other, or where another one is."""
        draw = self.draw
        if self.places and draw.random() < 0.2:
            which, start, old, strides = list(self.places.values())[draw.integers(len(self.places))]
            if old == shape:
                return self.at(name, which, start, shape, strides)
        strides = list(np.cumprod([1, *shape[::-1]])[:-1][::-1])
        kind = draw.random()
        if kind < 0.3:
            strides[0] += int(draw.integers(1, 4))
        elif kind < 0.4:
            order = draw.permutation(len(shape))
            strides = [strides[i] for i in order]
        elif kind < 0.45:
            strides[int(draw.integers(len(shape)))] = 0
        span = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides))
        start = int(draw.integers(0, SIZE - span)) if span < SIZE else 0
        if span >= SIZE:
            strides, start = [0] * len(shape), 0
        return self.at(name, int(draw.integers(2)), start, shape, strides)

    def at(self, name, which, start, shape, strides):
        self.places[name] = (which, start, shape, strides)
        return self._strided(self.buffers[which], start, shape, strides)

    @staticmethod
    def _strided(buffer, start, shape, strides):
        return np.lib.stride_tricks.as_strided(
            buffer[start:], shape, [stride * buffer.itemsize for stride in strides])

    def allow(self, name):
        if name in self.places:
            which, *rest = self.places[name]
            self._strided(self.masks[which], *rest)[...] = True

    def unchanged(self):
        return all((now[~mask] == was[~mask]).all() for now, was, mask
                   in zip(self.buffers, self.before, self.masks))


def shape_like(draw, shape):
    """The shape, or now and then another one."""
    if draw.random() < 0.97:
        return shape
    changed = list(shape)
    changed[int(draw.integers(len(shape)))] += int(draw.integers(1, 3))
    return tuple(changed)


def drawn(draw, memory, names, shape):
    """Arguments for names, each there or not."""
    vectors = shape[-1:] if len(shape) < 2 or draw.random() < 0.7 else shape[-2:]
    shapes = {"rstd": shape[:-1], "weight": vectors, "bias": vectors, "dweight": vectors,
              "dbias": vectors}
    return {name: memory.view(name, shape_like(draw, shapes.get(name, shape)))
            for name in names if draw.random() < 0.5 and (name != "rstd" or len(shape) > 1)}


def shape_of(draw):
    return tuple(int(size) for size in draw.integers(1, 5, draw.integers(1, 5)))


def test_forward():
    device, draw, done = get("numpy"), np.random.default_rng(2), 0
    for _ in range(3000):
        shape, memory = shape_of(draw), Memory(draw)
        x = memory.view("x", shape)
        given = drawn(draw, memory, ("residual", "weight", "bias", "out", "residual_out", "rstd"),
                      shape)
        inputs = {name: array.copy() for name, array in given.items()
                  if name in ("residual", "weight", "bias")}
        values = x.copy()
        try:
            found = rmsnorm.rms_norm(x, **given)
        except (rmsnorm.ArgumentError, TypeError):
            assert memory.unchanged()
            continue
        done += 1
        for name in ("out", "residual_out", "rstd"):
            memory.allow(name)
        assert memory.unchanged()
        found = list(found) if isinstance(found, tuple) else [found]
        exact = reference.forward(values, **inputs, h_dtype=F32)
        product = exact.y - inputs["bias"] if "bias" in inputs else None
        judge_y(device, found.pop(0), exact.y, product)
        if "residual" in given:
            assert (found.pop(0) == exact.h).all()
        if "rstd" in given:
            judge(device, "rstd", found.pop(0), exact.rstd, 0.501)
    assert 300 < done < 2700, f"{done} calls were accepted: too few, or too many, to tell much"


def test_backward():
    device, draw, done = get("numpy"), np.random.default_rng(3), 0
    for _ in range(3000):
        shape, memory = shape_of(draw), Memory(draw)
        dy, x = memory.view("dy", shape), memory.view("x", shape)
        given = drawn(draw, memory, ("weight", "dresidual_out", "dx", "dresidual", "dweight",
                                     "dbias"), shape)
        inputs = {name: array.copy() for name, array in given.items()
                  if name in ("weight", "dresidual_out")}
        values = dy.copy(), x.copy()
        try:
            found = rmsnorm.rms_norm_backward(dy, x, **given)
        except (rmsnorm.ArgumentError, rmsnorm.UnsupportedError, TypeError):
            assert memory.unchanged()
            continue
        done += 1
        for name in ("dx", "dresidual", "dweight", "dbias"):
            memory.allow(name)
        assert memory.unchanged()
        vectors = [each for each in (found.dweight, found.dbias) if each is not None]
        per_group = bool(vectors) and vectors[0].ndim == 2
        judge_gradients(device, found, reference.backward(*values, **inputs, per_group=per_group))
        if found.dresidual is not None:
            assert (found.dresidual == found.dx).all()
    assert 300 < done < 2700, f"{done} calls were accepted: too few, or too many, to tell much"
