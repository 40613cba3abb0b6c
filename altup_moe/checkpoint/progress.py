"""Progress lines and peak memory of a tool that moves many bytes."""

from __future__ import annotations

import re
import resource
import sys
import time
from pathlib import Path


class Progress:
    """Prints the bytes done and the rate on standard error, at most every two seconds.

    Args:
        what: what was done with the bytes, e.g. ``written``. total: all bytes.
    """

    def __init__(self, what: str, total: int) -> None:
        self._what, self._total, self._done = what, total, 0
        self._started = self._shown = time.monotonic()

    def add(self, count: int) -> None:
        """Count `count` more bytes as done."""
        self._done += count
        now = time.monotonic()
        if now - self._shown > 2 or self._done == self._total:
            self._shown = now
            rate = self._done / 1e6 / max(1e-9, now - self._started)
            done = f"{self._done / 1e6:,.0f} of {self._total / 1e6:,.0f} MB"
            print(f"{self._what} {done}, {rate:,.0f} MB/s", file=sys.stderr, flush=True)


def peak_memory_bytes() -> int:
    """Largest resident memory of this process so far, in bytes."""
    try:
        return 1024 * int(re.findall(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[0])
    except (OSError, IndexError):
        # Not Linux. (On Linux this figure would include the parent process before exec.)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
