"""How measured ranks become a cluster file: made-up ranks, two rounds."""

from __future__ import annotations

from itertools import count
from typing import Any

import pytest

from altup_moe.plan.calibrate import measure_cluster as measuring
from altup_moe.plan.cpu_cost_model import CALLS, MESSAGES, OPERATIONS, PIECES, CpuCostModel


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> CpuCostModel:
    """Two ranks; in the second round everything takes three times as long, and a rank alone is the slower one."""
    rounds = count()

    def run_job(ranks: int, job: str, argument: str = "", start: Any = None) -> list[Any]:
        if job == "sample":
            return [2.0 if ranks == 1 else 1.0] * ranks
        if job == "operations":
            waited = [[7.0, 30.0, 900.0], [9.0, 10.0, 300.0]]
            return [{name: [[us] * 3 for us in one] for name in OPERATIONS} for one in waited]
        slower = 1.0 + 2.0 * (next(rounds) % 2)
        one = {"forward_gflops": [slower] * 27, "backward_gflops": [1.0] * 27, "large": [1e12, 1e12, 1e9]}
        one |= {"pieces_ns": dict.fromkeys(PIECES, (slower, 1.0)), "calls_us": dict.fromkeys(CALLS, (1.0, slower))}
        return [one] * ranks

    monkeypatch.setattr(measuring, "run_job", run_job)
    found = measuring.measure_cluster()
    assert found.cpu_cost_model is not None
    assert found.node_gb_per_s == pytest.approx(1e-3 * (MESSAGES[2] - MESSAGES[1]) / 290)
    return found.cpu_cost_model


def test_a_call_takes_what_it_takes_the_rank_that_waits_least(model: CpuCostModel) -> None:
    assert all(times == [7.0, 10.0, 300.0] for times in model.operations.values())


def test_rounds_give_medians(model: CpuCostModel) -> None:
    assert model.forward_gflops == [2.0] * 27
    assert set(model.pieces_ns.values()) == {(2.0, 1.0)}
    assert set(model.calls_us.values()) == {(1.0, 2.0)}


def test_a_rank_alone_is_never_the_slower(model: CpuCostModel) -> None:
    assert model.lone == 1.0
