"""checkpoint.memory_interval: a killed run goes on from memory, also when a node's memory died with it."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from altup_moe.checkpoint.memory_directory import VARIABLE, memory_directory
from altup_moe.checkpoint.store import complete_checkpoints, step_of
from altup_moe.config import RunConfig
from altup_moe.config.run_directory import checkpoints_dir
from tests.distributed.cases import world_size
from tests.distributed.ranks import run_ranks, start_ranks
from tests.distributed.runs import losses, records, text_run, train_on_ranks

pytestmark = pytest.mark.distributed

LAYOUT, RANKS, STEPS = "ep2", 2, 12


@contextmanager
def _memory(directory: Path) -> Iterator[None]:
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = str(directory)
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


def _train(config: RunConfig, nodes: list[str], full: int | None = None) -> tuple[int, str]:
    """On a rank: train with the memory of its node; returns the exit code and what was printed.

    Args:
        nodes: directory of each rank's node. full: a rank for which no file of a checkpoint in memory fits.
    """
    import contextlib
    import errno
    import io

    from altup_moe.checkpoint import write as module
    from altup_moe.config.checks import check_config
    from altup_moe.train.loop import train

    rank, printed, write = int(os.environ["RANK"]), io.StringIO(), module.write_file

    def no_space(path: Path, *args: object) -> object:
        if str(path).startswith(nodes[rank]):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, *args)

    check_config(config, len(nodes))
    if full == rank:
        module.write_file = no_space
    try:
        with _memory(Path(nodes[rank])), contextlib.redirect_stdout(printed):
            return train(config), printed.getvalue()
    finally:
        module.write_file = write


@pytest.fixture
def nodes(tmp_path: Path) -> list[str]:
    """The memory of two nodes."""
    places = [tmp_path / "node0", tmp_path / "node1"]
    for place in places:
        place.mkdir()
    return [str(place) for place in places]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all runs lie: they share their tokens."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def whole(place: Path) -> list[float]:
    """Losses of the run that nobody kills."""
    config = _config(place, "whole", None)
    assert train_on_ranks(LAYOUT, config) == [0, 0]
    return losses(config)


def _config(directory: Path, name: str, interval: int | None = 1, layout: str = LAYOUT, **train: object) -> RunConfig:
    config = text_run(layout, directory, name, train={"steps": STEPS, "eval_interval": 0, **train})
    return replace(config, checkpoint=replace(config.checkpoint, memory_interval=interval, save_interval=4))


def _held(config: RunConfig, node: str) -> list[int]:
    """Steps that a node's memory has, whole or its part of it."""
    return [step_of(path) for path in complete_checkpoints(memory_directory(Path(node), config.log.run_dir))]


def _killed(config: RunConfig, nodes: list[str], steps: int) -> int:
    """Kill both ranks (the second one first) once so many steps are recorded; returns how many were."""
    file = Path(config.log.run_dir) / "metrics.jsonl"
    with start_ranks(len(nodes), _train, config, nodes) as ranks:
        deadline = time.monotonic() + 120
        while not file.is_file() or file.read_bytes().count(b"\n") < steps:
            assert time.monotonic() < deadline
            assert all(rank.is_alive() for rank in ranks)
            time.sleep(0.001)
        os.kill(ranks[-1].pid, signal.SIGKILL)
        ranks[-1].join(10)
        os.kill(ranks[0].pid, signal.SIGKILL)
        ranks[0].join(10)
    return len(records(config))


def _start_line(printed: str) -> str:
    return next(line for line in printed.splitlines() if line.startswith("run "))


@pytest.mark.parametrize("dead", [0, 1])
def test_a_node_dies_and_the_run_goes_on_from_its_neighbour(
    dead: int, nodes: list[str], place: Path, whole: list[float]
) -> None:
    cut = _config(place, f"node{dead}")
    done = _killed(cut, nodes, 6)
    # The dead node's memory is gone; and the disk has nothing any more: what is read comes from the neighbour.
    shutil.rmtree(nodes[dead])
    Path(nodes[dead]).mkdir()
    shutil.rmtree(checkpoints_dir(cut.log.run_dir))
    held = _held(cut, nodes[1 - dead])
    assert 1 <= len(held) <= 2
    (code, printed), (other, _) = run_ranks(RANKS, _train, cut, nodes)
    assert (code, other) == (0, 0)
    assert "in memory)" in _start_line(printed)
    went_on_from = int(_start_line(printed).split("going on from step ")[1].split()[0])
    assert done - 1 <= went_on_from <= done
    assert losses(cut) == whole
    # A good end leaves nothing.
    assert [list(Path(node).iterdir()) for node in nodes] == [[], []]


