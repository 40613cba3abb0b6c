"""Small disks that can be full: a tmpfs of its own (root), and a limit on the size of files (everybody)."""

from __future__ import annotations

import ctypes
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)
_MS_RDONLY, _MNT_DETACH = 1, 2

AS_ROOT = os.geteuid() == 0


@contextmanager
def mounted(directory: Path, size: int, read_only: bool = False) -> Iterator[Path]:
    """A tmpfs of `size` bytes at a directory, which is made. Needs root; OSError where mounts are not allowed."""
    directory.mkdir(parents=True, exist_ok=True)
    target, options = os.fsencode(directory), f"size={size}".encode()
    if _LIBC.mount(b"tmpfs", target, b"tmpfs", _MS_RDONLY if read_only else 0, options):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(directory))
    try:
        yield directory
    finally:
        _LIBC.umount2(target, _MNT_DETACH)


def fill(file: Path) -> None:
    """Write a file until its disk has no byte left."""
    with open(file, "wb", buffering=0) as opened, suppress(OSError):
        for block in (1 << 20, 1 << 12, 1):
            with suppress(OSError):
                while opened.write(b"x" * block) == block:
                    pass


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Within the block no file of this process grows beyond `size` bytes (EFBIG; the signal is ignored by Python)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
