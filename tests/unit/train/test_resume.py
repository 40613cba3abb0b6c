"""Whether a run can be gone on with: what differs is named by its dotted key, what may differ is let through."""

from __future__ import annotations

import typing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from altup_moe.checkpoint.manifest import MANIFEST, write_manifest
from altup_moe.checkpoint.source import Checkpoint
from altup_moe.checkpoint.store import latest_checkpoint
from altup_moe.config import ConfigError, DataError, LogConfig, RunConfig
from altup_moe.config.load import HINTS
from altup_moe.config.resume_keys import KEY_CLASSES, KeyClass
from altup_moe.config.run_directory import checkpoints_dir
from altup_moe.parallel.topology import Topology
from altup_moe.train.resume import find_resume_point, verified
from altup_moe.train.start_notes import resume_notes
from tests.checkpoints import head, random_tensors, write_tensors
from tests.distributed.cases import LAYOUTS, small

REFUSED = [key for key, kind in KEY_CLASSES.items() if kind in ("model", "run")]
RECORDED = [key for key, kind in KEY_CLASSES.items() if kind == "recorded" and key != "checkpoint.initial_load_path"]
FREE = [key for key, kind in KEY_CLASSES.items() if kind == "free" and key not in ("log.run_dir", "checkpoint.resume")]


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    """A run that has saved steps 10 and 20."""
    config = replace(small("one", train={"steps": 60}), log=LogConfig(run_dir=str(tmp_path / "run")))
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
        case int():
            other = value + 1
        case float():
            other = value / 2 or 1.0
        case None if name == "decay_steps":
            other = 30
        case "cosine":
            other = "constant"
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


def test_every_key_has_a_class() -> None:
    """A new key is entered in KEY_CLASSES: whether a run may change it on its way is decided once, for all to read."""
    assert sorted(KEY_CLASSES) == sorted(HINTS)
    assert set(KEY_CLASSES.values()) == set(typing.get_args(KeyClass))


@pytest.mark.parametrize("key", REFUSED)
def test_another_value_is_refused_by_name(key: str, config: RunConfig) -> None:
    other = changed(config, key)
    with pytest.raises(ConfigError) as error:
        find_resume_point(other)
    assert error.value.key == key
    section, _, name = key.partition(".")
    assert error.value.value == getattr(getattr(other, section), name)
    assert f"written with {config.to_dict()[section][name]!r}" in error.value.fits
    assert "step_00000020" in error.value.fits


@pytest.mark.parametrize("key", RECORDED)
def test_what_changes_the_course_is_recorded(key: str, config: RunConfig) -> None:
    section, _, name = key.partition(".")
    other = changed(config, key)
    values = (config.to_dict()[section][name], other.to_dict()[section][name])
    point = find_resume_point(other)
    assert point is not None
    assert point.changes == {key: values}
    assert point.history == [{"step": 20, "keys": {key: list(values)}}]
    (note,) = resume_notes(other, point, 1)
    assert note.startswith(f"changed after step 20: {key} {values[0]} -> {values[1]}")


@pytest.mark.parametrize("key", FREE)
def test_what_does_not_change_the_run_may_differ(key: str, config: RunConfig) -> None:
    point = find_resume_point(changed(config, key))
    assert point is not None
    assert point.changes == {}
    assert point.history == []


def test_a_checkpoint_says_all_that_was_changed_before_it(config: RunConfig) -> None:
    other = changed(config, "optim.weight_decay")
    point = find_resume_point(other)
    assert point is not None
    write_tensors(config.log.run_dir, head(other, 25, changes=point.history), random_tensors(config))
    last = find_resume_point(changed(other, "train.micro_batch_size"))
    assert last is not None
    assert [(entry["step"], list(entry["keys"])) for entry in last.history] == [
        (20, ["optim.weight_decay"]),
        (25, ["train.micro_batch_size"]),
    ]
    # What is named once is not named again by the same command.
    same = find_resume_point(other)
    assert same is not None
    assert same.changes == {}


def test_a_run_gets_longer_but_not_shorter_than_it_is(config: RunConfig) -> None:
    def of(**train: object) -> RunConfig:
        return replace(config, train=replace(config.train, **train))

    point = find_resume_point(of(steps=20))
    assert point is not None
    assert resume_notes(of(steps=20), point, 1)[-1] == "all 20 steps are done; a larger train.steps goes on"
    assert point.changes == {"train.steps": (60, 20)}
    longer = find_resume_point(of(steps=40))
    assert longer is not None
    assert longer.changes == {"train.steps": (60, 40)}
    with pytest.raises(ConfigError, match=r"train\.steps=19: .* has done 20 steps; at least 20 would fit"):
        find_resume_point(of(steps=19))
    stopped = of(steps=40, stop_after=20)
    assert "nothing is left to do" in resume_notes(stopped, find_resume_point(stopped), 1)[-1]


def test_the_next_learning_rate_is_said_where_the_schedule_changes(config: RunConfig) -> None:
    optim = {"learning_rate": 0.5, "min_learning_rate": 0.1, "warmup_steps": 4, "schedule": "constant"}
    other = replace(config, optim=replace(config.optim, **optim))
    point = find_resume_point(other)
    assert point is not None
    (note,) = resume_notes(other, point, 1)
    assert "; learning rate of the next step 0.5 instead of " in note
    decay = changed(config, "optim.weight_decay")
    assert "rate of the next step" not in resume_notes(decay, find_resume_point(decay), 1)[0]


def test_another_optimizer_fits_where_none_has_left_its_state(config: RunConfig, tmp_path: Path) -> None:
    weights = {name: value for name, value in random_tensors(config).items() if name.startswith("weights/")}
    imported = replace(config, log=LogConfig(run_dir=str(tmp_path / "imported")))
    write_tensors(imported.log.run_dir, head(imported, 0), weights)
    other = replace(imported, optim=replace(imported.optim, optimizer="adafactor"))
    point = find_resume_point(other)
    assert point is not None
    assert point.changes == {"optim.optimizer": ("adamw", "adafactor")}


def test_initial_weights_beside_a_checkpoint_are_not_passed_over(config: RunConfig, tmp_path: Path) -> None:
    def starting(path: str | None) -> RunConfig:
        return replace(config, checkpoint=replace(config.checkpoint, initial_load_path=path))

    with pytest.raises(ConfigError, match=r"initial_load_path='other': .* goes on from its own checkpoint .*20"):
        find_resume_point(starting("other"))
    write_tensors(config.log.run_dir, head(starting("old/place"), 30), random_tensors(config))
    for same in ("old/place", None):
        point = find_resume_point(starting(same))
        assert point is not None
        assert point.changes == {}
    moved = find_resume_point(starting("new/place"))
    assert moved is not None
    assert "initial_load_path is not read" in resume_notes(starting("new/place"), moved, 1)[0]


def test_other_dropout_masks_are_said(config: RunConfig) -> None:
    dropout = replace(config, model=replace(config.model, hidden_dropout=0.1))
    write_tensors(config.log.run_dir, head(dropout, 30), random_tensors(config))
    point = find_resume_point(dropout)
    assert point is not None
    assert resume_notes(dropout, point, 1) == []
    assert "dropout draws other masks" in resume_notes(dropout, point, 2)[0]


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
