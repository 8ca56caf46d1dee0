#!/usr/bin/env python3
"""Times this library beside its neighbours: the figures and pictures of README.md.

    sweep.py --library build/release/librmsnorm.so --check --json run1.json
    sweep.py --merge run1.json run2.json run3.json --json all.json
    plot.py all.json --out DIR

In one process on one GPU: this library, torch, torch.compile, liger-kernel, cuDNN by
nvidia-cudnn-frontend, quack-kernels; what cannot be imported is named and left out. Each cell has a
ceiling, element-wise kernels that move the bytes which the operation must move (forward: x to y;
backward: x and dy to dx; fused add: twice the forward), and what counts is the share of it, the
ceiling's time / the time: 1 is as fast as the memory. timing.py says how time is taken, shapes.py
has the cells. What fails in one cell is written down, and the run goes on.

The JSON file (its form: results.py) is whole after every cell, so that a run may be ended at any
time; --merge joins such files: several runs by their medians, and runs of different cells or
implementations into one.
"""
import argparse
import datetime
import math
import os
import subprocess
import sys
import time

import results
import shapes

ROUNDS = 3  # the best of so many medians, all implementations in turn


class DeviceLost(Exception):
    """A kernel has broken the CUDA context: nothing more can run in this process."""


# ---- One cell ------------------------------------------------------------------------------------

def first_line(error):
    text = f"{type(error).__name__}: {error}".strip()
    return text.splitlines()[0][:160]


def recover(name, error):
    """After a failure, to a state in which others can go on."""
    import torch
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except Exception:
        raise DeviceLost(f"{name}: {first_line(error)}") from error


def capture(provider, cell, sets, weight, exact):
    """(graph, what to note about it)"""
    from timing import Graph
    provider.start(cell.op)
    calls = [getattr(provider, cell.op)(b, weight) for b in sets]
    note = {}
    if exact:
        sets[0].spoil()
        note["error"] = exact.error(calls[0]())
    graph = Graph(calls)
    if hasattr(provider, "kernel"):
        note["kernel"] = provider.kernel
    return graph, note


def run_cell(cell, groups, providers, check):
    """The cell's entry in the results; None where there is not even room for its ceiling."""
    import torch
    from exact import Exact
    from providers import EPS, Buffers, Ceiling, random_weight
    from timing import set_count

    graphs, found = {}, {}
    try:
        weight = random_weight(cell)
        sets = [Buffers(cell) for _ in range(set_count(cell))]
        packed = sets
        if cell.layout != "packed":  # the ceiling's kernels like it simple
            plain = shapes.Cell(cell.op, cell.dtype, cell.rows, cell.cols)
            packed = [Buffers(plain) for _ in sets]
        exact = Exact(cell, sets[0], weight, EPS) if check else None
        graphs["ceiling"], _ = capture(Ceiling(), cell, packed, weight, None)
        torch.cuda.synchronize()
    except torch.cuda.OutOfMemoryError as error:
        print(f"{cell}: left out, {first_line(error)}", flush=True)
        return None
    for name, provider in providers.items():
        if not hasattr(provider, cell.op):
            continue
        if name == "overlap" and not {"decode", "by hand"} & set(groups):
            continue
        why = provider.refuses(cell)
        if why:
            found[name] = {"failed": why}
            continue
        try:
            graphs[name], found[name] = capture(provider, cell, sets, weight, exact)
        except Exception as error:  # a neighbour that cannot do a cell is a result
            found[name] = {"failed": first_line(error)}
            recover(name, error)

    times = dict.fromkeys(graphs, math.inf)
    for _ in range(ROUNDS):
        for name, graph in graphs.items():
            try:
                times[name] = min(times[name], graph.microseconds())
            except Exception as error:
                raise DeviceLost(f"{name}: {first_line(error)}") from error
    ceiling = times.pop("ceiling")
    for name, us in times.items():
        found[name] = {"us": round(us, 4), "share": round(ceiling / us, 4), **found[name]}
    return {"op": cell.op, "dtype": cell.dtype, "rows": cell.rows, "cols": cell.cols,
            "layout": cell.layout, "groups": groups, "ceiling_us": round(ceiling, 4),
            "results": found}


def line(cell, row):
    parts = []
    for name, result in row["results"].items():
        text = f"{name} {results.share_text(result)}"
        parts.append(f"{text} (error {result['error']:.0e})" if "error" in result else text)
    return f"{str(cell):<34} ceiling {row['ceiling_us']:8.1f} us | " + " | ".join(parts)


