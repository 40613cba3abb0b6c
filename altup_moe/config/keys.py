"""Dotted keys of nested dataclasses: their types, and the nearest key to a misspelled one."""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from altup_moe.config.errors import ConfigError
from altup_moe.config.synonyms import synonym


def field_hints(record: type) -> dict[str, Any]:
    """Dotted key -> type of every leaf field, in file order; fields that are dataclasses are sections."""
    hints: dict[str, Any] = {}
    resolved = typing.get_type_hints(record)
    for field in dataclasses.fields(record):
        hint = resolved[field.name]
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            hints |= {f"{field.name}.{key}": inner for key, inner in field_hints(hint).items()}
        else:
            hints[field.name] = hint
    return hints


def alternatives(hint: Any) -> tuple[Any, ...]:
    """Members of a union type; any other type alone."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return typing.get_args(hint)
    return (hint,)


def expects(hint: Any) -> str:
    """The values of a type, in words."""
    words = [_expects_one(member) for member in alternatives(hint) if member is not types.NoneType]
    return " or ".join([*words, "null"] if types.NoneType in alternatives(hint) else words)


def _expects_one(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, typing.get_args(hint)))}"
    if typing.get_origin(hint) is tuple:
        return f"one or more, each {_expects_one(typing.get_args(hint)[0])}"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}[hint]


def nearest_key(key: str, known: Iterable[str]) -> str:
    """The known key most similar to `key`, by last part if one agrees, else by common words and spelling."""
    keys = list(known)
    leaf = key.rpartition(".")[2]
    same_leaf = [candidate for candidate in keys if candidate.rpartition(".")[2] == leaf]

    def likeness(candidate: str) -> float:
        ours, theirs = set(re.split(r"[._]", key)), set(re.split(r"[._]", candidate))
        shared = len(ours & theirs) / len(ours | theirs)
        return 2 * shared + difflib.SequenceMatcher(None, key, candidate).ratio()

    return max(same_leaf or keys, key=likeness)


def unknown_key(key: str, value: object, known: Iterable[str]) -> ConfigError:
    """The error for a key that does not exist; it names the key that is meant, by `synonyms` or by its likeness."""
    keys = list(known)
    leaf = key.rpartition(".")[2]
    exists_elsewhere = any(leaf == candidate.rpartition(".")[2] for candidate in keys)
    meant, advice = synonym(key, alone=not exists_elsewhere) or ("", "")
    for candidate in (meant, meant.rpartition(".")[2]):
        if candidate in keys:
            return ConfigError(key, value, f"unknown key; nearest is {candidate}" + (f" ({advice})" if advice else ""))
    return ConfigError(key, value, f"unknown key; nearest is {nearest_key(key, keys)}")
