"""Whether a run can be gone on with: what differs is named by its dotted key, what may differ is let through."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from altup_moe.checkpoint.store import Manifest, RankState, checkpoints_dir, save
from altup_moe.config import (
    AltUpConfig,
    ConfigError,
    DataConfig,
    DataError,
    LogConfig,
    ModelConfig,
    MoEConfig,
    ParallelConfig,
    RunConfig,
    TrainConfig,
)
from altup_moe.train.resume import find_resume_point

SECTIONS = {
    "model": ModelConfig, "altup": AltUpConfig, "moe": MoEConfig, "parallel": ParallelConfig, "data": DataConfig,
    "train": TrainConfig,
}  # fmt: skip
MAY_DIFFER = {
    "parallel.overlap_grad_reduce", "data.cache", "train.eval_interval", "train.eval_samples", "train.stop_after",
    "train.recompute", "train.micro_batch_size", "altup.kernel",
}  # fmt: skip
KEYS = [f"{section}.{field.name}" for section, kind in SECTIONS.items() for field in fields(kind)]


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    """A run that has saved steps 10 and 20."""
    config = RunConfig(log=LogConfig(run_dir=str(tmp_path / "run")))
    for step in (10, 20):
        manifest = Manifest(step, 8 * step, 1, 1, "f00d", config.to_dict())
        save(config.log.run_dir, manifest, 0, RankState({"x": torch.ones(1)}, {}), lambda: None, 2)
    return config


def changed(config: RunConfig, key: str) -> RunConfig:
    """The same run with another value for a key (whether it makes sense is not asked here)."""
    section, _, name = key.partition(".")
    value: Any = getattr(getattr(config, section), name)
    match value:
        case bool():
            other: Any = not value
        case int() | float():
            other = value + 1
        case _:
            other = f"not {value}"
    return replace(config, **{section: replace(getattr(config, section), **{name: other})})


def test_a_fresh_directory_is_a_fresh_start(tmp_path: Path) -> None:
    assert find_resume_point(RunConfig(log=LogConfig(run_dir=str(tmp_path))), 1) is None
    assert find_resume_point(RunConfig(log=LogConfig(run_dir=str(tmp_path / "none"))), 1) is None


def test_the_newest_checkpoint_is_found(config: RunConfig) -> None:
    point = find_resume_point(config, 1)
    assert point is not None
    assert point.directory == checkpoints_dir(config.log.run_dir) / "step_00000020"
    assert (point.manifest.step, point.manifest.skipped_steps) == (20, 1)


@pytest.mark.parametrize("key", [key for key in KEYS if key not in MAY_DIFFER])
def test_another_value_is_refused_by_name(key: str, config: RunConfig) -> None:
    other = changed(config, key)
    with pytest.raises(ConfigError) as error:
        find_resume_point(other, 1)
    assert error.value.key == key
    section, _, name = key.partition(".")
    assert error.value.value == getattr(getattr(other, section), name)
    assert f"written with {getattr(getattr(config, section), name)!r}" in error.value.fits
    assert "step_00000020" in error.value.fits


@pytest.mark.parametrize("key", sorted(MAY_DIFFER))
def test_what_does_not_change_the_run_may_differ(key: str, config: RunConfig) -> None:
    assert find_resume_point(changed(config, key), 1) is not None


@pytest.mark.parametrize("key", ["optim.learning_rate", "checkpoint.keep", "checkpoint.save_interval", "log.interval"])
def test_other_sections_may_differ(key: str, config: RunConfig) -> None:
    assert find_resume_point(changed(config, key), 1) is not None


def test_another_world_size_is_refused(config: RunConfig) -> None:
    with pytest.raises(ConfigError, match="written by 1 ranks") as error:
        find_resume_point(config, 2)
    assert (error.value.key, error.value.value) == ("world size", 2)


def test_resume_false_does_not_overwrite_a_run(config: RunConfig) -> None:
    fresh = replace(config, checkpoint=replace(config.checkpoint, resume=False))
    with pytest.raises(ConfigError, match=r"checkpoint\.resume true") as error:
        find_resume_point(fresh, 1)
    assert (error.value.key, error.value.value) == ("log.run_dir", config.log.run_dir)
    empty = replace(fresh, log=replace(fresh.log, run_dir=f"{config.log.run_dir}-other"))
    assert find_resume_point(empty, 1) is None


def test_a_checkpoint_without_a_section_is_refused(config: RunConfig) -> None:
    file = checkpoints_dir(config.log.run_dir) / "step_00000020" / "manifest.json"
    content = json.loads(file.read_text())
    del content["config"]["moe"]
    file.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"moe\.num_experts"):
        find_resume_point(config, 1)


def test_a_damaged_checkpoint_is_not_a_fresh_start(config: RunConfig) -> None:
    (checkpoints_dir(config.log.run_dir) / "latest").write_text("step_00000030")
    with pytest.raises(DataError, match="step_00000030"):
        find_resume_point(config, 1)
