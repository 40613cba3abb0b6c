"""Which options of generation fit: how many tokens, and how they are drawn."""

from __future__ import annotations

from altup_moe.config.errors import ConfigError
from altup_moe.config.ranges import COUNT, NOT_NEGATIVE, TEMPERATURE, Range


def check_sampling(max_new_tokens: int, temperature: float, top_p: float, seed: int) -> None:
    """Raise ConfigError for the first option that does not fit."""
    COUNT.check("max_new_tokens", max_new_tokens)
    NOT_NEGATIVE.check("temperature", temperature)
    if temperature != 0 and temperature not in TEMPERATURE:
        raise ConfigError("temperature", temperature, f"{TEMPERATURE}; 0 takes the likeliest token")
    Range(0, 1, open_low=True).check("top_p", top_p)
    Range(0, 2**63 - 1).check("seed", seed)
