"""Where checkpoints lie: whatever moment a save dies at, `latest_checkpoint` gives a complete one that verifies."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from altup_moe.checkpoint.shards import ShardWriter
from altup_moe.checkpoint.source import Checkpoint
from altup_moe.checkpoint.store import (
    LATEST,
    checkpoints_dir,
    complete_checkpoints,
    find_checkpoint,
    go_back,
    latest_checkpoint,
    move_latest,
    open_partial,
    prune,
    step_of,
)
from altup_moe.config import DataError, UserError
from tests.unit.checkpoint.models import forms_of, values_of
from tests.unit.checkpoint.models import save as save_all

NAME = "weights/model.embed_tokens.weight"


def save(root: Path, step: int, seed: int = 0) -> Path:
    """Weights alone are quicker."""
    return save_all(root, step, seed, optimizer=False)


class Killed(BaseException):
    """Nothing may be cleaned up after it: `kill_at` stops removals, too."""


OPERATIONS = ((os, "rename"), (os, "replace"), (os, "fsync"), (os, "unlink"), (shutil, "rmtree"), (Path, "unlink"))


def kill_at(patch: pytest.MonkeyPatch, moment: int) -> list[str]:
    """Let `moment` file operations of a save pass; the next one, and all after it, never happen."""
    done: list[str] = []

    def stopping(original: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if len(done) >= moment:
                raise Killed(name)
            done.append(name)
            return original(*args, **kwargs)

        return call

    for place, name in OPERATIONS:
        patch.setattr(place, name, stopping(getattr(place, name), name))
    return done


def seed_of(directory: Path) -> int:
    """Which save a checkpoint is of; it is read and verified."""
    with Checkpoint(directory) as checkpoint:
        checkpoint.verify()
        found = checkpoint.read(NAME)
    return next(seed for seed in range(9) if np.array_equal(values_of({NAME: forms_of()[NAME]}, seed)[NAME], found))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with the checkpoints 1 (seed 1) and 2 (seed 2)."""
    for step in (1, 2):
        save(checkpoints_dir(tmp_path), step, seed=step)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("step", [3, 2, 1])
def test_killed_at_every_moment_of_a_save(run: Path, step: int) -> None:
    """A new step; the latest one again; and an older one again."""
    root, seen, moment = checkpoints_dir(run), [], 0
    shutil.copytree(root, run / "kept")
    while True:
        with pytest.MonkeyPatch.context() as patch:
            operations = kill_at(patch, moment)
            try:
                save(root, step, seed=5)
                break
            except Killed:
                pass
        found = latest_checkpoint(run)
        assert found is not None
        seen.append(seed_of(found))
        assert seed_of(find_checkpoint(run)) == seen[-1]
        for path in complete_checkpoints(root):
            seed_of(path)
        # The next save and the clean-up after it go through, whatever was left.
        save(root, 4, seed=4)
        prune(root, keep=9)
        assert seed_of(latest_checkpoint(run) or root) == 4
        assert all("." not in path.name for path in root.iterdir())
        shutil.rmtree(root)
        shutil.copytree(run / "kept", root)
        moment += 1
    assert operations.count("rename") == (1 if step == 3 else 2)
    assert moment == len(operations) >= 10
    assert set(seen) == {2, 5}
    assert seen == sorted(seen), "once the new one is the latest it stays so"
    assert seed_of(latest_checkpoint(run) or root) == 5
    assert all("." not in path.name for path in root.iterdir())


def test_the_first_save_killed_at_every_moment(tmp_path: Path) -> None:
    found, moment = [], 0
    while True:
        run = tmp_path / str(moment)
        with pytest.MonkeyPatch.context() as patch:
            kill_at(patch, moment)
            try:
                save(checkpoints_dir(run), 1, seed=1)
                break
            except Killed:
                moment += 1
        there = latest_checkpoint(run)
        found.append(0 if there is None else seed_of(there))
        save(checkpoints_dir(run), 1, seed=1)
        assert seed_of(find_checkpoint(run)) == 1
    assert found == sorted(found)
    assert set(found) == {0, 1}


