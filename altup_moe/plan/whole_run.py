"""What a whole run takes, from the plan of one of its steps."""

from __future__ import annotations

from dataclasses import dataclass

from altup_moe.config import RunConfig
from altup_moe.plan.step import StepPlan


@dataclass(frozen=True)
class WholeRun:
    """Steps, tokens, hours and GPU hours of a run, without validations and checkpoints."""

    steps: int
    tokens: int
    hours: float
    gpu_hours: float


def whole_run(config: RunConfig, plan: StepPlan) -> WholeRun:
    """All steps of `train.steps`, or those before `train.stop_after`."""
    steps = min(config.train.steps, config.train.stop_after or config.train.steps)
    hours = steps * plan.seconds / 3600
    return WholeRun(steps, steps * plan.tokens, hours, hours * plan.gpus)
