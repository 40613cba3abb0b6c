"""Whether a run directory can be gone on with: checked on every rank before any process group exists."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from altup_moe.checkpoint.store import Manifest, checkpoints_dir, latest, read_manifest
from altup_moe.config import ConfigError, RunConfig

SAME = {
    "model": None,
    "altup": {"kernel"},
    "moe": None,
    "parallel": {"overlap_grad_reduce"},
    "data": {"cache"},
    "train": {"eval_interval", "eval_samples", "stop_after", "recompute", "micro_batch_size"},
}
"""Sections whose keys must be the checkpoint's, but for the named ones: else the run would not be the same run."""


@dataclass(frozen=True)
class ResumePoint:
    """The checkpoint a run goes on from."""

    directory: Path
    manifest: Manifest


def find_resume_point(config: RunConfig, world_size: int) -> ResumePoint | None:
    """The newest checkpoint of log.run_dir, or None for a fresh start.

    Raises:
        ConfigError: it was written by another model, layout or data order, or there is one and checkpoint.resume is
            false (nothing is overwritten).
    """
    directory = latest(config.log.run_dir)
    if directory is None:
        return None
    if not config.checkpoint.resume:
        fits = (
            f"{checkpoints_dir(config.log.run_dir)} holds a run; name another directory, or set checkpoint.resume true"
        )
        raise ConfigError("log.run_dir", config.log.run_dir, fits)
    manifest = read_manifest(directory)
    if manifest.world_size != world_size:
        fits = f"{directory} was written by {manifest.world_size} ranks; start as many"
        raise ConfigError("world size", world_size, fits)
    current = config.to_dict()
    for section, exempt in SAME.items():
        _check_section(section, current[section], manifest.config.get(section, {}), exempt or set(), directory)
    return ResumePoint(directory, manifest)


def _check_section(
    section: str, current: dict[str, Any], stored: dict[str, Any], exempt: set[str], directory: Path
) -> None:
    for key, value in current.items():
        if key not in exempt and stored.get(key) != value:
            fits = f"{directory} was written with {stored.get(key)!r}; use that, or another log.run_dir"
            raise ConfigError(f"{section}.{key}", value, fits)
