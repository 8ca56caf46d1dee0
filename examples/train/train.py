#!/usr/bin/env python3
"""Trains a mixture-of-experts decoder of 59M parameters, once with each norm, and says how fast.

usage: train.py [--norm composite,torch,liger,rmsnorm] [--glu torch] [--steps 300] [--tiny]
                [--profile] [--out FOLDER] ...                   (-h has all)
       torchrun --nproc-per-node=2 train.py [--fsdp] ...         on several GPUs

fp16 mixed precision with loss scaling, AdamW, on the Python standard library's sources, byte by
byte. All networks start from the same weights and see the same text; they take turns of --turn
steps, so that a slow moment of the machine falls on all of them, and the first turn of each warms
up and does not count. Writes FOLDER/curves.json, FOLDER/curves.csv and, with matplotlib,
FOLDER/curves.svg (plot.py draws it elsewhere). What is missing, a GPU, Liger, is said and left out.

  composite    the norm in PyTorch's elementary operators      torch    torch.nn.RMSNorm
  liger        liger_kernel's LigerRMSNorm                     rmsnorm  rmsnorm.torch.RMSNorm
  rmsnorm-add  the same, with the residual add before it in the norm's kernel
"""
import argparse
import contextlib
import csv
import json
import os
import pathlib
import statistics
import sys
import time
from typing import Any, Dict, Iterator, List

import kernel_groups
import model
import parts
import plot
import text
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

LOAD_WEIGHT = 0.01  # of the experts' uneven load in the loss
VALIDATION_BATCHES = 8


