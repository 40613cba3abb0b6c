"""Held-out documents: deterministic, spread, close to the fraction, never none."""

from __future__ import annotations

import numpy as np
import pytest

from altup_moe.config import ConfigError
from altup_moe.data.split import split_documents


def test_split_is_a_partition_close_to_the_fraction() -> None:
    lengths = np.random.default_rng(0).integers(1, 2000, size=1000)
    train, valid = split_documents(lengths, 0.05)
    assert sorted([*train, *valid]) == list(range(1000))
    assert (np.diff(train) > 0).all()
    assert (np.diff(valid) > 0).all()
    assert 0.049 < lengths[valid].sum() / lengths.sum() <= 0.05
    thirds = np.histogram(valid, bins=3, range=(0, 1000))[0]
    assert thirds.min() >= len(valid) / 6  # spread over the corpus, not its tail


def test_split_does_not_change_between_releases() -> None:
    assert split_documents([10] * 20, 0.2)[1].tolist() == [2, 4, 6, 18]


@pytest.mark.parametrize(
    ("lengths", "fraction"), [([5, 3], 0.01), ([5, 3], 0.99), ([1, 1, 100], 0.999), ([7] * 3, 0.1)]
)
def test_neither_side_is_empty(lengths: list[int], fraction: float) -> None:
    train, valid = split_documents(lengths, fraction)
    assert len(train) > 0
    assert len(valid) > 0
    assert len(train) + len(valid) == len(lengths)


@pytest.mark.parametrize(("lengths", "fraction"), [([5, 3], 0.0), ([5, 3], 1.0), ([5, 3], -0.1), ([5], 0.5), ([], 0.5)])
def test_impossible_splits_are_named(lengths: list[int], fraction: float) -> None:
    with pytest.raises(ConfigError, match=r"data\.valid_fraction"):
        split_documents(lengths, fraction)
