"""Which faults can be injected on this machine."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

from altup_moe.bench.options import HANG_KINDS, NODE_KINDS, ROOT_KINDS, FaultKind
from altup_moe.config.load import HINTS

DISK_MEGABYTES = 512


def left_out(nodes: bool) -> dict[FaultKind, str]:
    """Faults that cannot be injected here, and why."""
    root = os.geteuid() == 0
    found: dict[FaultKind, str] = {}
    for kind in get_args(FaultKind):
        if kind in NODE_KINDS and not nodes:
            found[kind] = "needs --nodes"
        elif kind in ROOT_KINDS and not root:
            found[kind] = "needs root"
        elif kind in HANG_KINDS and "train.hang_timeout" not in HINTS:
            found[kind] = "needs train.hang_timeout"
        elif kind == "slow-rank" and not _cgroups():
            found[kind] = "needs a cgroup for the CPU that can be written"
        elif kind == "full-disk" and not _mounts():
            found[kind] = "needs to mount a tmpfs"
    return found


def _cgroups() -> bool:
    old, new = Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup/cgroup.controllers")
    if (old / "cpu.cfs_quota_us").is_file():
        return os.access(old, os.W_OK)
    return new.is_file() and "cpu" in new.read_text(encoding="ascii").split() and os.access(new.parent, os.W_OK)


def _mounts() -> bool:
    with tempfile.TemporaryDirectory() as directory:
        if _mount(Path(directory)):
            subprocess.run(["umount", directory], capture_output=True)
            return True
    return False


def _mount(directory: Path) -> bool:
    argv = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MEGABYTES}m", "altup-moe-bench", str(directory)]
    return subprocess.run(argv, capture_output=True).returncode == 0


@contextmanager
def small_disk(directory: Path, mount: bool) -> Iterator[Path]:
    """The directory, as a file system of its own of `DISK_MEGABYTES` if asked for. Afterwards it is gone again."""
    directory.mkdir(parents=True)
    if not mount or not _mount(directory):
        yield directory
        return
    try:
        yield directory
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], capture_output=True)