PUT = ShardWriter._put


@pytest.mark.parametrize("name", ["fsync", "rename", "replace", "write"])
@pytest.mark.parametrize("step", [3, 2])
def test_a_full_disk(run: Path, monkeypatch: pytest.MonkeyPatch, name: str, step: int) -> None:
    """Every single call fails once (of the many writes, every fifth)."""
    root, number = checkpoints_dir(run), 0
    shutil.copytree(root, run / "kept")
    while True:
        calls: list[int] = []
        with pytest.MonkeyPatch.context() as patch:
            if name == "write":
                patch.setattr("altup_moe.checkpoint.shards.ShardWriter._put", failing(PUT, number, calls))
            else:
                patch.setattr(os, name, failing(getattr(os, name), number, calls))
            try:
                save(root, step, seed=5)
                break
            except OSError:
                pass
        found = latest_checkpoint(run)
        assert found is not None
        assert seed_of(found) in ((2, 5) if name in ("fsync", "replace") else (2,))
        assert not list(root.glob("*.partial")), "nothing half written is left"
        for path in complete_checkpoints(root):
            seed_of(path)
        shutil.rmtree(root)
        shutil.copytree(run / "kept", root)
        number += 5 if name == "write" else 1
    assert number >= len(calls) > 0
    assert seed_of(latest_checkpoint(run) or root) == 5


def failing(original: Callable[..., Any], number: int, calls: list[int]) -> Callable[..., Any]:
    """A function whose call `number` finds the disk full."""

    def call(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == number + 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(*args, **kwargs)

    return call


def test_latest(run: Path) -> None:
    root = checkpoints_dir(run)
    assert latest_checkpoint(run) == root / "step_00000002"
    move_latest(root, "step_00000001")
    assert latest_checkpoint(run) == root / "step_00000001"
    assert (root / LATEST).read_text() == "step_00000001\n"
    (root / LATEST).unlink()
    assert latest_checkpoint(run) == root / "step_00000002", "killed between rename and latest"
    assert latest_checkpoint(run / "nowhere") is None
    assert [path.name for path in complete_checkpoints(root)] == ["step_00000001", "step_00000002"]


NO_LATEST = [
    b"",
    b"\n",
    b"step_00000009\n",
    b"step_2\n",
    b"../checkpoints/step_00000002",
    b"/etc",
    b"step_0000000\xff",
    b"\0",
    "step_0000000\u0662".encode(),
    b"step_00000002\nstep_00000001\n",
    b"step_00000003",
    b"step_00000002.partial",
]


@pytest.mark.parametrize("content", NO_LATEST)
def test_a_damaged_latest(run: Path, content: bytes) -> None:
    root = checkpoints_dir(run)
    (root / "step_00000003").mkdir()
    shutil.copytree(root / "step_00000002", root / "step_00000002.partial")
    (root / LATEST).write_bytes(content)
    with pytest.raises(DataError, match="latest: names"):
        latest_checkpoint(run)
    with pytest.raises(DataError, match="latest: names"):
        find_checkpoint(run)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("step_00000002")])
@pytest.mark.timeout(10)
def test_latest_is_no_file(run: Path, make: Callable[[Path], object]) -> None:
    (checkpoints_dir(run) / LATEST).unlink()
    make(checkpoints_dir(run) / LATEST)
    with pytest.raises(DataError, match="latest"):
        latest_checkpoint(run)


def test_find_checkpoint(run: Path) -> None:
    root = checkpoints_dir(run)
    assert find_checkpoint(run) == root / "step_00000002"
    assert find_checkpoint(root / "step_00000001") == root / "step_00000001"
    (run / "empty").mkdir()
    for path in (run / "empty", run / "nowhere"):
        with pytest.raises(UserError, match=r"is no checkpoint \(it has no manifest.json\), and no run"):
            find_checkpoint(path)


