"""Processes of a run, found by its directory in their words (Linux's /proc)."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from altup_moe.parallel.watchdog.processes import state


def alive(pid: int) -> bool:
    """Whether a process runs: a zombie does not."""
    return state(pid) not in ("", "Z", "X")


def of_run(run_dir: Path) -> list[int]:
    """Running processes that have the run directory as one of their words: launchers and ranks."""
    wanted, found = os.fsencode(run_dir), []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if wanted in (entry / "cmdline").read_bytes().split(b"\0") and alive(int(entry.name)):
                found.append(int(entry.name))
    return found


def ranks_of(run_dir: Path) -> dict[int, int]:
    """Process of each rank of the run, by rank. A rank's own children are not counted."""
    found: dict[int, int] = {}
    for pid in sorted(of_run(run_dir)):
        with suppress(OSError):
            for word in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                if word.startswith(b"RANK="):
                    found.setdefault(int(word[5:]), pid)
    return found


def send(pids: Iterable[int], number: signal.Signals) -> None:
    """Send a signal to processes; those that have ended are passed over."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
