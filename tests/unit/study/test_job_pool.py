"""The pool of processes: order, resume, failures that block, and that nothing stays when it is stopped."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from altup_moe.study import job_pool
from altup_moe.study.job_pool import Job, JobPool, StoppedBySignal, check_order, noted_signals, startable
from tests.processes import running


def schedule(widths: list[int], jobs: int, cores: int) -> list[list[int]]:
    """Jobs (by number) that run together, where all that are under way end at once."""
    waiting, turns = list(enumerate(widths)), []
    while waiting:
        running: list[int] = []
        while (
            chosen := startable([(n, w) for n, w in waiting], [widths[n] for n in running], jobs, cores)
        ) is not None:
            running.append(chosen)
            waiting = [(n, w) for n, w in waiting if n != chosen]
        assert running, "nothing starts"
        turns.append(running)
    return turns


@pytest.mark.parametrize(
    ("widths", "jobs", "cores", "turns"),
    [
        ([1, 1, 1], 8, 2, [[0, 1], [2]]),
        ([1, 1, 1], 1, 2, [[0], [1], [2]]),
        # The wide one is not passed by the narrow one behind it.
        ([1, 2, 1], 8, 2, [[0], [1], [2]]),
        # Wider than the machine: alone.
        ([4, 1], 8, 2, [[0], [1]]),
        ([2, 1, 1], 8, 4, [[0, 1, 2]]),
    ],
)
def test_jobs_fill_the_cores_and_no_more(widths: list[int], jobs: int, cores: int, turns: list[list[int]]) -> None:
    assert schedule(widths, jobs, cores) == turns


@dataclass
class Notes:
    """An observer: a code other than 0 is a failure. Mutable: it writes down what it hears."""

    ends: list[tuple[str, int | None]] = field(default_factory=list)
    blocks: list[tuple[str, str, str]] = field(default_factory=list)
    raises: type[Exception] | None = None

    def ended(self, job: Job, code: int | None, seconds: float) -> str | None:
        self.ends.append((job.name, code))
        if code and self.raises:
            raise self.raises
        return f"code {code}" if code else None

    def blocked(self, job: Job, failed: str, reason: str) -> None:
        self.blocks.append((job.name, failed, reason))


Make = Callable[..., Job]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Make a job that needs the files of its predecessors, writes down its start, runs some Python, writes its file."""

    def made(name: str, *after: str, code: str = "") -> Job:
        needs = "".join(f"assert pathlib.Path({str(tmp_path / one)!r}).exists()\n" for one in after)
        source = (
            f"import os, pathlib, signal, sys, time\n{needs}"
            f"open({str(tmp_path / 'starts')!r}, 'a').write({name + ' '!r})\n"
            f"{code}\nopen({str(tmp_path / name)!r}, 'x')\n"
        )
        command = (sys.executable, "-c", source)
        return Job(name, command, tmp_path / f"{name}.log", (tmp_path / name).exists, after)

    return made


def run(jobs: list[Job], most: int = 2) -> Notes:
    notes = Notes()
    JobPool([]).run(jobs, most, 8, notes)
    return notes


def starts(tmp_path: Path) -> list[str]:
    return (tmp_path / "starts").read_text().split()


def test_jobs_follow_those_they_come_after(make: Make, tmp_path: Path) -> None:
    # Each job asserts that the files of its predecessors are there. The first two end once `e` has started.
    begun = f"{str(tmp_path / 'starts')!r}"
    late = f"while 'e' not in open({begun}).read(): time.sleep(0.01)"
    notes = run([make("a", code=late), make("b", code=late), make("c", "a", "b"), make("d", "c"), make("e")], most=5)
    assert sorted(notes.ends) == [(name, 0) for name in "abcde"]
    assert starts(tmp_path)[-2:] == ["c", "d"]
    assert notes.blocks == []


def test_a_follower_starts_before_later_jobs(make: Make, tmp_path: Path) -> None:
    run([make("a"), make("b", "a"), make("c", "b"), make("x"), make("y")], most=1)
    assert starts(tmp_path) == ["a", "b", "c", "x", "y"]


def test_finished_jobs_are_not_repeated_and_their_followers_start(make: Make, tmp_path: Path) -> None:
    jobs = [make("a"), make("b", "a"), make("c", "b")]
    run(jobs)
    (tmp_path / "c").unlink()
    notes = run(jobs)
    assert notes.ends == [("a", None), ("b", None), ("c", 0)]
    assert starts(tmp_path) == ["a", "b", "c", "c"]


