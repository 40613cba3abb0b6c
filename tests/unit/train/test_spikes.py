"""What counts as a spike, and what is remembered for it."""

from __future__ import annotations

import json
import statistics
from dataclasses import replace

import pytest

from altup_moe.config import ConfigError, RunConfig, TrainConfig
from altup_moe.train.guards.norms import NORM_LIMIT, overflowed
from altup_moe.train.guards.spikes import (
    GuardState,
    check_rollback,
    least_steps,
    mean_and_deviation,
    remember,
    spike,
)

TRAIN = TrainConfig(spike_sigma=6.0, spike_window=40)
LOSSES = tuple(3.0 + 0.01 * (n % 5) for n in range(20))
NORMS = tuple(1.0 + 0.1 * (n % 3) for n in range(20))
STATE = GuardState(0, LOSSES, NORMS)


def at(values: tuple[float, ...], sigma: float) -> float:
    return statistics.mean(values) + sigma * statistics.stdev(values)


@pytest.mark.parametrize(
    ("loss", "norm", "says"),
    [
        (5.9, 5.9, None),
        (6.1, 0.0, "loss 3.109 is 6.1 sigma above 3.02, the mean of 20 steps"),
        (0.0, 6.1, "gradient norm 1.599 is 6.1 sigma above 1.095, the mean of 20 steps"),
        (-50.0, -50.0, None),  # a drop is no harm
    ],
)
def test_either_of_the_two_far_above_the_mean(loss: float, norm: float, says: str | None) -> None:
    assert spike(TRAIN, STATE, at(LOSSES, loss), at(NORMS, norm)) == says


def test_no_step_is_one_while_too_few_came_before_or_none_is_looked_for() -> None:
    assert spike(TRAIN, replace(STATE, losses=LOSSES[1:], norms=NORMS[1:]), 99.0, 99.0) is None
    assert spike(replace(TRAIN, spike_sigma=None), STATE, 99.0, 99.0) is None
    assert spike(TRAIN, replace(STATE, losses=(3.0,) * 20, norms=(1.0,) * 20), 99.0, 99.0) is None
    # OLMo-core's numbers; a smaller window is full before it judges.
    assert [least_steps(window) for window in (2, 6, 20, 40, 128)] == [2, 6, 20, 20, 64]


def test_numbers_are_exact_wherever_they_are_added_up() -> None:
    values = (1e16, 1.0, -1e16, 3.0)
    assert mean_and_deviation(values) == mean_and_deviation(values[::-1])
    assert mean_and_deviation(LOSSES)[1] == pytest.approx(statistics.stdev(LOSSES), rel=1e-12)


def test_what_is_remembered() -> None:
    state, nan = GuardState(), float("nan")
    for number in range(50):
        state = remember(TRAIN, state, float(number), 2.0 * number, skipped=False)
    assert state == GuardState(0, tuple(map(float, range(10, 50))), tuple(2.0 * n for n in range(10, 50)))
    # A spike counts: a level that lasts is the usual one. What is no number does not.
    spiked = remember(TRAIN, state, 99.0, 1.0, skipped=True)
    assert (spiked.skipped_in_row, spiked.losses[-1], len(spiked.losses)) == (1, 99.0, 40)
    undefined = remember(TRAIN, spiked, nan, nan, skipped=True)
    assert undefined == replace(spiked, skipped_in_row=2)
    assert remember(TRAIN, undefined, 1.0, 1.0, skipped=False).skipped_in_row == 0
    assert remember(replace(TRAIN, spike_sigma=None), undefined, 1.0, 1.0, skipped=True) == GuardState(3)
    assert GuardState.from_dict(json.loads(json.dumps(undefined.to_dict()))) == undefined
    assert GuardState.from_dict({}) == GuardState()
    assert GuardState().to_dict() == {}


def test_samples_in_the_order_of_older_versions_cannot_be_passed_over() -> None:
    config = RunConfig(train=replace(TRAIN, on_spike="rollback"))
    for shuffle in ("epoch", "run"):
        for on_spike in ("skip", "rollback"):
            given = replace(
                config,
                data=replace(config.data, shuffle=shuffle),  # type: ignore[arg-type]
                train=replace(config.train, on_spike=on_spike),  # type: ignore[arg-type]
            )
            if (shuffle, on_spike) != ("run", "rollback"):
                check_rollback(given)
                continue
            with pytest.raises(ConfigError, match=r"train.on_spike='rollback': .* skip would fit"):
                check_rollback(given)


@pytest.mark.parametrize(("norm", "over"), [(0.0, False), (9e18, False), (NORM_LIMIT, True), (float("nan"), True)])
def test_norms_that_optimizers_cannot_square(norm: float, over: bool) -> None:
    assert overflowed(norm) is over
    assert overflowed(float("inf"))
