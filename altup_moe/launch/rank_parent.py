"""The parent of one rank under DeepSpeed's launcher, which keeps no track of its own launcher.

Its standard input comes from `altup-moe launch deepspeed`, over ssh or directly, and ends with it, also when that is
killed. Then the rank is asked to save and stop. The rank's output is copied, so that it never meets a closed pipe.
When the rank fails this process writes a line with its `Death` on standard error, for the launcher to report.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from types import FrameType

from altup_moe.launch.deaths import joined
from altup_moe.launch.node import FORWARDED, TWICE_SECONDS, told_already, wait_and_hear
from altup_moe.launch.rank_watch import send
from altup_moe.parallel import death_record, parent_death
from altup_moe.parallel.death_record import Death

MARK = "altup-moe-death: "
"""Begin of the line with a death."""
MAX_TRACE = 3000
"""Characters of a traceback in that line; pdsh cuts lines of 8 KiB."""
LAST_SECONDS = 5.0
"""Seconds that a rank has to end after a second signal."""


class RankParent:
    """A rank as a child process, told once to stop for many reasons: signals, and the end of the launcher."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str]) -> None:
        self.argv, self.env = list(argv), dict(env)
        self.received: list[int] = []
        self.told_at: float | None = None
        self._early: list[int] = []
        self._child: subprocess.Popen[bytes] | None = None

    def run(self) -> int:
        """Run the rank to its end. Returns its exit code, 128 + n for signal n."""
        for number in FORWARDED:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._forward)
        with tempfile.TemporaryDirectory(prefix="altup-moe-") as records:
            own = {
                death_record.DIRECTORY: records,
                death_record.OWN_LAUNCHER: "deepspeed",
                parent_death.LAUNCHER_ID: str(os.getpid()),
            }
            stops = [sys.executable, "-I", "-S", str(parent_death.__file__), "--stop", str(os.getpid())]
            self._child = subprocess.Popen(
                [*stops, *self.argv],
                env={"PYTHONUNBUFFERED": "1", **self.env, **own},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
            assert self._child.stdout is not None
            assert self._child.stderr is not None
            copies = [
                threading.Thread(target=_copy, args=(source.fileno(), target), daemon=True)
                for source, target in ((self._child.stdout, 1), (self._child.stderr, 2))
            ]
            for thread in (*copies, threading.Thread(target=self._await_launcher, daemon=True)):
                thread.start()
            # The rank may run before the line that starts it has returned.
            for early in self._early:
                self._stop(early)
            code = wait_and_hear(self._child)
            ended = time.time()
            for copy in copies:
                copy.join(2)
            code = code if code >= 0 else 128 - code
            if code:
                self._report(Death(int(self.env.get("RANK", "0")), ended, code, self._child.pid), Path(records))
        return code

    def _forward(self, number: int, frame: FrameType | None) -> None:
        told = told_already(number, self.received)
        self.received.append(number)
        if told:
            return
        passed = FORWARDED[signal.Signals(number)]
        if self._child is None:
            self._early.append(passed)
        else:
            self._stop(passed)

    def _stop(self, number: int) -> None:
        if self._child is None:
            return
        now = time.time()
        again = self.told_at is not None and now - self.told_at >= TWICE_SECONDS
        self.told_at = self.told_at or now
        if self._child.poll() is None:
            send(self._child.pid, number)
            self._kill_after(LAST_SECONDS if again else None)

    def _await_launcher(self) -> None:
        with suppress(OSError):
            while os.read(0, 4096):
                pass
        self._stop(signal.SIGUSR1)  # it asks a run to stop and never does more
        self._kill_after(parent_death.seconds_to_save())

    def _kill_after(self, seconds: float | None) -> None:
        if seconds is not None and self._child is not None:
            timer = threading.Timer(seconds, send, (self._child.pid, signal.SIGKILL))
            timer.daemon = True
            timer.start()

    def _report(self, death: Death, records: Path) -> None:
        told_at = self.told_at if self.told_at is not None else float("inf")
        host = os.uname().nodename
        for known in joined([replace(death, host=host)], death_record.read_all(records), told_at):
            short = replace(known, trace=known.trace[-MAX_TRACE:])
            with suppress(OSError):
                os.write(2, f"{MARK}{json.dumps(asdict(short))}\n".encode())


def _copy(source: int, target: int) -> None:
    """Copy a rank's output; without a reader it is thrown away."""
    while data := os.read(source, 1 << 16):
        with suppress(OSError):
            while data:
                data = data[os.write(target, data) :]


def tell(token: str, number: int, script: str) -> bool:
    """Send a signal to the parents of the ranks here that were started with this token. Returns whether any was."""
    told = False
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            words = entry.read_bytes().decode(errors="replace").split("\0")[:-1]
            if words[-1:] == [token] and "--tell" not in words and Path(words[2]).name == script:
                os.kill(int(entry.parent.name), number)
                told = True
    return told
