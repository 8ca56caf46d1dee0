#!/usr/bin/env python3
"""The CPU's speed as shares of copying memory: runs rmsnorm-bench some times and prints medians.

usage: tests/bench/cpu.py --bench BUILD/rmsnorm-bench [--runs 5] [--tables share,latency,...]

share    forward, fused add and backward beside the best of several copies of the same bytes, over
         buffers larger than the cache, on one thread and on two; and 128 rows that stay in it
latency  one row of 4,096 columns that stays in the cache, validation and dispatch included
isa      the generic code's time as a multiple of AVX2's
threads  the speed of two threads as a multiple of one's, from one row on
Only ratios within one run are compared: what else the machine does changes both sides.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from typing import Dict, List, Tuple

Key = Tuple[str, str, str]  # op, dtype, ROWSxCOLS
LARGE = ["4096x4096", "4096x1024"]
GROWING = [f"{rows}x4096" for rows in (1, 4, 16, 64, 96, 128, 192, 256, 512, 1024)] + ["1024x64"]


def measure(bench: str, shapes: List[str], dtypes: str = "f32,f16,bf16",
            ops: str = "forward,add,backward", threads: int = 1, sets: int = 0,
            isa: str = "") -> Dict[Key, dict]:
    """One run of rmsnorm-bench: its JSON results by (op, dtype, shape)."""
    environment = dict(os.environ)
    if isa:
        environment["RMSNORM_CPU_ISA"] = isa
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        command = [bench, "--device", "cpu", "-c", "0", "-o", ops, "-d", dtypes, "--shapes",
                   ",".join(shapes), "--threads", str(threads), "-n", "3", "-J", file.name]
        command += ["--sets", str(sets)] if sets else []
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
        print(".", end="", file=sys.stderr, flush=True)
        with open(file.name, encoding="utf-8") as text:
            results = json.load(text)["results"]
    return {(r["op"], r["dtype"], f"{r['rows']}x{r['cols']}"): r for r in results}


def show(title: str, rows: Dict[str, List[float]], form: str) -> None:
    print(f"\n{title}")
    for name, values in rows.items():
        print(f"  {name:40s} {form.format(statistics.median(values))}"
              f"   ({form.format(min(values))} to {form.format(max(values))})", flush=True)


def shares(bench: str, runs: int) -> None:
    rows: Dict[str, List[float]] = {}
    for _ in range(runs):
        for threads, sets, shapes in ((1, 0, LARGE), (2, 0, LARGE[:1]), (1, 1, ["128x4096"])):
            place = ", in cache" if sets else ""
            for (op, dtype, shape), result in measure(bench, shapes, threads=threads,
                                                      sets=sets).items():
                name = f"{op} {dtype} {shape}, {threads} thread{'s'[:threads - 1]}{place}"
                rows.setdefault(name, []).append(result["share"])
    show("share of a copy's speed, median (and range)", rows, "{:5.2f}")


def latency(bench: str, runs: int) -> None:
    rows: Dict[str, List[float]] = {}
    for _ in range(runs):
        for (op, dtype, shape), result in measure(bench, ["1x4096"], sets=1).items():
            rows.setdefault(f"{op} {dtype} {shape}", []).append(result["us"])
    show("microseconds of one row, in cache", rows, "{:5.2f}")


def isas(bench: str, runs: int) -> None:
    rows: Dict[str, List[float]] = {}
    for _ in range(runs):
        for sets, shapes in ((0, LARGE[:1]), (1, ["128x4096"])):
            one, other = (measure(bench, shapes, "f32", "forward,backward", sets=sets, isa=isa)
                          for isa in ("generic", "avx2"))
            for key in one:
                rows.setdefault(" ".join(key), []).append(one[key]["us"] / other[key]["us"])
    show("generic's time, in AVX2's", rows, "{:5.2f}")


def threads_ratio(bench: str, runs: int) -> None:
    rows: Dict[str, List[float]] = {}
    for _ in range(runs):
        # One after the other: what else the machine does changes by the minute.
        for shape in GROWING:
            one, two = (measure(bench, [shape], "f32,bf16", threads=threads, sets=1)
                        for threads in (1, 2))
            for key in one:
                rows.setdefault(" ".join(key), []).append(one[key]["us"] / two[key]["us"])
    show("two threads' speed, in one's", rows, "{:5.2f}")


TABLES = {"share": shares, "latency": latency, "isa": isas, "threads": threads_ratio}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bench", required=True, help="the rmsnorm-bench to run")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--tables", default=",".join(TABLES))
    arguments = parser.parse_args()
    unknown = set(arguments.tables.split(",")) - set(TABLES)
    if unknown:
        sys.exit(f"--tables {arguments.tables}: there are {', '.join(TABLES)}")
    if arguments.runs < 1:
        sys.exit(f"--runs {arguments.runs}: at least 1 is wanted")
    for table in arguments.tables.split(","):
        TABLES[table](arguments.bench, arguments.runs)


if __name__ == "__main__":
    main()
