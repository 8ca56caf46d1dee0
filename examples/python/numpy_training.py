#!/usr/bin/env python3
"""Trains a small pre-norm residual network in NumPy, with RMSNorm forward and backward fused with
the residual adds: the way a decoder's layers use it.

Each layer adds tanh(RMSNorm(h) @ matrix) to the residual stream h; the task is to remember a random
bit for each of 256 random rows. Prints the loss and the share of bits that are right, and fails if
it does not learn them.

usage: examples/python/numpy_training.py [STEPS]      (after pip install . and pip install numpy)
"""
import sys

import numpy as np

import rmsnorm

ROWS, COLS, LAYERS, RATE = 256, 64, 3, 0.5


def forward(x, matrices, weights):
    """The last norm's output, and what backward needs: of each norm y, h and rstd."""
    saved = []
    added, h = x, np.zeros_like(x)
    for layer in range(LAYERS + 1):
        # One pass over memory: the new h is h + added, y its norm.
        y, h, rstd = rmsnorm.rms_norm(added, weights[layer], residual=h, rstd=True)
        saved.append((y, h, rstd))
        if layer < LAYERS:
            added = np.tanh(y @ matrices[layer])
    return y, saved


def backward(dy, matrices, weights, saved):
    """The gradients of matrices and weights."""
    dmatrices, dweights = [None] * LAYERS, [None] * (LAYERS + 1)
    dh = None  # what arrives at h by the residual connection
    for layer in reversed(range(LAYERS + 1)):
        y, h, rstd = saved[layer]
        dh, dweights[layer], *_ = rmsnorm.rms_norm_backward(
            dy, h, weights[layer], rstd=rstd, dresidual_out=dh)
        if layer > 0:
            before = saved[layer - 1][0]
            inside = dh * (1 - np.tanh(before @ matrices[layer - 1]) ** 2)
            dmatrices[layer - 1] = before.T @ inside
            dy = inside @ matrices[layer - 1].T
    return dmatrices, dweights


def main(steps):
    random = np.random.default_rng(0)

    def normal(*shape):
        return random.standard_normal(shape, np.float32)

    matrices = [normal(COLS, COLS) / np.float32(COLS**0.5) for _ in range(LAYERS)]
    weights = [np.ones(COLS, np.float32) for _ in range(LAYERS + 1)]
    head = normal(COLS) / np.float32(COLS**0.5)
    x, wanted = normal(ROWS, COLS), random.integers(0, 2, ROWS).astype(np.float32)
    for step in range(steps + 1):
        y, saved = forward(x, matrices, weights)
        guess = 1 / (1 + np.exp(-(y @ head)))
        right = ((guess > 0.5) == (wanted == 1)).mean()
        if step % max(steps // 10, 1) == 0:
            loss = -np.log(np.where(wanted == 1, guess, 1 - guess)).mean()
            print(f"step {step:4}  loss {loss:.3f}  right {right:.1%}")
        dlogit = (guess - wanted) / ROWS
        dmatrices, dweights = backward(np.outer(dlogit, head), matrices, weights, saved)
        head -= RATE * (y.T @ dlogit)
        for parameter, gradient in zip(matrices + weights, dmatrices + dweights):
            parameter -= RATE * gradient
    return 0 if right > 0.99 else 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 200))
