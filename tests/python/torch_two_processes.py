"""What each of test_torch_distributed.py's two processes runs."""
import copy
import os
from typing import Any, List

import torch
import torch.distributed as dist

from rmsnorm.torch import RMSNorm, add_rms_norm

WIDTH = 64


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = RMSNorm(WIDTH, 1e-5)
        self.inner = torch.nn.Linear(WIDTH, WIDTH, bias=False)
        self.scale = torch.nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, h = add_rms_norm(self.inner(self.norm(x)), x, self.scale, 1e-5)
        return torch.nn.functional.silu(y) + h


def network() -> torch.nn.Module:
    torch.manual_seed(3)
    net = torch.nn.Sequential(Block(), Block(), RMSNorm(WIDTH, 1e-5))
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return net


def batch() -> torch.Tensor:
    return torch.randn(8, 6, WIDTH, generator=torch.Generator().manual_seed(4))


def alone() -> torch.nn.Module:
    """Both halves of the batch in one process."""
    net = network()
    net(batch()).square().mean().backward()
    return net


def half(rank: int) -> torch.Tensor:
    return batch()[4 * rank:4 * rank + 4]


def ddp(rank: int) -> None:
    wanted = alone()
    net = torch.nn.parallel.DistributedDataParallel(network())
    net(half(rank)).square().mean().backward()
    for (name, one), other in zip(wanted.named_parameters(), net.module.parameters()):
        torch.testing.assert_close(other.grad, one.grad, msg=lambda text: f"{name}: {text}")


def fsdp2(rank: int) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
    mesh = init_device_mesh("cpu", (2,))
    wanted = alone()
    net = network()
    for layer in net:  # the last one is a norm alone
        fully_shard(layer, mesh=mesh)
    fully_shard(net, mesh=mesh)
    assert isinstance(net[2], RMSNorm)
    for _ in range(2):
        net.zero_grad()
        net(half(rank)).square().mean().backward()
        for (name, one), other in zip(wanted.named_parameters(), net.parameters()):
            torch.testing.assert_close(other.grad.full_tensor(), one.grad,
                                       msg=lambda text: f"{name}: {text}")
    low = network()
    for layer in low:
        fully_shard(layer, mesh=mesh, mp_policy=MixedPrecisionPolicy(torch.bfloat16))
    y = low(half(rank))
    assert y.dtype is torch.bfloat16
    y.float().square().mean().backward()
    assert all(parameter.grad.dtype is torch.float32 for parameter in low.parameters())


def checkpointing(rank: int) -> None:
    """Selective checkpointing under DDP: the norm's output is saved, or computed again."""
    from torch.utils.checkpoint import (CheckpointPolicy, checkpoint,
                                        create_selective_checkpoint_contexts)

    from rmsnorm.torch import _calls
    wanted = alone()
    operators = (torch.ops.rmsnorm.forward.default, torch.ops.rmsnorm.add_forward.default)
    calls: List[int] = []
    for name in ("forward", "add_forward"):
        def spy(*args: Any, real: Any = getattr(_calls, name), **kwargs: Any) -> Any:
            calls.append(1)
            return real(*args, **kwargs)
        setattr(_calls, name, spy)
    for policy, runs in ((CheckpointPolicy.MUST_SAVE, 1), (CheckpointPolicy.MUST_RECOMPUTE, 2)):
        def choose(context: Any, operator: Any, *args: Any, chosen: Any = policy,
                   **kwargs: Any) -> Any:
            return chosen if operator in operators else CheckpointPolicy.PREFER_RECOMPUTE

        class Checkpointed(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.net = network()

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                for layer in self.net:
                    x = checkpoint(layer, x, use_reentrant=False, context_fn=lambda:
                                   create_selective_checkpoint_contexts(choose))
                return x

        net = torch.nn.parallel.DistributedDataParallel(Checkpointed())
        calls.clear()
        net(half(rank)).square().mean().backward()
        norms = 5  # two in each block, and the last
        assert len(calls) == runs * norms, (policy, len(calls))
        for one, other in zip(wanted.parameters(), net.module.net.parameters()):
            torch.testing.assert_close(other.grad, one.grad)


def state(rank: int) -> None:
    """A checkpoint of sharded parameters goes back into a torch.nn.RMSNorm."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    net = RMSNorm(WIDTH)
    torch.nn.init.normal_(net.weight, generator=torch.Generator().manual_seed(1))
    whole = copy.deepcopy(net)
    fully_shard(net, mesh=init_device_mesh("cpu", (2,)))
    full = get_model_state_dict(net, options=StateDictOptions(full_state_dict=True))
    if rank == 0:
        other = torch.nn.RMSNorm(WIDTH)
        other.load_state_dict(full)
        assert torch.equal(other.weight, whole.weight)


def run(rank: int, folder: str) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank,
                            world_size=2)
    try:
        for check in (ddp, fsdp2, checkpointing, state):
            check(rank)
            dist.barrier()
    finally:
        dist.destroy_process_group()
