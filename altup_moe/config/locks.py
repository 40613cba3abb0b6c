"""Locks on files (flock). The kernel releases a lock when the process that holds it ends, however it ends."""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from altup_moe.config.errors import UserError

LOCK = "lock"
"""Name of the lock file in a directory that one process at a time may write."""


@contextmanager
def locked_directory(directory: Path, what: str, instead: str) -> Iterator[None]:
    """Hold DIRECTORY/lock, which says who holds it; the directory is made if it is missing.

    Args:
        what: what works there, e.g. ``study``.
        instead: what the second one can do, e.g. ``name another --dir``.
    Raises:
        UserError: another process holds the lock, or the directory cannot be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise UserError(f"{directory}: {error.strerror or error}") from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                holder = os.pread(descriptor, 200, 0).decode("utf-8", errors="replace").strip()
                by = f" ({holder})" if holder else ""
                raise UserError(f"{directory}: another {what} runs here{by}; wait for it, or {instead}") from None
            missing = f"{directory}: its file system has no locks ({error.strerror}); nothing keeps a second {what} out"
            print(missing, file=sys.stderr, flush=True)
        with suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {platform.node()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def is_locked(directory: Path) -> bool:
    """Whether a process holds the lock of a directory now; False where that cannot be told."""
    try:
        descriptor = os.open(directory / LOCK, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in (errno.EWOULDBLOCK, errno.EACCES)
    finally:
        os.close(descriptor)
    return False


def hold_for_reading(path: Path) -> int | None:
    """Make `unread` false of a file until the returned descriptor is closed; None where that is not possible."""
    try:
        # Neither a link nor a FIFO, which would wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def unread(path: Path) -> bool:
    """Whether nobody holds a file by `hold_for_reading` now (also true where the file system has no locks)."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EWOULDBLOCK, errno.EACCES)
    finally:
        os.close(descriptor)
    return True
