"""Which options of generation fit: how many tokens, and how they are drawn."""

from __future__ import annotations

from altup_moe.config.data_checks import task_names
from altup_moe.config.errors import ConfigError
from altup_moe.config.ranges import COUNT, NOT_NEGATIVE, TEMPERATURE, Range
from altup_moe.config.schema import RunConfig


def check_sampling(max_new_tokens: int, temperature: float, top_p: float, seed: int) -> None:
    """Raise ConfigError for the first option that does not fit."""
    COUNT.check("max_new_tokens", max_new_tokens)
    NOT_NEGATIVE.check("temperature", temperature)
    if temperature != 0 and temperature not in TEMPERATURE:
        raise ConfigError("temperature", temperature, f"{TEMPERATURE}; 0 takes the likeliest token")
    Range(0, 1, open_low=True).check("top_p", top_p)
    Range(0, 2**63 - 1).check("seed", seed)


def check_generation(config: RunConfig, world_size: int) -> None:
    """What a run generates while it trains. Raises ConfigError."""
    log, tasks = config.log, config.train.eval_tasks
    for name in tasks:
        task_names("train.eval_tasks", name)
    if len(set(tasks)) < len(tasks):
        raise ConfigError("train.eval_tasks", list(tasks), "each task once would fit")
    if log.sample_interval is not None and not log.sample_prompts and log.sample_prompts_file is None:
        fits = 'needs prompts: --log.sample_prompts "Once upon a time" would fit, or log.sample_prompts_file'
        raise ConfigError("log.sample_interval", log.sample_interval, fits)
    if log.sample_temperature != 0 and log.sample_temperature not in TEMPERATURE:
        fits = f"{TEMPERATURE}; 0 takes the likeliest token"
        raise ConfigError("log.sample_temperature", log.sample_temperature, fits)
