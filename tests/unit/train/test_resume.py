"""Whether a run can be gone on with: what differs is named by its dotted key, what may differ is let through."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from altup_moe.checkpoint.manifest import MANIFEST, write_manifest
from altup_moe.checkpoint.source import Checkpoint
from altup_moe.checkpoint.store import latest_checkpoint
from altup_moe.config import (
    AltUpConfig,
    ConfigError,
    DataConfig,
    DataError,
    LogConfig,
    ModelConfig,
    MoEConfig,
    RunConfig,
    SequenceConfig,
    TrainConfig,
)
from altup_moe.config.run_directory import checkpoints_dir
from altup_moe.parallel.topology import Topology
from altup_moe.train.resume import find_resume_point, verified
from tests.checkpoints import head, random_tensors, write_tensors
from tests.distributed.cases import LAYOUTS, small

SECTIONS = {
    "model": ModelConfig, "altup": AltUpConfig, "moe": MoEConfig, "data": DataConfig,
    "train": TrainConfig, "sequence": SequenceConfig,
}  # fmt: skip
MAY_DIFFER = {
    "data.cache", "train.eval_interval", "train.eval_samples", "train.stop_after",
    "train.recompute", "train.micro_batch_size", "train.engine",
    "train.transformer_engine",
    "altup.kernel", "moe.backend",
}  # fmt: skip
KEYS = [f"{section}.{field.name}" for section, kind in SECTIONS.items() for field in fields(kind)]


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    """A run that has saved steps 10 and 20."""
    config = replace(small("one"), log=LogConfig(run_dir=str(tmp_path / "run")))
    for step in (10, 20):
        write_tensors(config.log.run_dir, head(config, step), random_tensors(config, step))
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
    assert find_resume_point(RunConfig(log=LogConfig(run_dir=str(tmp_path)))) is None
    assert find_resume_point(RunConfig(log=LogConfig(run_dir=str(tmp_path / "none")))) is None


def test_the_newest_checkpoint_is_found(config: RunConfig) -> None:
    point = find_resume_point(config)
    assert point is not None
    assert point.directory == checkpoints_dir(config.log.run_dir) / "step_00000020"
    assert (point.manifest.step, point.manifest.skipped_steps) == (20, 1)


@pytest.mark.parametrize("key", [key for key in KEYS if key not in MAY_DIFFER])
def test_another_value_is_refused_by_name(key: str, config: RunConfig) -> None:
    other = changed(config, key)
    with pytest.raises(ConfigError) as error:
        find_resume_point(other)
    assert error.value.key == key
    section, _, name = key.partition(".")
    assert error.value.value == getattr(getattr(other, section), name)
    assert f"written with {config.to_dict()[section][name]!r}" in error.value.fits
    assert "step_00000020" in error.value.fits


@pytest.mark.parametrize("key", sorted(MAY_DIFFER))
def test_what_does_not_change_the_run_may_differ(key: str, config: RunConfig) -> None:
    assert find_resume_point(changed(config, key)) is not None


@pytest.mark.parametrize("key", ["optim.learning_rate", "checkpoint.keep", "checkpoint.save_interval", "log.interval"])
def test_other_sections_may_differ(key: str, config: RunConfig) -> None:
    assert find_resume_point(changed(config, key)) is not None


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_may_go_on(layout: str, config: RunConfig) -> None:
    assert find_resume_point(replace(config, parallel=LAYOUTS[layout])) is not None


def test_random_streams_belong_to_a_layout(config: RunConfig) -> None:
    point = find_resume_point(config)
    assert point is not None
    assert point.same_streams(config, 1)
    assert point.same_streams(replace(config, parallel=replace(config.parallel, distributed_optimizer=True)), 1)
    assert not point.same_streams(config, 2)
    assert not point.same_streams(replace(config, parallel=replace(config.parallel, expert=2)), 1)


def test_resume_false_does_not_overwrite_a_run(config: RunConfig) -> None:
    fresh = replace(config, checkpoint=replace(config.checkpoint, resume=False))
    with pytest.raises(ConfigError, match=r"checkpoint\.resume true") as error:
        find_resume_point(fresh)
    assert (error.value.key, error.value.value) == ("log.run_dir", config.log.run_dir)
    empty = replace(fresh, log=replace(fresh.log, run_dir=f"{config.log.run_dir}-other"))
    assert find_resume_point(empty) is None


def test_another_configuration_in_the_manifest_is_refused(config: RunConfig) -> None:
    directory = checkpoints_dir(config.log.run_dir) / "step_00000020"
    with Checkpoint(directory) as checkpoint:
        manifest = checkpoint.manifest
    manifest.config["train"]["seed"] = 7
    write_manifest(directory, manifest)
    with pytest.raises(ConfigError, match=r"train\.seed=1234.*written with 7"):
        find_resume_point(config)


def test_a_checkpoint_from_before_a_field_existed_has_its_default(config: RunConfig) -> None:
    directory = checkpoints_dir(config.log.run_dir) / "step_00000020"
    with Checkpoint(directory) as checkpoint:
        manifest = checkpoint.manifest
    del manifest.config["model"]["qk_layernorm"]
    write_manifest(directory, manifest)
    assert find_resume_point(config) is not None
    with pytest.raises(ConfigError, match=r"model\.qk_layernorm|lacks weights"):
        find_resume_point(replace(config, model=replace(config.model, qk_layernorm=True)))


def damage(config: RunConfig, step: int, what: str) -> None:
    directory = checkpoints_dir(config.log.run_dir) / f"step_{step:08d}"
    file = directory / (MANIFEST if what == "manifest" else "rank_00000_000.safetensors")
    content = bytearray(file.read_bytes())
    content[-7] ^= 1
    file.write_bytes(content if what != "truncated" else content[:-9])


def fallen_back(config: RunConfig) -> RunConfig:
    return replace(config, checkpoint=replace(config.checkpoint, fallback=True))


@pytest.mark.parametrize("what", ["manifest", "truncated", "flipped"])
def test_damage_is_named_and_fallback_goes_behind_it(what: str, config: RunConfig, alone: Topology) -> None:
    damage(config, 20, what)
    before = find_resume_point(config) if what == "flipped" else None
    with pytest.raises(DataError, match=r"step_00000020") as error:
        verified(config, before, alone) if before else find_resume_point(config)
    assert "fallback true goes back to step_00000010" in str(error.value)
    wanted = fallen_back(config)
    point = find_resume_point(wanted)
    assert point is not None
    assert verified(wanted, point, alone).manifest.step == 10
    root = checkpoints_dir(config.log.run_dir)
    assert latest_checkpoint(config.log.run_dir) == root / "step_00000010"
    assert {path.name for path in root.iterdir()} == {"latest", "step_00000010", "step_00000020.damaged"}
    assert find_resume_point(config).manifest.step == 10


def test_fallback_finds_no_other(config: RunConfig, alone: Topology) -> None:
    damage(config, 10, "flipped")
    damage(config, 20, "flipped")
    point = find_resume_point(fallen_back(config))
    with pytest.raises(DataError, match="no checkpoint that is whole"):
        verified(fallen_back(config), point, alone)
    damage(config, 10, "truncated")
    damage(config, 20, "truncated")
    with pytest.raises(DataError, match="step_00000010"):
        find_resume_point(fallen_back(config))


def test_a_pointer_put_back_by_hand_is_followed(config: RunConfig, alone: Topology) -> None:
    root = checkpoints_dir(config.log.run_dir)
    (root / "latest").write_text("step_00000010\n")
    for wanted in (config, fallen_back(config)):
        point = verified(wanted, find_resume_point(wanted), alone)
        assert point.manifest.step == 10
        assert (root / "step_00000020").is_dir()


def test_a_pointer_to_nothing_is_not_a_fresh_start(config: RunConfig) -> None:
    (checkpoints_dir(config.log.run_dir) / "latest").write_text("step_00000030")
    with pytest.raises(DataError, match="step_00000030"):
        find_resume_point(config)
    assert find_resume_point(fallen_back(config)).manifest.step == 20


def test_weights_of_another_run_start_a_new_one(config: RunConfig, tmp_path: Path) -> None:
    new = replace(
        config,
        log=LogConfig(run_dir=str(tmp_path / "new")),
        checkpoint=replace(config.checkpoint, initial_load_path=config.log.run_dir),
        model=replace(config.model, seq_length=32),
    )
    point = find_resume_point(new)
    assert point is not None
    assert point.weights_only
    with pytest.raises(ConfigError, match=r"altup\.select='same'.*'alternating'.*initial_load_path"):
        find_resume_point(replace(new, altup=replace(new.altup, select="same")))
    # Its own checkpoints come first.
    write_tensors(new.log.run_dir, head(new, 5), random_tensors(new))
    point = find_resume_point(new)
    assert (point.weights_only, point.manifest.step) == (False, 5)
