"""The processes of one node: when each ended, and how the others are ended after the first failure."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Mapping
from contextlib import suppress

from altup_moe.config.exit_codes import EXIT_HUNG
from altup_moe.parallel.death_record import Death
from altup_moe.parallel.watchdog.processes import state

GRACE = 30.0
"""Seconds that the other ranks have to end after one has failed; torchrun's own."""
HUNG_GRACE = 3.0
"""The same after one has ended because ranks hang: its watchdog has waited already."""
KILL_SECONDS = 5.0
"""Seconds in which a killed process has ended, unless the kernel keeps it."""
POLL_SECONDS = 0.02


class RankWatch:
    """Notes the time at which each process ends. A thread a process waits, so that none is noticed by polling.

    The processes are children of this one; whoever started them still collects their exit codes.
    """

    def __init__(self) -> None:
        self.deaths: dict[int, Death] = {}
        """Those that have ended, by rank."""
        self.pids: dict[int, int] = {}
        self.told_at = math.inf
        """When they were told to end, seconds since the epoch."""
        self.gone: set[int] = set()
        """Those whose exit code somebody else has collected."""

    def follow(self, pids: Mapping[int, int]) -> None:
        """Watch these processes (rank -> process); the same ones again change nothing."""
        if self.pids == dict(pids):
            return
        self.pids, self.deaths, self.told_at, self.gone = dict(pids), {}, math.inf, set()
        for rank, pid in pids.items():
            threading.Thread(target=self._wait, args=(rank, pid, self.deaths, self.gone), daemon=True).start()

    @property
    def failed(self) -> list[Death]:
        """Those that have ended with another exit code than 0."""
        return [death for death in list(self.deaths.values()) if death.code]

    def note(self, rank: int, code: int) -> None:
        """An exit code (negative for a signal) that somebody else has collected before this watch."""
        if rank in self.pids and rank not in self.deaths:
            self._note(rank, self.pids[rank], code if code >= 0 else 128 - code, self.deaths)

    def end_others(self) -> None:
        """Ask the processes that run to end (SIGTERM), and kill those that do not; at once those that are stopped."""
        hung = any(death.code == EXIT_HUNG for death in self.failed)
        give_up = time.monotonic() + (HUNG_GRACE if hung else GRACE)
        self.told_at = time.time()
        for pid in self.running:
            send(pid, signal.SIGTERM)
        while (running := self.running) and time.monotonic() < give_up:
            for pid in running:
                if is_stopped(pid):
                    send(pid, signal.SIGKILL)
            time.sleep(POLL_SECONDS)
        for pid in self.running:
            send(pid, signal.SIGKILL)
        give_up = time.monotonic() + KILL_SECONDS
        while self.running and time.monotonic() < give_up:
            time.sleep(POLL_SECONDS)

    @property
    def running(self) -> list[int]:
        """Those that have not ended."""
        return [pid for rank, pid in self.pids.items() if rank not in self.deaths and rank not in self.gone]

    def _wait(self, rank: int, pid: int, deaths: dict[int, Death], gone: set[int]) -> None:
        try:
            end = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        except ChildProcessError:  # somebody has collected its exit code: `note` hears of it
            gone.add(rank)
            return
        assert end is not None
        code = end.si_status if end.si_code == os.CLD_EXITED else 128 + end.si_status
        self._note(rank, pid, code, deaths)

    def _note(self, rank: int, pid: int, code: int, deaths: dict[int, Death]) -> None:
        deaths[rank] = Death(rank, time.time(), code, pid, host=os.uname().nodename)


def is_stopped(pid: int) -> bool:
    """Whether a process is stopped (SIGSTOP, a debugger): it hears no signal but SIGKILL."""
    return state(pid) in ("T", "t")


def send(pid: int, number: int) -> None:
    """Send a signal to the group that a process leads, or to it alone."""
    with suppress(ProcessLookupError):
        try:
            os.killpg(pid, number)
        except (ProcessLookupError, PermissionError):
            os.kill(pid, number)
