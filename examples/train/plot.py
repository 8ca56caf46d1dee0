#!/usr/bin/env python3
"""Draws the loss curves and the speed of each norm from train.py's curves.json. Needs matplotlib.

usage: plot.py curves.json [PICTURE.svg]
"""
import json
import pathlib
import sys
from typing import Any, Dict, List

# Okabe and Ito's colours, which colour-blind readers tell apart.
COLOURS = {"composite": "#7F7F7F", "torch": "#E69F00", "liger": "#009E73", "rmsnorm": "#0072B2",
           "rmsnorm-add": "#56B4E9"}


def smooth(values: List[float], width: int) -> List[float]:
    """Each the mean of the last width values."""
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    return [(sums[i] - sums[max(0, i - width)]) / min(i, width) for i in range(1, len(sums))]


def draw(results: Dict[str, Any], path: pathlib.Path) -> None:
    import matplotlib
    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "train", "font.size": 10})
    import matplotlib.pyplot as plt
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), facecolor="white",
                                         width_ratios=[3, 2])
    runs = results["runs"]
    width = max(1, results["steps"] // 50)
    for index, (name, run) in enumerate(runs.items()):
        left.plot(smooth(run["losses"], width), label=name, color=COLOURS[name],
                  linewidth=3.2 - 0.6 * index)  # those below are seen beside those above
    left.set_xlabel("step")
    left.set_title(f"training loss (mean of {width} steps)", loc="left")
    left.legend(frameon=False)
    speeds = [run["tokens_per_second"] for run in runs.values()]
    bars = right.barh(list(runs), speeds, color=[COLOURS[name] for name in runs])
    right.bar_label(bars, [f" {speed:,.0f}" for speed in speeds])
    right.set_xlim(0, 1.25 * max(speeds))
    right.invert_yaxis()
    right.set_xticks([])
    right.set_title("tokens a second", loc="left")
    for axes in (left, right):
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    figure.suptitle(f"{results['parameters'] / 1e6:.1f}M parameters, {results['device']}, "
                    f"PyTorch {results['torch']}", x=0.01, ha="left", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, facecolor="white", metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    if len(sys.argv) not in (2, 3) or sys.argv[1] in ("-h", "--help"):
        sys.exit(__doc__.strip())
    source = pathlib.Path(sys.argv[1])
    picture = pathlib.Path(sys.argv[2]) if len(sys.argv) == 3 else source.with_suffix(".svg")
    draw(json.loads(source.read_text()), picture)
    print(picture)


if __name__ == "__main__":
    main()
