"""Micro-batches: every sample once, and the same sets of samples under any number of data-parallel ranks."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from altup_moe.train.batches import Batch, micro_batches

S = 3


class Numbers:
    """Sample n is n everywhere; only its first label does not count. Notes what was asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        self.asked.append(number)
        mask = torch.ones(S)
        mask[0] = 0
        return {"tokens": torch.full((S,), number), "labels": torch.full((S,), 1000 + number), "loss_mask": mask}


def counted(batch: Batch) -> tuple[int, ...]:
    """Sample numbers of the rows that count."""
    return tuple(int(row[0]) for row, mask in zip(batch.tokens, batch.loss_mask, strict=True) if mask.any())


@pytest.mark.parametrize("data_size", [1, 2, 4])
def test_a_step_is_the_same_micro_batches_on_any_number_of_ranks(data_size: int) -> None:
    parts = [list(micro_batches(Numbers(), 16, 16, 2, rank, data_size)) for rank in range(data_size)]
    assert {len(part) for part in parts} == {8 // data_size}
    sets = sorted(counted(batch) for part in parts for batch in part)
    assert sets == [(n, n + 1) for n in range(16, 32, 2)]
    # Rank r of n takes micro-batches r, r + n, ...: at any moment the ranks hold consecutive ones.
    assert [counted(part[0]) for part in parts] == [(16 + 2 * r, 17 + 2 * r) for r in range(data_size)]


def test_rows_are_the_samples() -> None:
    (batch,) = micro_batches(Numbers(), 4, 2, 2, 0, 1)
    assert batch.tokens.tolist() == [[4] * S, [5] * S]
    assert batch.labels.tolist() == [[1004] * S, [1005] * S]
    assert batch.loss_mask.tolist() == [[0.0, 1.0, 1.0]] * 2


def test_consecutive_steps_follow_each_other() -> None:
    """A run goes on exactly from its number of consumed samples."""
    seen = [n for step in range(4) for b in micro_batches(Numbers(), 8 * step, 8, 2, 0, 1) for n in counted(b)]
    assert seen == list(range(32))


@settings(max_examples=100)
@given(start=st.integers(0, 50), count=st.integers(1, 40), size=st.integers(1, 5), data_size=st.sampled_from([1, 2, 4]))
def test_every_sample_counts_exactly_once(start: int, count: int, size: int, data_size: int) -> None:
    """Also when they do not fill the last micro-batches: what is added counts for nothing and is never out of range."""
    dataset = Numbers()
    parts = [list(micro_batches(dataset, start, count, size, rank, data_size)) for rank in range(data_size)]
    assert len({len(part) for part in parts}) == 1
    assert all(batch.tokens.shape == (size, S) for part in parts for batch in part)
    assert Counter(n for part in parts for b in part for n in counted(b)) == Counter(range(start, start + count))
    assert max(dataset.asked) < start + count
    assert sum(float(b.loss_mask.sum()) for part in parts for b in part) == count * (S - 1)


def test_padding_is_masked_out() -> None:
    first, second = (next(micro_batches(Numbers(), 0, 3, 2, rank, 2)) for rank in (0, 1))
    assert first.loss_mask.sum() == 2 * (S - 1)
    assert second.loss_mask.tolist() == [[0.0, 1.0, 1.0], [0.0, 0.0, 0.0]]


def test_moving_and_one_context_rank_change_nothing() -> None:
    (batch,) = micro_batches(Numbers(), 0, 2, 2, 0, 1)
    assert batch.on_context_rank(1) is batch
    assert torch.equal(batch.to(torch.device("cpu")).labels, batch.labels)
    assert batch.to(torch.device("meta")).loss_mask.device.type == "meta"
