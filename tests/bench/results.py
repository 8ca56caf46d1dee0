"""Results of sweeps as JSON: their form, the join of several runs, markdown tables (no torch here).

    {"format": 1,
     "runs":  [{"date", "gpu", "driver", "versions": {package: version}, "absent": {name: why}}],
     "cells": [{"op", "dtype", "rows", "cols", "layout", "groups": [...], "ceiling_us",
                "results": {name: {"us", "share"} or {"failed": why}}}]}

us: microseconds a call; share: the ceiling's time in the same run / us. A result may have "error",
relative to fp64, and "kernel", this library's name for what ran. merge() puts medians for us, share
and ceiling_us, and adds "runs" (how many) and "spread" (the least and the greatest share).
"""
import json
import math
import os
import statistics

import shapes

FORMAT = 1

# Every implementation by its name on the command line, in the order in which it is shown.
LABELS = {"ours": "this library", "overlap": "this library, OVERLAP", "torch": "torch",
          "compile": "torch.compile", "liger": "Liger", "cudnn": "cuDNN", "quack": "QuACK"}
OURS = ("ours", "overlap")
OP_NAMES = {"fwd": "forward", "bwd": "backward", "add": "fused add"}


def load(path):
    with open(path, encoding="utf-8") as file:
        doc = json.load(file)
    if not isinstance(doc, dict) or doc.get("format") != FORMAT:
        raise ValueError(f"{path}: not the results of a sweep")
    return doc


def save(doc, path):
    """In one step, so that a run that is ended leaves its last whole state."""
    with open(f"{path}.part", "w", encoding="utf-8") as file:
        json.dump(doc, file, indent=1)
        file.write("\n")
    os.replace(f"{path}.part", path)


def key(cell):
    return tuple(cell[name] for name in ("op", "dtype", "rows", "cols", "layout"))


def merge(docs):
    """One document from several runs on one kind of GPU. Where runs timed different things (each
    some of the implementations or cells), it has them all."""
    runs, versions, cells = [run for doc in docs for run in doc["runs"]], {}, {}
    if len({run["gpu"] for run in runs}) > 1:
        raise ValueError("runs of different GPUs")
    for run in runs:
        for package, version in run["versions"].items():
            if versions.setdefault(package, version) != version:
                raise ValueError(f"runs of different {package}: {versions[package]}, {version}")
    for doc in docs:
        for cell in doc["cells"]:
            cells.setdefault(key(cell), []).append(cell)
    merged = []
    for same in cells.values():
        names = sorted({name for cell in same for name in cell["results"]}, key=rank)
        groups = list(dict.fromkeys(group for cell in same for group in cell["groups"]))
        merged.append({
            **same[0], "groups": groups,
            "ceiling_us": statistics.median(cell["ceiling_us"] for cell in same),
            "results": {name: merge_results([cell["results"][name] for cell in same
                                             if name in cell["results"]]) for name in names}})
    return {"format": FORMAT, "runs": runs, "cells": merged}


def merge_results(results):
    timed = [result for result in results if "us" in result]
    if not timed:
        return results[0]
    if any("runs" in result for result in timed):
        raise ValueError("a file that is joined already: give the runs themselves")
    shares = [result["share"] for result in timed]
    return {**timed[0], "us": statistics.median(result["us"] for result in timed),
            "share": statistics.median(shares), "runs": len(timed),
            "spread": [min(shares), max(shares)]}


def rank(name):
    return (list(LABELS).index(name) if name in LABELS else len(LABELS), name)


def cells_of(doc, group, op):
    """Those of one group and operation, in the group's own order."""
    cells = [cell for cell in doc["cells"] if group in cell["groups"] and cell["op"] == op]
    order = {cell: at for at, cell in enumerate(shapes.GROUPS.get(group, list)())}
    return sorted(cells, key=lambda cell: order.get(shapes.Cell(*key(cell)), len(order)))


def names_in(cells):
    return sorted({name for cell in cells for name in cell["results"]}, key=rank)


def peers_at(cell):
    """The neighbours that managed this cell: [(share, name)], the fastest first."""
    return sorted(((result["share"], name) for name, result in cell["results"].items()
                   if name not in OURS and "share" in result), reverse=True)


def share_text(result):
    if result is None:
        return ""
    return f"{result['share']:.2f}" if "share" in result else "fails"


def markdown(header, rows):
    lines = ["| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows)]
    return "\n".join(lines)


def summary(doc):
    """A line per group and operation: of the shares of the ceiling the median, and the lowest in
    brackets; then in how many cells this library is the fastest, or within 2%, which is noise."""
    parts = {(group, cell["op"]): None for cell in doc["cells"] for group in cell["groups"]}
    names = [name for name in names_in(doc["cells"]) if name != "overlap"]
    rows = []
    for group, op in parts:
        cells = cells_of(doc, group, op)
        row = [f"{group}, {OP_NAMES[op]}", str(len(cells))]
        for name in names:
            results = [cell["results"][name] for cell in cells if name in cell["results"]]
            shares = [result["share"] for result in results if "share" in result]
            text = f"{statistics.median(shares):.2f} ({min(shares):.2f})" if shares else ""
            if len(shares) < len(results):
                text = f"{text} {len(results) - len(shares)} fail".strip()
            row.append(text)
        mine = [(cell["results"]["ours"], peers_at(cell)) for cell in cells
                if "share" in cell["results"].get("ours", {})]
        first = sum(1 for result, peers in mine
                    if not peers or result["share"] >= 0.98 * peers[0][0])
        rows.append([*row, f"{first} of {len(mine)}"])
    return markdown(["", "cells", *(LABELS.get(name, name) for name in names), "ours first"], rows)


def full(doc, group, op):
    """A line per cell: the ceiling's time and every implementation's share of it."""
    cells = cells_of(doc, group, op)
    names = names_in(cells)
    rows = []
    for cell in cells:
        shape = f"{cell['dtype']} {cell['rows']} x {cell['cols']}"
        if cell["layout"] != "packed":
            shape += f", {cell['layout']}"
        rows.append([shape, f"{cell['ceiling_us']:.1f}",
                     *(share_text(cell["results"].get(name)) for name in names)])
    return markdown([OP_NAMES[op], "ceiling, us", *(LABELS.get(name, name) for name in names)],
                    rows)


def microseconds(doc, group, op):
    """A line per cell: times. For kernels so short that a share of the ceiling says little."""
    cells = cells_of(doc, group, op)
    names = names_in(cells)
    rows = []
    for cell in cells:
        times = [cell["results"].get(name, {}).get("us", math.nan) for name in names]
        rows.append([f"{cell['rows']} x {cell['cols']}", f"{cell['ceiling_us']:.2f}",
                     *("" if math.isnan(us) else f"{us:.2f}" for us in times)])
    return markdown([f"{OP_NAMES[op]}, us", "ceiling",
                     *(LABELS.get(name, name) for name in names)], rows)


def provenance(doc):
    """What was measured, where and when, in a line or two."""
    run = doc["runs"][0]
    dates = sorted({run["date"][:10] for run in doc["runs"]})
    versions = {}
    for each in doc["runs"]:
        versions.update(each["versions"])
    days = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    return (f"{run['gpu']}, driver {run['driver']}, {days}, {len(doc['runs'])} "
            f"run{'s' if len(doc['runs']) > 1 else ''}; "
            + ", ".join(f"{package} {version}" for package, version in versions.items()))
