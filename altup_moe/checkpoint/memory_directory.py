"""The directory in a node's memory that holds checkpoints of a run, and what is found there.

    /dev/shm/altup-moe-1000-0123456789abcdef/   the user's number, a hash of the run directory's absolute path
        run.json                                which run it is
        lock                                    held while the run trains
        step_00000012/                          the node's part of a checkpoint: see `store`

Files there outlive the processes that wrote them, not the node. A user can only use what is the user's own.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import stat
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from altup_moe.checkpoint.manifest import read_manifest
from altup_moe.checkpoint.memory_nodes import MemoryCopy
from altup_moe.checkpoint.store import complete_checkpoints
from altup_moe.config import UserError
from altup_moe.config.files import write_text
from altup_moe.config.locks import LOCK, is_locked
from altup_moe.config.run_directory import starts_file

VARIABLE = "ALTUP_MOE_MEMORY_DIR"
"""Names the directory of a node's memory in the place of `USUAL`."""
USUAL = "/dev/shm"
PREFIX = "altup-moe"
NOTE = "run.json"
FORGOTTEN_SECONDS = 24 * 3600
"""What a run has left that died so long ago and was not started again is removed by any other start of its user."""


def memory_base(env: Mapping[str, str]) -> Path:
    """The directory of this node's memory."""
    return Path(env.get(VARIABLE) or USUAL)


def memory_directory(base: Path, run_dir: str | Path) -> Path:
    """Where in `base` the run's checkpoints lie."""
    name = hashlib.sha256(os.path.abspath(run_dir).encode()).hexdigest()[:16]
    return base / f"{PREFIX}-{os.getuid()}-{name}"


def node_identity(base: Path) -> str:
    """Equal for processes that see the same directory of the same machine since it was booted.

    Raises:
        OSError: there is no such directory.
    """
    found = base.stat()
    boot = Path("/proc/sys/kernel/random/boot_id")
    machine = boot.read_text(encoding="ascii").strip() if boot.exists() else os.uname().nodename
    return f"{machine} {found.st_dev} {found.st_ino}"


def run_identity(run_dir: str | Path) -> str | None:
    """A hash of a run's first start; None before it. A run that begins anew in the same directory is another one."""
    try:
        with open(starts_file(run_dir), "rb") as file:
            first = file.readline()
    except OSError:
        return None
    return hashlib.sha256(first).hexdigest() if first.endswith(b"\n") else None


def open_directory(directory: Path) -> int:
    """Make the directory, or take over what a dead process has left of it. Returns the lock, held until it is closed.

    Raises:
        OSError: it cannot be made. UserError: it is not this user's alone, or a process that lives holds it.
    """
    with suppress(FileExistsError):
        directory.mkdir(mode=0o700)
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise UserError(f"{directory}: is not a directory that only this user can write")
    descriptor = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise UserError(f"{directory}: another process uses it") from None
    return descriptor


def write_note(directory: Path, run_dir: str | Path, identity: str) -> None:
    """Say which run's checkpoints lie there."""
    write_text(directory / NOTE, json.dumps({"run_dir": os.path.abspath(run_dir), "run": identity}))


def read_note(directory: Path) -> tuple[str, str] | None:
    """(run directory, identity) of the run whose checkpoints lie there; None where that is not told."""
    try:
        content = json.loads((directory / NOTE).read_text(encoding="utf-8"))
        return str(content["run_dir"]), str(content["run"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def found_copies(directory: Path, run_dir: str | Path, identity: str | None) -> list[MemoryCopy]:
    """What the directory has of the checkpoints of this run; a copy whose manifest is damaged is none."""
    if identity is None or read_note(directory) != (os.path.abspath(run_dir), identity):
        return []
    copies = []
    for path in complete_checkpoints(directory):
        with suppress(UserError, OSError):
            manifest = read_manifest(path)
            digest = hashlib.sha256((path / "manifest.json").read_bytes()).hexdigest()
            sizes = {entry.name: entry.stat(follow_symlinks=False).st_size for entry in os.scandir(path)}
            there = tuple(name for name, file in manifest.files.items() if sizes.get(name) == file.size)
            copies.append(MemoryCopy(manifest.step, digest, there, tuple(manifest.files)))
    return copies


def remove_steps(directory: Path, keep: Path | None = None) -> None:
    """Remove all checkpoints but one, whole or not."""
    for path in directory.glob("step_*"):
        if path != keep:
            # Rename first: a checkpoint that is removed in part must not look complete.
            aside = directory / f"{path.name}.removed"
            with suppress(OSError):
                os.rename(path, aside)
            shutil.rmtree(aside, ignore_errors=True)
            shutil.rmtree(path, ignore_errors=True)


def remove_forgotten(base: Path, own: Path) -> list[str]:
    """Remove what this user's dead runs have left in `base` and nothing can go on from. Returns their run directories.

    That is: the run directory is gone or holds another run, or the run died `FORGOTTEN_SECONDS` ago.
    """
    removed = []
    for path in base.glob(f"{PREFIX}-{os.getuid()}-*"):
        try:
            found = path.lstat()
            if path == own or found.st_uid != os.getuid() or not stat.S_ISDIR(found.st_mode) or is_locked(path):
                continue
        except OSError:
            continue
        note, age = read_note(path), time.time() - found.st_mtime
        usable = note is not None and run_identity(note[0]) == note[1]
        # One that says nothing yet may belong to a run that starts now.
        if age > FORGOTTEN_SECONDS or (note is not None and not usable):
            shutil.rmtree(path, ignore_errors=True)
            removed.append(note[0] if note else str(path))
    return removed
