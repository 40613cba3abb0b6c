"""Check the schedule of a run: its rates and what they depend on, the step it stops after, and its checkpoints."""

from __future__ import annotations

from altup_moe.config.errors import ConfigError
from altup_moe.config.schema import RunConfig

ENDLESS = ("constant", "inverse_sqrt")
"""Schedules in which a step's rate does not depend on how many steps there are."""


def check_schedule(config: RunConfig, world_size: int) -> None:
    """Raise ConfigError unless the schedule of rates fits the number of steps."""
    o, steps = config.optim, config.train.steps
    if o.min_learning_rate > o.learning_rate:
        fits = f"at most optim.learning_rate ({o.learning_rate}) would fit"
        raise ConfigError("optim.min_learning_rate", o.min_learning_rate, fits)
    if o.decay_steps is not None and o.schedule in ENDLESS:
        fits = f"optim.schedule {o.schedule} has no end that it would move; null would fit"
        raise ConfigError("optim.decay_steps", o.decay_steps, fits)
    if o.decay_steps is not None and o.schedule == "wsd" and o.warmup_steps + o.decay_steps > steps:
        fits = f"at most train.steps - optim.warmup_steps ({steps - o.warmup_steps}) would fit schedule wsd"
        raise ConfigError("optim.decay_steps", o.decay_steps, fits)
    if o.decay_steps is not None and o.schedule == "cosine" and o.decay_steps <= o.warmup_steps:
        fits = f"the decay ends before the warm-up does; more than optim.warmup_steps ({o.warmup_steps}) would fit"
        raise ConfigError("optim.decay_steps", o.decay_steps, fits)
    if config.train.stop_after is not None and config.train.stop_after > steps:
        raise ConfigError("train.stop_after", config.train.stop_after, f"at most train.steps ({steps}) would fit")


def check_parametrization(config: RunConfig, world_size: int) -> None:
    """Raise ConfigError unless muP has the size that it starts from, and a model and optimizer whose rules it knows."""
    o = config.optim
    bases = {key: getattr(o, key) for key in ("mup_base_hidden_size", "mup_base_num_layers")}
    if o.parametrization == "standard":
        for key, value in bases.items():
            if value is not None:
                raise ConfigError(f"optim.{key}", value, "optim.parametrization standard has no base; null would fit")
        return
    for key, value, fit in (
        ("optim.optimizer", o.optimizer, "adamw"),
        ("model.arch", config.model.arch, "gpt"),
    ):
        if value != fit:
            raise ConfigError(key, value, f"optim.parametrization mup knows no rule for it; {fit} would fit")
    if o.mup_base_hidden_size is None:
        fits = f"the hidden size at which optim.learning_rate was tuned would fit, as {config.model.hidden_size}"
        raise ConfigError("optim.mup_base_hidden_size", None, fits)


def check_hang_timeout(config: RunConfig, world_size: int) -> None:
    """Raise ConfigError for a time so short that ranks which end in good order would count as hanging."""
    seconds = config.train.hang_timeout
    if seconds is not None and 0 < seconds < 1:
        raise ConfigError("train.hang_timeout", seconds, "at least 1 s would fit; 0 or null is off")


def check_checkpoints(config: RunConfig, world_size: int) -> None:
    """Raise ConfigError unless the steps to save after are steps of the run, and it starts from one place."""
    c, steps = config.checkpoint, config.train.steps
    if (outside := next((step for step in c.save_at if not 1 <= step <= steps), None)) is not None:
        raise ConfigError("checkpoint.save_at", outside, f"steps from 1 to train.steps ({steps}) would fit")
    if c.branch_from is not None and c.initial_load_path is not None:
        fits = "checkpoint.initial_load_path takes over weights alone; one of the two, the other null, would fit"
        raise ConfigError("checkpoint.branch_from", c.branch_from, fits)
