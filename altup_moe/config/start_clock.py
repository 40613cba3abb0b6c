"""When a rank has reached what on its way to the first step: for `python -m tests.recovery_times`."""

from __future__ import annotations

import os
import time

VARIABLE = "ALTUP_MOE_START_CLOCK"
"""Names a file that each mark adds a line to: rank, process, seconds since the epoch, what is done."""
_marked: set[tuple[int, str]] = set()


def mark(done: str) -> None:
    """Note that this process has done something for the first time; nothing without `VARIABLE`."""
    file = os.environ.get(VARIABLE)
    if not file or (os.getpid(), done) in _marked:
        return
    _marked.add((os.getpid(), done))
    with open(file, "a", encoding="utf-8") as lines:
        lines.write(f"{os.environ.get('RANK', '0')} {os.getpid()} {time.time():.6f} {done}\n")
