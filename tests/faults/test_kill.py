"""kill -9 of a rank at any moment, several times inside a save: the same run goes on, bit for bit."""

from __future__ import annotations

import multiprocessing as mp
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from altup_moe.checkpoint.source import Checkpoint
from altup_moe.checkpoint.store import latest_checkpoint
from altup_moe.config import RunConfig
from altup_moe.config.run_directory import checkpoints_dir
from tests.distributed.ranks import start_ranks
from tests.distributed.runs import losses, text_run, train_on_ranks, train_quietly

pytestmark = pytest.mark.distributed

LAYOUT, RANKS = "ep2", 2
STEPS = {4: 60, 20: 120}
"""Steps of a run, by how often it is killed."""


def _in_partial(root: Path, holding: str) -> Callable[[], bool]:
    """Whether a save is under way that has got as far as a file of this name."""
    return lambda: any(root.glob(f"step_*.partial/{holding}"))


def _after(steps: int, config: RunConfig) -> Callable[[], bool]:
    """Whether the run has got so many steps further."""
    file = Path(config.log.run_dir) / "metrics.jsonl"
    start = file.read_bytes().count(b"\n") if file.is_file() else 0
    return lambda: file.is_file() and file.read_bytes().count(b"\n") >= start + steps


def _wait(condition: Callable[[], bool], ranks: list[mp.Process]) -> None:
    deadline = time.monotonic() + 60
    while not condition() and all(rank.is_alive() for rank in ranks):
        assert time.monotonic() < deadline
        time.sleep(0.0005)


def _latest_is_whole(config: RunConfig) -> int:
    """Step of the latest checkpoint, which must be complete and hold what was saved; 0 before the first."""
    directory = latest_checkpoint(config.log.run_dir)
    if directory is None:
        return 0
    with Checkpoint(directory) as checkpoint:
        checkpoint.verify()
        return checkpoint.manifest.step


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kills", [4, pytest.param(20, marks=pytest.mark.long)])
def test_kills(kills: int, tmp_path: Path) -> None:
    choose = random.Random(4)
    whole, cut = (
        text_run(LAYOUT, tmp_path, name, train={"steps": STEPS[kills], "eval_interval": 0}) for name in ("whole", "cut")
    )
    cut = replace(cut, checkpoint=replace(cut.checkpoint, save_interval=2))
    assert train_on_ranks(LAYOUT, whole) == [0, 0]
    root = checkpoints_dir(cut.log.run_dir)
    reached, inside, kill = 0, 0, 0
    while kill < kills or inside < kills // 4:
        # Every other one inside a save; where the save was faster there are more.
        assert kill < 4 * kills
        with start_ranks(RANKS, train_quietly, cut, RANKS) as ranks:
            _wait(_after(1, cut), ranks)
            if kill % 2:
                _wait(_in_partial(root, choose.choice(["", "rank_00000*", "rank_00001*", "manifest.*"])), ranks)
            else:
                _wait(_after(choose.randint(1, 4), cut), ranks)
                time.sleep(choose.random() * 0.05)
            victim = choose.choice(ranks)
            assert victim.pid is not None
            assert all(rank.is_alive() for rank in ranks), "the run ended before it was killed"
            os.kill(victim.pid, signal.SIGKILL)
            victim.join(10)
            inside += any(root.glob("step_*.partial"))
        # What a launcher does with the others once one is gone: `start_ranks` kills them on leaving.
        step = _latest_is_whole(cut)
        assert step >= reached, "latest went back"
        reached = step
        kill += 1
    assert train_on_ranks(LAYOUT, cut) == [0, 0]
    assert losses(cut) == losses(whole)
    assert _latest_is_whole(cut) == STEPS[kills]
    assert not list(root.glob("*.partial"))
