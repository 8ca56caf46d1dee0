#!/usr/bin/env python3
"""Makes the tables, as Markdown, and the pictures from what measure.py has written.

usage: report.py tables.json [--pictures FOLDER]

The pictures, which need matplotlib: FOLDER/widths.svg, FOLDER/norm.svg, FOLDER/swiglu.svg.
"""
import argparse
import json
import pathlib
from typing import Any, Dict, List

LABELS = {"composite": "PyTorch, composite", "torch": "PyTorch, fused", "triton": "Triton",
          "liger": "Liger", "rmsnorm": "librmsnorm", "separate": "PyTorch, three linears"}
# Okabe and Ito's colours, which colour-blind readers tell apart.
COLOURS = {"composite": "#7F7F7F", "torch": "#E69F00", "triton": "#D55E00", "liger": "#009E73",
           "rmsnorm": "#0072B2", "separate": "#7F7F7F"}
COLUMNS = {"forward_us": "forward, us", "both_us": "forward + backward, us",
           "memory_mib": "peak memory of both, MiB", "error": "largest error"}


def cell(result: Dict[str, Any], key: str) -> str:
    value = result.get(key)
    if value is None:
        return ""
    if key == "error":
        return f"{value:.1e}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def widths_table(doc: Dict[str, Any]) -> str:
    """GB/s: x read and y written, over the time."""
    table = doc["widths"]
    names = [name for name in LABELS if any(name in row["results"] for row in table["rows"])]
    lines = [f"RMSNorm forward, {table['count']} rows, {table['dtype']}, GB/s", "",
             line("cols", *(LABELS[name] for name in names)),
             line(*["---"] * (len(names) + 1))]
    for row in table["rows"]:
        lines.append(line(str(row["cols"]), *(cell(row["results"].get(name, {}), "gbps")
                                              for name in names)))
    return "\n".join(lines + [""] + failures(table["rows"]))


def shape_table(doc: Dict[str, Any], name: str) -> str:
    table = doc[name]
    columns = [key for key in COLUMNS if any(key in each for each in table["results"].values())]
    lines = [table["title"], "", line("", *(COLUMNS[key] for key in columns)),
             line(*["---"] * (len(columns) + 1))]
    for each in LABELS:
        if columns and set(columns) & set(table["results"].get(each, {})):
            lines.append(line(LABELS[each], *(cell(table["results"][each], key)
                                              for key in columns)))
    return "\n".join(lines + [""] + failures([table]))


def failures(tables: List[Dict[str, Any]]) -> List[str]:
    found = {f"{LABELS[name]}: {result['failed']}" for table in tables
             for name, result in table["results"].items() if "failed" in result}
    return [*sorted(found), ""] if found else []


def markdown(doc: Dict[str, Any]) -> str:
    parts = [f"{doc['device']}, PyTorch {doc['torch']}, {doc['method']}", widths_table(doc),
             shape_table(doc, "norm"), shape_table(doc, "swiglu")]
    parts += [f"left out: {why}" for why in doc["left_out"]]
    return "\n\n".join(part.rstrip() for part in parts)


# ---- Pictures ------------------------------------------------------------------------------------


def plain(axes: Any) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def draw_widths(plt: Any, doc: Dict[str, Any], path: pathlib.Path) -> None:
    table = doc["widths"]
    figure, axes = plt.subplots(figsize=(8, 4.4), facecolor="white")
    for name in LABELS:
        points = [(row["cols"], row["results"][name]["gbps"]) for row in table["rows"]
                  if "gbps" in row["results"].get(name, {})]
        if points:
            axes.plot(*zip(*points), label=LABELS[name], color=COLOURS[name], marker="o",
                      linewidth=2.4 if name == "rmsnorm" else 1.4)
    axes.set_ylim(0)
    axes.set_xlabel("cols")
    axes.set_ylabel("GB/s")
    axes.set_title(f"RMSNorm forward, {table['count']} rows, {table['dtype']}; {doc['device']}",
                   loc="left")
    axes.legend(frameon=False)
    plain(axes)
    figure.tight_layout()
    figure.savefig(path, facecolor="white", metadata={"Date": None})
    plt.close(figure)


def draw_shape(plt: Any, doc: Dict[str, Any], name: str, path: pathlib.Path) -> None:
    table = doc[name]
    keys = [key for key in ("forward_us", "both_us", "memory_mib")
            if any(key in each for each in table["results"].values())]
    if not keys:
        return
    figure, panels = plt.subplots(1, len(keys), figsize=(3.6 * len(keys) + 1.4, 3),
                                  facecolor="white", squeeze=False)
    for axes, key in zip(panels[0], keys):
        names = [each for each in LABELS if key in table["results"].get(each, {})]
        values = [table["results"][each][key] for each in names]
        bars = axes.barh([LABELS[each] for each in names], values,
                         color=[COLOURS[each] for each in names])
        axes.bar_label(bars, [" " + cell(table["results"][each], key) for each in names])
        axes.set_xlim(0, 1.25 * max(values))
        axes.invert_yaxis()
        axes.set_xticks([])
        axes.set_title(COLUMNS[key], loc="left", fontsize=10)
        plain(axes)
    figure.suptitle(f"{table['title']}; {doc['device']}", x=0.01, ha="left", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, facecolor="white", metadata={"Date": None})
    plt.close(figure)


def draw(doc: Dict[str, Any], folder: pathlib.Path) -> List[pathlib.Path]:
    import matplotlib
    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "tables", "font.size": 10})
    import matplotlib.pyplot as plt
    folder.mkdir(parents=True, exist_ok=True)
    draw_widths(plt, doc, folder / "widths.svg")
    for name in ("norm", "swiglu"):
        draw_shape(plt, doc, name, folder / f"{name}.svg")
    return sorted(folder.glob("*.svg"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", type=pathlib.Path)
    parser.add_argument("--pictures", type=pathlib.Path, metavar="FOLDER")
    options = parser.parse_args()
    doc = json.loads(options.json.read_text())
    print(markdown(doc))
    if options.pictures:
        print("", *draw(doc, options.pictures), sep="\n")


if __name__ == "__main__":
    main()
