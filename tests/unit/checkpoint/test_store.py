"""Checkpoints on disk: they come back as they were, become complete at once, and damage is named, never executed."""

from __future__ import annotations

import json
import os
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from altup_moe.checkpoint import store
from altup_moe.checkpoint.store import (
    FORMAT_VERSION,
    Manifest,
    RankState,
    checkpoints_dir,
    latest,
    read_manifest,
    read_rank,
    save,
    write_json,
)
from altup_moe.config import DataError, RunConfig


class Killed(Exception):
    """Stands for the process's end."""


def manifest(step: int, world_size: int = 1) -> Manifest:
    return Manifest(step, step * 8, 3, world_size, "f00d", RunConfig().to_dict())


def state(rank: int = 0, value: float = 0.0) -> RankState:
    tensors = {"model/0.a": torch.full((2, 3), value + rank), "rng/cpu": torch.arange(5, dtype=torch.uint8)}
    return RankState(tensors, {"pieces": {"model/0.a": []}, "scheduler_steps": 7 + rank})


def save_alone(run: Path, step: int, keep: int = 10, value: float = 0.0) -> Path:
    return save(run, manifest(step), 0, state(value=value), lambda: None, keep)


def save_on(run: Path, states: list[RankState], step: int) -> list[Path]:
    """`save` by as many ranks as there are states, each a thread."""
    barrier = threading.Barrier(len(states), timeout=30)
    with ThreadPoolExecutor(len(states)) as ranks:
        calls = [
            ranks.submit(save, run, manifest(step, len(states)), rank, held, lambda: barrier.wait() and None, 2)
            for rank, held in enumerate(states)
        ]
        return [call.result() for call in calls]


def test_nothing_is_saved_yet(tmp_path: Path) -> None:
    assert latest(tmp_path) is None
    assert latest(tmp_path / "no such run") is None


def test_two_ranks_come_back_bit_for_bit(tmp_path: Path) -> None:
    shared = torch.randn(4, 6)
    tensors: dict[str, Tensor] = {
        "bf16": torch.randn(3, 2).bfloat16(),
        "odd numbers": torch.tensor([float("nan"), float("inf"), -0.0, 1e-45]),
        "scalar": torch.tensor(3.0),
        "empty": torch.empty(0, 4),
        "bytes": torch.randint(0, 256, (40,), dtype=torch.uint8),
        "whole": shared,
        "view of it": shared[1:3],
        "transposed": shared.t(),
        "parameter": torch.nn.Parameter(torch.randn(3)),
    }
    states = [RankState(tensors, {"pieces": {"x": [{"box": ((0, 2), (1, 3))}]}}), state(1, 5.0)]
    paths = save_on(tmp_path, states, 12)
    assert latest(tmp_path) == paths[0] == paths[1]
    assert read_manifest(paths[0]) == manifest(12, 2)
    got = read_rank(paths[0], 0)
    assert got.tensors.keys() == tensors.keys()
    for key, value in tensors.items():
        assert got.tensors[key].dtype == value.dtype
        assert got.tensors[key].shape == value.shape
        assert (
            got.tensors[key]
            .contiguous()
            .view(-1)
            .view(torch.uint8)
            .equal(value.detach().contiguous().view(-1).view(torch.uint8))
        ), key
    assert got.meta == {"pieces": {"x": [{"box": [[0, 2], [1, 3]]}]}}
    assert torch.equal(read_rank(paths[0], 1).tensors["model/0.a"], torch.full((2, 3), 6.0))
    names = {"manifest.json", *(f"rank_0000{n}.{kind}" for n in (0, 1) for kind in ("json", "safetensors"))}
    assert {path.name for path in paths[0].iterdir()} == names
    assert {path.name for path in checkpoints_dir(tmp_path).iterdir()} == {"latest", "step_00000012"}


def test_everything_is_inside_the_run_directory(tmp_path: Path) -> None:
    save_alone(tmp_path / "run", 1)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["checkpoints"]


