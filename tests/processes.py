"""Programs that tests start (gone when the test ends, however it ends), and what processes hold."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from altup_moe.launch import cluster


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


def open_below(directory: Path) -> list[str]:
    """Files below a directory that this process has open. (Not their number: others' handles come and go.)"""
    found = []
    for handle in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            found.append(os.readlink(handle))
    return [file for file in found if file.startswith(f"{directory}/")]
