"""Durable files: hash them, flush them to the disk, publish them by renaming."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from altup_moe.config.errors import UserError
from altup_moe.config.files import fsync
from altup_moe.config.os_errors import naming

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
    """Flush every file below a directory, then the directories."""
    for folder, _, names in os.walk(directory, topdown=False):
        for name in names:
            fsync(Path(folder) / name)
        fsync(Path(folder))


@contextlib.contextmanager
def staging(parent: Path, name: str) -> Iterator[Path]:
    """A temporary directory in `parent`, removed at the end: on the same file system, so that a rename is atomic."""
    parent.mkdir(parents=True, exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix=f".{name}.", suffix=".tmp", dir=parent))
    try:
        with naming(parent / name):
            yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def new_directory(target: Path) -> Iterator[Path]:
    """An empty directory that is renamed to `target` if the block succeeds. A failure leaves no files or parents.

    Raises:
        UserError: `target` exists by then and is not an empty directory (a run may have begun in it).
        OSError: from the file system.
    """
    target = target.absolute()
    parents = [parent for parent in target.parents if not parent.exists()]
    try:
        with staging(target.parent, target.name) as temporary:
            made = temporary / "new"
            made.mkdir()
            yield made
            fsync_tree(made)
            try:
                os.rename(made, target)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise
                raise UserError(f"{target}: another process has made it meanwhile; it stays as it is") from None
            fsync(target.parent)
    except BaseException:
        for parent in parents:
            with contextlib.suppress(OSError):
                parent.rmdir()
        raise