def test_latest_moves_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = save_alone(tmp_path, 1)
    seen = []
    move = store._move_latest

    def watched(root: Path, name: str) -> None:
        # Whoever reads now still finds the old checkpoint, and the new one is complete.
        seen.append((latest(tmp_path), read_manifest(root / name).step, read_rank(root / name, 0).meta))
        move(root, name)

    monkeypatch.setattr(store, "_move_latest", watched)
    second = save_alone(tmp_path, 2, keep=1)
    assert seen == [(first, 2, state().meta)]
    assert latest(tmp_path) == second
    assert not first.exists()


KILLS = {
    "tensors": (store, "save_file"),
    "what they are": (store, "write_json"),
    "renaming": (os, "rename"),
    "moving latest": (store, "_move_latest"),
    "replacing latest": (os, "replace"),
}


@pytest.mark.parametrize("moment", KILLS)
def test_killed_at_any_moment_the_old_one_is_the_latest(moment: str, tmp_path: Path) -> None:
    first = save_alone(tmp_path, 1, value=1.0)

    def killed(*args: object, **kwargs: object) -> None:
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(*KILLS[moment], killed)
        with pytest.raises(Killed):
            save_alone(tmp_path, 2, keep=1)
    assert latest(tmp_path) == first
    assert torch.equal(read_rank(first, 0).tensors["model/0.a"], torch.ones(2, 3))
    # What the dead process left does not stand in the way.
    second = save_alone(tmp_path, 2, keep=1, value=2.0)
    assert latest(tmp_path) == second
    assert torch.equal(read_rank(second, 0).tensors["model/0.a"], torch.full((2, 3), 2.0))
    assert {path.name for path in checkpoints_dir(tmp_path).glob("step_*")} == {"step_00000002"}


def test_a_rank_that_dies_before_the_others_finish_completes_nothing(tmp_path: Path) -> None:
    first, calls = save_alone(tmp_path, 1), []

    def barrier() -> None:
        calls.append(None)
        if len(calls) == 2:  # all files of this rank are written, another rank never arrives
            raise Killed

    with pytest.raises(Killed):
        save(tmp_path, manifest(2), 0, state(), barrier, 2)
    assert latest(tmp_path) == first
    assert not (checkpoints_dir(tmp_path) / "step_00000002").exists()


def test_files_of_a_dead_attempt_are_not_mixed_in(tmp_path: Path) -> None:
    partial = checkpoints_dir(tmp_path) / "step_00000005.partial"
    partial.mkdir(parents=True)
    (partial / "rank_00007.safetensors").write_bytes(b"old")
    assert [path.name for path in save_alone(tmp_path, 5).glob("rank_*.safetensors")] == ["rank_00000.safetensors"]


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_are_kept(keep: int, tmp_path: Path) -> None:
    for step in (5, 10, 15, 100):
        save_alone(tmp_path, step, keep)
    kept = [f"step_{step:08d}" for step in (5, 10, 15, 100)[-keep:]]
    assert sorted(path.name for path in checkpoints_dir(tmp_path).glob("step_*")) == kept


def test_the_one_just_saved_is_kept_whatever_its_number(tmp_path: Path) -> None:
    for step in (10, 20):
        save_alone(tmp_path, step)
    again = save_alone(tmp_path, 5, keep=1)
    assert latest(tmp_path) == again
    assert again.is_dir()


def test_a_step_saved_again_is_the_new_one(tmp_path: Path) -> None:
    save_alone(tmp_path, 3, value=1.0)
    path = save_alone(tmp_path, 3, value=2.0)
    assert torch.equal(read_rank(path, 0).tensors["model/0.a"], torch.full((2, 3), 2.0))