def test_a_failure_blocks_all_that_follow_and_nothing_else(make: Make, tmp_path: Path) -> None:
    jobs = [make("bad", code="sys.exit(3)"), make("b", "bad"), make("good"), make("c", "b", "good"), make("d", "good")]
    notes = run(jobs)
    assert sorted(notes.ends) == [("bad", 3), ("d", 0), ("good", 0)]
    assert sorted(notes.blocks) == [("b", "bad", "code 3"), ("c", "bad", "code 3")]
    assert sorted(starts(tmp_path)) == ["bad", "d", "good"]


def test_a_killed_pool_goes_on_where_it_was(make: Make, tmp_path: Path) -> None:
    first = make("a")
    run([first])
    # The second is cut before it has its file: it starts again, the first does not.
    cut = make("b", "a", code=f"pathlib.Path({str(tmp_path / 'cut')!r}).exists() or os.kill(os.getpid(), 9)")
    assert run([first, cut]).ends == [("a", None), ("b", -9)]
    (tmp_path / "cut").touch()
    assert run([first, cut]).ends == [("a", None), ("b", 0)]
    assert starts(tmp_path) == ["a", "b", "b"]


def test_the_order_of_jobs_is_checked(make: Make) -> None:
    with pytest.raises(ValueError, match="two jobs are called 'a'"):
        check_order([make("a"), make("a")])
    for jobs in ([make("a", "b"), make("b")], [make("a", "a")], [make("a", "none")]):
        with pytest.raises(ValueError, match=r"job 'a' comes after .*, which does not stand before it"):
            JobPool([]).run(jobs, 1, 1, Notes())


SAVES = """
def save(*_):
    pathlib.Path({saved!r}).touch()
    sys.exit(75)
signal.signal(signal.SIGTERM, {handler})
pathlib.Path({up!r}).touch()
time.sleep(60)
"""


def long_code(tmp_path: Path, handler: str = "save") -> str:
    return SAVES.format(saved=str(tmp_path / "saved"), up=str(tmp_path / "up"), handler=handler)


def test_an_observer_s_exception_has_the_others_save(make: Make, tmp_path: Path) -> None:
    bad = f"while not os.path.exists({str(tmp_path / 'up')!r}): time.sleep(0.01)\nsys.exit(3)"
    jobs = [make("long", code=long_code(tmp_path)), make("bad", code=bad), make("later", "bad")]
    with pytest.raises(KeyError):
        JobPool([]).run(jobs, 2, 8, Notes(raises=KeyError))
    assert (tmp_path / "saved").exists()
    assert "later" not in starts(tmp_path)


def interrupted(pool: JobPool, job: Job, up: Path, number: int = signal.SIGTERM) -> None:
    """Run a job, and send this process a signal once the job is up."""

    def interrupt() -> None:
        while not up.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    with pytest.raises(StoppedBySignal):
        pool.run([job], 1, 8, Notes())
    thread.join()


@pytest.mark.usefixtures("signals_are_heard")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_has_jobs_save(make: Make, tmp_path: Path, number: int) -> None:
    with noted_signals() as signals:
        pool = JobPool(signals)
        interrupted(pool, make("long", code=long_code(tmp_path)), tmp_path / "up", number)
    assert (tmp_path / "saved").exists()
    assert pool.running == {}


@pytest.mark.usefixtures("signals_are_heard")
@pytest.mark.parametrize("repeated", [False, True])
def test_a_job_that_does_not_save_is_killed(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repeated: bool
) -> None:
    # After its time; or at once, when the signal is repeated.
    monkeypatch.setattr(job_pool, "SAVE_SECONDS", 3600.0 if repeated else 0.2)
    monkeypatch.setattr(job_pool, "TWICE_SECONDS", 0.0)
    with noted_signals() as signals:
        if repeated:
            threading.Timer(0.0, lambda: _second_signal(signals)).start()
        interrupted(JobPool(signals), make("deaf", code=long_code(tmp_path, "signal.SIG_IGN")), tmp_path / "up")
    assert [pid for pid in running(tmp_path) if pid != os.getpid()] == []


@pytest.mark.usefixtures("signals_are_heard")
def test_an_echo_of_the_first_signal_is_no_second_one() -> None:
    """Under srun a warning reaches every process, and the launcher above gives SIGTERM beside it."""
    with noted_signals() as signals:
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGUSR1):
            os.kill(os.getpid(), number)
        assert signals == [signal.SIGTERM]


def _second_signal(signals: list[int]) -> None:
    while not signals:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGTERM)
