"""The next step's micro-batches are made while a step runs, and are those that the step would have made."""

from __future__ import annotations

import threading

import pytest
import torch

from altup_moe.train.batches import Batch
from altup_moe.train.batches_ahead import BatchesAhead

SIZE = 4
CPU = torch.device("cpu")


def batch(start: int) -> Batch:
    """Recognisable by its first sample."""
    return Batch(torch.tensor([[start]]), torch.tensor([[start]]), torch.ones(1, 1))


class Maker:
    """Notes which steps were made, and by whom; fails at a sample."""

    def __init__(self, damaged: int | None = None) -> None:
        self.made: list[tuple[int, str]] = []
        self.done = {start: threading.Event() for start in range(0, 10 * SIZE, SIZE)}
        self.damaged = damaged

    def __call__(self, start: int) -> list[Batch]:
        who = "step" if threading.current_thread() is threading.main_thread() else "thread"
        self.made.append((start, who))
        self.done[start].set()
        if start == self.damaged:
            raise ValueError(f"sample {start} is damaged")
        return [batch(start)]


def first_sample(batches: list[Batch]) -> int:
    return int(batches[0].tokens)


def test_the_next_steps_are_made_while_a_step_runs() -> None:
    maker = Maker()
    ahead = BatchesAhead(maker, CPU)
    for start in (0, 4, 8):
        assert first_sample(ahead.take(start, start + SIZE if start < 8 else None)) == start
        if start < 8:
            assert maker.done[start + SIZE].wait(10), "nobody asked for it, and it is there"
    assert maker.made == [(0, "step"), (4, "thread"), (8, "thread")], "none past the last step"


def test_after_a_rollback_those_of_another_step_are_left() -> None:
    maker = Maker()
    ahead = BatchesAhead(maker, CPU)
    ahead.take(8, 12)
    assert maker.done[12].wait(10)
    assert first_sample(ahead.take(20, 24)) == 20
    assert first_sample(ahead.take(24, None)) == 24
    assert maker.made == [(8, "step"), (12, "thread"), (20, "step"), (24, "thread")]


def test_what_is_damaged_is_said_by_the_step_that_needs_it() -> None:
    ahead = BatchesAhead(Maker(damaged=4), CPU)
    assert first_sample(ahead.take(0, 4)) == 0
    with pytest.raises(ValueError, match="sample 4 is damaged"):
        ahead.take(4, 8)
