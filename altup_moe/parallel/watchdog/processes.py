"""What the kernel knows of a process: its state, and whether it works. Linux's /proc; nothing elsewhere."""

from __future__ import annotations

import os
from collections import deque
from contextlib import suppress
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
WINDOW = 2.0
"""Seconds over which work is measured."""
BUSY = 0.2
"""Processor seconds a second, and bytes, that count as work: idle process groups take some time as well."""
BUSY_BYTES = 16384


def state(pid: int) -> str:
    """State of a process as in /proc (R, S, D, T, t, Z); "" if it is not known."""
    with suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return ""


class Work:
    """Whether a process and its children compute, read or write. Mutable."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._samples: deque[tuple[float, float, int]] = deque()

    def goes_on(self, now: float) -> bool:
        """Whether it worked in the last `WINDOW` seconds, as far as this was asked before. ``now``: seconds."""
        self._samples.append((now, _seconds(self._pid), _bytes(self._pid)))
        while len(self._samples) > 2 and now - self._samples[1][0] >= WINDOW:
            self._samples.popleft()
        began, seconds, size = self._samples[0]
        if now - began < WINDOW / 2:
            return True
        _, seconds_now, size_now = self._samples[-1]
        return seconds_now - seconds > BUSY * (now - began) or size_now - size > BUSY_BYTES


def _seconds(pid: int) -> float:
    """Processor seconds of a process, its children that have ended, and its children that run."""
    total = 0.0
    with suppress(OSError, IndexError, ValueError):
        total += sum(int(ticks) for ticks in _fields(pid)[11:15]) / TICKS
    with suppress(OSError, ValueError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                if int(child) != os.getpid():
                    total += sum(int(ticks) for ticks in _fields(int(child))[11:15]) / TICKS
    return total


def _bytes(pid: int) -> int:
    with suppress(OSError, ValueError, IndexError):
        lines = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
        return int(lines["rchar"]) + int(lines["wchar"])
    return 0


def _fields(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
