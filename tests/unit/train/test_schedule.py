"""Learning rates by step."""

from __future__ import annotations

import pytest
import torch

from altup_moe.train.optim import build_scheduler
from tests.unit.train.runs import tiny


class Optimizer:
    """What a scheduler sets rates in."""

    def __init__(self) -> None:
        self.param_groups = [{"params": [torch.zeros(1)], "lr": 0.0, "weight_decay": 0.0, "wd_mult": 1.0}]


def rates(schedule: str, steps: int) -> list[float]:
    config = tiny(
        optim={"schedule": schedule, "learning_rate": 0.01, "min_learning_rate": 0.001, "warmup_steps": 4},
        train={"steps": steps},
    )
    optimizer = Optimizer()
    scheduler = build_scheduler(optimizer, config)
    found = []
    for _ in range(steps):
        scheduler.step(1)
        found.append(optimizer.param_groups[0]["lr"])
    return found


def test_inverse_square_root() -> None:
    """Linear to the peak, then as 1 / sqrt(step), not below the least rate, whatever train.steps is."""
    expected = [0.0025, 0.005, 0.0075, 0.01, *(0.01 * (4 / n) ** 0.5 for n in range(5, 401)), *([0.001] * 100)]
    assert rates("inverse_sqrt", 500) == pytest.approx(expected)
    assert rates("inverse_sqrt", 30) == pytest.approx(expected[:30])


def test_the_others_keep_their_ends() -> None:
    assert rates("constant", 10)[3:] == [0.01] * 7
    assert rates("cosine", 10)[-1] == rates("wsd", 10)[-1] == pytest.approx(0.001)
