"""Where checkpoints lie and how they become complete.

    RUN/checkpoints/step_00000100/manifest.json               which tensor lies where (see manifest.py)
                                  manifest.sha256
                                  rank_00000_000.safetensors  what rank 0 wrote, some hundred megabytes a file
    RUN/checkpoints/latest                                    name of the newest complete one

Files are written into `step_N.partial`. Once all are on the disk, the manifest is added, the directory is renamed, and
`latest` moves last. A process killed at any moment leaves the previous checkpoint as the latest.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from altup_moe.checkpoint.manifest import MANIFEST, Manifest, write_manifest
from altup_moe.checkpoint.plain import read_plain
from altup_moe.checkpoint.source import Checkpoint
from altup_moe.config import DataError, UserError
from altup_moe.config.files import fsync, write_text
from altup_moe.config.run_directory import checkpoints_dir

LATEST = "latest"
_NAME = re.compile(r"step_[0-9]{8,}")
_ASIDE = ".replaced"
"""Ends the name of a directory that another took the place of, or that is being removed."""


def step_name(step: int) -> str:
    """Name of a checkpoint's directory."""
    return f"step_{step:08d}"


def complete_checkpoints(root: Path) -> list[Path]:
    """Complete checkpoints below a directory of checkpoints, oldest first."""
    found = [path for path in root.glob("step_*") if _NAME.fullmatch(path.name) and (path / MANIFEST).is_file()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step_")))


def latest_checkpoint(run_dir: str | Path) -> Path | None:
    """The checkpoint to go on from: the one `latest` names; None before the first save.

    Raises:
        DataError: `latest` is damaged, or names something that is not a checkpoint of this directory.
    """
    return _pointed(checkpoints_dir(run_dir))


def _pointed(root: Path) -> Path | None:
    pointer = root / LATEST
    if not os.path.lexists(pointer):
        # A first save that was killed between its last two steps.
        return next(reversed(complete_checkpoints(root)), None)
    name = read_plain(pointer).decode("utf-8", errors="replace").strip()
    # Aside: a save that replaces the latest was killed between its two renames.
    for directory in (root / name, root / f"{name}{_ASIDE}"):
        if _NAME.fullmatch(name) and (directory / MANIFEST).is_file():
            return directory
    raise DataError(pointer, f"names {name[:40]!r}, which is no complete checkpoint in {root}")


def find_checkpoint(path: Path) -> Path:
    """A checkpoint's directory, given itself or its run's directory (then the latest).

    Raises:
        UserError: there is none.
    """
    if (path / MANIFEST).is_file():
        return path
    found = latest_checkpoint(path)
    if found is None:
        raise UserError(f"{path}: is no checkpoint (it has no {MANIFEST}), and no run directory that has one")
    return found


def open_partial(root: Path, step: int) -> Path:
    """A new, empty directory for the files of a checkpoint; what a killed save left there is removed."""
    partial = root / f"{step_name(step)}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def publish(partial: Path, manifest: Manifest) -> Path:
    """Make a checkpoint whose files are all written complete: check, add the manifest, rename, move `latest`.

    Returns:
        Its directory.
    Raises:
        DataError: a file on the disk is not what the manifest says. OSError: the disk is full. After either, and
        after a kill at any moment, `latest_checkpoint` gives a complete checkpoint: this one or the one before.
    """
    root, final = partial.parent, partial.with_suffix("")
    aside = root / f"{final.name}{_ASIDE}"
    write_manifest(partial, manifest)
    Checkpoint(partial).close()
    fsync(partial)
    replaces = final.exists()
    if replaces:
        # One that was renamed but never became the latest, that `fallback` went behind, or a step saved twice.
        shutil.rmtree(aside, ignore_errors=True)
        os.rename(final, aside)
    try:
        os.rename(partial, final)
    except OSError:
        if replaces:
            os.rename(aside, final)
        raise
    fsync(root)
    move_latest(root, final.name)
    shutil.rmtree(aside, ignore_errors=True)
    return final


def move_latest(root: Path, name: str) -> None:
    """Say which checkpoint is the latest."""
    write_text(root / LATEST, f"{name}\n")
    fsync(root)


def set_aside(root: Path, damaged: Iterable[Path], instead: Path) -> None:
    """Go back to an older checkpoint: it becomes the latest; the damaged ones are kept under another name."""
    move_latest(root, instead.name)
    for path in damaged:
        aside = path.with_name(f"{path.name}.damaged")
        shutil.rmtree(aside, ignore_errors=True)
        os.rename(path, aside)


def prune(root: Path, keep: int, keep_every: int | None = None) -> None:
    """Remove all but the newest `keep` checkpoints, every one whose step is a multiple of `keep_every`, and the latest.

    What killed saves left goes too, so no save may be under way.
    """
    found, pointed = complete_checkpoints(root), _pointed(root)
    for path in found[: max(0, len(found) - keep)]:
        step = int(path.name.removeprefix("step_"))
        if path != pointed and not (keep_every and step % keep_every == 0):
            # Renamed first: one of which half the files are gone must not look complete.
            aside = root / f"{path.name}{_ASIDE}"
            shutil.rmtree(aside, ignore_errors=True)
            os.rename(path, aside)
    for ending in (".partial", _ASIDE):
        for path in root.glob(f"step_*{ending}"):
            if path != pointed:
                shutil.rmtree(path)
    for path in root.glob(f".{LATEST}.*"):
        path.unlink()
