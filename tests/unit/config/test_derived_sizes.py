"""Sizes that follow from a configuration and the number of ranks."""

from __future__ import annotations

import pytest

from altup_moe.config import ConfigError
from altup_moe.config.checks import (
    data_parallel_size,
    divisors,
    num_microbatches,
    stage_layers,
    world_size_from_env,
)
from tests.unit.config.test_config_checks import run


def test_stage_layers() -> None:
    assert stage_layers(8, 4) == [2, 2, 2, 2]
    assert stage_layers(7, 3, first=1) == [1, 3, 3]
    assert stage_layers(7, 3, last=3) == [2, 2, 3]
    assert stage_layers(9, 4, first=1, last=2) == [1, 3, 3, 2]
    assert stage_layers(3, 2, first=1, last=2) == [1, 2]
    assert stage_layers(8, 3) is stage_layers(3, 3, first=3) is stage_layers(4, 2, first=1, last=2) is None
    assert stage_layers(4, 2, first=5) is stage_layers(1, 1, first=1, last=1) is None


def test_sizes_that_follow() -> None:
    config = run(parallel__tensor=2, parallel__pipeline=2, train__micro_batch_size=2, train__global_batch_size=16)
    assert data_parallel_size(config, 8) == 2
    assert num_microbatches(config, 8) == 4
    assert divisors(12) == [1, 2, 3, 4, 6, 12]
    assert divisors(49) == [1, 7, 49]


def test_world_size_from_env(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert world_size_from_env() == 1
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert world_size_from_env() == 4
    for wrong in ("0", "four", ""):
        monkeypatch.setenv("WORLD_SIZE", wrong)
        with pytest.raises(ConfigError, match="WORLD_SIZE"):
            world_size_from_env()
