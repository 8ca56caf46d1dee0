#!/usr/bin/env python3
"""Measures RMSNorm and SwiGLU in PyTorch on the shapes that others have published figures for.

usage: measure.py [--json tables.json] [--small]

  widths  forward of 4096 rows in float16, 1024 to 8192 columns: GB/s
  norm    32 x 128 x 4096 in float16, as a module: forward; forward and backward, and its memory
  swiglu  the module of 4096 and 11008 on 32 x 128 x 4096 in float16: the same

Beside each other: PyTorch's composite and fused operators, a Triton kernel (triton_norm.py), Liger
where it is installed, and this library. Each is first checked against float64. Prints the tables as
Markdown; report.py draws them, elsewhere if matplotlib is not here.

On a GPU a time is a call's share of a CUDA graph over buffers larger than the cache, without the
host's part; memory is what one eager forward and backward needs above what was there. Without a
GPU the shapes are small and the times the CPU's: that shows that all of it runs, and no more.
"""
import argparse
import gc
import importlib.util
import json
import pathlib
import statistics
import sys
import time
from types import SimpleNamespace
from typing import Any, Callable, Dict, List, NamedTuple, Optional

import report
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rmsnorm.torch import RMSNorm, SwiGLU, rms_norm

sys.path.append(str(pathlib.Path(__file__).resolve().parents[3] / "tests" / "bench"))
import timing  # noqa: E402

EPS = 1e-6
ROUNDS = 3  # each in its turn; the best counts
F16 = torch.float16
Call = Callable[[], Any]


class Shapes(NamedTuple):
    rows: int = 4096
    widths: range = range(1024, 8193, 1024)
    batch: int = 32
    length: int = 128
    width: int = 4096
    hidden: int = 11008


SMALL = Shapes(16, range(256, 1025, 256), 2, 8, 128, 344)


# ---- What is compared ----------------------------------------------------------------------------


class Composite(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return composite(x, self.weight)


def composite(x: Tensor, weight: Tensor) -> Tensor:
    wide = x.float()
    y = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + EPS)
    return (y * weight).to(x.dtype)


