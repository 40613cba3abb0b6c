"""Fields of a hub's `config.json`, read strictly. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from altup_moe.config import ConfigError, ModelConfig, MoEConfig


@dataclass(frozen=True)
class HubModel:
    """A model of a hub, in our terms.

    ``positions``: tokens it was made for; model.seq_length is at most that. ``window``: None, or the tokens that a
    position sees, which limited `positions`.
    """

    family: str
    model: ModelConfig
    moe: MoEConfig
    positions: int
    window: int | None


def refusal(field: str, value: object, why: str) -> ConfigError:
    """The error for a field of `config.json` that we cannot hold."""
    return ConfigError(f"config.json {field}", value, why)


def positive_int_field(fields: Mapping[str, Any], name: str) -> int:
    """A whole number of at least 1."""
    value = fields.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise refusal(name, value, "a whole number of at least 1 would fit")
    return value


def non_negative_field(fields: Mapping[str, Any], name: str) -> float:
    """A number of at least 0."""
    value = fields.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool) or value < 0:
        raise refusal(name, value, "a number of at least 0 would fit")
    return float(value)


def bool_field(fields: Mapping[str, Any], name: str) -> bool:
    """True or false."""
    if type(fields[name]) is not bool:
        raise refusal(name, fields[name], "true or false would fit")
    return fields[name]
