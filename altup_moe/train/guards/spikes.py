"""Loss and gradient norm against the steps before: the rule of OLMo-core's SkipStepOptimizer, one-sided.

A step is a spike if its loss, or its gradient norm, is more than `train.spike_sigma` standard deviations above the mean
of the last `train.spike_window` steps. Spikes stand in the window as well: a level that lasts becomes the usual one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from altup_moe.config import ConfigError, RunConfig
from altup_moe.config.schema import TrainConfig

LEAST = 20
"""Steps that a window holds at least before it judges (OLMo-core's number), unless the whole window is smaller."""


@dataclass(frozen=True)
class GuardState:
    """What the guards remember from step to step; a checkpoint's manifest holds it (`guards`).

    ``skipped_in_row``: steps skipped since the last that was taken. ``losses``, ``norms``: finite ones of the last
    `train.spike_window` steps, in nats a label and L2, oldest first; empty without `train.spike_sigma`.
    """

    skipped_in_row: int = 0
    losses: tuple[float, ...] = ()
    norms: tuple[float, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON; empty where nothing is remembered."""
        values = {"skipped_in_row": self.skipped_in_row, "losses": list(self.losses), "norms": list(self.norms)}
        return values if any(values.values()) else {}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> GuardState:
        """What `to_dict` made."""
        losses, norms = (tuple(values.get(key, ())) for key in ("losses", "norms"))
        return cls(values.get("skipped_in_row", 0), losses, norms)


def check_rollback(config: RunConfig) -> None:
    """Raise ConfigError if the run may go back, and its samples (data.shuffle filled in) cannot be passed over."""
    train = config.train
    if train.spike_sigma is not None and train.on_spike == "rollback" and config.data.shuffle == "run":
        fits = "a run in the order of older versions (data.shuffle run) has no samples beyond its steps; skip would fit"
        raise ConfigError("train.on_spike", train.on_spike, fits)


def spike(train: TrainConfig, state: GuardState, loss: float, norm: float) -> str | None:
    """Why a finite step is a spike, in words; None if it is none, or too few steps came before."""
    if train.spike_sigma is None:
        return None
    for what, value, before in (("loss", loss, state.losses), ("gradient norm", norm, state.norms)):
        if len(before) < least_steps(train.spike_window):
            continue
        mean, deviation = mean_and_deviation(before)
        if deviation and (found := (value - mean) / deviation) > train.spike_sigma:
            return f"{what} {value:.4g} is {found:.1f} sigma above {mean:.4g}, the mean of {len(before)} steps"
    return None


def least_steps(window: int) -> int:
    """Steps that a window holds at least before it judges."""
    return min(window, max(LEAST, window // 2))


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation (of a sample, n - 1) of at least two numbers."""
    mean = math.fsum(values) / len(values)
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def remember(train: TrainConfig, state: GuardState, loss: float, norm: float, skipped: bool) -> GuardState:
    """The state after a step."""
    state = replace(state, skipped_in_row=state.skipped_in_row + 1 if skipped else 0)
    if train.spike_sigma is None:
        return replace(state, losses=(), norms=())
    if not (math.isfinite(loss) and math.isfinite(norm)):
        return state
    return replace(
        state,
        losses=(*state.losses, loss)[-train.spike_window :],
        norms=(*state.norms, norm)[-train.spike_window :],
    )
