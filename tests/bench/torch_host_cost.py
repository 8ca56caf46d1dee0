#!/usr/bin/env python3
"""Host time of one eager call from PyTorch: torch's own RMSNorm and this package's: with its
compiled helper, by ctypes, and through the dispatcher.

usage: torch_host_cost.py [--device cpu|cuda] [--dtype bfloat16] [--rows 4] [--cols 1024]
                          [--calls 1500] [--laps 7] [--json FILE]

Needs PyTorch and the package (RMSNORM_LIBRARY names the librmsnorm.so). The tensors are tiny: on a
GPU the kernels hide behind the host, and what is measured is Python, the dispatcher, the allocator
and the launch; the device is waited for before and after a lap, not between calls. On the CPU the
norm itself is counted as well. Each line is the median of the laps, in microseconds a call; the
lines take turns, so that a slow moment of the machine falls on all of them.
"""
import argparse
import contextlib
import gc
import json
import pathlib
import platform
import statistics
import time
from typing import Any, Callable, Dict, Iterator, List
from unittest import mock

import torch
import torch.nn.functional as F

from rmsnorm.torch import (RMSNorm, _autograd, _calls, _host, _watch, add_rms_norm, add_rms_norm_,
                           rms_norm)

EPS = 1e-6
Call = Callable[[], Any]


class Nothing(torch.autograd.Function):
    """What any autograd.Function costs that makes its output and gradients, and nothing else."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> Any:
        x, weight = ctx.saved_tensors
        return torch.empty_like(x), torch.empty_like(weight)


@contextlib.contextmanager
def by_ctypes() -> Iterator[None]:
    """Without the compiled helper."""
    with contextlib.ExitStack() as stack:
        for runner in (_calls.FORWARD, _calls.BACKWARD, _calls.GRADIENTS,
                       _calls.ADD_GRADIENTS):
            stack.enter_context(mock.patch.object(runner, "run", runner.by_ctypes))
        stack.enter_context(mock.patch.object(_watch, "_plain", _watch.plain))
        for function in (_autograd._Norm, _autograd._AddNorm):
            backward = function._backward_cls
            stack.enter_context(mock.patch.object(backward, "apply", backward.__base__.apply))
        yield


@contextlib.contextmanager
def by_dispatcher() -> Iterator[None]:
    with mock.patch.object(_watch, "direct", lambda *tensors: False):
        yield


def lines(device: str, dtype: torch.dtype, rows: int, cols: int) -> Dict[str, Call]:
    def make() -> torch.Tensor:
        return torch.randn(rows, cols, device=device, dtype=dtype)

    x, residual, out, dy = make(), make(), make(), make()
    leaf = make().requires_grad_()
    weight = torch.ones(cols, device=device, dtype=dtype)
    theirs = torch.nn.RMSNorm(cols, EPS, device=device, dtype=dtype)
    ours = RMSNorm(cols, EPS, device=device, dtype=dtype)

    def without_grad(call: Callable[..., Any], *args: Any, **options: Any) -> Call:
        def run() -> None:
            call(*args, **options)
        run.no_grad = True  # type: ignore[attr-defined]
        return run

    def forward_backward(call: Callable[..., torch.Tensor], parameter: torch.Tensor,
                         *args: torch.Tensor) -> Call:
        def run() -> None:
            leaf.grad = parameter.grad = None
            call(leaf, *args).backward(dy)
        return run

    return {
        "torch.empty_like": without_grad(torch.empty_like, x),
        "torch.mul(out=)": without_grad(torch.mul, x, x, out=out),
        "F.rms_norm": without_grad(F.rms_norm, x, (cols,), weight, EPS),
        "nn.RMSNorm": without_grad(theirs, x),
        "nn.RMSNorm, grad": lambda: theirs(leaf),
        "nn.RMSNorm, forward + backward": forward_backward(theirs, theirs.weight),
        "nothing, grad": lambda: Nothing.apply(leaf, ours.weight),
        "nothing, forward + backward": forward_backward(Nothing.apply, ours.weight, ours.weight),
        "ours: rms_norm(out=)": without_grad(rms_norm, x, weight, EPS, out=out),
        "ours: rms_norm": without_grad(rms_norm, x, weight, EPS),
        "ours: add_rms_norm_": without_grad(add_rms_norm_, x.clone(), residual.clone(), weight,
                                            EPS),
        "ours: add_rms_norm": without_grad(add_rms_norm, x, residual, weight, EPS),
        "ours: add_rms_norm, forward + backward": forward_backward(
            lambda *args: add_rms_norm(*args)[0], ours.weight, residual, ours.weight),
        "ours: RMSNorm": without_grad(ours, x),
        "ours: RMSNorm, grad": lambda: ours(leaf),
        "ours: RMSNorm, forward + backward": forward_backward(ours, ours.weight),
    }


def lap(call: Call, calls: int, wait: Call) -> float:
    """Microseconds a call."""
    wait()
    start = time.perf_counter()
    for _ in range(calls):
        call()
    taken = time.perf_counter() - start
    wait()
    return taken / calls * 1e6


def measure(table: Dict[str, Call], calls: int, laps: int, wait: Call) -> Dict[str, float]:
    times: Dict[str, List[float]] = {name: [] for name in table}
    gc.disable()
    for turn in range(laps + 1):
        for name, call in table.items():
            with torch.set_grad_enabled(not hasattr(call, "no_grad")):
                taken = lap(call, calls, wait)
            if turn > 0:  # the first warms up
                times[name].append(taken)
    gc.enable()
    return {name: statistics.median(each) for name, each in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"),
                        default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="bfloat16",
                        choices=("float32", "float16", "bfloat16", "float64"))
    for name, value in (("rows", 4), ("cols", 1024), ("calls", 1500), ("laps", 7)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--json", type=pathlib.Path)
    options = parser.parse_args()

    torch.set_num_threads(1)
    table = lines(options.device, getattr(torch, options.dtype), options.rows, options.cols)
    wait = torch.cuda.synchronize if options.device == "cuda" else (lambda: None)
    ours = {name: call for name, call in table.items() if name.startswith("ours")}
    found = {"helper": measure(table, options.calls, options.laps, wait)}
    for name, path in (("ctypes", by_ctypes), ("dispatcher", by_dispatcher)):
        with path():
            found[name] = measure(ours, options.calls, options.laps, wait)

    where = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    print(f"host time a call, us: {options.rows}x{options.cols} {options.dtype}, {where}, "
          f"PyTorch {torch.__version__}, Python {platform.python_version()}")
    if _host.module is None:
        print("there is no compiled helper: its column is by ctypes")
    print(f"{'':40} " + " ".join(f"{name:>10}" for name in found))
    for line in table:
        print(f"{line:40} " + " ".join(f"{times[line]:10.2f}" for times in found.values()
                                       if line in times))
    if options.json:
        options.json.write_text(json.dumps({
            "device": where, "torch": torch.__version__, "rows": options.rows,
            "cols": options.cols, "dtype": options.dtype, "has_helper": _host.module is not None,
            **found}, indent=1))


if __name__ == "__main__":
    main()
