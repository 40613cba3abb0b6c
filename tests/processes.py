"""Programs that tests start: gone when the test ends, however it ends, and found while they live."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from launch import cluster


@contextmanager
def started(argv: Sequence[str], **options: Any) -> Iterator[subprocess.Popen]:
    """The program in a process group of its own, whose members are killed at the end."""
    with subprocess.Popen(argv, start_new_session=True, **options) as process:
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def running(marker: Path) -> list[int]:
    """Living processes with this path in their command line."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(marker).encode() in entry.read_bytes() and cluster.start_time(int(entry.parent.name)) is not None:
                found.append(int(entry.parent.name))
        except OSError:
            continue
    return found
