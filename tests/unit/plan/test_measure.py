"""How measured ranks become a cluster file: made-up ranks, two rounds."""

from __future__ import annotations

from itertools import count
from typing import Any

import pytest

from altup_moe.plan import measure
from altup_moe.plan.cpu_cost_model import CALLS, MESSAGES, OPERATIONS, PIECES, Unfused


@pytest.fixture
def unfused(monkeypatch: pytest.MonkeyPatch) -> Unfused:
    """Two ranks; in the second round everything takes three times as long, and a rank alone is the slower one."""
    rounds = count()

    def on_ranks(ranks: int, job: str, argument: str = "", start: Any = None) -> list[Any]:
        if job == "sample":
            return [2.0 if ranks == 1 else 1.0] * ranks
        if job == "operations":
            waited = [[7.0, 30.0, 900.0], [9.0, 10.0, 300.0]]
            return [{name: [[us] * 3 for us in one] for name in OPERATIONS} for one in waited]
        slower = 1.0 + 2.0 * (next(rounds) % 2)
        one = {"forward_gflops": [slower] * 27, "backward_gflops": [1.0] * 27, "large": [1e12, 1e12, 1e9]}
        one |= {"pieces_ns": dict.fromkeys(PIECES, (slower, 1.0)), "calls_us": dict.fromkeys(CALLS, (1.0, slower))}
        return [one] * ranks

    monkeypatch.setattr(measure, "on_ranks", on_ranks)
    found = measure.measure()
    assert found.unfused is not None
    assert found.node_gb_per_s == pytest.approx(1e-3 * (MESSAGES[2] - MESSAGES[1]) / 290)
    return found.unfused


def test_a_call_takes_what_it_takes_the_rank_that_waits_least(unfused: Unfused) -> None:
    assert all(times == [7.0, 10.0, 300.0] for times in unfused.operations.values())


def test_rounds_give_medians(unfused: Unfused) -> None:
    assert unfused.forward_gflops == [2.0] * 27
    assert set(unfused.pieces_ns.values()) == {(2.0, 1.0)}
    assert set(unfused.calls_us.values()) == {(1.0, 2.0)}


def test_a_rank_alone_is_never_the_slower(unfused: Unfused) -> None:
    assert unfused.lone == 1.0
