"""Checkpoints in the memory of nodes: who keeps whose files, which copy is whole, and whose directory is whose."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from altup_moe.checkpoint.manifest import DIGEST, MANIFEST
from altup_moe.checkpoint.memory import node_bytes, writers_files
from altup_moe.checkpoint.memory_directory import (
    FORGOTTEN_SECONDS,
    VARIABLE,
    memory_base,
    memory_directory,
    open_directory,
    read_note,
    remove_forgotten,
    remove_steps,
    run_identity,
    write_note,
)
from altup_moe.checkpoint.memory_nodes import (
    MemoryCopy,
    Nodes,
    Transfer,
    copy_transfers,
    fetches,
    newest_whole,
)
from altup_moe.checkpoint.write import NamedSlice, TensorSpec, plan_files
from altup_moe.checkpoint.write_balancing import WriteAssignment
from altup_moe.config import UserError
from altup_moe.config.run_directory import starts_file

TWO_AND_ONE = Nodes.of(["a", "a", "b"])


def test_nodes_are_numbered_by_their_lowest_ranks() -> None:
    nodes = Nodes.of(["x", "y", "x", "z"])
    assert nodes.ranks == ((0, 2), (1,), (3,))
    assert [nodes.leader(rank) for rank in range(4)] == [0, 1, 0, 3]


def test_every_rank_sends_to_the_next_node_and_a_lone_node_to_none() -> None:
    assert [TWO_AND_ONE.receiver(rank) for rank in range(3)] == [2, 2, 0]
    assert Nodes.of(["a", "a"]).receiver(1) is None
    assert [Nodes.of("abc").receiver(rank) for rank in range(3)] == [1, 2, 0]


def test_a_node_keeps_its_own_files_and_those_of_the_node_before() -> None:
    assert Nodes.of("abc").writers(0) == (0, 2)
    assert TWO_AND_ONE.writers(2) == (0, 1, 2)
    assert Nodes.of("aa").writers(0) == (0, 1)


def test_what_travels_after_a_save_and_how_many_bytes_a_node_keeps() -> None:
    specs = {"weights/a": TensorSpec((4,), "F32"), "weights/b": TensorSpec((8,), "F32")}
    files = plan_files(0, [NamedSlice("weights/a", ((0, 4),))], specs)
    files |= plan_files(2, [NamedSlice("weights/b", ((0, 8),))], specs)
    assert writers_files(files) == {0: ["rank_00000_000.safetensors"], 2: ["rank_00002_000.safetensors"]}
    assert copy_transfers(TWO_AND_ONE, writers_files(files)) == [
        Transfer(0, 2, "rank_00000_000.safetensors"),
        Transfer(2, 0, "rank_00002_000.safetensors"),
    ]
    assert copy_transfers(Nodes.of("aaa"), writers_files(files)) == []
    nodes = Nodes.of("abc")
    assert [node_bytes(nodes, rank, WriteAssignment(specs, files, {}, 48)) for rank in range(3)] == [48, 16, 32]


def _copy(step: int, files: str, digest: str = "d") -> MemoryCopy:
    return MemoryCopy(step, digest, tuple(files), ("p", "q", "r"))


def test_the_newest_checkpoint_is_the_one_whose_files_all_live_somewhere() -> None:
    assert newest_whole([[_copy(7, "pq"), _copy(8, "pq")], [_copy(7, "qr")], [_copy(8, "q")]]) == (7, "d")
    assert newest_whole([[_copy(7, "pq")], [_copy(8, "pqr")]]) == (8, "d")
    # Files of one step that belong to two checkpoints are not put together.
    assert newest_whole([[_copy(7, "pq")], [_copy(7, "r", "other")]]) is None
    assert newest_whole([[], []]) is None


def test_nodes_fetch_what_they_lack_from_the_next_one_that_has_it() -> None:
    nodes = Nodes.of("abc")
    copies = [[_copy(7, "pq")], [], [_copy(7, "r"), _copy(6, "pqr")]]
    assert fetches(nodes, copies, (7, "d")) == [
        Transfer(2, 0, "r"),
        *(Transfer(*pair) for pair in ((0, 1, "p"), (0, 1, "q"), (2, 1, "r"), (2, 1, DIGEST), (2, 1, MANIFEST))),
        *(Transfer(0, 2, file) for file in "pq"),
    ]
    assert fetches(Nodes.of("a"), [[_copy(7, "pqr")]], (7, "d")) == []


def test_the_directory_is_the_runs_and_the_users(tmp_path: Path) -> None:
    assert memory_base({}) == Path("/dev/shm")
    assert memory_base({VARIABLE: "/x"}) == Path("/x")
    one, other = (memory_directory(tmp_path, tmp_path / name) for name in ("a", "b"))
    assert one != other
    assert memory_directory(tmp_path, f"{tmp_path}/c/../a") == one
    lock = open_directory(one)
    assert one.stat().st_mode & 0o777 == 0o700
    with pytest.raises(UserError, match="another process uses it"):
        open_directory(one)
    os.close(lock)
    os.close(open_directory(one))
    one.chmod(0o777)
    with pytest.raises(UserError, match="only this user can write"):
        open_directory(one)
    other.symlink_to(tmp_path)
    with pytest.raises(UserError, match="is not a directory"):
        open_directory(other)


def _run(directory: Path, first: str) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    starts_file(directory).write_text(f"{first}\n")
    return directory


def test_a_run_that_begins_anew_is_another_one(tmp_path: Path) -> None:
    assert run_identity(tmp_path / "none") is None
    run = _run(tmp_path / "run", "monday")
    before = run_identity(run)
    with starts_file(run).open("a") as file:
        file.write("tuesday\n")
    assert run_identity(run) == before
    starts_file(run).write_text("wednesday\n")
    assert run_identity(run) != before
    starts_file(run).write_text("cut sho")
    assert run_identity(run) is None


def test_what_dead_runs_have_left_is_removed_unless_they_can_go_on_from_it(tmp_path: Path) -> None:
    base = tmp_path / "memory"
    base.mkdir()
    kept, gone, anew, old, alive = names = ("kept", "gone", "anew", "old", "alive")
    locks = {}
    for name in names:
        run = _run(tmp_path / name, name)
        directory = memory_directory(base, run)
        locks[name] = open_directory(directory)
        write_note(directory, run, str(run_identity(run)))
        assert read_note(directory) == (str(run), run_identity(run))
        if name != alive:
            os.close(locks[name])
    for name in (gone, alive):
        shutil.rmtree(tmp_path / name)
    _run(tmp_path / anew, "again")
    past = time.time() - FORGOTTEN_SECONDS - 60
    os.utime(memory_directory(base, tmp_path / old), (past, past))
    (base / "altup-moe-others").mkdir()
    assert sorted(remove_forgotten(base, tmp_path)) == [str(tmp_path / name) for name in (anew, gone, old)]
    left = {memory_directory(base, tmp_path / name) for name in (kept, alive)} | {base / "altup-moe-others"}
    assert set(base.iterdir()) == left
    os.close(locks[alive])


def test_old_steps_go_whole_or_not(tmp_path: Path) -> None:
    for name in ("step_00000001", "step_00000002", "step_00000003.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / MANIFEST).touch()
    remove_steps(tmp_path, keep=tmp_path / "step_00000002")
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000002"]
    remove_steps(tmp_path)
    assert not list(tmp_path.iterdir())
