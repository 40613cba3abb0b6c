"""A rank's saves: what is saved is what was, whatever happens next; a failure leaves the checkpoint before it."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from altup_moe.checkpoint import save_threads
from altup_moe.checkpoint import saver as module
from altup_moe.checkpoint.saver import Saved, SaveError, Saver
from altup_moe.checkpoint.slices import full_slice
from altup_moe.checkpoint.source import Checkpoint
from altup_moe.checkpoint.staging_buffer import StagingBuffer
from altup_moe.checkpoint.state import LocalTensor
from altup_moe.checkpoint.store import complete_checkpoints, latest_checkpoint
from altup_moe.checkpoint.tensors import DTYPE_NAMES, load_tensor
from altup_moe.checkpoint.write import NamedSlice, TensorSpec
from altup_moe.config import CheckpointConfig
from altup_moe.config.run_directory import checkpoints_dir
from altup_moe.parallel.topology import Topology
from tests.checkpoints import head, random_tensors
from tests.distributed.cases import small

CONFIG = small("one")
TABLE = "weights/model.embed_tokens.weight"
FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    return random_tensors(CONFIG, dtype=torch.bfloat16)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Files are written only once it is set."""
    opened, write = threading.Event(), save_threads.write_files

    def held_back(*args: object) -> object:
        opened.wait(30)
        return write(*args)

    monkeypatch.setattr(save_threads, "write_files", held_back)
    yield opened
    opened.set()


def held(tensors: dict[str, Tensor]) -> list[LocalTensor]:
    return [
        LocalTensor(NamedSlice(name, full_slice(tuple(t.shape))), TensorSpec(tuple(t.shape), DTYPE_NAMES[t.dtype]), t)
        for name, t in tensors.items()
    ]


def new_saver(run: Path, topology: Topology, **fields: object) -> Saver:
    return Saver(checkpoints_dir(run), CheckpointConfig(**fields), topology)


def save(saver: Saver, step: int, tensors: dict[str, Tensor]) -> Saved | None:
    saver.start(head(CONFIG, step), held(tensors), {"cpu": torch.arange(5, dtype=torch.uint8)})
    return saver.conclude()


def table(run: Path) -> Tensor:
    directory = latest_checkpoint(run)
    assert directory is not None
    with Checkpoint(directory) as checkpoint:
        checkpoint.verify()
        return load_tensor(checkpoint, TABLE)


@pytest.mark.parametrize("asynchronous", [True, False])
def test_everything_comes_back(asynchronous: bool, tensors: dict[str, Tensor], tmp_path: Path, alone: Topology) -> None:
    saved = save(new_saver(tmp_path, alone, asynchronous=asynchronous), 7, tensors)
    assert saved is not None
    assert saved.bytes == 5 + sum(t.numel() * t.element_size() for t in tensors.values())
    assert 0 < saved.waited <= saved.seconds
    with Checkpoint(saved.directory) as checkpoint:
        checkpoint.verify()
        for name, value in tensors.items():
            assert torch.equal(load_tensor(checkpoint, name), value), name
        assert load_tensor(checkpoint, "rng/00000/cpu").tolist() == [0, 1, 2, 3, 4]
        assert checkpoint.manifest.step == 7
    assert latest_checkpoint(tmp_path) == saved.directory
    assert [path.name for path in saved.directory.parent.glob("*.partial")] == []


def test_a_later_step_never_leaks_in(
    gate: threading.Event, tensors: dict[str, Tensor], tmp_path: Path, alone: Topology
) -> None:
    saver = new_saver(tmp_path, alone)
    before = {name: t.clone() for name, t in tensors.items()}
    stream = torch.arange(5, dtype=torch.uint8)
    saver.start(head(CONFIG, 1), held(tensors), {"cpu": stream})
    assert saver.pending
    assert saver.busy
    assert latest_checkpoint(tmp_path) is None
    stream.add_(1)  # random streams move on at once, weights in the next update
    saver.settle()
    for value in tensors.values():
        value.add_(1)
    gate.set()
    saved = saver.conclude()
    assert not saver.pending
    with Checkpoint(saved.directory) as checkpoint:
        for name, value in before.items():
            assert torch.equal(load_tensor(checkpoint, name), value), name
        assert load_tensor(checkpoint, "rng/00000/cpu").tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("problem", [None, MemoryError("no memory for the copy")])
