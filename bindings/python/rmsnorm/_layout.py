"""Puts arrays of any number of dimensions into the library's terms: rows x groups x cols.

The library knows two strides per array. Leading dimensions that follow each other in memory, in
every array of a call, are one; if more than two are left, the inputs that are in the way are
copied. Outputs never are.
"""
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

from ._arrays import Shape, contiguous_strides
from ._errors import ArgumentError

Dimension = Tuple[int, Shape]  # its size, and a stride for each array

Strides = Dict[str, Optional[Shape]]  # of each array


class Layout(NamedTuple):
    rows: int
    groups: int
    strides: Dict[str, Tuple[int, int]]  # row_stride and group_stride of each array
    copied: List[str]  # the inputs to be copied
    axes: Tuple[int, ...]  # the order in memory of new arrays' and copies' leading dimensions


def in_two(shape: Shape, axes: Sequence[int], strides: Sequence[Shape],
           per_group: bool) -> Optional[Tuple[Dimension, Dimension]]:
    """Dimensions joined where they follow each other in every array, as rows and groups. None if
    more are left. per_group: the last dimension is the groups, for it has vectors of its own.
    """
    nothing = (0,) * len(strides)
    dimensions = [(shape[axis], tuple(each[axis] for each in strides)) for axis in axes]
    groups = dimensions.pop() if per_group else (1, nothing)
    if any(size == 0 for size, _ in dimensions):
        return (0, nothing), groups
    found: List[Dimension] = []
    for size, steps in dimensions:
        if size == 1:
            continue
        if found and all(outer == size * step for outer, step in zip(found[-1][1], steps)):
            found[-1] = (found[-1][0] * size, steps)
        else:
            found.append((size, steps))
    if len(found) > (1 if per_group else 2):
        return None
    return found[0] if found else (1, nothing), found[1] if len(found) == 2 else groups


def lay_out(shape: Shape, outputs: Strides, inputs: Strides,
            new: Sequence[str], widths: Dict[str, int], per_group: bool) -> Layout:
    """shape: the leading dimensions. outputs, inputs: the arrays' strides over them; None for an
    input, never an output, that is copied in any case. new: outputs that are still to be made.
    widths: elements in a row of each array. ArgumentError, with the name, for an output that does
    not fit.
    """
    natural = tuple(range(len(shape)))
    candidates = [natural]
    first = next((each for each in (*outputs.values(), *inputs.values()) if each), None)
    if first is not None:  # its order in memory: then a transposed array needs no copy
        free = natural[:-1] if per_group else natural
        by_stride = sorted(free, key=lambda axis: -abs(first[axis]))
        candidates.append((*by_stride, *natural[len(free):]))
    best: Optional[Layout] = None
    unfit = ""
    for axes in candidates:
        # What is made or copied has no gaps in this order: it never keeps dimensions apart.
        kept: Dict[str, Shape] = {}
        copied = []
        for name, strides in {**outputs, **inputs}.items():
            if strides is not None and in_two(shape, axes, [*kept.values(), strides], per_group):
                kept[name] = strides
            elif name in outputs:
                unfit = unfit or name
                break
            else:
                copied.append(name)
        else:
            if best is not None and len(best.copied) <= len(copied):
                continue
            for name in (*copied, *new):
                kept[name] = tuple(step * widths[name] for step in contiguous_strides(shape, axes))
            found = in_two(shape, axes, list(kept.values()), per_group)
            assert found is not None
            (rows, row_strides), (groups, group_strides) = found
            best = Layout(rows, groups, dict(zip(kept, zip(row_strides, group_strides))), copied,
                          axes)
    if best is None:
        raise ArgumentError(f"{unfit} has strides that are not those of rows x groups, and outputs "
                            "are not copied: make it contiguous")
    return best
