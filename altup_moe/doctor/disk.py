"""Free space and write speed of the disk of a run directory."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path

from altup_moe.config import ConfigError
from altup_moe.config.units import GIB
from altup_moe.doctor.report import Finding, FindingState

WRITE_BYTES = 1 << 20
"""Bytes of one write: 1 MiB."""


def existing_part(directory: Path) -> Path:
    """The directory itself, or its nearest ancestor that exists.

    Raises:
        ConfigError: the path, or its nearest existing ancestor, is not a directory.
    """
    path = directory.absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    if not path.is_dir():
        raise ConfigError("run_dir", str(directory), f"{path} is a file; a directory, or a path for one, would fit")
    return path


def write_speed(directory: Path, mib: int) -> float:
    """Bytes a second of writing a temporary file of `mib` MiB, with fsync.

    Raises:
        OSError: the file cannot be written.
    """
    chunk = os.urandom(WRITE_BYTES)
    with tempfile.TemporaryFile(dir=directory) as file:
        begin = time.monotonic()
        for _ in range(mib):
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
        return mib * WRITE_BYTES / (time.monotonic() - begin)


def disk(run_dir: Path, mib: int = 64) -> list[Finding]:
    """Free space and write speed at an existing or future run directory. Leaves no file behind.

    Raises:
        ConfigError: `run_dir` cannot be a directory.
    """
    where = existing_part(run_dir)
    free = shutil.disk_usage(where).free
    state: FindingState = "failure" if free < 2 * mib * WRITE_BYTES else "warning" if free < GIB else "ok"
    found = [Finding("disk", "space", f"{free / GIB:.1f} GiB free in {where}", state, free)]
    if state != "failure":
        found.append(_speed(where, mib))
    return found


def _speed(where: Path, mib: int) -> Finding:
    try:
        speed = write_speed(where, mib)
    except OSError as error:
        return Finding("disk", "writing", f"{where}: {error.strerror}; a directory of yours would fit", "failure")
    text = f"{speed / 1e6:.0f} MB/s ({mib} MiB to {where}, fsync)"
    return Finding("disk", "writing", text, "ok" if speed > 20e6 else "warning", speed)
