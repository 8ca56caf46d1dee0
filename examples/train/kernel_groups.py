"""Where the time of a training step goes, by groups of kernels.

torch.profiler gives every kernel the operator that launched it. Which part of the network that
operator belongs to is known in forward from ranges around the modules (hooks, there only while it
is profiled), and in backward from the number that autograd gives to a forward operator and to its
backward. What belongs to no such part is told by its name.
"""
import re
import time
from typing import Any, Callable, Dict, Iterator, List, Tuple

import parts
import torch
from torch import nn
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function

STEPS = 5
RANGE = "part: "
IDLE = "the GPU waits for the host"
MEANING = {"cuda": "of the GPU's kernels", "cpu": "of the operators alone"}

_NAMES: Tuple[Tuple[str, str], ...] = (
    ("norm", r"rms_?norm"),
    ("activation", r"silu|swiglu|glu"),
    ("attention", r"attention|flash|fmha|sdpa|cudnn_generated"),
    ("matmul", r"gemm|cutlass|nvjet|cublas|xmma|aten::(mm|bmm|addmm|linear|matmul)\b"),
    ("optimizer", r"adam|multi_tensor|_foreach|amp_|_fused"),
    ("communication", r"nccl|gloo|c10d|all_?reduce|all_?gather|reduce_scatter"),
    ("copies, casts", r"copy|memcpy|memset|cat|fill|zero|aten::(to|_to_copy|clone|contiguous)\b"),
    ("routing", r"sort|topk|scan|cumsum|index|gather|scatter|softmax"),
)
_OTHER = "elementwise, reductions"
_PARTS: Dict[type, str] = {parts.Glu: "activation"}


def of(step: Callable[[], None], network: nn.Module, device: torch.device) -> Dict[str, float]:
    """Milliseconds of a step by group, and the whole under "step"."""
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    step()  # the optimizer's state, lazy loading: not again
    whole = _milliseconds(step, device)
    hooks = list(_ranges(network))
    with profile(activities=activities) as seen:
        _milliseconds(step, device)
    for hook in hooks:
        hook.remove()
    events = list(seen.events())
    parts_by_number = _numbers(events)
    groups: Dict[str, float] = {}
    for event in events:
        if event.device_type != torch.autograd.DeviceType.CPU:
            continue
        if device.type == "cuda":
            for kernel in event.kernels:
                group = _part(event, parts_by_number) or _by_name(kernel.name, event.name)
                groups[group] = groups.get(group, 0.0) + kernel.duration
        elif event.self_cpu_time_total and not event.name.startswith(RANGE):
            group = _part(event, parts_by_number) or _by_name(event.name)
            groups[group] = groups.get(group, 0.0) + event.self_cpu_time_total
    found = {name: taken / STEPS / 1e3 for name, taken in
             sorted(groups.items(), key=lambda item: -item[1])}
    if device.type == "cuda":
        found[IDLE] = max(0.0, whole - sum(found.values()))
    found["step"] = whole
    return found


def _milliseconds(step: Callable[[], None], device: torch.device) -> float:
    """Of one of STEPS steps."""
    wait = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    wait()
    start = time.perf_counter()
    for _ in range(STEPS):
        step()
    wait()
    return (time.perf_counter() - start) / STEPS * 1e3


def _ranges(network: nn.Module) -> Iterator[Any]:
    """Hooks that put a range around each norm's and activation's forward."""
    for module in network.modules():
        part = "norm" if _is_norm(module) else _PARTS.get(type(module))
        if part is None:
            continue
        open_ranges: List[record_function] = []

        def enter(module: nn.Module, given: Any, part: str = part,
                  open_ranges: List[record_function] = open_ranges) -> None:
            open_ranges.append(record_function(RANGE + part))
            open_ranges[-1].__enter__()

        def leave(module: nn.Module, given: Any, made: Any,
                  open_ranges: List[record_function] = open_ranges) -> None:
            open_ranges.pop().__exit__(None, None, None)

        yield module.register_forward_pre_hook(enter)
        yield module.register_forward_hook(leave)


def _is_norm(module: nn.Module) -> bool:
    """AddNorm too: then the residual adds count as norm with each of them, fused or not."""
    return isinstance(module, parts.AddNorm) or isinstance(module, parts.Composite) or \
        type(module).__name__.endswith("RMSNorm")


def _numbers(events: List[FunctionEvent]) -> Dict[int, str]:
    """Which part the forward operators are of, by their numbers. One without a gradient shows the
    number that the next one will have: the last to show it is the one that has it."""
    forward = sorted((event for event in events if event.sequence_nr >= 0
                      and not _is_backward(event)), key=lambda event: event.time_range.start)
    return {event.sequence_nr: _enclosing(event) for event in forward}


def _is_backward(event: FunctionEvent) -> bool:
    return event.scope == 1  # RecordScope::BACKWARD_FUNCTION


def _enclosing(event: FunctionEvent) -> str:
    """The innermost range's part."""
    while event is not None:
        if event.name.startswith(RANGE):
            return event.name[len(RANGE):]
        event = event.cpu_parent
    return ""


def _part(event: FunctionEvent, numbers: Dict[int, str]) -> str:
    part = _enclosing(event)
    while not part and event is not None:
        if _is_backward(event):
            part = numbers.get(event.sequence_nr, "")
        if not part and re.search("Norm|SiLUMul|_Gated", event.name):  # an autograd.Function's
            part = "norm" if "Norm" in event.name else "activation"
        if event.name.startswith("Optimizer."):
            return "optimizer"
        event = event.cpu_parent
    return part


def _by_name(*names: str) -> str:
    for group, pattern in _NAMES:
        if any(re.search(pattern, name, re.IGNORECASE) for name in names):
            return group
    return _OTHER


def table(runs: Dict[str, Dict[str, float]]) -> str:
    """Markdown: a line a group, a column a run."""
    rows = list(dict.fromkeys(group for groups in runs.values() for group in groups
                              if group not in (IDLE, "step")))
    ends = [name for name in (IDLE, "step") if any(name in groups for groups in runs.values())]
    lines = [f"| | {' | '.join(runs)} |", "|---" * (len(runs) + 1) + "|"]
    for row in (*rows, *ends):
        cells = (f"{groups[row]:.2f}" if row in groups else "" for groups in runs.values())
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines)
