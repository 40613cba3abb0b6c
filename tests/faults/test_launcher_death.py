"""kill -9 of a launcher while two ranks train: they save and end, and the same command goes on, bit for bit.

And what launchers say of ranks that fail: the first one by time, whole; the others a line each; no endless restarts.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from altup_moe.checkpoint.store import latest_checkpoint
from altup_moe.launch import netlab
from altup_moe.launch.node import child_processes
from tests.distributed.test_launchers import command, environment, launched, losses
from tests.processes import LOOPBACK, listening, running, started

ROOT = Path(__file__).parents[2]
FAILING = ROOT / "tests" / "faults" / "failing.py"
STEPS = 40

pytestmark = [pytest.mark.usefixtures("signals_are_heard"), pytest.mark.distributed, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs share tokens."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def whole(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """Losses of the run that is left alone."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    finish(run_dir, cache)
    return losses(run_dir)


def words(run_dir: Path, cache: Path, **changes: object) -> list[str]:
    """The training command; it does not end by itself."""
    return command(run_dir, cache, **{"train.steps": 100_000, **changes})


def finish(run_dir: Path, cache: Path) -> None:
    """Train, or go on, to step `STEPS`."""
    argv = [*launched("torchrun.sh"), *words(run_dir, cache, **{"train.stop_after": STEPS})]
    done = subprocess.run(argv, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]


def eventually(condition: object, seconds: float = 100) -> bool:
    """Whether a condition comes true in time."""
    give_up = time.monotonic() + seconds
    assert callable(condition)
    while not (met := bool(condition())) and time.monotonic() < give_up:
        time.sleep(0.02)
    return met


BARE = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
BY_NAME = [sys.executable, "-m", "altup_moe", "launch", "torchrun", "--ranks-per-node", "2", "--"]
NETLAB = [sys.executable, str(ROOT / "launch" / "netlab"), "--"]
NO_NETLAB = netlab.unavailable()


@pytest.mark.parametrize(
    "launcher",
    [
        launched("torchrun.sh"),
        pytest.param(BY_NAME, marks=pytest.mark.long),
        pytest.param(BARE, marks=pytest.mark.long),
        pytest.param(NETLAB, marks=pytest.mark.skipif(NO_NETLAB is not None, reason=str(NO_NETLAB))),
    ],
    ids=["torchrun.sh", "altup-moe", "bare-torchrun", "netlab"],
)
def test_ranks_save_and_end_when_their_launcher_is_killed(
    launcher: list[str], whole: list[float], cache: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    train = [sys.executable, "-m", "altup_moe", *words(run_dir, cache)[1:]]
    with started([*launcher, *train], env=environment()) as process:
        metrics = run_dir / "metrics.jsonl"
        assert eventually(lambda: metrics.is_file() and metrics.read_bytes().count(b"\n") >= 3)
        if launcher[0].endswith(".sh"):
            places = [place for pid in (process.pid, *child_processes(process.pid)) for place in listening(pid)]
            assert set(places) == {LOOPBACK}, "others can reach a store of this run"
        process.send_signal(signal.SIGKILL)
        process.wait(20)
        assert eventually(lambda: not running(run_dir), 60), "ranks outlive their launcher"
    if launcher is NETLAB:
        assert subprocess.run([*NETLAB[:-1], "--clean"], timeout=60).returncode == 0
    steps = len(losses(run_dir))
    directory = latest_checkpoint(run_dir)
    assert directory is not None
    assert directory.name == f"step_{steps:08d}", "not saved at the step at which it was stopped"
    assert steps >= 3
    if launcher[0].endswith(".sh") and steps < STEPS:
        finish(run_dir, cache)
        steps = STEPS
    assert losses(run_dir)[:STEPS] == whole[:steps]


def failing(cache: Path, run_dir: Path, *flags: str, **how: str) -> subprocess.CompletedProcess[str]:
    """Two ranks of `failing.py` under torchrun.sh."""
    argv = [*launched("torchrun.sh", *flags), sys.executable, str(FAILING), *words(run_dir, cache)[1:]]
    return subprocess.run(argv, env={**environment(), **how}, capture_output=True, text=True, timeout=150)


def test_the_first_failure_is_named_and_a_storm_of_restarts_ends(cache: Path, tmp_path: Path) -> None:
    """In step 4 of every start rank 1 raises, and takes its time to end; rank 0 loses its peer and is gone first."""
    done = failing(cache, tmp_path / "run", "--max-restarts", "5", FAIL="raise")
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if line.startswith("altup-moe launch torchrun: ")]
    first = "altup-moe launch torchrun: rank 1 ended with exit code 1 in step 4: ValueError: as the test asks"
    assert [line for line in lines if "rank 1" in line] == [first] * 2, done.stderr
    assert all("its peer had gone" in line for line in lines if "rank 0" in line), lines
    assert lines[-1].endswith("not started again: step 4 has failed twice with the same error")
    assert done.stderr.count("Traceback (most recent call last)") == 2
    assert done.stderr.count("ValueError: as the test asks") == 4  # each start: its traceback and its line
    assert not running(tmp_path / "run")


def test_a_killed_rank_is_named_and_a_stopped_one_does_not_delay_the_end(cache: Path, tmp_path: Path) -> None:
    begin = time.monotonic()
    done = failing(cache, tmp_path / "run", FAIL="kill", STOP="1")
    assert done.returncode == 128 + signal.SIGKILL, done.stderr
    assert "rank 1 ended with exit code 137 (killed by signal 9, SIGKILL)" in done.stderr
    assert "Traceback" not in done.stderr
    assert time.monotonic() - begin < 100
    assert not running(tmp_path / "run")
