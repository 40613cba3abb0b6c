"""The directory of a run's checkpoints, and how a checkpoint becomes complete in it.

    RUN/checkpoints/step_00000100/manifest.json               file and key of every tensor (see manifest.py)
                                  manifest.sha256
                                  rank_00000_000.safetensors  tensors that rank 0 wrote, some hundred megabytes a file
    RUN/checkpoints/latest                                    name of the newest complete checkpoint

Files are written into `step_N.partial`. Once all are flushed, the manifest is written, the directory is renamed, and
`latest` is replaced last. If the process is killed at any moment, `latest` still names a complete checkpoint.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from altup_moe.checkpoint.manifest import MANIFEST, Manifest, write_manifest
from altup_moe.checkpoint.plain import read_plain
from altup_moe.checkpoint.source import Checkpoint
from altup_moe.config import DataError, UserError
from altup_moe.config.files import fsync, write_text
from altup_moe.config.locks import unread
from altup_moe.config.run_directory import checkpoints_dir

LATEST = "latest"
SPARE_BYTES = 1 << 24
"""Free disk space required beyond the tensors: for file headers and the manifest."""
_NAME = re.compile(r"step_[0-9]{8,}")
_ASIDE = ".replaced"
"""Suffix of a directory that was replaced by another, or that is being removed."""
DIVERGED = ".diverged"
"""Suffix of a checkpoint that a run left behind when it could not go on from it."""


def step_name(step: int) -> str:
    """Name of a checkpoint's directory."""
    return f"step_{step:08d}"


def step_of(directory: Path) -> int:
    """The step in the name of a complete checkpoint's directory."""
    return int(directory.name.removeprefix("step_"))


def complete_checkpoints(root: Path) -> list[Path]:
    """Complete checkpoints in a directory of checkpoints, oldest first."""
    found = [path for path in root.glob("step_*") if _NAME.fullmatch(path.name) and (path / MANIFEST).is_file()]
    return sorted(found, key=step_of)


def latest_checkpoint(run_dir: str | Path) -> Path | None:
    """The checkpoint that `latest` names; None before the first save.

    Raises:
        DataError: `latest` is damaged, or does not name a complete checkpoint of this directory.
    """
    return _pointed(checkpoints_dir(run_dir))


def _pointed(root: Path) -> Path | None:
    pointer = root / LATEST
    if not os.path.lexists(pointer):
        # The first save may have been killed after the rename and before `latest` was written.
        return next(reversed(complete_checkpoints(root)), None)
    name = read_plain(pointer).decode("utf-8", errors="replace").strip()
    # A save that replaces the latest checkpoint may have been killed between its two renames.
    for directory in (root / name, root / f"{name}{_ASIDE}"):
        if _NAME.fullmatch(name) and (directory / MANIFEST).is_file():
            return directory
    raise DataError(pointer, f"names {name[:40]!r}, which is no complete checkpoint in {root}")


def find_checkpoint(path: Path) -> Path:
    """The directory of a checkpoint: `path` itself, or the latest checkpoint of the run directory `path`.

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
    """Make an empty directory for the files of a checkpoint; remove what a killed save left there."""
    partial = root / f"{step_name(step)}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def publish(partial: Path, manifest: Manifest) -> Path:
    """Complete a checkpoint whose files are all written: write the manifest, check, rename, replace `latest`.

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
        # The step was saved before: it never became the latest, a fallback discarded it, or it was saved twice.
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
    """Make `latest` name a checkpoint."""
    write_text(root / LATEST, f"{name}\n")
    fsync(root)


def set_aside(root: Path, others: Iterable[Path], instead: Path, ending: str = ".damaged") -> None:
    """Make the older checkpoint `instead` the latest; the others are ``NAME.damaged`` (or another ending) from now."""
    move_latest(root, instead.name)
    for path in others:
        aside = path.with_name(f"{path.name}{ending}")
        shutil.rmtree(aside, ignore_errors=True)
        os.rename(path, aside)


def last_good(root: Path, last_taken: int) -> Path | None:
    """The newest complete checkpoint that a good step followed: one of an earlier step than the last that was taken."""
    return next((path for path in reversed(complete_checkpoints(root)) if step_of(path) < last_taken), None)


def go_back(root: Path, to: Path, *, keep_others: bool) -> None:
    """Make an older checkpoint the latest. Later ones are ``NAME.diverged``, or go with the next `prune`."""
    later = [path for path in complete_checkpoints(root) if step_of(path) > step_of(to)]
    set_aside(root, later, to, DIVERGED if keep_others else _ASIDE)


def prune(
    root: Path, keep: int, keep_every: int | None = None, last_taken: int | None = None, save_at: Sequence[int] = ()
) -> None:
    """Remove old checkpoints; keep the newest `keep`, multiples of `keep_every`, steps of `save_at`, and the latest.

    One that is being read stays until the next call. Also removes what killed saves left, so no save may be running.

    Args:
        last_taken: the last step of the run that was not skipped. The newest checkpoint of an earlier step stays: that
            step has shown that a run can go on from it.
    """
    found, pointed = complete_checkpoints(root), _pointed(root)
    good = None if last_taken is None else last_good(root, last_taken)
    for path in found[: max(0, len(found) - keep)]:
        step = step_of(path)
        kept = path in (pointed, good) or step in save_at or (keep_every and step % keep_every == 0)
        if not kept and unread(path / MANIFEST):
            # Rename first: a checkpoint that is removed in part must not look complete.
            aside = root / f"{path.name}{_ASIDE}"
            shutil.rmtree(aside, ignore_errors=True)
            os.rename(path, aside)
    for ending in (".partial", _ASIDE):
        for path in root.glob(f"step_*{ending}"):
            if path != pointed:
                shutil.rmtree(path)
    for path in root.glob(f".{LATEST}.*"):
        path.unlink()
