"""kill -9 under the launchers that users have: a rank inside a save, and every process of a node."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from altup_moe.bench.faults.processes import ranks_of
from altup_moe.checkpoint.source import Checkpoint
from altup_moe.checkpoint.store import latest_checkpoint
from altup_moe.launch import netlab
from altup_moe.launch.cluster import existing
from tests.distributed.runs import command_on_ranks
from tests.distributed.test_launchers import command, environment, launched, losses
from tests.processes import running, started

ROOT = Path(__file__).parents[2]
REASON = netlab.unavailable()
STEPS = 12

pytestmark = [pytest.mark.usefixtures("signals_are_heard"), pytest.mark.distributed, pytest.mark.timeout(300)]
Saw = Callable[[float, int, str], None]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs share tokens."""
    return tmp_path_factory.mktemp("cache")


def words(run_dir: Path, cache: Path, **changes: object) -> list[str]:
    """The training command: it saves every other step, and does not end by itself."""
    return command(run_dir, cache, **{"train.steps": 100_000, "checkpoint.save_interval": 2, **changes})


def wait_for(condition: Callable[[], bool], process: subprocess.Popen, every: float = 0.02) -> None:
    """Until the condition holds; the process must still run then."""
    give_up = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, "it ended before it was killed"
        assert time.monotonic() < give_up
        time.sleep(every)


def killed(launcher: Sequence[str], run_dir: Path, cache: Path, kill: Callable[[subprocess.Popen], None]) -> tuple:
    """Train until `kill` has done its work; seconds from then to the launcher's end, exit code, what was printed."""
    output = run_dir.with_suffix(".txt")
    with output.open("w") as file, started(
        [*launcher, *words(run_dir, cache)], env=environment(), stdout=file, stderr=file
    ) as process:  # fmt: skip
        kill(process)
        began = time.monotonic()
        code = process.wait(100)
        seconds = time.monotonic() - began
        give_up = time.monotonic() + 60
        while running(run_dir):
            assert time.monotonic() < give_up, "ranks outlive their launcher"
            time.sleep(0.05)
    return seconds, code, output.read_text()


def goes_on(run_dir: Path, cache: Path) -> None:
    """The same command goes on from a whole checkpoint, to the losses of a run that was left alone."""
    directory = latest_checkpoint(run_dir)
    assert directory is not None
    with Checkpoint(directory) as checkpoint:
        checkpoint.verify()
        reached = checkpoint.manifest.step
    whole, stop = run_dir.with_name("whole"), {"train.stop_after": reached + STEPS}
    argv = [*launched("torchrun.sh"), *words(run_dir, cache, **stop)]
    done = subprocess.run(argv, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert command_on_ranks(2, words(whole, cache, **stop)[1:]) == [0, 0]
    assert len(losses(whole)) == reached + STEPS
    assert losses(run_dir) == losses(whole)


@pytest.mark.long
@pytest.mark.parametrize(
    "in_save",
    [
        pytest.param(False, marks=pytest.mark.fault("kill-rank")),
        pytest.param(True, marks=pytest.mark.fault("kill-in-save")),
    ],
)
def test_a_rank_that_is_killed(in_save: bool, cache: Path, tmp_path: Path, saw: Saw) -> None:
    run_dir = tmp_path / "run"

    def kill(process: subprocess.Popen) -> None:
        wait_for(lambda: latest_checkpoint(run_dir) is not None, process)
        rank = ranks_of(run_dir)[1]
        saving = lambda: any((run_dir / "checkpoints").glob("step_*.partial"))  # noqa: E731
        wait_for(lambda: saving() is in_save, process, every=0.0005)
        os.kill(rank, signal.SIGKILL)

    seconds, code, said = killed(launched("torchrun.sh"), run_dir, cache, kill)
    assert "rank 1 ended with exit code 137" in said
    goes_on(run_dir, cache)
    saw(seconds, code, said)


@pytest.mark.fault("kill-node")
@pytest.mark.skipif(REASON is not None, reason=str(REASON))
def test_a_node_that_dies(cache: Path, tmp_path: Path, saw: Saw) -> None:
    run_dir = tmp_path / "run"

    def kill(process: subprocess.Popen) -> None:
        wait_for(lambda: latest_checkpoint(run_dir) is not None, process)
        (node,) = [name for name in existing() if name.startswith(f"altup-{process.pid}-") and name.endswith("-1")]
        inside = subprocess.run(["ip", "netns", "pids", node], capture_output=True, text=True, check=True)
        pids = [int(pid) for pid in inside.stdout.split()]
        assert len(pids) >= 2, "the node's launcher and its rank"
        for pid in pids:
            os.kill(pid, signal.SIGKILL)

    launcher = [sys.executable, str(ROOT / "launch" / "netlab"), "--nodes", "2", "--"]
    seconds, code, said = killed(launcher, run_dir, cache, kill)
    goes_on(run_dir, cache)
    saw(seconds, code, said)