class Run:
    """One network with its optimizer, and what was seen of it."""

    def __init__(self, config: model.Config, options: argparse.Namespace, place: "Place") -> None:
        torch.manual_seed(options.seed)
        self.options, self.place = options, place
        self.network: nn.Module = model.Decoder(config).to(place.device)
        self.parameters = sum(each.numel() for each in self.network.parameters())
        self.module = place.parallel(self.network, options.fsdp)
        cuda = place.device.type == "cuda"
        matrices = [p for p in self.network.parameters() if p.dim() > 1]
        vectors = [p for p in self.network.parameters() if p.dim() <= 1]
        # FSDP's parameters are DTensors, whose found_inf the fused optimizer does not take.
        self.optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
            lr=options.lr, betas=(0.9, 0.95), fused=cuda and not options.fsdp)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._rate)
        self.scaler = torch.amp.GradScaler(place.device.type, init_scale=2.0**14)
        self.losses: List[Tensor] = []
        self.turns: List[float] = []  # tokens per second and process
        self.memory = 0
        self.validation = float("nan")
        self.groups: Dict[str, float] = {}

    def _rate(self, step: int) -> float:
        """Rises over a twentieth of the steps, then falls to a tenth."""
        warm = max(1, self.options.steps // 20)
        return min((step + 1) / warm, 1 - 0.9 * min(1.0, step / self.options.steps))

    def loss(self, tokens: Tensor, following: Tensor) -> Any:
        with torch.autocast(self.place.device.type, torch.float16):
            logits, load = self.module(tokens)
        return F.cross_entropy(logits.flatten(0, 1).float(), following.flatten()), load

    def step(self, batches: text.Batches) -> None:
        loss, load = self.loss(*batches.training(len(self.losses)))
        self.scaler.scale(loss + LOAD_WEIGHT * load).backward()
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        self.schedule.step()
        self.losses.append(loss.detach())  # not read here: that would wait for the GPU

    def turn(self, steps: int, batches: text.Batches, bar: tqdm) -> None:
        self.place.wait()
        if self.place.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        start = time.perf_counter()
        for _ in range(steps):
            self.step(batches)
            bar.update()
        self.place.wait()
        taken = time.perf_counter() - start
        self.turns.append(steps * batches.batch * (len(batches.offsets) - 1) / taken)
        if self.place.device.type == "cuda":
            self.memory = max(self.memory, torch.cuda.max_memory_allocated() - before)

    def validate(self, batches: text.Batches) -> None:
        self.module.eval()
        with torch.no_grad():
            losses = [self.loss(*batches.validation(i))[0] for i in range(VALIDATION_BATCHES)]
        self.module.train()
        self.validation = float(torch.stack(losses).mean())

    def tokens_per_second(self) -> float:
        """Of all processes; the first turn counts only where there is no other."""
        return statistics.median(self.turns[1:] or self.turns) * self.place.ranks


class Place:
    """The device, and the processes that work together."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.rank, self.ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        cuda = torch.cuda.is_available() and not options.cpu
        local = int(os.environ.get("LOCAL_RANK", 0))
        self.device = torch.device("cuda", local) if cuda else torch.device("cpu")
        if cuda:
            torch.cuda.set_device(self.device)
        self.together = "RANK" in os.environ
        if self.together:
            dist.init_process_group("nccl" if cuda else "gloo")

    def say(self, *words: Any) -> None:
        if self.rank == 0:
            print(*words, flush=True)

    def name(self) -> str:
        return (torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else
                f"CPU, {torch.get_num_threads()} threads")

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        if self.together:
            dist.barrier()

    def parallel(self, network: nn.Module, fsdp: bool) -> nn.Module:
        if not self.together:
            return network
        if not fsdp:
            ids = [self.device.index] if self.device.type == "cuda" else None
            return nn.parallel.DistributedDataParallel(network, device_ids=ids,
                                                       gradient_as_bucket_view=True)
        from torch.distributed.fsdp import fully_shard
        mesh = dist.device_mesh.init_device_mesh(self.device.type, (self.ranks,))
        for block in network.blocks:
            fully_shard(block, mesh=mesh)
        return fully_shard(network, mesh=mesh)


@contextlib.contextmanager
def process_group(place: Place) -> Iterator[None]:
    try:
        yield
    finally:
        if place.together:
            dist.destroy_process_group()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--norm", default="composite,torch,liger,rmsnorm",
                        help=f"of {', '.join(parts.NORMS)}: one or several (all of the others)")
    parser.add_argument("--glu", choices=parts.GLUS, default="torch",
                        help="what computes silu(gate) * up, in every network")
    parser.add_argument("--steps", type=int, default=300, help="of each network")
    parser.add_argument("--turn", type=int, default=30, help="steps until the next one's turn")
    parser.add_argument("--batch", type=int, default=32, help="sequences a step and process")
    parser.add_argument("--length", type=int, help="of a sequence (512)")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tiny", action="store_true", help="a network for a look on the CPU")
    parser.add_argument("--cpu", action="store_true", help="even if there is a GPU")
    parser.add_argument("--fsdp", action="store_true", help="FSDP2 instead of DDP")
    parser.add_argument("--profile", action="store_true", help="where the time of a step goes")
    parser.add_argument("--text", default="", help="a folder with *.py files to learn from")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("build/train"))
    options = parser.parse_args()
    unknown = set(options.norm.split(",")) - set(parts.NORMS)
    if unknown:
        parser.error(f"--norm {', '.join(sorted(unknown))}: there are {', '.join(parts.NORMS)}")
    for name in ("steps", "turn", "batch"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1")
    if options.fsdp and "RANK" not in os.environ:
        parser.error("--fsdp needs several processes: start it with torchrun")
    return options


def configuration(options: argparse.Namespace) -> model.Config:
    config = model.Config(glu=options.glu)
    if options.tiny:
        config = config._replace(**model.TINY)
    return config._replace(length=options.length) if options.length else config


def available(options: argparse.Namespace, place: Place) -> List[str]:
    """The norms that run here."""
    names = []
    for name in dict.fromkeys(options.norm.split(",")):
        try:
            parts.probe(name, options.glu, place.device)
            names.append(name)
        except parts.Unavailable as error:
            place.say(f"left out: {error}")
    return names


def main() -> int:
    options = arguments()
    place = Place(options)
    with process_group(place):
        return train(options, place)


def train(options: argparse.Namespace, place: Place) -> int:
    if place.device.type == "cpu":
        place.say("on the CPU" if options.cpu else "there is no GPU: on the CPU",
                  "" if options.tiny else "(slow; --tiny is a small network)")
    names = available(options, place)
    if not names:
        place.say("none of the norms can run here")
        return 1
    config = configuration(options)
    source, about = text.load(options.text)
    place.say(f"text: {about}")
    batches = text.Batches(source, options.batch, config.length, place.device, place.rank,
                           place.ranks)
    runs = {name: Run(config._replace(norm=name), options, place) for name in names}
    first = runs[names[0]]
    place.say(f"{first.parameters / 1e6:.1f}M parameters, {options.batch} x {config.length} tokens "
              f"a step and process, {place.ranks} process{'es' * (place.ranks > 1)}, "
              f"{place.name()}, PyTorch {torch.__version__}, glu: {options.glu}")

    with tqdm(total=options.steps * len(runs), unit="step", disable=place.rank != 0) as bar:
        for done in range(0, options.steps, options.turn):
            for name, run in runs.items():
                bar.set_description(name)
                run.turn(min(options.turn, options.steps - done), batches, bar)
                bar.set_postfix(loss=f"{float(run.losses[-1]):.3f}",
                                tokens=f"{run.turns[-1] * place.ranks:,.0f}/s")
    for run in runs.values():
        run.validate(batches)
    if options.profile:
        for name, run in runs.items():
            run.groups = kernel_groups.of(lambda run=run: run.step(batches), run.network,
                                          place.device)
    if place.rank == 0:
        results = gather(runs, options, config, place)
        print(table(results))
        if options.profile:
            print(f"\nwhere a step's time goes, ms ({kernel_groups.MEANING[place.device.type]}):\n")
            print(kernel_groups.table({name: run.groups for name, run in runs.items()}))
        write(results, options.out)
    return 0


def gather(runs: Dict[str, Run], options: argparse.Namespace, config: model.Config,
           place: Place) -> Dict[str, Any]:
    return {
        "device": place.name(), "torch": torch.__version__, "processes": place.ranks,
        "parallel": ("fsdp" if options.fsdp else "ddp") if place.together else None,
        "parameters": runs[next(iter(runs))].parameters, "batch": options.batch,
        "steps": options.steps, "turn": options.turn, "config": config._asdict(),
        "runs": {name: {
            "tokens_per_second": run.tokens_per_second(), "turns": run.turns,
            "peak_memory": run.memory or None, "validation": run.validation,
            "losses": [round(float(loss), 5) for loss in run.losses[:options.steps]],
            "groups": run.groups or None,
        } for name, run in runs.items()}}


def table(results: Dict[str, Any]) -> str:
    base = next(iter(results["runs"].values()))["tokens_per_second"]
    lines = ["", "| norm | tokens/s | | last loss | validation loss | peak memory above the "
             "networks, MiB |", "|---|---|---|---|---|---|"]
    for name, run in results["runs"].items():
        memory = run["peak_memory"]
        lines.append(
            f"| {name} | {run['tokens_per_second']:,.0f} | {run['tokens_per_second'] / base:.2f}x "
            f"| {run['losses'][-1]:.4f} | {run['validation']:.4f} | "
            f"{'' if memory is None else f'{memory / 2**20:,.0f}'} |")
    return "\n".join(lines)


def write(results: Dict[str, Any], folder: pathlib.Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "curves.json").write_text(json.dumps(results, indent=1))
    with open(folder / "curves.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", *results["runs"]])
        for step, losses in enumerate(zip(*(run["losses"] for run in results["runs"].values()))):
            writer.writerow([step, *losses])
    print(f"\nwritten: {folder / 'curves.json'}, {folder / 'curves.csv'}", end="")
    try:
        plot.draw(results, folder / "curves.svg")
        print(f", {folder / 'curves.svg'}")
    except ImportError as error:
        print(f"\nno picture: {error}; plot.py {folder / 'curves.json'} draws it elsewhere")


if __name__ == "__main__":
    sys.exit(main())