def test_prune(tmp_path: Path) -> None:
    root = tmp_path / "any name"
    for step in range(1, 8):
        save(root, step)

    def steps() -> list[int]:
        return [int(path.name[5:]) for path in complete_checkpoints(root)]

    prune(root, keep=5)
    assert steps() == [3, 4, 5, 6, 7]
    prune(root, keep=2, keep_every=4, save_at=(5,))
    assert steps() == [4, 5, 6, 7]
    prune(root, keep=2, keep_every=4)
    assert steps() == [4, 6, 7]
    move_latest(root, "step_00000004")
    prune(root, keep=1)
    assert steps() == [4, 7], "the latest is never removed"
    prune(root, keep=0)
    assert steps() == [4]
    assert sorted(path.name for path in root.iterdir()) == [LATEST, "step_00000004"]


@pytest.mark.parametrize(
    ("last_taken", "kept"),
    [
        (8, [7, 8]),
        # Step 7 was skipped: that the run could go on from 6 is not known.
        (6, [5, 8]),
        (4, [3, 8]),
        (2, [1, 8]),
        (1, [8]),
        (None, [8]),
    ],
)
def test_the_last_that_a_good_step_followed_stays(last_taken: int | None, kept: list[int], tmp_path: Path) -> None:
    for step in range(1, 9):
        save(tmp_path, step)
    prune(tmp_path, 1, last_taken=last_taken)
    assert [step_of(path) for path in complete_checkpoints(tmp_path)] == kept


@pytest.mark.parametrize(("keep_others", "left"), [(True, ["step_00000003.diverged"]), (False, [])])
def test_going_back(keep_others: bool, left: list[str], tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)
    go_back(tmp_path, tmp_path / "step_00000002", keep_others=keep_others)
    assert (tmp_path / LATEST).read_text() == "step_00000002\n"
    prune(tmp_path, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [LATEST, "step_00000001", "step_00000002", *left]


def test_a_checkpoint_that_is_read_stays(tmp_path: Path) -> None:
    """An export opens its checkpoint a second time to compare logits, while the run that is training prunes."""
    for step in (1, 2, 3):
        save(tmp_path, step)
    with Checkpoint(tmp_path / "step_00000001"):
        prune(tmp_path, keep=1)
        assert [path.name for path in complete_checkpoints(tmp_path)] == ["step_00000001", "step_00000003"]
        with Checkpoint(tmp_path / "step_00000001") as again:
            again.verify()
    prune(tmp_path, keep=1)
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["step_00000003"]


def test_a_clean_up_that_is_killed(run: Path) -> None:
    """What is half removed is no checkpoint any more."""
    root = checkpoints_dir(run)
    real = shutil.rmtree

    def half(path: Path, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            max(path.glob("*.safetensors")).unlink()
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "rmtree", half)
        with pytest.raises(Killed):
            prune(root, keep=1)
    assert shutil.rmtree is real
    assert [seed_of(path) for path in complete_checkpoints(root)] == [2]
    prune(root, keep=1)
    assert sorted(path.name for path in root.iterdir()) == [LATEST, "step_00000002"]


def test_what_killed_saves_left_is_removed(run: Path) -> None:
    root = checkpoints_dir(run)
    for name in ("step_00000003.partial", "step_00000001.replaced"):
        (root / name).mkdir()
        (root / name / "rank_00000_000.safetensors").write_text("half")
    (root / ".latest.4711").write_text("half")
    prune(root, keep=2)
    assert sorted(path.name for path in root.iterdir()) == [LATEST, "step_00000001", "step_00000002"]
    (root / "step_00000003.partial" / "sub").mkdir(parents=True)
    assert list(open_partial(root, 3).iterdir()) == []