def test_an_update_waits_for_the_copy(
    problem: Exception | None,
    tensors: dict[str, Tensor],
    tmp_path: Path,
    alone: Topology,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`start` does not wait for it, `settle` does; also where there will be none."""
    copying, goes_on = threading.Event(), threading.Event()
    stage = StagingBuffer.stage

    def held_back(staging: StagingBuffer, wanted: dict[NamedSlice, Tensor]) -> dict[NamedSlice, Tensor]:
        if any(part.name == TABLE for part in wanted):
            copying.set()
            goes_on.wait(30)
            if problem:
                raise problem
        return stage(staging, wanted)

    monkeypatch.setattr(StagingBuffer, "stage", held_back)
    saver, before = new_saver(tmp_path, alone), tensors[TABLE].clone()
    saver.start(head(CONFIG, 1), held(tensors), {})
    assert copying.wait(30)

    def update() -> None:
        saver.settle()
        tensors[TABLE].add_(1)

    updating = threading.Thread(target=update)
    updating.start()
    updating.join(0.2)
    assert updating.is_alive(), "the weights are still being read"
    assert torch.equal(tensors[TABLE], before)
    goes_on.set()
    updating.join(30)
    assert not updating.is_alive()
    if problem:
        with pytest.raises(SaveError, match="no memory for the copy"):
            saver.conclude()
    else:
        assert saver.conclude() is not None
        assert torch.equal(table(tmp_path), before)


def test_a_routers_bias_is_copied_before_the_next_forward(
    gate: threading.Event, tensors: dict[str, Tensor], tmp_path: Path, alone: Topology, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It moves after the backward pass, before `settle`."""
    bias = "weights/model.layers.0.mlp.router.expert_bias"
    tensors[bias] = torch.arange(4.0)
    monkeypatch.setattr(module, "copy_and_write", lambda result, *rest: result.copied.set())
    saver = new_saver(tmp_path, alone)
    saver.start(head(CONFIG, 1), held(tensors), {})
    (copied,) = (tensor for part, tensor in saver._staging._buffers.items() if part.name == bias)
    tensors[bias].add_(1)
    assert copied.tolist() == [0, 1, 2, 3]


def test_one_save_at_a_time(gate: threading.Event, tensors: dict[str, Tensor], tmp_path: Path, alone: Topology) -> None:
    saver = new_saver(tmp_path, alone)
    saver.start(head(CONFIG, 1), held(tensors), {})
    with pytest.raises(AssertionError, match="before the next"):
        saver.start(head(CONFIG, 2), held(tensors), {})
    gate.set()
    assert saver.conclude() is not None
    assert saver.conclude() is None


def test_old_ones_go_as_configured(tensors: dict[str, Tensor], tmp_path: Path, alone: Topology) -> None:
    saver = new_saver(tmp_path, alone, keep=2, keep_every=4)
    for step in (2, 4, 6, 8, 10, 12, 13):
        save(saver, step, tensors)
    assert [int(path.name[5:]) for path in complete_checkpoints(checkpoints_dir(tmp_path))] == [4, 8, 12, 13]


@pytest.mark.parametrize("asynchronous", [True, False])
@pytest.mark.parametrize("where", ["write_files", "publish", "open_partial"])
def test_a_full_disk_leaves_the_last_one(
    where: str,
    asynchronous: bool,
    tensors: dict[str, Tensor],
    tmp_path: Path,
    alone: Topology,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    saver = new_saver(tmp_path, alone, asynchronous=asynchronous)
    save(saver, 1, tensors)
    before = table(tmp_path)

    def full(*args: object) -> None:
        raise FULL

    tensors[TABLE].add_(1)
    with monkeypatch.context() as patch:
        patch.setattr(module if hasattr(module, where) else save_threads, where, full)
        with pytest.raises(SaveError, match=r"step 2 was not saved.*No space left"):
            save(saver, 2, tensors)
    assert not saver.pending
    root = checkpoints_dir(tmp_path)
    assert {path.name for path in root.iterdir()} == {"latest", "step_00000001"}
    assert torch.equal(table(tmp_path), before)
    # And once there is space again, saving works again.
    save(saver, 3, tensors)
    assert torch.equal(table(tmp_path), tensors[TABLE])


def test_too_little_space_is_found_before_writing(
    tensors: dict[str, Tensor], tmp_path: Path, alone: Topology, monkeypatch: pytest.MonkeyPatch
) -> None:
    from types import SimpleNamespace

    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: SimpleNamespace(free=1 << 24))
    with pytest.raises(SaveError, match=r"has 17 MB free; 17 MB are needed"):
        save(new_saver(tmp_path, alone), 1, tensors)
    assert list(checkpoints_dir(tmp_path).iterdir()) == []


def test_what_reaches_the_disk_is_checked(
    tensors: dict[str, Tensor], tmp_path: Path, alone: Topology, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = save_threads.write_files

    def torn(directory: Path, *args: object) -> object:
        written = write(directory, *args)
        name = "rank_00000_000.safetensors"
        with (directory / name).open("r+b") as file:
            file.truncate(written[name].size - 3)
        return written

    monkeypatch.setattr(save_threads, "write_files", torn)
    with pytest.raises(SaveError, match=r"rank_00000_000\.safetensors"):
        save(new_saver(tmp_path, alone), 1, tensors)
    assert latest_checkpoint(tmp_path) is None


def test_a_thread_that_starts_late_writes_all_the_same(
    tensors: dict[str, Tensor], tmp_path: Path, alone: Topology, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a busy machine the save may be waited for before its thread has run at all."""

    class Late(threading.Thread):
        def run(self) -> None:
            time.sleep(0.2)
            super().run()

    monkeypatch.setattr(save_threads.threading, "Thread", Late)
    saver = new_saver(tmp_path, alone)
    saver.start(head(CONFIG, 1), held(tensors), {})
    assert saver.conclude() is not None
    assert torch.equal(table(tmp_path), tensors[TABLE])
