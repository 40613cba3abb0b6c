"""Where checkpoints lie and how they become complete.

    RUN/checkpoints/step_00000100/rank_00000.safetensors   this rank's tensors
                                  rank_00000.json          what they are
                                  manifest.json            the run: step, layout, configuration
    RUN/checkpoints/latest                                 name of the newest complete one

Ranks write into `step_N.partial`; when all have finished, rank 0 adds the manifest, renames the directory, and moves
`latest` last. A process killed at any moment leaves the previous checkpoint as the latest.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from altup_moe.config import DataError
from altup_moe.config.files import fsync, write_text

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint is of. ``config`` is the run's resolved configuration as nested dicts."""

    step: int
    consumed_samples: int
    skipped_steps: int
    world_size: int
    data_fingerprint: str
    config: dict[str, Any]
    format_version: int = FORMAT_VERSION


@dataclass(frozen=True)
class RankState:
    """One rank's part: tensors by key, and JSON-able facts about them (``meta``)."""

    tensors: dict[str, Tensor]
    meta: dict[str, Any]


def checkpoints_dir(run_dir: str | Path) -> Path:
    """Directory of a run's checkpoints."""
    return Path(run_dir) / "checkpoints"


def _name(step: int) -> str:
    return f"step_{step:08d}"


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON so that the file is either the old or the new one, whole."""
    write_text(path, json.dumps(content, indent=1))


def save(
    run_dir: str | Path, manifest: Manifest, rank: int, state: RankState, barrier: Callable[[], None], keep: int
) -> Path:
    """Write one checkpoint; every rank calls it at the same step.

    Args:
        barrier: waits for all ranks.
        keep: newest checkpoints that stay; older ones are removed after `latest` has moved.
    Returns:
        The complete checkpoint's directory.
    """
    root = checkpoints_dir(run_dir)
    final, partial = root / _name(manifest.step), root / f"{_name(manifest.step)}.partial"
    if rank == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    barrier()
    tensors = {key: tensor.detach().to("cpu", copy=False).contiguous() for key, tensor in state.tensors.items()}
    # A tensor may be a view of another (fp32 master weights are): safetensors stores each on its own.
    tensors = {key: tensor.clone() for key, tensor in tensors.items()}
    file = partial / f"rank_{rank:05d}.safetensors"
    save_file(tensors, str(file))
    fsync(file)
    write_json(partial / f"rank_{rank:05d}.json", state.meta)
    barrier()
    if rank == 0:
        write_json(partial / "manifest.json", asdict(manifest))
        if final.exists():
            shutil.rmtree(final)
        os.rename(partial, final)
        fsync(root)
        _move_latest(root, final.name)
        _prune(root, final.name, keep)
    barrier()
    return final


def latest(run_dir: str | Path) -> Path | None:
    """The newest complete checkpoint, or None before the first save.

    Raises:
        DataError: `latest` names something that is not a checkpoint of this directory.
    """
    pointer = checkpoints_dir(run_dir) / "latest"
    if not pointer.is_file():
        return None
    name = pointer.read_text(encoding="utf-8", errors="replace").strip()
    directory = pointer.parent / name
    if not re.fullmatch(r"step_\d{8,}", name) or not (directory / "manifest.json").is_file():
        raise DataError(pointer, f"names {name!r}, which is no complete checkpoint in {pointer.parent}")
    return directory


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a checkpoint.

    Raises:
        DataError: not JSON, or of another format version.
    """
    content = read_json(directory / "manifest.json")
    if content.get("format_version") != FORMAT_VERSION:
        problem = f"format version {content.get('format_version')!r}; this program reads {FORMAT_VERSION}"
        raise DataError(directory / "manifest.json", problem)
    try:
        return Manifest(**content)
    except TypeError as error:
        raise DataError(directory / "manifest.json", f"is no checkpoint manifest ({error})") from error


def read_rank(directory: Path, rank: int) -> RankState:
    """One rank's part of a checkpoint.

    Raises:
        DataError: a file is missing or damaged.
    """
    file = directory / f"rank_{rank:05d}.safetensors"
    meta = read_json(file.with_suffix(".json"))
    try:
        return RankState(load_file(str(file)), meta)
    except Exception as error:  # safetensors raises its own kinds, and OSError
        raise DataError(file, f"cannot be read ({error})") from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, or a DataError that names the file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(path, f"cannot be read ({error})") from error
    if not isinstance(content, dict):
        raise DataError(path, f"holds a JSON {type(content).__name__}, not an object")
    return content


def _move_latest(root: Path, name: str) -> None:
    write_text(root / "latest", name)


def _prune(root: Path, newest: str, keep: int) -> None:
    complete = sorted(p for p in root.glob("step_*") if p.is_dir() and not p.name.endswith(".partial"))
    stale = [p for p in complete if p.name != newest][: max(0, len(complete) - keep)]
    # A partial directory that is left now is a save that was killed: this one's own has just been renamed.
    for path in (*stale, *root.glob("step_*.partial")):
        shutil.rmtree(path)
