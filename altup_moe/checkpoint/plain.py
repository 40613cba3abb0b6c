"""Read untrusted files: open regular files only, and parse JSON strictly."""

from __future__ import annotations

import ctypes
import json
import math
import os
import stat
import sys
from pathlib import Path
from typing import Any

from altup_moe.config import DataError

VALUES_PER_OBJECT = 20
"""Items of lists and objects that `strict_json` takes for each object it may have."""
_SYNC_RANGE = getattr(ctypes.CDLL(None), "sync_file_range", None) if sys.platform == "linux" else None


def open_plain(path: Path) -> int:
    """Open a regular file for reading; returns its descriptor. Does not block, and refuses a symbolic link.

    Raises:
        DataError: the file is missing, or is not a regular file.
    """
    try:
        # Opening a FIFO would wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        problem = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be opened ({error.strerror})"
        raise DataError(path, problem) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DataError(path, "is no plain file")
    return descriptor


def read_plain(path: Path, most: int | None = None) -> bytes:
    """The content of a small regular file.

    Args:
        most: bytes that it may have.
    Raises:
        DataError: as `open_plain`, or the file cannot be read, or is larger.
    """
    with os.fdopen(open_plain(path), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if most is not None and size > most:
            raise DataError(path, f"has {size:,} bytes; at most {most:,} are read")
        try:
            return file.read()
        except OSError as error:
            raise DataError(path, f"cannot be read ({error.strerror})") from error


def start_flush(descriptor: int, offset: int, count: int) -> None:
    """Ask the kernel to start writing a range of bytes to the disk. Returns at once; does nothing outside Linux."""
    if _SYNC_RANGE is not None:
        _SYNC_RANGE(descriptor, ctypes.c_int64(offset), ctypes.c_int64(count), ctypes.c_uint(2))


def strict_json(raw: bytes, most: int | None = None) -> Any:
    """Parse JSON. Unlike `json.loads`: UTF-8 only, unique keys in an object, no NaN and no infinity.

    Args:
        most: objects that it may have, and 20 values for each. They are counted before anything is parsed, since a
            parsed text takes many times its memory.
    Raises:
        ValueError: the text breaks one of these rules or is nested too deeply.
    """
    if most is not None and (raw.count(b"{") > most or raw.count(b"[") + raw.count(b",") > VALUES_PER_OBJECT * most):
        raise ValueError(f"it has more than {most:,} entries")
    try:
        return json.loads(
            raw.decode("utf-8"), object_pairs_hook=_object, parse_constant=_no_constant, parse_float=_finite
        )
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice[:60]!r} stands twice in an object")
    return content


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:60]} is too large a number")
    return number
