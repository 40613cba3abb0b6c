"""The slow rank is named after two intervals, noise is not, and stages of a pipeline are not compared."""

from __future__ import annotations

import random

import pytest

from altup_moe.train.stragglers import Naming, Straggler, scores
from tests.unit.train.records import record


def test_a_rank_is_compared_with_the_others_of_its_stage() -> None:
    # Of two ranks the faster one is the median: else no score could reach two.
    assert scores([0.1, 0.4], [0, 0], [0.1, 0.4]) == pytest.approx([1.0, 4.0])
    assert scores([0.1, 0.2, 0.1, 0.3], [0] * 4, [0.1] * 4) == pytest.approx([1.0, 2.0, 1.0, 3.0])
    # The last stage has the large tables; that is not slow.
    assert scores([0.1, 0.1, 0.5, 0.5], [0, 0, 1, 1], [9.0] * 4) == pytest.approx([1.0] * 4)
    # Alone in its stage, a rank is compared with itself.
    assert scores([0.1, 0.6], [0, 1], [0.1, 0.2]) == pytest.approx([1.0, 3.0])


def test_named_in_the_second_interval_and_no_longer_once_it_is_fast() -> None:
    naming = Naming(1.5)
    seen = [naming.interval([1.0, score, 1.1]) for score in (1.0, 2.0, 2.0, 1.4, 1.3, 1.1, 2.0)]
    assert [one.rank for one in seen] == [None, None, 1, 1, 1, None, None]
    assert seen[2] == Straggler(2.0, 1)


def test_two_ranks_in_turns_are_noise() -> None:
    naming = Naming(1.5)
    assert {naming.interval([3.0, 1.0] if turn % 2 else [1.0, 3.0]).rank for turn in range(20)} == {None}


def test_another_rank_that_is_slower_is_named_instead() -> None:
    naming = Naming(1.5)
    assert [naming.interval(found).rank for found in ([2, 1, 1], [2, 1, 1], [2, 1, 5], [2, 1, 5])] == [None, 0, 0, 2]


def test_a_healthy_run_with_noise_names_nobody() -> None:
    """Steps that are up to a third longer, and one interval in ten in which a rank has a tenfold time."""
    draw, naming = random.Random(0), Naming(1.5)
    for number in range(500):
        own = [0.1 * draw.uniform(1, 1.33) for _ in range(8)]
        if number % 10 == 0:
            own[draw.randrange(8)] *= 10
        assert naming.interval(scores(own, [0] * 8, [0.1] * 8)).rank is None


def test_the_console_line_names_it() -> None:
    assert " | slow rank 3 (2.4x)" in record(1, slow_rank=3, slowest_score=2.42).line(2)
    assert "slow" not in record(1, slowest_score=1.1).line(2)


def test_the_console_line_names_the_ends_of_a_link() -> None:
    both = record(1, slow_link_sender=2, slow_link_receiver=0, slowest_link_score=3.1, slowest_link_rate=12.0)
    assert " | slow link from rank 2 to rank 0 (3.1x)" in both.line(2)
    assert " | slow link to rank 4 (2.0x)" in record(1, slow_link_receiver=4, slowest_link_score=2.0).line(2)
    assert "slow" not in record(1, slowest_link_score=1.1, slowest_link_rate=90.0).line(2)
