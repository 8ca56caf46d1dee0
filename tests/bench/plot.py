#!/usr/bin/env python3
"""Draws the results of a sweep, and prints the tables of README.md.

    plot.py all.json --out DIR [--tables table,decode,heads,offgrid]

The pictures need the group `cols`: DIR/forward.svg and DIR/backward.svg, the share of the
element-wise ceiling over the row's width. Needs matplotlib. The tables go to stdout: the summary,
and those named, a line per cell.
"""
import argparse
import os

import results

# Okabe and Ito's colours, which colour-blind readers tell apart; each line has its marker as well.
STYLES = {"ours": ("#0072B2", "o"), "torch": ("#7F7F7F", "v"), "compile": ("#E69F00", "s"),
          "liger": ("#009E73", "^"), "cudnn": ("#CC79A7", "D"), "quack": ("#D55E00", "P")}
INK, PALE = "#222222", "#D9D9D9"
WIDTHS = [128 << i for i in range(12)]  # labelled: 128 to 262,144


def thousands(width):
    return str(width) if width < 1024 else f"{width // 1024}K"


def spread_out(heights, gap, low, high):
    """The nearest heights, in the same order, that are `gap` apart and within low..high."""
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    placed = {}
    floor = low
    for i in order:
        placed[i] = max(heights[i], floor)
        floor = placed[i] + gap
    roof = high
    for i in reversed(order):
        placed[i] = min(placed[i], roof)
        roof = placed[i] - gap
    return [placed[i] for i in range(len(heights))]


def curves(doc, op):
    """{name: ([cols], [share])} over the cells of the group cols."""
    cells = sorted(results.cells_of(doc, "cols", op), key=lambda cell: cell["cols"])
    found = {}
    for name in results.names_in(cells):
        points = [(cell["cols"], cell["results"][name]["share"]) for cell in cells
                  if "share" in cell["results"].get(name, {})]
        if name in STYLES and any(cols % 8 == 0 for cols, _ in points):
            found[name] = tuple(zip(*points))
    return found


def draw(doc, op, path):
    import matplotlib
    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": op, "font.family": "DejaVu Sans", "font.size": 10})
    import matplotlib.pyplot as plt

    lines = curves(doc, op)
    figure, axes = plt.subplots(figsize=(9, 4.6), facecolor="white")
    axes.set_xscale("log", base=2)
    axes.set_xlim(WIDTHS[0] / 1.12, WIDTHS[-1] * 1.12)
    axes.set_ylim(0, 1.1)
    axes.axhline(1, color=INK, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    axes.text(WIDTHS[0], 1.02, "an element-wise kernel that moves the same bytes", fontsize=8.5,
              color=INK, va="bottom")
    last = max((cols[-1] for cols, _ in lines.values()), default=WIDTHS[-1])
    for name, (cols, shares) in lines.items():
        colour, marker = STYLES[name]
        mine = name == "ours"
        size, order = (5, 4) if mine else (3.8, 3)
        odd = [(at, share) for at, share in zip(cols, shares) if at % 8]
        rest = [(at, share) for at, share in zip(cols, shares) if at % 8 == 0]
        axes.plot(*zip(*rest), color=colour, marker=marker, markersize=size, zorder=order,
                  linewidth=2.6 if mine else 1.2, markeredgecolor="white", markeredgewidth=0.5)
        if odd:
            axes.plot(*zip(*odd), color=colour, marker=marker, markersize=size + 1.5, zorder=order,
                      linestyle="none", markerfacecolor="white", markeredgewidth=1.3)
        if cols[-1] < last:  # its line ends here because it refuses what is wider
            axes.plot(cols[-1:], shares[-1:], color=colour, marker="x", markersize=9,
                      markeredgewidth=2, zorder=5)

    # Each line's name beside its end.
    ends = [shares[-1] for _, shares in lines.values()]
    edge = axes.get_xlim()[1]
    for name, (cols, shares), height in zip(lines, lines.values(),
                                            spread_out(ends, 0.062, 0.03, 1.06)):
        colour = STYLES[name][0]
        text = results.LABELS[name]
        if cols[-1] < last:
            text += f" (to {thousands(cols[-1])})"
        axes.annotate(text, (cols[-1], shares[-1]), (edge * 1.08, height), color=colour,
                      va="center", annotation_clip=False, fontsize=10,
                      fontweight="bold" if name == "ours" else "normal",
                      arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6,
                                  "alpha": 0.6, "shrinkA": 1, "shrinkB": 3})

    axes.set_xticks(WIDTHS, [thousands(width) for width in WIDTHS])
    axes.minorticks_off()
    axes.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1.0], ["0", "20%", "40%", "60%", "80%", "100%"])
    axes.grid(axis="y", color=PALE, linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(colors=INK, length=0)
    axes.tick_params(axis="x", length=3)
    axes.set_xlabel("cols", color=INK)
    run = doc["runs"][0]
    what = f"RMSNorm {results.OP_NAMES[op]}, bf16, 256 MiB of x: share of the memory's speed"
    axes.set_title(what, loc="left", color=INK, fontsize=12, pad=20)
    note = f"{run['gpu']}; higher is better; hollow: cols that 8 does not divide (1027, 4097)"
    axes.text(0, 1.025, note, transform=axes.transAxes, fontsize=9, color="#555555")
    figure.subplots_adjust(left=0.06, right=0.82, top=0.87, bottom=0.12)
    figure.savefig(path, facecolor="white", metadata={"Date": None})
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("json", help="what sweep.py has written")
    parser.add_argument("--out", metavar="DIR", help="where the pictures go (default: no pictures)")
    parser.add_argument("--tables", default="table,decode,heads,offgrid", metavar="GROUP,...")
    options = parser.parse_args()
    doc = results.load(options.json)

    print(results.provenance(doc), results.summary(doc), sep="\n\n")
    for group in options.tables.split(","):
        for op in results.OP_NAMES:
            if results.cells_of(doc, group, op):
                table = results.microseconds if group == "decode" else results.full
                print(f"\n{group}\n\n{table(doc, group, op)}")
    if options.out:
        os.makedirs(options.out, exist_ok=True)
        for op in ("fwd", "bwd"):
            if curves(doc, op):
                path = os.path.join(options.out, f"{results.OP_NAMES[op]}.svg")
                draw(doc, op, path)
                print(f"\n{path}")


if __name__ == "__main__":
    main()
