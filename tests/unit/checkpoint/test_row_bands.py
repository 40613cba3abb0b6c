"""Row bands and merged slices: the same elements, fewer or smaller slices."""

from __future__ import annotations

import itertools
import random

import pytest

from altup_moe.checkpoint.slices import coverage_problem, merge_slices, num_elements, row_bands


@pytest.mark.parametrize("shape", [(), (1,), (7,), (5, 3), (4, 3, 2), (0,), (3, 0)])
@pytest.mark.parametrize("limit", [1, 3, 6, 100])
def test_bands_make_up_the_tensor_in_order(shape: tuple[int, ...], limit: int) -> None:
    slices = list(row_bands(shape, limit))
    assert coverage_problem(shape, slices) is None
    assert slices == sorted(slices)
    row = num_elements(tuple((0, n) for n in shape[1:]))
    assert all(num_elements(tensor_slice) <= max(limit, row) for tensor_slice in slices)


def test_slices_whose_rows_follow_each_other_are_merged() -> None:
    assert merge_slices([((2, 4), (0, 3)), ((0, 2), (0, 3)), ((5, 6), (0, 3))]) == [((0, 4), (0, 3)), ((5, 6), (0, 3))]
    assert merge_slices([((0, 2), (0, 3)), ((2, 4), (0, 2))]) == [((0, 2), (0, 3)), ((2, 4), (0, 2))]
    assert merge_slices([((0, 2),), ((2, 3),)]) == [((0, 3),)]
    assert merge_slices([()]) == [()]


def test_merged_slices_hold_the_same_elements() -> None:
    def elements(slices: list) -> list[tuple[int, ...]]:
        return sorted(e for tensor_slice in slices for e in itertools.product(*(range(a, b) for a, b in tensor_slice)))

    cells = [((r, r + 1), (c, c + 2)) for r in range(6) for c in (0, 2)]
    for seed in range(20):
        some = random.Random(seed).sample(cells, 7)
        assert elements(merge_slices(some)) == elements(some)