@pytest.mark.parametrize("name", ["../x", "..", "x/y", "{absolute}", "step_00000009", "step_00000002.partial", "", "."])
def test_latest_names_a_complete_checkpoint_of_this_directory(name: str, tmp_path: Path) -> None:
    save_alone(tmp_path, 1)
    root = checkpoints_dir(tmp_path)
    for outside in (tmp_path / "x", root / "x" / "y"):  # complete, but no checkpoint of this directory
        outside.mkdir(parents=True)
        write_json(outside / "manifest.json", asdict(manifest(1)))
    (root / "step_00000002.partial").mkdir()
    (root / "step_00000009").mkdir()  # incomplete: no manifest
    (root / "latest").write_text(name.format(absolute=tmp_path / "x") + "\n")
    with pytest.raises(DataError, match="no complete checkpoint") as error:
        latest(tmp_path)
    assert str(root / "latest") in str(error.value)


def test_another_format_version_is_refused(tmp_path: Path) -> None:
    path = save_alone(tmp_path, 1)
    write_json(path / "manifest.json", asdict(replace(manifest(1), format_version=FORMAT_VERSION + 1)))
    with pytest.raises(DataError, match=f"format version {FORMAT_VERSION + 1}.*reads {FORMAT_VERSION}"):
        read_manifest(path)


BROKEN_MANIFESTS = {
    "torn": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
    "not text": lambda text: "\x00\x01",
    "a field less": lambda text: json.dumps({k: v for k, v in json.loads(text).items() if k != "world_size"}),
    "a field more": lambda text: json.dumps({**json.loads(text), "surprise": 1}),
    "no version": lambda text: json.dumps({k: v for k, v in json.loads(text).items() if k != "format_version"}),
}


@pytest.mark.parametrize("damage", BROKEN_MANIFESTS)
def test_a_broken_manifest_is_named(damage: str, tmp_path: Path) -> None:
    file = save_alone(tmp_path, 1) / "manifest.json"
    file.write_text(BROKEN_MANIFESTS[damage](file.read_text()))
    with pytest.raises(DataError, match=r"manifest\.json"):
        read_manifest(file.parent)


@pytest.mark.parametrize("length", [0, 4, 20, -1])
def test_a_truncated_file_is_named(length: int, tmp_path: Path) -> None:
    file = save_alone(tmp_path, 1) / "rank_00000.safetensors"
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(DataError, match=r"rank_00000\.safetensors"):
        read_rank(file.parent, 0)


@pytest.mark.parametrize("kind", ["safetensors", "json"])
def test_a_missing_file_is_named(kind: str, tmp_path: Path) -> None:
    path = save_alone(tmp_path, 1)
    (path / f"rank_00000.{kind}").unlink()
    with pytest.raises(DataError, match=rf"rank_00000\.{kind}"):
        read_rank(path, 0)


class Trap:
    """Unpickling it makes a directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __reduce__(self):
        return os.mkdir, (str(self.directory),)


@pytest.mark.parametrize("writer", ["pickle", "torch"])
def test_a_pickle_is_refused_and_not_executed(writer: str, tmp_path: Path) -> None:
    file, sprung = save_alone(tmp_path, 1) / "rank_00000.safetensors", tmp_path / "sprung"
    if writer == "pickle":
        file.write_bytes(pickle.dumps(Trap(sprung)))
    else:
        torch.save({"model/0.a": Trap(sprung)}, file)
    with pytest.raises(DataError, match=r"rank_00000\.safetensors"):
        read_rank(file.parent, 0)
    assert not sprung.exists()
    pickle.loads(pickle.dumps(Trap(sprung)))  # the trap works
    assert sprung.is_dir()


def test_json_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"old": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"new": 2, "not JSON": object()})
    assert json.loads((tmp_path / "a.json").read_text()) == {"old": 1}
    write_json(tmp_path / "a.json", {"new": 2})
    assert json.loads((tmp_path / "a.json").read_text()) == {"new": 2}


@pytest.mark.parametrize("name", ["..", ".", "", "step_1", "../step_00000001"])
def test_latest_names_checkpoints_of_its_own_directory_only(name: str, tmp_path: Path) -> None:
    root = tmp_path / "checkpoints"
    root.mkdir()
    (tmp_path / "manifest.json").write_text("{}")
    (root / "manifest.json").write_text("{}")
    (root / "latest").write_text(name)
    with pytest.raises(DataError, match="latest"):
        latest(tmp_path)
