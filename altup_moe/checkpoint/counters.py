"""Whether a manifest's counters fit each other, its configuration and its directory's name. Pure."""

from __future__ import annotations

import re

from altup_moe.checkpoint.manifest import Manifest
from altup_moe.config import RunConfig

MAX_RANKS = 1 << 20
"""Largest world size that is believed."""
_STEP = re.compile(r"step_([0-9]{8,})(\..+)?")
"""Name of a checkpoint's directory; with an ending while it is written, replaced or set aside."""


def counter_problem(manifest: Manifest, config: RunConfig, directory: str) -> str | None:
    """What does not fit, in words; None if everything does.

    Args:
        config: the manifest's. directory: name of the checkpoint's directory; one of another form says nothing.
    """
    m, taken = manifest, manifest.step - manifest.skipped_steps
    named = _STEP.fullmatch(directory)
    if named and int(named[1]) != m.step:
        return f"is of step {m.step}; the directory's name says {int(named[1])}"
    if m.step > config.train.steps and not _changed(m, "train.steps"):
        return f"is of step {m.step}; its run has {config.train.steps} (train.steps)"
    if taken < 0:
        return f"has {m.skipped_steps} skipped steps of {m.step}"
    if m.scheduler_steps != m.step:
        return f"has {m.scheduler_steps} steps of the learning-rate schedule after {m.step} steps"
    if m.optimizer_steps != taken and (m.has_optimizer or m.optimizer_steps):
        return f"has {m.optimizer_steps} updates of the optimizer; {m.step} steps without {m.skipped_steps} are {taken}"
    if (samples := consumed(m, config)) is not None and m.consumed_samples != samples:
        return f"has {m.consumed_samples} consumed samples; {m.step} steps of its batches are {samples}"
    return _world_problem(m, config)


def consumed(manifest: Manifest, config: RunConfig) -> int | None:
    """Samples that a run has gone past: those of its steps, and what a rollback left out. None if that cannot be told:
    a tool has written the checkpoint with another batch size."""
    if _changed(manifest, "train.global_batch_size"):
        return None
    passed_over = sum(stop - start for start, stop in (entry["samples"] for entry in manifest.passed_over))
    return manifest.step * config.train.global_batch_size + passed_over


def _changed(manifest: Manifest, key: str) -> bool:
    return any(key in change["keys"] for change in manifest.changes)


def _world_problem(manifest: Manifest, config: RunConfig) -> str | None:
    size, p = manifest.world_size, config.parallel
    if not 1 <= size <= MAX_RANKS or size % (p.tensor * p.pipeline * p.context):
        return f"is of {size} ranks; tensor {p.tensor}, pipeline {p.pipeline}, context {p.context} do not divide them"
    for name in manifest.tensors:
        kind, _, rest = name.partition("/")
        rank = rest.partition("/")[0]
        if kind == "rng" and not (rank.isascii() and rank.isdecimal() and len(rank) < 10 and int(rank) < size):
            return f"has {name[:60]} of {size} ranks"
    return None