class ThreeLinears(nn.Module):
    """The layer as most code has it."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


def liger_norm(width: int) -> nn.Module:
    from liger_kernel.transformers.rms_norm import LigerRMSNorm
    return LigerRMSNorm(width, eps=EPS)


def liger_function() -> Callable[[Tensor, Tensor], Tensor]:
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction
    return lambda x, weight: LigerRMSNormFunction.apply(x, weight, EPS)


def liger_swiglu(width: int, hidden: int) -> nn.Module:
    from liger_kernel.transformers.swiglu import LigerSwiGLUMLP
    return LigerSwiGLUMLP(SimpleNamespace(hidden_size=width, intermediate_size=hidden,
                                          hidden_act="silu"))


def triton_function() -> Callable[[Tensor, Tensor], Tensor]:
    import triton_norm
    return lambda x, weight: triton_norm.rms_norm(x, weight, EPS)


FUNCTIONS: Dict[str, Callable[[], Callable[[Tensor, Tensor], Tensor]]] = {
    "composite": lambda: composite,
    "torch": lambda: lambda x, weight: F.rms_norm(x, weight.shape, weight, EPS),
    "triton": triton_function,
    "liger": liger_function,
    "rmsnorm": lambda: lambda x, weight: rms_norm(x, weight, EPS),
}
NORMS: Dict[str, Callable[[int], nn.Module]] = {
    "composite": Composite, "torch": lambda width: nn.RMSNorm(width, EPS), "liger": liger_norm,
    "rmsnorm": lambda width: RMSNorm(width, EPS)}
SWIGLUS: Dict[str, Callable[[int, int], nn.Module]] = {
    "separate": ThreeLinears, "liger": liger_swiglu, "rmsnorm": SwiGLU}


# ---- Measuring -----------------------------------------------------------------------------------


class Bench:
    def __init__(self, device: torch.device) -> None:
        self.device, self.cuda = device, device.type == "cuda"
        self.left_out: Dict[str, str] = {}

    def find(self, makers: Dict[str, Any]) -> Dict[str, Any]:
        """Those that can be here."""
        needs = {"triton": "triton", "liger": "liger_kernel"}
        found = {}
        for name, make in makers.items():
            module = needs.get(name)
            if module and importlib.util.find_spec(module) is None:
                self.left_out[name] = f"{report.LABELS[name]}: {module} is not installed"
            elif module and not self.cuda:
                self.left_out[name] = f"{report.LABELS[name]}: it needs a GPU"
            else:
                found[name] = make
        return found

    def random(self, *shape: int, grad: bool = False) -> Tensor:
        return torch.randn(shape, device=self.device).to(F16).requires_grad_(grad)

    def checked(self, calls: Dict[str, Call], exact: Tensor, allowed: float) -> Dict[str, Any]:
        """Each one's error, of the largest value; or what it said. A wrong one ends it all."""
        found: Dict[str, Any] = {}
        for name, call in calls.items():
            try:
                with torch.no_grad():
                    y = call()
            except Exception as error:  # another one may still run
                found[name] = {"failed": what(error)}
                continue
            error_of_y = float((y.double() - exact).abs().max() / exact.abs().max())
            if not error_of_y <= allowed:
                sys.exit(f"measure.py: {name} is wrong: its error is {error_of_y:.2g}, allowed is "
                         f"{allowed:.2g}")
            found[name] = {"error": error_of_y}
        return found

    def microseconds(self, tables: Dict[str, List[Call]]) -> Dict[str, Any]:
        """Of each implementation's calls, one per set of buffers; or what it said."""
        found: Dict[str, Any] = {}
        for _ in range(ROUNDS):
            for name, calls in tables.items():
                if "failed" in found.get(name, {}):
                    continue
                try:
                    taken = timing.Graph(calls).microseconds() if self.cuda else wall(calls)
                except Exception as error:
                    found[name] = {"failed": what(error)}
                    continue
                found[name] = {"us": min(taken, found.get(name, {}).get("us", taken))}
        return found

    def sets(self, tensor_bytes: int) -> int:
        return timing.set_count(SimpleNamespace(tensor_bytes=tensor_bytes)) if self.cuda else 1

    def memory(self, call: Call) -> Optional[float]:
        """MiB that one eager call needs above what was there."""
        if not self.cuda:
            return None
        for _ in range(2):  # the first may compile
            gc.collect()
            torch.cuda.synchronize()
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            call()
            torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20


