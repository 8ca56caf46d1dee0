"""The cells of a sweep: which operation, dtype, shape and memory layout. No torch in here.

A cell may be in several groups (`table`, `cols`, `decode`, `heads`, `offgrid`); it is timed once.
"""
from dataclasses import dataclass

OPS = ("fwd", "bwd", "add")
ELEMENT_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}

# How the inputs lie in memory; outputs are packed always.
#   packed   row after row, 16-byte aligned
#   strided  rows 1.5 * cols elements apart, as a slice of a wider tensor
#   shifted  packed, but off by one element from where a vector load would like it
LAYOUTS = ("packed", "strided", "shifted")

# From a head's width to a vocabulary's; between the powers of two what models have (2880, 5376,
# 6656, 7168, 20480), and odd ones.
COLS = (128, 192, 256, 384, 512, 768, 1024, 1027, 1536, 2048, 2880, 3072, 4096, 4097, 5120, 5376,
        6144, 6656, 7168, 8192, 10240, 12288, 14336, 16384, 20480, 24576, 32768, 49152, 65536,
        98304, 131072, 196608, 262144)
COLS_BYTES = 256 << 20  # of x, in every cell of the groups `cols` and `heads`
HEAD_DIMS = (64, 80, 96, 112, 128, 192, 256)


@dataclass(frozen=True, order=True)
class Cell:
    op: str  # one of OPS
    dtype: str
    rows: int
    cols: int
    layout: str = "packed"

    def __str__(self):
        text = f"{self.op} {self.dtype} {self.rows}x{self.cols}"
        return text if self.layout == "packed" else f"{text} {self.layout}"

    @property
    def tensor_bytes(self):
        return self.rows * self.cols * ELEMENT_BYTES[self.dtype]


def parse(text):
    """A cell written by hand: 'fwd,bf16,20001,2880' or 'fwd,bf16,20001,2880,strided'."""
    op, dtype, rows, cols, *layout = text.split(",")
    cell = Cell(op, dtype, int(rows), int(cols), *layout)
    if (op not in OPS or dtype not in ELEMENT_BYTES or cell.layout not in LAYOUTS
            or cell.rows < 1 or cell.cols < 1):
        raise ValueError(f"not a cell: {text}")
    return cell


def table():
    """Shapes of models and of the neighbours' own benchmarks."""
    cells = [Cell("fwd", "fp16", 4096, cols) for cols in (1024, 2048, 4096, 8192)]
    cells += [Cell("fwd", "bf16", rows, cols) for rows, cols in (
        (32768, 256), (32768, 1024), (32768, 4096), (32768, 8192), (32768, 16384), (16384, 32768),
        (16384, 65536), (8192, 131072), (1, 4096), (64, 8192), (262144, 128), (8192, 5120),
        (8192, 7168))]
    cells += [Cell("fwd", "fp32", 32768, 4096)]
    cells += [Cell("add", "bf16", rows, cols) for rows, cols in (
        (32768, 4096), (32768, 8192), (64, 8192), (8192, 7168))]
    cells += [Cell("bwd", "fp16", 4096, 4096), Cell("bwd", "fp32", 32768, 4096)]
    cells += [Cell("bwd", "bf16", rows, cols) for rows, cols in (
        (32768, 1024), (32768, 4096), (32768, 8192), (32768, 16384), (16384, 32768), (262144, 128),
        (8192, 7168))]
    return cells


def same_bytes(op, widths):
    """bf16 cells of COLS_BYTES each."""
    return [Cell(op, "bf16", max(1, COLS_BYTES // (2 * cols)), cols) for cols in widths]


def decode():
    """One step of generation: few rows, so that a kernel is mostly its launch and its latency."""
    return [Cell(op, "bf16", rows, cols) for op in ("fwd", "add") for rows in (1, 8, 64)
            for cols in (2048, 4096, 7168, 8192, 16384)]


def heads():
    """Norms of queries and keys: a row is a head; the last, one step of generation."""
    return (same_bytes("fwd", HEAD_DIMS) + same_bytes("bwd", HEAD_DIMS)
            + [Cell("fwd", "bf16", 2048, cols) for cols in HEAD_DIMS])


def offgrid():
    """What benchmarks leave out: a count of rows and widths that divide by nothing, gaps between
    rows, pointers that no vector load may use."""
    return [Cell(op, "bf16", 20001, cols, layout) for op in ("fwd", "bwd")
            for cols in (2880, 4096, 4097) for layout in LAYOUTS]


GROUPS = {
    "table": table,
    "cols": lambda: same_bytes("fwd", COLS) + same_bytes("bwd", COLS),
    "decode": decode,
    "heads": heads,
    "offgrid": offgrid,  # last: odd pointers are what may bring a neighbour's kernel down
}


def select(groups):
    """{cell: the groups that have it}, in the order of GROUPS."""
    cells = {}
    for name, make in GROUPS.items():
        if name in groups:
            for cell in make():
                cells.setdefault(cell, []).append(name)
    return cells
