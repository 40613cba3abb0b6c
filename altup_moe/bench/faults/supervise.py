"""Keep a command running while faults are injected, and note what is seen of it."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from altup_moe.bench.faults.account import Event
from altup_moe.bench.faults.follow import Follower
from altup_moe.bench.faults.inject import FATAL, Target, inject
from altup_moe.bench.faults.processes import alive, of_run, ranks_of, send
from altup_moe.bench.faults.schedule import Planned
from altup_moe.config.errors import UserError
from altup_moe.config.exit_codes import EXIT_DIVERGED, EXIT_STOPPED, EXIT_USER_ERROR
from altup_moe.config.run_directory import metrics_file, starts_file
from altup_moe.parallel.start_ranks import kill_processes, start_process

POLL_SECONDS = 0.05
SCAN_SECONDS = 0.5
"""How often all processes are looked through, where nothing has ended."""
ORPHAN_SECONDS = 30.0
"""How long ranks have to end after their launcher has: they save first. What lives on is an orphan, and is killed."""
PATIENCE_SECONDS = STOP_SECONDS = 120.0
"""How long a fault waits for a rank that it can meet, and how long a run has to stop."""
FINAL = (0, EXIT_USER_ERROR, EXIT_DIVERGED)
"""Exit codes after which the same command would not go on."""
MOST_ATTEMPTS = 20
"""Starts without a new step after which it is given up."""


class FaultsError(UserError):
    """The run could not be kept going; `str(error)` says what it ended with."""


@dataclass
class Seen:
    """What was seen of a run. Mutable: the supervisor adds to it. Seconds are of `time.monotonic`."""

    events: list[Event] = field(default_factory=list)
    victims: list[str] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)
    orphans: int = 0
    starts: int = 0
    first: float | None = None
    last: float = 0.0


class Supervisor:
    """A command that is started again whenever it has ended and can go on."""

    def __init__(
        self,
        command: Sequence[str],
        run_dir: Path,
        disk: Path,
        console: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._command, self._environment = list(command), environment or {}
        self._run_dir, self._disk, self._console = run_dir, disk, console
        self.seen = Seen()
        self._process: subprocess.Popen[bytes] | None = None
        self._metrics, self._starts = Follower(metrics_file(run_dir)), Follower(starts_file(run_dir))
        self._ranks: set[int] = set()
        self._ended: float | None = None
        self._scanned = 0.0
        self._barren = 0
        self._held: list[tuple[float, str, Callable[[], None]]] = []

    def run(self, planned: Sequence[Planned], seconds: float) -> Seen:
        """Train for so many seconds after the first step among the faults, then stop the run by SIGTERM.

        Raises:
            FaultsError: the command ended with a code after which it cannot go on, or never took a step again.
        """
        waiting = list(planned)
        try:
            while True:
                self._turn()
                now = time.monotonic()
                since = now - self.seen.first if self.seen.first is not None else -1.0
                if waiting and since >= waiting[0].second and self._inject(waiting[0], now):
                    waiting.pop(0)
                if waiting and since > waiting[0].second + PATIENCE_SECONDS:
                    raise FaultsError(f"{waiting[0].kind}: nobody was there whom it could meet; {self._tail()}")
                if since >= seconds and not waiting and not self._held and self._recovered():
                    return self._stop()
                time.sleep(POLL_SECONDS)
        finally:
            self.close()

    def run_to_end(self) -> Seen:
        """Run the command once, to its own end, without faults.

        Raises:
            FaultsError: it ended with another code than 0.
        """
        try:
            self._start()
            assert self._process is not None
            while (code := self._process.poll()) is None:
                self._read(time.monotonic())
                time.sleep(POLL_SECONDS)
            self._read(time.monotonic())
            if code:
                raise FaultsError(f"the quiet run ended with exit code {code}: {self._tail()}")
            return self.seen
        finally:
            self.close()

    def close(self) -> None:
        """Take back what is held, and leave no process of the run."""
        self._take_back(float("inf"))
        if self._process is not None:
            kill_processes([self._process])
        send(of_run(self._run_dir), signal.SIGKILL)

    def _turn(self) -> None:
        """Look at everything once; start the command again if it has ended."""
        now = time.monotonic()
        self._take_back(now)
        self._read(now)
        self._look_at_ranks(now)
        if self._process is None:
            self._start()
        elif self._ended is None:
            code = self._process.poll()
            if code is not None:
                self._ended = now
                self._judge(code)
        elif not (left := of_run(self._run_dir)) or now - self._ended > ORPHAN_SECONDS:
            self.seen.orphans += len(left)
            send(left, signal.SIGKILL)
            self._process, self._ended = None, None

    def _start(self) -> None:
        self._barren += 1
        if self._barren > MOST_ATTEMPTS:
            raise FaultsError(f"{MOST_ATTEMPTS} starts without a step; the last lines were: {self._tail()}")
        if self._barren > 2:
            time.sleep(0.5)
        self._process = start_process(self._command, self._environment, self._console)
        self.seen.starts += 1

    def _judge(self, code: int) -> None:
        shell = 128 - code if code < 0 else code
        self.seen.codes.append(shell)
        full = any(kind == "full-disk" for _, kind, _ in self._held)
        if shell in FINAL and not (full and shell == EXIT_USER_ERROR):
            raise FaultsError(f"the command ended with exit code {shell}; its last lines were: {self._tail()}")

    def _tail(self) -> str:
        lines = self._console.read_text(encoding="utf-8", errors="replace").splitlines()
        return " / ".join(line.strip() for line in lines[-4:] if line.strip())

    def _look_at_ranks(self, now: float) -> None:
        living = {pid for pid in self._ranks if alive(pid)}
        if self._ranks and not living:
            self.seen.events.append(Event(now, "gone"))
            self._held = [(0.0 if kind in FATAL else until, kind, undo) for until, kind, undo in self._held]
        if living != self._ranks or not living or now - self._scanned > SCAN_SECONDS:
            self._scanned = now
            living |= set(ranks_of(self._run_dir).values())
        self._ranks = living

    def _read(self, now: float) -> None:
        for record in self._starts.new():
            load = float(record.get("load_seconds", 0.0))
            self.seen.events.append(Event(now, "started", record["step"], load))
        steps = [record["step"] for record in self._metrics.new() if "step" in record]
        if steps:
            self.seen.events.append(Event(now, "progress", steps[-1]))
            self.seen.first = self.seen.first if self.seen.first is not None else now
            self.seen.last = now
            self._barren = 0

    def _inject(self, planned: Planned, now: float) -> bool:
        if self._process is None or self._ended is not None:
            return False
        done = inject(planned, Target(self._process.pid, self._run_dir, self._disk))
        if done is None:
            return False
        self.seen.events.append(Event(now, "fault", kind=planned.kind, fatal=planned.kind in FATAL))
        self.seen.victims.append(f"{planned.kind} of {done.victim}")
        if done.undo is not None:
            self._held.append((now + planned.held, planned.kind, done.undo))
        return True

    def _take_back(self, now: float) -> None:
        for entry in [entry for entry in self._held if entry[0] <= now]:
            self._held.remove(entry)
            with suppress(OSError):
                entry[2]()

    def _recovered(self) -> bool:
        """Whether training is further than it has ever been. (Ranks of a launcher that was killed take a last step.)"""
        if self._process is None or self._process.poll() is not None:
            return False
        steps = [event.step for event in self.seen.events if event.what == "progress"]
        return bool(steps) and self.seen.events[-1].what == "progress" and steps[-1] == max(steps)

    def _stop(self) -> Seen:
        assert self._process is not None
        send([self._process.pid], signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        while (code := self._process.poll()) is None and time.monotonic() < deadline:
            self._read(time.monotonic())
            time.sleep(POLL_SECONDS)
        if code != EXIT_STOPPED:
            raise FaultsError(f"the run was told to stop and ended with {code}: {self._tail()}")
        self.seen.codes.append(code)
        self.seen.orphans += len(of_run(self._run_dir))
        return self.seen
