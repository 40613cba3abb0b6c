"""Planned beside measured steps: made-up steps of two ranks, on a machine where only products take time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from altup_moe.plan.calibrate import compare_steps as comparing
from altup_moe.plan.layer_time import Factors
from altup_moe.plan.step import plan_step
from tests.unit.plan.test_cpu_cost_model import FREE, cluster, run

MACHINE = cluster(replace(FREE, forward_gflops=[10.0] * 27, backward_gflops=[20.0] * 27))
STEPS = [[(3.0, 2.0, 1.5), (2.0, 1.0, 1.5), (9.0, 1.5, 1.9)], [(1.0, 4.0, 1.5), (2.5, 3.0, 1.5), (1.0, 3.5, 1.9)]]
"""Of both ranks: seconds by the clock and by the processor, and the experts' unevenness."""


@pytest.fixture
def one(monkeypatch: pytest.MonkeyPatch) -> comparing.Compared:
    monkeypatch.setattr(comparing, "LAYOUTS", {"experts, EP 2": (2, run({"expert": 2}))})
    monkeypatch.setattr(comparing, "run_job", run_job)
    (found,) = comparing.compare_steps(MACHINE)
    return found


def run_job(ranks: int, job: str, name: str, start: Any) -> list[Any]:
    assert (ranks, job, name, start) == (2, "layout", "experts, EP 2", None)
    return STEPS


def test_a_step_takes_as_long_as_its_slowest_rank(one: comparing.Compared) -> None:
    assert (one.measured, one.spread, one.busy) == (2.5, 3.0 / 2.5 - 1, 3.0)


def test_the_plan_is_told_how_uneven_the_experts_were(one: comparing.Compared) -> None:
    config = run({"expert": 2})
    assert one.imbalance == 1.5
    assert one.planned == plan_step(config, MACHINE, 2, Factors(imbalance=1.5)).seconds
    assert one.planned > 1.02 * plan_step(config, MACHINE, 2).seconds