# ---- A run ---------------------------------------------------------------------------------------

def load_providers(names):
    from providers import PROVIDERS
    loaded, absent, versions = {}, {}, {}
    for name in names:
        provider = PROVIDERS[name]()
        try:
            provider.load()
            versions.update(provider.versions())
            loaded[name] = provider
        except Exception as error:
            absent[name] = first_line(error)
    return loaded, absent, versions


def driver_version():
    try:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(command, capture_output=True, text=True,
                              check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "unknown"


def progress(cells):
    """tqdm on stderr where there is one and someone to see it."""
    try:
        from tqdm import tqdm
        return tqdm(cells, disable=None, unit="cell")
    except ImportError:
        return cells


def run(options, cells):
    import torch
    providers, absent, versions = load_providers(options.only)
    for name, why in absent.items():
        print(f"absent: {name}: {why}")
    about = {"date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
             "gpu": torch.cuda.get_device_name(0), "driver": driver_version(),
             "versions": {**versions, "torch": torch.__version__}, "absent": absent}
    doc = {"format": results.FORMAT, "runs": [about], "cells": []}
    print(results.provenance(doc), flush=True)
    if not providers:
        sys.exit("sweep.py: nothing to time")

    import timing
    torch.manual_seed(0)
    start, left, status = time.monotonic(), list(cells), 0
    with torch.no_grad(), torch.cuda.stream(timing.stream()):
        for cell in progress(list(cells)):
            if options.minutes and time.monotonic() - start > 60 * options.minutes:
                break
            left.pop(0)
            try:
                row = run_cell(cell, cells[cell], providers, options.check)
            except DeviceLost as error:
                print(f"{cell}: the GPU's context is lost: {error}", flush=True)
                status = 1
                break
            torch.cuda.empty_cache()
            if row:
                doc["cells"].append(row)
                print(line(cell, row), flush=True)
                if options.json:
                    results.save(doc, options.json)
    for row in doc["cells"]:
        for name, result in row["results"].items():
            if "failed" in result:
                where = f"{row['op']} {row['dtype']} {row['rows']}x{row['cols']} {row['layout']}"
                print(f"failed: {where}: {name}: {result['failed']}")
    if left:
        print(f"not timed: {len(left)} cells, from {left[0]} on")
    print(results.summary(doc))
    print(f"{time.monotonic() - start:.0f} s")
    return status


def names(text, known, what):
    chosen = [name for name in text.split(",") if name]
    for name in chosen:
        if name not in known:
            raise argparse.ArgumentTypeError(f"no {what} {name}; there are {', '.join(known)}")
    return chosen


def main():
    implementations, groups = list(results.LABELS), list(shapes.GROUPS)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", default=["table"], metavar="GROUP,...",
                        type=lambda text: groups if text == "all" else names(text, groups,
                                                                             "group of cells"),
                        help=f"{', '.join(groups)}, or all (default: table)")
    parser.add_argument("--shape", action="append", metavar="OP,DTYPE,ROWS,COLS[,LAYOUT]",
                        type=shapes.parse, help="this cell instead, e.g. bwd,bf16,20001,2880")
    parser.add_argument("--only", default=implementations, metavar="NAME,...",
                        type=lambda text: names(text, implementations, "implementation"),
                        help=f"of {', '.join(implementations)}")
    parser.add_argument("--library", help="librmsnorm.so (default: $RMSNORM_LIBRARY)")
    parser.add_argument("--check", action="store_true", help="compare each with fp64 first")
    parser.add_argument("--json", metavar="FILE", help="where the results go")
    parser.add_argument("--minutes", type=float, help="begin no cell after so many")
    parser.add_argument("--merge", nargs="+", metavar="FILE", help="time nothing: join these files")
    options = parser.parse_args()
    if options.merge:
        doc = results.merge([results.load(path) for path in options.merge])
        if options.json:
            results.save(doc, options.json)
        print(results.provenance(doc))
        print(results.summary(doc))
        return 0
    if options.library:
        os.environ["RMSNORM_LIBRARY"] = os.path.abspath(options.library)
    cells = shapes.select(options.cells)
    if options.shape:
        cells = {cell: ["by hand"] for cell in options.shape}
    return run(options, cells)


if __name__ == "__main__":
    sys.exit(main())
