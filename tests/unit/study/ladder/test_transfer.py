"""Whether the smallest size's rate does at the largest: known curves."""

from __future__ import annotations

import math

import pytest

from altup_moe.study.ladder.law import TunedModel
from altup_moe.study.ladder.transfer import loss_at, transfers
from altup_moe.study.ladder.tuning import best_value

KEY = "optim.learning_rate"
RATES = (1e-3, 2e-3, 4e-3, 8e-3, 16e-3)


def model(family: str, size: int, lowest: float, floor: float) -> TunedModel:
    """Losses quadratic in the logarithm of the rate."""
    losses = {rate: floor + 0.1 * math.log(rate / lowest) ** 2 for rate in RATES}
    return TunedModel(family, size, KEY, losses, best_value(losses))


def test_what_the_smallest_sizes_rate_costs_at_the_largest() -> None:
    tuned = [
        model("moves", 32, 5e-3, 4.0),
        model("moves", 64, 3e-3, 3.5),
        model("moves", 128, 2.5e-3, 3.0),
        model("stays", 32, 5e-3, 4.0),
        model("stays", 128, 5e-3, 3.0),
        model("alone", 32, 5e-3, 4.0),
    ]
    moves, stays = transfers(tuned)
    assert (moves.family, moves.smallest, moves.largest, moves.at_edge) == ("moves", 32, 128, False)
    assert (moves.value, moves.best) == (pytest.approx(5e-3, rel=1e-3), pytest.approx(2.5e-3, rel=1e-3))
    assert moves.cost == pytest.approx(0.1 * math.log(2) ** 2, abs=1e-4)
    assert stays.cost == pytest.approx(0, abs=1e-6)


def test_a_rate_beyond_those_tried_has_no_loss() -> None:
    (far,) = transfers(
        [
            model("a", 32, 14e-3, 4.0),
            TunedModel("a", 64, KEY, {1e-3: 3.2, 2e-3: 3.0, 4e-3: 3.1}, best_value({1e-3: 3.2, 2e-3: 3.0, 4e-3: 3.1})),
        ]
    )
    assert (far.loss, far.cost) == (None, None)
    assert loss_at({1e-3: 3.0, 2e-3: math.inf, 4e-3: 3.1}, 3e-3) is None
    failed = TunedModel("a", 64, KEY, {1e-3: math.inf}, None)
    assert list(transfers([model("a", 32, 5e-3, 4.0), failed])) == []
