"""The one pool of processes: jobs that follow each other, some of them side by side; finished ones are not repeated.

Rows of a study and stages of the paper's recipe are such jobs. A pool can be killed at any moment: what a job has
finished is on the disk (`Job.done`), so the same jobs go on. A signal has the running processes save and end.
"""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Protocol, TypeVar

from altup_moe.parallel.start_ranks import kill_processes, start_process
from altup_moe.train.stop_signal import TWICE_SECONDS, WARNING

Item = TypeVar("Item")
SAVE_SECONDS = 60.0
"""Seconds that a process has to save and end once it is asked to stop."""
JOB_POLL_SECONDS = 0.1


class StoppedBySignal(Exception):
    """A signal came. The processes have been asked to save, and have ended."""


@dataclass(frozen=True)
class Job:
    """One process.

    Args:
        name: unlike that of every other job.
        command: a program's path and its arguments.
        log: file that its output is appended to.
        done: whether its result is there, from this call or an earlier one.
        after: names of the jobs that must have succeeded before it starts; they stand before it.
        cores: cores that it fills. A job wider than the machine runs alone.
        environment: variables beside this process's own.
    """

    name: str
    command: tuple[str, ...]
    log: Path
    done: Callable[[], bool]
    after: tuple[str, ...] = ()
    cores: int = 1
    environment: Mapping[str, str] = field(default_factory=dict)


class JobObserver(Protocol):
    """Hears of each job once, and decides whether it succeeded."""

    def ended(self, job: Job, code: int | None, seconds: float) -> str | None:
        """A job has ended with an exit code, or was done before it could start (None, 0 seconds).

        Returns:
            Why it failed, in one line; None if it succeeded. An exception stops the other jobs, which save.
        """

    def blocked(self, job: Job, failed: str, reason: str) -> None:
        """A job is not started: the job `failed`, which it follows directly or through others, failed with a reason."""


@dataclass
class JobPool:
    """Runs jobs. Mutable: processes start and end.

    Args:
        signals: numbers of the signals received so far (`noted_signals`).
        poll: called ten times a second while processes run.
    """

    signals: list[int]
    poll: Callable[[], None] = lambda: None
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    """Processes by their job's name."""

    def run(self, jobs: Sequence[Job], most: int, cores: int, observer: JobObserver) -> None:
        """Run jobs until each has ended or is blocked. Earlier ones start first.

        Args:
            most: processes at a time.
            cores: cores that they may fill together.
        Raises:
            StoppedBySignal: a signal came.
            ValueError: a job comes after one that does not stand before it.
        """
        check_order(jobs)
        schedule = _Schedule(jobs, observer)
        started: dict[str, float] = {}
        try:
            while True:
                if self.signals:
                    raise StoppedBySignal
                ended = {name: code for name, process in self.running.items() if (code := process.poll()) is not None}
                for name, code in ended.items():
                    del self.running[name]
                    schedule.end(name, code, time.monotonic() - started[name])
                schedule.settle()
                if not self.running and not schedule.ready:
                    return
                busy = [schedule.jobs[name].cores for name in self.running]
                job = startable([(job, job.cores) for job in schedule.ready], busy, most, cores)
                if job is None:
                    self.poll()
                    time.sleep(JOB_POLL_SECONDS)
                    continue
                schedule.ready.remove(job)
                started[job.name] = time.monotonic()
                self.running[job.name] = start_process(job.command, job.environment, job.log)
        finally:
            self.stop()

    def run_alone(self, job: Job) -> int:
        """Run one job, whether it is done or not.

        Returns:
            Its exit code, negative for a signal.
        Raises:
            StoppedBySignal: a signal came.
        """
        process = self.running[job.name] = start_process(job.command, job.environment, job.log)
        try:
            while (code := process.poll()) is None:
                if self.signals:
                    raise StoppedBySignal
                self.poll()
                time.sleep(JOB_POLL_SECONDS)
            return code
        finally:
            self.stop()

    def stop(self) -> None:
        """Have processes save and end. Kill those that do not in time, or all of them when a second signal comes.

        What a launcher has started ends with it: its ranks die with their parent.
        """
        processes = list(self.running.values())
        for process in processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + SAVE_SECONDS
        while any(process.poll() is None for process in processes):
            if time.monotonic() > deadline or len(self.signals) > 1:
                break
            time.sleep(JOB_POLL_SECONDS)
        kill_processes(processes)
        self.running.clear()


class _Schedule:
    """Which jobs wait, which are ready to start, and which have failed."""

    def __init__(self, jobs: Sequence[Job], observer: JobObserver) -> None:
        self.jobs = {job.name: job for job in jobs}
        self.ready: list[Job] = []
        self._waiting, self._observer = list(jobs), observer
        self._failures: dict[str, tuple[str, str] | None] = {}
        """Of each job that has ended or is blocked: the job that failed and its reason, or None."""

    def end(self, name: str, code: int | None, seconds: float) -> None:
        """A job has ended."""
        reason = self._observer.ended(self.jobs[name], code, seconds)
        self._failures[name] = None if reason is None else (name, reason)

    def settle(self) -> None:
        """Look at each waiting job whose predecessors have ended: it is blocked, done, or ready."""
        for job in list(self._waiting):
            if not all(name in self._failures for name in job.after):
                continue
            self._waiting.remove(job)
            failure = next((failure for name in job.after if (failure := self._failures[name])), None)
            if failure:
                self._failures[job.name] = failure
                self._observer.blocked(job, *failure)
            elif job.done():
                self.end(job.name, None, 0.0)
            else:
                self.ready.append(job)
        order = list(self.jobs)
        self.ready.sort(key=lambda job: order.index(job.name))


def check_order(jobs: Sequence[Job]) -> None:
    """Raise ValueError if two jobs have one name, or one comes after a job that does not stand before it."""
    names: set[str] = set()
    for job in jobs:
        if job.name in names:
            raise ValueError(f"two jobs are called {job.name!r}")
        if missing := set(job.after) - names:
            raise ValueError(f"job {job.name!r} comes after {min(missing)!r}, which does not stand before it")
        names.add(job.name)


def startable(waiting: Sequence[tuple[Item, int]], running: Sequence[int], most: int, cores: int) -> Item | None:
    """The next job to start, or None: the first, if its cores are free.

    Args:
        waiting: jobs in order, each with the cores that it fills. A job wider than the machine runs alone.
        running: cores of the jobs under way.
        most: the most jobs at a time.
    """
    if not waiting or len(running) >= most:
        return None
    job, wide = waiting[0]
    # No later job passes it: a wide job would wait for ever behind narrow ones.
    return job if sum(running) + min(wide, cores) <= cores else None


@contextmanager
def noted_signals() -> Iterator[list[int]]:
    """Inside, note SIGTERM, SIGINT, SIGHUP and SIGUSR1 in a list instead of obeying them; ignored ones stay ignored.

    What only repeats the first one is not noted: SLURM's warning (SIGUSR1), and what comes within `TWICE_SECONDS`.
    """
    received: list[int] = []
    first: list[float] = []

    def note(number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not received or (WARNING not in (number, received[0]) and now - first[0] >= TWICE_SECONDS):
            received.append(number)
            first.append(now)

    previous = {}
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, WARNING):
        if signal.getsignal(number) != signal.SIG_IGN:
            previous[number] = signal.signal(number, note)
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
