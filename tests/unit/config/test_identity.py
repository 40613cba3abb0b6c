"""Results of older code stay those of the same configuration, whatever keys are added."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import altup_moe.config.identity as module
from altup_moe.config import LogConfig, RunConfig
from altup_moe.config.identity import ADDED_KEYS, identity
from altup_moe.config.load import HINTS, read_yaml

OLD = Path(__file__).parents[2] / "golden" / "before_restructuring" / "decoder" / "config.yaml"


def test_every_key_is_old_or_entered_as_added() -> None:
    """A key that is in neither changes the hash of every finished row and recipe: enter it in ADDED_KEYS."""
    old = {f"{section}.{key}" for section, values in read_yaml(OLD).items() for key in values}
    assert set(HINTS) == old | ADDED_KEYS
    assert not old & ADDED_KEYS


def test_an_added_key_counts_only_where_it_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ADDED_KEYS", frozenset({"log.interval"}))
    default = RunConfig()
    without = {**default.to_dict(), "log": {k: v for k, v in default.to_dict()["log"].items() if k != "interval"}}
    assert identity(default) == without
    chosen = replace(default, log=LogConfig(interval=7))
    assert identity(chosen) == chosen.to_dict()
