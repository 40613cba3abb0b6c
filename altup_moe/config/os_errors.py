"""What the file system refuses: which errors are a user's to mend, and their one line."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

_OURS = (OSError, FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)
"""Types of the file system's errors. Those of networks and processes are others, and libraries derive their own."""
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
"""Only a file can have these: the path need not be known."""
_MENDABLE = _FULL | {
    *(errno.ENOENT, errno.EACCES, errno.EPERM, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG),
    *(errno.ELOOP, errno.ENOTEMPTY, errno.EXDEV, errno.ENXIO),
}
"""What a user can mend. Not EIO or ESTALE: a disk that fails for a moment, which a restart may survive."""


def reason(error: OSError) -> str:
    """Why, in the system's words, without the path."""
    return error.strerror or f"{error}" or type(error).__name__


def user_line(error: OSError) -> str | None:
    """``PATH: reason`` of an error that a user can mend; None of any other (a connection, a process, a bug)."""
    if isinstance(error, shutil.Error) and error.args and isinstance(error.args[0], list):
        # copytree collects (source, target, text) of every file.
        source, _, text = error.args[0][0]
        return f"{source}: {text}"
    if type(error) not in _OURS or error.errno not in _MENDABLE:
        return None
    # Of a copy or a rename: what is full is where it was to go.
    path = error.filename2 if error.errno in _FULL | {errno.EXDEV} and error.filename2 else error.filename
    if isinstance(path, str | bytes | os.PathLike):
        return f"{_printable(path)}: {reason(error)}"
    return f"a file cannot be written: {reason(error)}" if error.errno in _FULL else None


def _printable(path: str | bytes | os.PathLike[str]) -> str:
    return os.fsdecode(path).encode("utf-8", "backslashreplace").decode()


@contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Give errors of a full disk in the block the path: a failed write has none."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno in _FULL:
            error.filename = os.fspath(path)
        raise
