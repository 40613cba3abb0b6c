"""Boxes of a tensor: what a rank holds, what a file holds, and where they meet. Pure integers.

A box is a (start, stop) for each dimension; all boxes of a tensor are given in the whole tensor's coordinates.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from altup_moe.parallel.parameter_mapping import TensorSlice


def full_slice(shape: Sequence[int]) -> TensorSlice:
    """The box of a whole tensor."""
    return tuple((0, n) for n in shape)


def slice_shape(box: TensorSlice) -> tuple[int, ...]:
    """Sizes of a box."""
    return tuple(stop - start for start, stop in box)


def num_elements(box: TensorSlice) -> int:
    """Elements of a box; 1 for a scalar's."""
    return math.prod(slice_shape(box))


def in_bounds(box: TensorSlice, shape: Sequence[int]) -> bool:
    """Whether a box has the tensor's dimensions and lies within it."""
    return len(box) == len(shape) and all(0 <= a <= b <= n for (a, b), n in zip(box, shape, strict=True))


def intersect(a: TensorSlice, b: TensorSlice) -> TensorSlice | None:
    """What two boxes share, or None."""
    both = tuple((max(p, r), min(q, s)) for (p, q), (r, s) in zip(a, b, strict=True))
    return both if all(start < stop for start, stop in both) else None


def relative_to(box: TensorSlice, outer: TensorSlice) -> TensorSlice:
    """The same box, counted from the corner of `outer`."""
    return tuple((start - corner, stop - corner) for (start, stop), (corner, _) in zip(box, outer, strict=True))


def flat_range_slices(box: TensorSlice, start: int, stop: int) -> list[TensorSlice]:
    """Elements [start, stop) of a box, counted row by row, as boxes in that order: for a matrix at most three.

    The distributed optimizer cuts parameters at any element, not at rows.
    """
    if stop <= start:
        return []
    if not box:
        return [()]
    (first, _), *rest = box
    row = num_elements(tuple(rest))
    low, high = start // row, (stop - 1) // row

    def part(n: int, a: int, b: int) -> list[TensorSlice]:
        return [((first + n, first + n + 1), *inner) for inner in flat_range_slices(tuple(rest), a, b)]

    if low == high:
        return part(low, start - low * row, stop - low * row)
    head = part(low, start - low * row, row) if start % row else []
    tail = part(high, 0, stop - high * row) if stop % row else []
    full = (first + low + bool(head), first + high + (not tail))
    return [*head, *([(full, *rest)] if full[0] < full[1] else []), *tail]


def merge_slices(boxes: Iterable[TensorSlice]) -> list[TensorSlice]:
    """The same elements in fewer boxes: those whose rows follow each other, and that are alike otherwise, become one.

    Boxes are disjoint. In the order of their corners.
    """
    done: list[TensorSlice] = []
    for box in sorted(boxes):
        if done and box and done[-1][1:] == box[1:] and done[-1][0][1] == box[0][0]:
            box = ((done.pop()[0][0], box[0][1]), *box[1:])
        done.append(box)
    return done


def row_bands(shape: Sequence[int], limit: int) -> Iterator[TensorSlice]:
    """Boxes of whole rows that make up a tensor, in order: at most `limit` elements each, or one row.

    A scalar is one box; a tensor without elements none.
    """
    if not shape:
        yield ()
        return
    row = math.prod(shape[1:])
    step = max(1, limit // max(1, row))
    for start in range(0, shape[0] if row else 0, step):
        yield ((start, min(start + step, shape[0])), *full_slice(shape[1:]))


def coverage_problem(shape: Sequence[int], boxes: Iterable[TensorSlice]) -> str | None:
    """Why boxes do not make up a tensor, each element once; None if they do."""
    held = sorted(boxes)
    for box in held:
        if not in_bounds(box, shape):
            return f"the piece {box} does not lie in {tuple(shape)}"
    active: list[TensorSlice] = []
    for box in held:
        # Sorted by the first dimension: only boxes whose rows are not yet over can meet this one.
        active = [other for other in active if not box or other[0][1] > box[0][0]]
        # Two pieces of a scalar meet in (), which is an overlap too.
        if any(intersect(box, other) is not None for other in active):
            return f"the piece {box} overlaps another"
        active.append(box)
    missing = math.prod(shape) - sum(map(num_elements, held))
    return f"{missing} of {math.prod(shape)} elements are missing" if missing else None
