"""Slices: cut at any element, joined without gaps or overlaps, compared with what numpy does."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from altup_moe.checkpoint.slices import (
    coverage_problem,
    flat_range_slices,
    full_slice,
    in_bounds,
    intersect,
    num_elements,
    relative_to,
    slice_shape,
)
from altup_moe.parallel.parameter_mapping import TensorSlice

SHAPES = st.lists(st.integers(0, 5), max_size=4).map(tuple)


def index(tensor_slice: TensorSlice) -> tuple[slice, ...]:
    return tuple(slice(start, stop) for start, stop in tensor_slice)


@st.composite
def slices(draw: st.DrawFn, shape: tuple[int, ...]) -> TensorSlice:
    ends = [sorted((draw(st.integers(0, n)), draw(st.integers(0, n)))) for n in shape]
    return tuple((start, stop) for start, stop in ends)


@st.composite
def partitions(draw: st.DrawFn, tensor_slice: TensorSlice, depth: int = 4) -> list[TensorSlice]:
    """A slice, cut and cut again along any dimension."""
    long = [d for d, (start, stop) in enumerate(tensor_slice) if stop - start > 1]
    if not long or not depth or draw(st.booleans()):
        return [tensor_slice]
    d = draw(st.sampled_from(long))
    at = draw(st.integers(tensor_slice[d][0] + 1, tensor_slice[d][1] - 1))
    halves = (
        (*tensor_slice[:d], (tensor_slice[d][0], at), *tensor_slice[d + 1 :]),
        (*tensor_slice[:d], (at, tensor_slice[d][1]), *tensor_slice[d + 1 :]),
    )
    return [piece for half in halves for piece in draw(partitions(half, depth - 1))]


@given(st.data())
def test_flat_slices_are_the_elements_in_order(data: st.DataObject) -> None:
    shape = data.draw(SHAPES)
    tensor_slice = data.draw(slices(shape))
    numbers = np.arange(int(np.prod(shape))).reshape(shape)
    held = numbers[index(tensor_slice)].reshape(-1)
    start, stop = sorted((data.draw(st.integers(0, held.size)), data.draw(st.integers(0, held.size))))
    found = flat_range_slices(tensor_slice, start, stop)
    assert [n for part in found for n in numbers[index(part)].reshape(-1)] == held[start:stop].tolist()
    assert all(in_bounds(part, shape) and num_elements(part) for part in found)
    assert len(found) <= max(1, 2 * len(shape) - 1)


def test_flat_slices_of_a_matrix() -> None:
    assert flat_range_slices(((2, 6), (0, 3)), 2, 10) == [((2, 3), (2, 3)), ((3, 5), (0, 3)), ((5, 6), (0, 1))]
    assert flat_range_slices((), 0, 1) == [()]
    assert flat_range_slices(((2, 6), (0, 3)), 4, 4) == []


@given(st.data())
def test_meet_and_within_are_what_masks_say(data: st.DataObject) -> None:
    shape = data.draw(SHAPES)
    a, b = data.draw(slices(shape)), data.draw(slices(shape))
    masks = [np.zeros(shape, bool) for _ in range(2)]
    for mask, tensor_slice in zip(masks, (a, b), strict=True):
        mask[index(tensor_slice)] = True
    common = intersect(a, b)
    both = masks[0] & masks[1]
    assert both.sum() == (0 if common is None else num_elements(common))
    if common is not None:
        assert both[index(common)].all()
        numbers = np.arange(both.size).reshape(shape)
        assert np.array_equal(numbers[index(a)][index(relative_to(common, a))], numbers[index(common)])
        assert slice_shape(relative_to(common, a)) == slice_shape(common)


@given(st.data())
def test_a_partition_covers_and_a_spoilt_one_does_not(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(1, 5), max_size=4).map(tuple))
    pieces = data.draw(partitions(full_slice(shape)).flatmap(st.permutations))
    assert coverage_problem(shape, pieces) is None
    one = data.draw(st.sampled_from(pieces))
    rest = [piece for piece in pieces if piece != one]
    assert (
        coverage_problem(shape, rest)
        == f"{num_elements(one)} of {num_elements(full_slice(shape))} elements are missing"
    )
    assert coverage_problem(shape, [*pieces, one]) == f"the piece {one} overlaps another"


@given(st.data())
def test_any_slices_are_judged_as_by_counting(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(1, 3), max_size=3).map(tuple))
    pieces = data.draw(st.lists(slices(shape), max_size=5))
    counts = np.zeros(shape, int)
    for piece in pieces:
        counts[index(piece)] += 1
    assert (coverage_problem(shape, pieces) is None) == bool((counts == 1).all())


@pytest.mark.parametrize("tensor_slice", [((0, 5), (0, 2)), ((2, 1), (0, 2)), ((-1, 4), (0, 2)), ((0, 4),), ()])
def test_a_piece_outside(tensor_slice: TensorSlice) -> None:
    assert not in_bounds(tensor_slice, (4, 2))
    assert coverage_problem((4, 2), [tensor_slice]) == f"the piece {tensor_slice} does not lie in (4, 2)"


def test_scalars_and_empty_tensors() -> None:
    assert (coverage_problem((), [()]), coverage_problem((0, 3), []), coverage_problem((0, 3), [((0, 0), (0, 3))])) == (
        None,
        None,
        None,
    )
    assert coverage_problem((), []) == "1 of 1 elements are missing"
    assert coverage_problem((), [(), ()]) == "the piece () overlaps another"
    assert (num_elements(()), full_slice(()), slice_shape(((2, 5), (1, 1)))) == (1, (), (3, 0))
