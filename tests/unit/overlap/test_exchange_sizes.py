"""Sizes that ranks bring to an exchange, compared."""

from __future__ import annotations

import pytest

from altup_moe.overlap.exchange_sizes import size_problem

FITS = [[64, 1, 5, 1, 2], [64, 2, 0, 5, 0]]
"""Bytes of a row, rows to each rank, rows from each rank."""


def test_sizes_that_fit() -> None:
    assert size_problem(FITS, [0, 1]) is None


@pytest.mark.parametrize(
    ("rank", "place", "value", "says"),
    [
        (1, 0, 32, "a row has 64 bytes on rank 4 and 32 on rank 9"),
        (0, 2, 4, "rank 4 sends 4 rows to rank 9, which expects 5"),
        (0, 4, 3, "rank 9 sends 2 rows to rank 4, which expects 3"),
    ],
)
def test_sizes_that_do_not(rank: int, place: int, value: int, says: str) -> None:
    every = [list(sizes) for sizes in FITS]
    every[rank][place] = value
    assert size_problem(every, [4, 9]) == says
