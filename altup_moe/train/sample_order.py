"""Which order of samples a run has: the one that its checkpoint was written with, or for a new run that of epochs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

from altup_moe.checkpoint.manifest import Manifest, read_manifest
from altup_moe.checkpoint.store import complete_checkpoints, find_checkpoint
from altup_moe.config import ConfigError, DataError, RunConfig
from altup_moe.config.run_directory import checkpoints_dir

Order = Literal["epoch", "run"]


def written_order(manifest: Manifest) -> Order | None:
    """Order of the samples that a checkpoint has seen; None if it has seen none."""
    stored = (manifest.config.get("data") or {}).get("shuffle")
    if stored in ("epoch", "run"):
        return "run" if stored == "run" else "epoch"
    # Versions without the key shuffled over all epochs of a run; what trains now always writes it.
    return "run" if manifest.consumed_samples else None


def with_sample_order(config: RunConfig, manifest: Manifest | None) -> RunConfig:
    """The configuration with data.shuffle filled in.

    Args:
        manifest: of the checkpoint that the run goes on from, or of a finished run; None for a new run.
    """
    written = None if manifest is None else written_order(manifest)
    order = config.data.shuffle or written or "epoch"
    return replace(config, data=replace(config.data, shuffle=order))


def ordered(config: RunConfig) -> RunConfig:
    """The configuration of a run about to start or to go on, with data.shuffle filled in.

    Raises:
        ConfigError: its checkpoints were written with another order; or their order depends on train.steps, and that
            was changed.
    """
    own = _newest(checkpoints_dir(config.log.run_dir))
    newest, where = (own, config.log.run_dir) if own else (_branched_from(config), config.checkpoint.branch_from)
    if newest is None or (order := written_order(newest)) is None:
        return with_sample_order(config, None)
    if config.data.shuffle not in (None, order):
        fits = f"the checkpoints in {where} were written with {order!r}; use that, or another log.run_dir"
        raise ConfigError("data.shuffle", config.data.shuffle, fits)
    steps = (newest.config.get("train") or {}).get("steps", config.train.steps)
    if order == "run" and steps != config.train.steps:
        fits = f"the order of samples (data.shuffle run) depends on it, and the checkpoints were written with {steps}"
        raise ConfigError("train.steps", config.train.steps, f"{fits}; use that, or another log.run_dir")
    return with_sample_order(config, newest)


def _branched_from(config: RunConfig) -> Manifest | None:
    """Manifest of the other run's checkpoint that a new run goes on from."""
    branch = config.checkpoint.branch_from
    return None if branch is None else read_manifest(find_checkpoint(Path(branch)))


def _newest(root: Path) -> Manifest | None:
    for directory in complete_checkpoints(root)[::-1]:
        try:
            return read_manifest(directory)
        except DataError:  # whoever goes on from it says so, or falls back
            continue
    return None
