#!/usr/bin/env python3
"""Host time of one eager call from PyTorch: torch's own RMSNorm and this package's, past the
dispatcher and through it.

usage: torch_host_cost.py [--device cpu|cuda] [--dtype bfloat16] [--rows 4] [--cols 1024]
                          [--calls 1500] [--laps 7] [--json FILE]

Needs PyTorch and the package (RMSNORM_LIBRARY names the librmsnorm.so). The tensors are tiny: on a
GPU the kernels hide behind the host, and what is measured is Python, the dispatcher, the allocator
and the launch; the device is waited for before and after a lap, not between calls. On the CPU the
norm itself is counted as well. Each line is the median of the laps, in microseconds a call; the
lines take turns, so that a slow moment of the machine falls on all of them.
"""
import argparse
import gc
import json
import pathlib
import statistics
import time
from typing import Any, Callable, Dict, List

import torch
import torch.nn.functional as F

from rmsnorm.torch import RMSNorm, _watch, add_rms_norm, add_rms_norm_, rms_norm

EPS = 1e-6
Call = Callable[[], Any]


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

    def forward_backward(module: torch.nn.Module) -> Call:
        def run() -> None:
            leaf.grad = module.weight.grad = None
            module(leaf).backward(dy)
        return run

    return {
        "torch.empty_like": without_grad(torch.empty_like, x),
        "torch.mul(out=)": without_grad(torch.mul, x, x, out=out),
        "F.rms_norm": without_grad(F.rms_norm, x, (cols,), weight, EPS),
        "nn.RMSNorm": without_grad(theirs, x),
        "nn.RMSNorm, grad": lambda: theirs(leaf),
        "nn.RMSNorm, forward + backward": forward_backward(theirs),
        "ours: rms_norm(out=)": without_grad(rms_norm, x, weight, EPS, out=out),
        "ours: rms_norm": without_grad(rms_norm, x, weight, EPS),
        "ours: add_rms_norm_": without_grad(add_rms_norm_, x.clone(), residual.clone(), weight,
                                            EPS),
        "ours: add_rms_norm": without_grad(add_rms_norm, x, residual, weight, EPS),
        "ours: RMSNorm": without_grad(ours, x),
        "ours: RMSNorm, grad": lambda: ours(leaf),
        "ours: RMSNorm, forward + backward": forward_backward(ours),
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
    direct = measure(table, options.calls, options.laps, wait)
    real, _watch.direct = _watch.direct, lambda *tensors: False
    through = measure({name: call for name, call in table.items() if name.startswith("ours")},
                      options.calls, options.laps, wait)
    _watch.direct = real

    where = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    print(f"host time a call, us: {options.rows}x{options.cols} {options.dtype}, {where}, "
          f"PyTorch {torch.__version__}")
    print(f"{'':36} {'direct':>9} {'dispatcher':>11}")
    for name, taken in direct.items():
        other = f"{through[name]:11.2f}" if name in through else ""
        print(f"{name:36} {taken:9.2f} {other}")
    if options.json:
        options.json.write_text(json.dumps({
            "device": where, "torch": torch.__version__, "rows": options.rows,
            "cols": options.cols, "dtype": options.dtype, "direct": direct,
            "dispatcher": through}, indent=1))


if __name__ == "__main__":
    main()
