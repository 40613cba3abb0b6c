"""Why two rows of a study are the same run, in words: most often a default that one of them spells out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from altup_moe.study.spec import RowSpec

_MEANING = {"altup.width": " (1 is the plain Transformer)"}
"""What stands behind the value of a key whose default surprises."""


def reasons(row: RowSpec, twin: RowSpec, base: Mapping[str, Any]) -> str:
    """The keys that only one of two equal rows sets, each with what makes them equal; "" if there are none.

    Args:
        base: the study's sections of a run.
    """
    said = []
    for key in sorted(row.overrides.keys() ^ twin.overrides.keys()):
        section, _, leaf = key.partition(".")
        if _value(row, key) != _value(twin, key):
            said.append(f"{key} changes none of its figures")
        elif not leaf:
            said.append(f"{key}={_value(row, key)} is the study's")
        elif leaf in (base.get(section) or {}):
            said.append(f"base has {key}={_value(row, key)}")
        else:
            said.append(f"{key}={_value(row, key)} is the default{_MEANING.get(key, '')}")
    return " and ".join(said)


def _value(row: RowSpec, key: str) -> Any:
    """The resolved value of a key of a run, or of ranks, launcher or rate."""
    section, dot, leaf = key.partition(".")
    return getattr(getattr(row.config, section), leaf) if dot else getattr(row, section)
