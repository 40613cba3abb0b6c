"""kill -9 of a launcher while two ranks train: they save and end, and the same command goes on, bit for bit.

And what launchers say of ranks that fail: the first one by time, whole; the others a line each; no endless restarts.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from altup_moe.checkpoint.store import latest_checkpoint
from altup_moe.doctor.network import free_port
from altup_moe.launch import netlab
from altup_moe.launch.node import child_processes
from tests.distributed.runs import command_on_ranks
from tests.distributed.test_launchers import command, environment, launched, losses
from tests.processes import LOOPBACK, listening, running, started

ROOT = Path(__file__).parents[2]
FAILING = ROOT / "tests" / "faults" / "failing.py"
STEPS = 40
Saw = Callable[[float, int, str], None]

pytestmark = [pytest.mark.usefixtures("signals_are_heard"), pytest.mark.distributed, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs share tokens."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def whole(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """Losses of the run that is left alone."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    assert command_on_ranks(2, words(run_dir, cache, **{"train.stop_after": STEPS})[1:]) == [0, 0]
    return losses(run_dir)


def words(run_dir: Path, cache: Path, **changes: object) -> list[str]:
    """The training command; it does not end by itself."""
    return command(run_dir, cache, **{"train.steps": 100_000, **changes})


def finish(run_dir: Path, cache: Path) -> None:
    """Train, or go on, to step `STEPS`."""
    argv = [*launched("torchrun.sh"), *words(run_dir, cache, **{"train.stop_after": STEPS})]
    done = subprocess.run(argv, env=environment(), capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr[-2000:]


def eventually(condition: Callable[[], bool], seconds: float = 200) -> bool:
    """Whether a condition comes true in time."""
    give_up = time.monotonic() + seconds
    while not (met := condition()) and time.monotonic() < give_up:
        time.sleep(0.02)
    return met


BARE = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
BY_NAME = [sys.executable, "-m", "altup_moe", "launch", "torchrun", "--ranks-per-node", "2", "--"]
NETLAB = [sys.executable, str(ROOT / "launch" / "netlab"), "--"]
NO_NETLAB = netlab.unavailable()


def killed(launcher: list[str], run_dir: Path, cache: Path, check: Callable[[int], None] = lambda pid: None) -> tuple:
    """Train, kill the launcher and see its ranks save and end: seconds from then, exit code, what was printed."""
    train = [sys.executable, "-m", "altup_moe", *words(run_dir, cache)[1:]]
    output = run_dir.with_suffix(".txt")
    with output.open("w") as said, started([*launcher, *train], env=environment(), stdout=said) as process:
        metrics = run_dir / "metrics.jsonl"
        assert eventually(lambda: metrics.is_file() and metrics.read_bytes().count(b"\n") >= 3)
        check(process.pid)
        process.send_signal(signal.SIGKILL)
        began = time.monotonic()
        code = process.wait(20)
        assert eventually(lambda: not running(run_dir), 100), "ranks outlive their launcher"
        seconds = time.monotonic() - began
    directory = latest_checkpoint(run_dir)
    assert directory is not None
    assert directory.name == f"step_{len(losses(run_dir)):08d}", "not saved at the step at which it was stopped"
    return seconds, code, output.read_text()


@pytest.mark.fault("kill-launcher")
def test_ranks_save_and_end_with_torchrun_and_go_on(whole: list[float], cache: Path, tmp_path: Path, saw: Saw) -> None:
    def on_the_loopback(launcher: int) -> None:
        places = [place for pid in (launcher, *child_processes(launcher)) for place in listening(pid)]
        assert len(places) >= 2, "the launcher's store and that of rank 0"
        assert set(places) == {LOOPBACK}, "others can reach a store of this run"

    run_dir = tmp_path / "run"
    report = killed(launched("torchrun.sh"), run_dir, cache, on_the_loopback)
    if len(losses(run_dir)) < STEPS:
        finish(run_dir, cache)
    assert losses(run_dir)[:STEPS] == whole
    saw(*report)


@pytest.mark.parametrize(
    "launcher",
    [
        pytest.param(BY_NAME, marks=pytest.mark.long),
        pytest.param(BARE, marks=pytest.mark.long),
        pytest.param(NETLAB, marks=pytest.mark.skipif(NO_NETLAB is not None, reason=str(NO_NETLAB))),
    ],
    ids=["altup-moe", "bare-torchrun", "netlab"],
)
def test_ranks_save_and_end_with_any_launcher(launcher: list[str], cache: Path, tmp_path: Path) -> None:
    killed(launcher, tmp_path / "run", cache)
    if launcher is NETLAB:
        assert subprocess.run([*NETLAB[:-1], "--clean"], timeout=60).returncode == 0


@pytest.mark.long
@pytest.mark.parametrize("restarts", ["0", "2"], ids=["static", "c10d"])
def test_ranks_of_all_nodes_save_when_the_launcher_that_hosts_their_meeting_is_killed(
    restarts: str, cache: Path, tmp_path: Path
) -> None:
    """Its store dies with it; the other launcher goes on watching its rank, and ends with the rank's code."""
    run_dir, port = tmp_path / "run", free_port()
    with ExitStack() as stack:
        nodes = []
        for node in ("0", "1"):
            meeting = ["--nodes", "2", "--node-rank", node, "--rdzv", f"127.0.0.1:{port}", "--max-restarts", restarts]
            argv = [str(ROOT / "launch" / "torchrun.sh"), "--ranks-per-node", "1", *meeting, "--"]
            said = stack.enter_context((tmp_path / f"{node}.txt").open("w"))
            options = {"env": environment(), "stdout": said, "stderr": said}
            nodes.append(stack.enter_context(started([*argv, *words(run_dir, cache)], **options)))
        metrics = run_dir / "metrics.jsonl"
        assert eventually(lambda: metrics.is_file() and metrics.read_bytes().count(b"\n") >= 3)
        nodes[0].send_signal(signal.SIGKILL)
        assert nodes[1].wait(200) == 75
        assert eventually(lambda: not running(run_dir), 100)
    directory = latest_checkpoint(run_dir)
    assert directory is not None
    assert directory.name == f"step_{len(losses(run_dir)):08d}"
    assert (tmp_path / "1.txt").read_text() == "altup-moe launch torchrun: rank 1 ended with exit code 75\n"


def failing(cache: Path, run_dir: Path, *flags: str, **how: str) -> subprocess.CompletedProcess[str]:
    """Two ranks of `failing.py` under torchrun.sh."""
    argv = [*launched("torchrun.sh", *flags), sys.executable, str(FAILING), *words(run_dir, cache)[1:]]
    return subprocess.run(argv, env={**environment(), **how}, capture_output=True, text=True, timeout=250)


@pytest.mark.fault("restart-storm")
def test_the_first_failure_is_named_and_a_storm_of_restarts_ends(cache: Path, tmp_path: Path, saw: Saw) -> None:
    """In step 4 of every start rank 1 raises, and takes its time to end; rank 0 loses its peer and is gone first."""
    began = time.monotonic()
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
    saw(time.monotonic() - began, done.returncode, done.stderr)


@pytest.mark.fault("kill-rank")
def test_a_killed_rank_is_named_and_a_stopped_one_does_not_delay_the_end(cache: Path, tmp_path: Path, saw: Saw) -> None:
    begin = time.monotonic()
    done = failing(cache, tmp_path / "run", FAIL="kill", STOP="1")
    assert done.returncode == 128 + signal.SIGKILL, done.stderr
    assert "rank 1 ended with exit code 137 (killed by signal 9, SIGKILL)" in done.stderr
    assert "Traceback" not in done.stderr
    assert not running(tmp_path / "run")
    saw(time.monotonic() - begin, done.returncode, done.stderr)


@pytest.mark.fault("missing-peer")
@pytest.mark.parametrize("flags", [["--node-rank", "0"], ["--max-restarts", "3"]], ids=["static", "c10d"])
def test_a_node_that_does_not_come_is_named(flags: list[str], saw: Saw) -> None:
    meeting = ["--nodes", "2", "--rdzv", f"127.0.0.1:{free_port()}", "--rdzv-timeout", "2"]
    began = time.monotonic()
    argv = [str(ROOT / "launch" / "torchrun.sh"), "--ranks-per-node", "1", *meeting, *flags, "--", "true"]
    done = subprocess.run(argv, env=environment(), capture_output=True, text=True, timeout=200)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert ": only 1 of 2 nodes came within 2 s: " in done.stderr
    saw(time.monotonic() - began, done.returncode, done.stderr)
