"""Durable files: hash, flush to disk, publish by rename."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from altup_moe.config.files import fsync

READ_BLOCK_BYTES = 1 << 22
"""Bytes read at a time while hashing."""


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with path.open("rb", buffering=0) as file:
        digest, block = hashlib.sha256(), memoryview(bytearray(READ_BLOCK_BYTES))
        while count := file.readinto(block):
            digest.update(block[:count])
    return digest.hexdigest()


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


@contextlib.contextmanager
def new_directory(target: Path) -> Iterator[Path]:
    """An empty directory that becomes `target` once the block succeeds; else nothing is left, nor of new parents.

    Raises:
        OSError: `target` is there by then and not an empty directory, or from the file system.
    """
    target = target.absolute()
    parents = [parent for parent in target.parents if not parent.exists()]
    try:
        with staging(target.parent, target.name) as temporary:
            made = temporary / "new"
            made.mkdir()
            yield made
            fsync_tree(made)
            os.rename(made, target)
            fsync(target.parent)
    except BaseException:
        for parent in parents:
            with contextlib.suppress(OSError):
                parent.rmdir()
        raise
