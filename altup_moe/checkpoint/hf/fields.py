"""Strict reading of the fields of a Hugging Face `config.json`. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from altup_moe.config import ConfigError, ModelConfig, MoEConfig


@dataclass(frozen=True)
class HubModel:
    """A Hugging Face model as sections of a run configuration.

    ``positions``: longest sequence of the model in tokens, the limit of model.seq_length. ``window``: the sliding
    attention window in tokens that limited ``positions``, or None.
    """

    family: str
    model: ModelConfig
    moe: MoEConfig
    positions: int
    window: int | None


def refusal(field: str, value: object, why: str) -> ConfigError:
    """The error for a field of `config.json` whose value is not supported."""
    return ConfigError(f"config.json {field}", value, why)


def positive_int_field(fields: Mapping[str, Any], name: str) -> int:
    """The value of a field that must be an integer of at least 1. Raises ConfigError."""
    value = fields.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise refusal(name, value, "a whole number of at least 1 would fit")
    return value


def non_negative_field(fields: Mapping[str, Any], name: str) -> float:
    """The value of a field that must be a number of at least 0. Raises ConfigError."""
    value = fields.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool) or value < 0:
        raise refusal(name, value, "a number of at least 0 would fit")
    return float(value)


def bool_field(fields: Mapping[str, Any], name: str) -> bool:
    """The value of a field that must be true or false. Raises ConfigError."""
    if type(fields[name]) is not bool:
        raise refusal(name, fields[name], "true or false would fit")
    return fields[name]
