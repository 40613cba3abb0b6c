"""Write small files atomically. In the lowest layer, since every other layer uses it."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

from altup_moe.config.errors import ConfigError
from altup_moe.config.os_errors import naming


def check_directory(key: str, path: Path) -> None:
    """Raise ConfigError unless `path` is a directory, or one can be made there."""
    for each in (path, *path.parents):
        if each.is_dir():
            return
        if each.exists():
            raise ConfigError(key, str(path), f"{each} is a file; a directory would fit")


def try_to_write(path: Path) -> None:
    """Raise OSError, with the path, unless a byte can be added to a file. It stays as it is, or missing."""
    new = not path.exists()
    with naming(path), open(path, "ab", buffering=0) as file:
        try:
            end = file.seek(0, os.SEEK_END)
            file.write(b"\n")
            file.truncate(end)
        finally:
            if new:
                path.unlink()


def fsync(path: Path) -> None:
    """Flush a file or a directory entry to disk; a rename is durable only after its directory is flushed."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically: to a temporary file beside `path`, flushed, then renamed. The directory exists."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write bytes atomically, as `write_text` does.

    A device or a pipe (/dev/stdout, /dev/null) is written to: a rename would replace it for every program.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if path.exists() and not path.is_file():
        with naming(path), open(path, "wb", buffering=0) as file:
            file.write(content)
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        fsync(temporary)
        os.replace(temporary, path)
    except OSError as error:
        # Not the temporary file's name, which is gone when a user reads it; a write has none.
        if error.errno is not None:
            error.filename, error.filename2 = os.fspath(path), None
        raise
    finally:
        with suppress(OSError):
            temporary.unlink()
