"""A run goes on with the order of samples that its checkpoints were written with; a new run has that of epochs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from altup_moe.checkpoint.manifest import Manifest
from altup_moe.config import ConfigError, LogConfig, RunConfig
from altup_moe.train.sample_order import ordered, with_sample_order
from tests.checkpoints import head, random_tensors, write_tensors
from tests.distributed.cases import small


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return replace(small("one"), log=LogConfig(run_dir=str(tmp_path / "run")))


def written(config: RunConfig, shuffle: str | None, step: int = 10, **fields: Any) -> Manifest:
    """A checkpoint of the run; shuffle None is of a version without the key."""
    manifest = head(config, step, **fields)
    data = {key: value for key, value in manifest.config["data"].items() if key != "shuffle"}
    data |= {"shuffle": shuffle} if shuffle else {}
    manifest = replace(manifest, config={**manifest.config, "data": data})
    write_tensors(config.log.run_dir, manifest, random_tensors(config, step))
    return manifest


def chosen(config: RunConfig, shuffle: Any) -> RunConfig:
    return replace(config, data=replace(config.data, shuffle=shuffle))


def test_a_new_run_has_epochs_unless_asked(config: RunConfig) -> None:
    assert config.data.shuffle is None
    assert ordered(config).data.shuffle == "epoch"
    assert ordered(chosen(config, "run")).data.shuffle == "run"
    assert replace(ordered(config), data=config.data) == config


@pytest.mark.parametrize(("stored", "order"), [(None, "run"), ("run", "run"), ("epoch", "epoch")])
def test_a_run_goes_on_with_its_order(stored: str | None, order: str, config: RunConfig) -> None:
    manifest = written(config, stored)
    assert ordered(config).data.shuffle == order
    assert ordered(chosen(config, order)).data.shuffle == order
    assert with_sample_order(config, manifest).data.shuffle == order
    other = "run" if order == "epoch" else "epoch"
    with pytest.raises(ConfigError, match=f"written with '{order}'") as error:
        ordered(chosen(config, other))
    assert error.value.key == "data.shuffle"


def test_weights_without_samples_have_no_order(config: RunConfig) -> None:
    """A converted model: its checkpoint 0 has seen nothing here."""
    written(config, None, 0, consumed_samples=0)
    assert ordered(config).data.shuffle == "epoch"


def test_the_old_order_keeps_its_number_of_steps(config: RunConfig) -> None:
    written(config, None)
    longer = replace(config, train=replace(config.train, steps=config.train.steps + 1))
    with pytest.raises(ConfigError, match="depends on it") as error:
        ordered(longer)
    assert error.value.key == "train.steps"
    written(config, "epoch", 20)
    assert ordered(longer).train.steps == longer.train.steps


def test_a_damaged_checkpoint_is_passed_over(config: RunConfig) -> None:
    """Going on from it, or from an older one, is decided elsewhere."""
    written(config, None)
    written(config, None, 20)
    (Path(config.log.run_dir) / "checkpoints" / "step_00000020" / "manifest.json").write_text("{")
    assert ordered(config).data.shuffle == "run"