def what(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def wall(calls: List[Call]) -> float:
    times = []
    for _ in range(5):
        start = time.perf_counter()
        for call in calls:
            call()
        times.append((time.perf_counter() - start) / len(calls) * 1e6)
    return statistics.median(times)


def widths(bench: Bench, shapes: Shapes) -> Dict[str, Any]:
    rows = []
    functions = {name: make() for name, make in bench.find(FUNCTIONS).items()}
    for cols in shapes.widths:
        size = 2 * shapes.rows * cols * F16.itemsize
        inputs = [bench.random(shapes.rows, cols) for _ in range(bench.sets(size))]
        weight = bench.random(cols)
        exact = composite(inputs[0].double(), weight.double())
        found = bench.checked({name: lambda function=function: function(inputs[0], weight)
                               for name, function in functions.items()}, exact, 2.0**-10)
        with torch.no_grad():
            times = bench.microseconds({
                name: [lambda x=x, function=function: function(x, weight) for x in inputs]
                for name, function in functions.items() if "error" in found[name]})
        for name, result in times.items():
            found[name].update(result)
            if "us" in result:
                found[name]["gbps"] = size / result["us"] / 1e3
        rows.append({"cols": cols, "results": found})
    return {"count": shapes.rows, "dtype": "float16", "rows": rows}


def modules(bench: Bench, shapes: Shapes, nets: Dict[str, nn.Module],
            exact: Callable[[Tensor], Tensor], allowed: float) -> Dict[str, Any]:
    """Forward alone; forward and backward, with the memory that they need."""
    shape = shapes.batch, shapes.length, shapes.width
    size = 4 * shapes.batch * shapes.length * shapes.width * F16.itemsize
    inputs = [bench.random(*shape, grad=True) for _ in range(bench.sets(size))]
    gradients = {name: bench.random(*shape) for name in nets}  # Liger's backward writes over it
    wanted = exact(inputs[0].detach().double())
    results = bench.checked({name: lambda net=net: net(inputs[0]) for name, net in nets.items()},
                            wanted, allowed)
    nets = {name: net for name, net in nets.items() if "error" in results[name]}

    def both(name: str, x: Tensor) -> Any:
        return torch.autograd.grad(nets[name](x), (x, *nets[name].parameters()), gradients[name])

    with torch.no_grad():
        forward = bench.microseconds({name: [lambda x=x, net=net: net(x) for x in inputs]
                                      for name, net in nets.items()})
    backward = bench.microseconds({name: [lambda x=x, name=name: both(name, x) for x in inputs]
                                   for name in nets})
    for name in nets:
        for key, found in (("forward_us", forward[name]), ("both_us", backward[name])):
            if "failed" in found:
                results[name]["failed"] = found["failed"]
            else:
                results[name][key] = found["us"]
        memory = bench.memory(lambda name=name: both(name, inputs[0]))
        if memory is not None:
            results[name]["memory_mib"] = memory
    return results


def norm(bench: Bench, shapes: Shapes) -> Dict[str, Any]:
    weight = bench.random(shapes.width).detach()
    nets = {}
    for name, make in bench.find(NORMS).items():
        nets[name] = make(shapes.width).to(bench.device, F16)
        with torch.no_grad():
            nets[name].weight.copy_(weight)
    title = f"RMSNorm, {shapes.batch} x {shapes.length} x {shapes.width}, float16"
    return {"title": title, "results": modules(
        bench, shapes, nets, lambda x: composite(x, weight.double()), 2.0**-10)}


def swiglu(bench: Bench, shapes: Shapes) -> Dict[str, Any]:
    source = ThreeLinears(shapes.width, shapes.hidden).to(bench.device, F16)
    nets = {}
    for name, make in bench.find(SWIGLUS).items():
        nets[name] = make(shapes.width, shapes.hidden).to(bench.device, F16)
        nets[name].load_state_dict(source.state_dict())
    gate, up, down = (layer.weight.detach().double() for layer in
                      (source.gate_proj, source.up_proj, source.down_proj))

    def exact(x: Tensor) -> Tensor:
        return (F.silu(x @ gate.t()) * (x @ up.t())) @ down.t()

    title = (f"SwiGLU {shapes.width} to {shapes.hidden}, "
             f"{shapes.batch} x {shapes.length} x {shapes.width}, float16")
    return {"title": title, "results": modules(bench, shapes, nets, exact, 2.0**-7)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=pathlib.Path, default=pathlib.Path("tables.json"))
    parser.add_argument("--small", action="store_true", help="small shapes on a GPU too")
    options = parser.parse_args()
    cuda = torch.cuda.is_available()
    if not cuda:
        print("there is no GPU, which these tables are about: small shapes on the CPU")
    torch.manual_seed(1)
    bench = Bench(torch.device("cuda" if cuda else "cpu"))
    shapes = Shapes() if cuda and not options.small else SMALL
    doc = {"device": torch.cuda.get_device_name() if cuda else "CPU", "torch": torch.__version__,
           "method": ("CUDA graphs over buffers larger than the cache, best of "
                      f"{ROUNDS} medians" if cuda else "wall clock, small shapes"),
           "widths": widths(bench, shapes), "norm": norm(bench, shapes),
           "swiglu": swiglu(bench, shapes)}
    doc["left_out"] = sorted(bench.left_out.values())
    options.json.write_text(json.dumps(doc, indent=1))
    print(report.markdown(doc))
    print(f"\nwritten: {options.json}")


if __name__ == "__main__":
    main()
