"""Programs that tests start (gone when the test ends, however it ends), and what processes hold."""

from __future__ import annotations

import os
import signal
import subprocess
import time
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


def listening(pid: int) -> list[str]:
    """Addresses (as the kernel writes them, in hexadecimal) at which a process listens for TCP connections."""
    held = set()
    for handle in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            held.add(os.readlink(handle))
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in held:
                found.append(fields[1].partition(":")[0])
    return found


LOOPBACK = "0100007F"
"""127.0.0.1 as the kernel writes it."""


def wait_until(condition: Any, what: str, seconds: float = 400) -> Any:
    """What `condition()` returns once it is true."""
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, f"{what}: not after {seconds:g} s"
        time.sleep(0.1)
    return result
