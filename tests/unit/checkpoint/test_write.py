"""What a rank writes is cut into files, one piece at a time, and every failure leaves nothing."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from altup_moe.checkpoint.manifest import StoredFile, StoredPiece
from altup_moe.checkpoint.shards import ShardReader
from altup_moe.checkpoint.slices import full_slice, slice_shape
from altup_moe.checkpoint.source import Checkpoint
from altup_moe.checkpoint.store import LATEST, latest_checkpoint
from altup_moe.checkpoint.write import (
    NamedSlice,
    TensorSpec,
    plan_files,
    single_process_plan,
    stored_tensors,
    write_checkpoint,
    write_file,
    write_files,
)
from altup_moe.parallel.parameter_mapping import TensorSlice
from tests.unit.checkpoint.models import forms_of, head_of, reader_of, two_ranks, values_of

SPECS = {
    "a": TensorSpec((4, 2), "F32"),
    "b": TensorSpec((3,), "BF16"),
    "c": TensorSpec((), "U8"),
    "d": TensorSpec((0, 5), "F64"),
}


def test_files_are_cut_after_the_limit() -> None:
    parts = [NamedSlice(name, full_slice(spec.shape)) for name, spec in SPECS.items()]
    plan = plan_files(3, parts, SPECS, limit=32)
    assert list(plan) == ["rank_00003_000.safetensors", "rank_00003_001.safetensors"]
    assert [[part.name for part in held] for held in plan.values()] == [["a"], ["b", "c", "d"]]
    assert [len(held) for held in plan_files(0, parts, SPECS, limit=33).values()] == [2, 2]
    assert list(plan_files(0, parts, SPECS)) == ["rank_00000_000.safetensors"]
    assert plan_files(0, [], SPECS) == {}
    assert [part for held in plan_files(0, parts, SPECS, limit=1).values() for part in held] == parts


def test_a_file(tmp_path: Path) -> None:
    values = values_of(SPECS)
    parts = [
        NamedSlice("a", ((1, 3), (0, 2))),
        NamedSlice("a", ((0, 1), (0, 2))),
        *(NamedSlice(n, full_slice(SPECS[n].shape)) for n in "bcd"),
    ]
    path = tmp_path / "x.safetensors"
    stored = write_file(path, parts, SPECS, reader_of(values))
    raw = path.read_bytes()
    assert stored == StoredFile(len(raw), hashlib.sha256(raw).hexdigest())
    with ShardReader(path) as reader:
        assert list(reader.entries) == ["a[1:3,0:2]", "a[0:1,0:2]", "b", "c", "d"]
        assert np.array_equal(reader.read("a[1:3,0:2]", ((0, 2), (0, 2))), values["a"][1:3])
        assert np.array_equal(reader.read("c", ()), values["c"])


def test_only_one_piece_is_held(tmp_path: Path) -> None:
    """The reader may give the same buffer every time."""
    spec = {f"t{n}": TensorSpec((1000,), "U8") for n in range(20)}
    buffer = np.zeros(1000, np.uint8)

    def read(name: str, tensor_slice: TensorSlice) -> np.ndarray:
        buffer[:] = int(name[1:])
        return buffer

    write_file(tmp_path / "x", [NamedSlice(name, ((0, 1000),)) for name in spec], spec, read)
    with ShardReader(tmp_path / "x") as reader:
        assert [int(reader.read(name, ((0, 1000),)).sum()) for name in spec] == [1000 * n for n in range(20)]


@pytest.mark.parametrize("threads", [1, 3])
def test_several_files_at_a_time(tmp_path: Path, threads: int) -> None:
    values = values_of(SPECS)
    plan = {f"{n}.safetensors": [NamedSlice(name, full_slice(SPECS[name].shape))] for n, name in enumerate("dcba")}
    written = write_files(tmp_path, plan, SPECS, reader_of(values), threads)
    assert list(written) == list(plan)
    for file, parts in plan.items():
        assert written[file].sha256 == hashlib.sha256((tmp_path / file).read_bytes()).hexdigest()
        with ShardReader(tmp_path / file) as reader:
            assert np.array_equal(reader.read(parts[0].name, parts[0].tensor_slice), values[parts[0].name])
    with pytest.raises(FileExistsError):
        write_files(tmp_path, plan, SPECS, reader_of(values), threads)


def test_large_pieces_are_written_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[tuple[int, int]] = []
    monkeypatch.setattr("altup_moe.checkpoint.shards.HASH_BLOCK_BYTES", 1000)
    monkeypatch.setattr("altup_moe.checkpoint.shards.FLUSH_BYTES", 3000)
    monkeypatch.setattr("altup_moe.checkpoint.shards.start_flush", lambda file, at, n: flushed.append((at, n)))
    specs = {"a": TensorSpec((7001,), "U8"), "b": TensorSpec((10,), "U8")}
    values = values_of(specs)
    parts = [NamedSlice(name, full_slice(spec.shape)) for name, spec in specs.items()]
    stored = write_file(tmp_path / "x", parts, specs, reader_of(values))
    raw = (tmp_path / "x").read_bytes()
    assert stored == StoredFile(len(raw), hashlib.sha256(raw).hexdigest())
    assert raw.endswith(values["a"].tobytes() + values["b"].tobytes())
    assert flushed == [(0, len(raw) - 10)]


def test_the_manifests_tensors() -> None:
    plan = {"y": [NamedSlice("a", ((2, 4), (0, 2)))], "x": [NamedSlice("a", ((0, 2), (0, 2))), NamedSlice("c", ())]}
    tensors = stored_tensors(plan, {name: SPECS[name] for name in "ca"})
    assert list(tensors) == ["a", "c"]
    assert tensors["a"].pieces == (
        StoredPiece(((0, 2), (0, 2)), "x", "a[0:2,0:2]"),
        StoredPiece(((2, 4), (0, 2)), "y", "a[2:4,0:2]"),
    )


def test_one_process_writes_everything_whole(tmp_path: Path) -> None:
    specs = forms_of()
    values = values_of(specs)
    directory = write_checkpoint(
        tmp_path / "checkpoints", head_of(7), specs, single_process_plan(specs), reader_of(values)
    )
    assert directory == tmp_path / "checkpoints" / "step_00000007" == latest_checkpoint(tmp_path)
    with Checkpoint(directory) as checkpoint:
        checkpoint.verify()
        assert (checkpoint.manifest.step, checkpoint.manifest.libraries) == (7, {"torch": "2"})
        assert all(np.array_equal(checkpoint.read(name), value) for name, value in values.items())


class Stop(BaseException):
    """As Ctrl-C would be."""


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), MemoryError(), Stop()])
@pytest.mark.parametrize("after", [0, 1, 30, 140])
def test_a_source_that_fails(tmp_path: Path, failure: BaseException, after: int) -> None:
    specs, calls = forms_of(), []
    inner = reader_of(values_of(specs))

    def read(name: str, tensor_slice: TensorSlice) -> np.ndarray:
        calls.append(name)
        if len(calls) > after:
            raise failure
        return inner(name, tensor_slice)

    with pytest.raises(type(failure)):
        write_checkpoint(tmp_path, head_of(), specs, two_ranks(specs), read)
    assert list(tmp_path.iterdir()) == []


def test_items_of_another_size(tmp_path: Path) -> None:
    specs = forms_of()
    with pytest.raises(AssertionError):
        write_checkpoint(
            tmp_path,
            head_of(),
            specs,
            two_ranks(specs),
            lambda name, tensor_slice: np.zeros(slice_shape(tensor_slice), np.uint64),
        )
    assert list(tmp_path.iterdir()) == []


def test_a_plan_that_leaves_something_out(tmp_path: Path) -> None:
    specs = forms_of()
    plan = single_process_plan(specs)
    plan[next(iter(plan))].pop(3)
    with pytest.raises(ValueError, match="elements are missing"):
        write_checkpoint(tmp_path, head_of(), specs, plan, reader_of(values_of(specs)))
    assert not (tmp_path / LATEST).exists()