def test_ranks_of_one_node_keep_one_copy_and_a_broken_disk_is_not_read(
    nodes: list[str], place: Path, whole: list[float]
) -> None:
    together = [nodes[0], nodes[0]]
    cut = _config(place, "broken")
    _killed(cut, together, 6)
    for path in checkpoints_dir(cut.log.run_dir).glob("step_*/manifest.json"):
        path.write_text("broken")
    (code, printed), _ = run_ranks(RANKS, _train, cut, together)
    assert code == 0
    assert "in memory)" in _start_line(printed)
    assert "(one node: no copy elsewhere)" in printed
    assert losses(cut) == whole


def test_the_newest_of_disk_and_memory_wins_and_damage_is_refused(
    nodes: list[str], place: Path, whole: list[float]
) -> None:
    for case, interval in (("older", 5), ("damaged", 1)):
        cut = _config(place, case, interval)
        _killed(cut, nodes, 10)
        if case == "damaged":
            # Of every step: one byte of a file that only its writer's node and the neighbour have.
            for node in nodes:
                for file in memory_directory(Path(node), cut.log.run_dir).glob("step_*/rank_00000_000.safetensors"):
                    data = bytearray(file.read_bytes())
                    data[-1] ^= 1
                    file.write_bytes(data)
        (code, printed), _ = run_ranks(RANKS, _train, cut, nodes)
        assert code == 0
        assert "going on from step 8 (step_00000008)" in _start_line(printed), case
        assert ("is not used: " in printed) == (case == "damaged")
        assert losses(cut) == whole


def test_full_memory_is_said_once_and_training_goes_on(nodes: list[str], place: Path, whole: list[float]) -> None:
    full = _config(place, "full")
    (code, printed), (other, _) = run_ranks(RANKS, _train, full, nodes, 1)
    assert (code, other) == (0, 0)
    said = [line for line in printed.splitlines() if line.startswith("checkpoint.memory_interval: checkpoint of")]
    assert len(said) == 1
    assert "No space left on device; training goes on" in said[0]
    assert losses(full) == whole


def test_another_layout_loads_what_memory_has(nodes: list[str], place: Path, whole: list[float]) -> None:
    cut = _config(place, "layout")
    done = _killed(cut, nodes, 6)
    shutil.rmtree(checkpoints_dir(cut.log.run_dir))
    other = replace(cut, parallel=_config(place, "other", layout="tp2").parallel)
    assert world_size("tp2") == RANKS
    (code, printed), _ = run_ranks(RANKS, _train, other, nodes)
    assert code == 0
    went_on_from = int(_start_line(printed).split("going on from step ")[1].split()[0])
    assert went_on_from >= done - 1


def test_a_run_that_begins_anew_in_the_same_directory_does_not_find_the_old_one(nodes: list[str], place: Path) -> None:
    cut = _config(place, "anew")
    _killed(cut, nodes, 6)
    assert _held(cut, nodes[0])
    shutil.rmtree(cut.log.run_dir)
    (code, printed), _ = run_ranks(RANKS, _train, cut, nodes)
    assert code == 0
    assert "from step 0" in _start_line(printed)


def test_a_run_that_may_not_resume_is_refused_what_memory_has(nodes: list[str], place: Path) -> None:
    """As with a checkpoint on the disk; memory may have one before the disk has any."""
    cut = _config(place, "refused")
    _killed(cut, nodes, 3)
    shutil.rmtree(checkpoints_dir(cut.log.run_dir), ignore_errors=True)
    held = [_held(cut, node) for node in nodes]
    anew = replace(cut, checkpoint=replace(cut.checkpoint, resume=False))
    with pytest.raises(Exception, match=r"log.run_dir=.* memory holds step \d+ of it"):
        run_ranks(RANKS, _train, anew, nodes)
    assert [_held(cut, node) for node in nodes] == held
