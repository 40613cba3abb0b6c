"""Mappings of a study's file as records."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from altup_moe.config import ConfigError
from altup_moe.config.keys import unknown_key
from altup_moe.config.load import coerce


def record(kind: Any, content: object, prefix: str, examples: Mapping[str, str] | None = None) -> Any:
    """Convert a mapping to a record of a kind; unknown and missing keys are errors.

    Args:
        examples: dotted key -> line of a file, for keys that must be there.
    Raises:
        ConfigError: a key or value that does not fit.
    """
    values, chosen = mapping(prefix.rstrip(".") or "study", content), {}
    hints = typing.get_type_hints(kind)
    for key, value in values.items():
        if key not in hints:
            raise unknown_key(f"{prefix}{key}", value, [f"{prefix}{known}" for known in hints])
        chosen[key] = value if hints[key] is Any else coerce(f"{prefix}{key}", hints[key], value)
    for field in fields(kind):
        if field.default is MISSING and field.name not in chosen:
            example = (examples or {}).get(f"{prefix}{field.name}")
            raise ConfigError(f"{prefix}{field.name}", None, "is missing" + (f", as in {example}" if example else ""))
    return kind(**chosen)


def mapping(key: str, content: object) -> dict[Any, Any]:
    """The content itself. Raises ConfigError if it is no mapping."""
    if not isinstance(content, dict):
        raise ConfigError(key, content, "is a section: its keys stand below it, indented")
    return content


def read_seeds(key: str, content: object) -> list[int]:
    """Seeds, each once. Raises ConfigError if it is no list of them."""
    if not isinstance(content, list) or not content or any(type(seed) is not int for seed in content):
        raise ConfigError(key, content, "a list of whole numbers would fit")
    if len(set(content)) < len(content):
        raise ConfigError(key, content, "names one twice; each once would fit")
    return content
