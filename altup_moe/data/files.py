"""Durable files: flush to disk, publish by rename."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from altup_moe.config.files import fsync


def fsync_tree(directory: Path) -> None:
    """Flush every file below a directory, then the directories that hold them."""
    for folder, _, names in os.walk(directory, topdown=False):
        for name in names:
            fsync(Path(folder) / name)
        fsync(Path(folder))


@contextlib.contextmanager
def staging(parent: Path, name: str) -> Iterator[Path]:
    """A temporary directory beside what will be published (same file system, so a rename is atomic); always removed."""
    parent.mkdir(parents=True, exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix=f".{name}.", suffix=".tmp", dir=parent))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
