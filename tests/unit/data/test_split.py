"""Held-out documents or tokens: deterministic, spread, close to the fraction, never none."""

from __future__ import annotations

import numpy as np
import pytest

from altup_moe.config import ConfigError
from altup_moe.data.split import TextPart, split_documents, split_text


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


def _tokens(part: TextPart) -> set[tuple[int, int]]:
    """(document, position) of every token of a part."""
    rows = zip(part.documents, part.begins, part.lengths, strict=True)
    return {(int(d), int(b) + n) for d, b, length in rows for n in range(length)}


@pytest.mark.parametrize(
    ("lengths", "fraction", "held"),
    [
        ([437], 0.05, 21),  # one document, the usual input.txt
        ([500, 500], 0.05, 50),  # whole documents: half
        ([300, 100, 300, 300], 0.04, 40),  # 10 %
        ([1, 1000, 1000], 0.05, 100),  # one token
        ([40, 3, 2], 0.25, 11),  # more than the last document
        ([9], 0.05, 2),  # at least one label
        ([3], 0.9, 2),
    ],
)
def test_the_end_is_held_out_where_documents_are_too_few(lengths: list[int], fraction: float, held: int) -> None:
    split = split_text(lengths, fraction)
    whole = [(d, n) for d, length in enumerate(lengths) for n in range(length)]
    assert _tokens(split.train) == set(whole[: len(whole) - held])
    assert _tokens(split.valid) == set(whole[len(whole) - held :])
    assert min(split.train.lengths.min(), split.valid.lengths.min()) > 0
    assert split.summary.startswith(f"the last {held} of {len(whole):,} tokens ({held / len(whole):.1%}) are held out")


@pytest.mark.parametrize("fraction", [0.02, 0.05, 0.3])
def test_whole_documents_are_held_out_where_they_fit(fraction: float) -> None:
    lengths = np.random.default_rng(1).integers(1, 300, size=200)
    split, (train, valid) = split_text(lengths, fraction), split_documents(lengths, fraction)
    for part, documents in ((split.train, train), (split.valid, valid)):
        assert part.documents.tolist() == documents.tolist()
        assert part.lengths.tolist() == lengths[documents].tolist()
        assert not part.begins.any()
    assert split.summary.startswith(f"{len(valid)} of 200 documents, {lengths[valid].sum():,} of {lengths.sum():,}")


@pytest.mark.parametrize(("lengths", "fraction"), [([5, 3], 0.0), ([5], 1.0), ([1, 1], 0.5), ([2], 0.5), ([], 0.5)])
def test_a_corpus_that_cannot_be_cut_is_named(lengths: list[int], fraction: float) -> None:
    with pytest.raises(ConfigError, match=r"data\.valid_fraction"):
        split_text(lengths, fraction)
