"""Arithmetic on slices of a tensor: intersect them, merge them, check that they cover the tensor. Pure integers.

A `TensorSlice` has a (start, stop) pair for each dimension. All slices of a tensor are in the coordinates of the whole
tensor. A scalar has one slice, the empty tuple.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from altup_moe.parallel.parameter_mapping import TensorSlice


def full_slice(shape: Sequence[int]) -> TensorSlice:
    """The slice that covers a tensor of this shape."""
    return tuple((0, n) for n in shape)


def slice_shape(tensor_slice: TensorSlice) -> tuple[int, ...]:
    """Size of a slice in each dimension."""
    return tuple(stop - start for start, stop in tensor_slice)


def num_elements(tensor_slice: TensorSlice) -> int:
    """Number of elements of a slice; 1 for a scalar."""
    return math.prod(slice_shape(tensor_slice))


def in_bounds(tensor_slice: TensorSlice, shape: Sequence[int]) -> bool:
    """Whether a slice has as many dimensions as the tensor and lies inside it."""
    return len(tensor_slice) == len(shape) and all(
        0 <= a <= b <= n for (a, b), n in zip(tensor_slice, shape, strict=True)
    )


def intersect(a: TensorSlice, b: TensorSlice) -> TensorSlice | None:
    """The elements that two slices share; None if they share none."""
    both = tuple((max(p, r), min(q, s)) for (p, q), (r, s) in zip(a, b, strict=True))
    return both if all(start < stop for start, stop in both) else None


def relative_to(tensor_slice: TensorSlice, outer: TensorSlice) -> TensorSlice:
    """The same elements in the coordinates of the slice `outer`, which contains them."""
    pairs = zip(tensor_slice, outer, strict=True)
    return tuple((start - origin, stop - origin) for (start, stop), (origin, _) in pairs)


def flat_range_slices(tensor_slice: TensorSlice, start: int, stop: int) -> list[TensorSlice]:
    """Elements [start, stop) of a slice, in row-major order, as a list of slices: at most three for a matrix.

    The distributed optimizer cuts a parameter at any element, not only between rows.
    """
    if stop <= start:
        return []
    if not tensor_slice:
        return [()]
    (first, _), *rest = tensor_slice
    row = num_elements(tuple(rest))
    low, high = start // row, (stop - 1) // row

    def part_of_row(n: int, a: int, b: int) -> list[TensorSlice]:
        return [((first + n, first + n + 1), *inner) for inner in flat_range_slices(tuple(rest), a, b)]

    if low == high:
        return part_of_row(low, start - low * row, stop - low * row)
    head = part_of_row(low, start - low * row, row) if start % row else []
    tail = part_of_row(high, 0, stop - high * row) if stop % row else []
    full = (first + low + bool(head), first + high + (not tail))
    return [*head, *([(full, *rest)] if full[0] < full[1] else []), *tail]


def merge_slices(slices: Iterable[TensorSlice]) -> list[TensorSlice]:
    """The same elements in fewer slices: neighbours along dimension 0 that agree in all other dimensions become one.

    Args:
        slices: disjoint, in any order.
    Returns:
        The merged slices, sorted.
    """
    done: list[TensorSlice] = []
    for tensor_slice in sorted(slices):
        if done and tensor_slice and done[-1][1:] == tensor_slice[1:] and done[-1][0][1] == tensor_slice[0][0]:
            tensor_slice = ((done.pop()[0][0], tensor_slice[0][1]), *tensor_slice[1:])
        done.append(tensor_slice)
    return done


def row_bands(shape: Sequence[int], limit: int) -> Iterator[TensorSlice]:
    """A tensor as slices of whole rows, in order: each at most `limit` elements, but at least one row.

    A scalar gives one slice, a tensor without elements none.
    """
    if not shape:
        yield ()
        return
    row = math.prod(shape[1:])
    step = max(1, limit // max(1, row))
    for start in range(0, shape[0] if row else 0, step):
        yield ((start, min(start + step, shape[0])), *full_slice(shape[1:]))


def coverage_problem(shape: Sequence[int], slices: Iterable[TensorSlice]) -> str | None:
    """Why slices do not cover a tensor exactly once; None if they do."""
    ordered = sorted(slices)
    for tensor_slice in ordered:
        if not in_bounds(tensor_slice, shape):
            return f"the piece {tensor_slice} does not lie in {tuple(shape)}"
    active: list[TensorSlice] = []
    for tensor_slice in ordered:
        # The slices are sorted by their first row: only those that end after this row can overlap this slice.
        active = [other for other in active if not tensor_slice or other[0][1] > tensor_slice[0][0]]
        # Two slices of a scalar intersect in (), which is an overlap too.
        if any(intersect(tensor_slice, other) is not None for other in active):
            return f"the piece {tensor_slice} overlaps another"
        active.append(tensor_slice)
    missing = math.prod(shape) - sum(map(num_elements, ordered))
    return f"{missing} of {math.prod(shape)} elements are missing" if missing else None
