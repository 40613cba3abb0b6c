"""Which checkpoint a run goes on from: its structure is checked on every rank before any process group exists, its
bytes by all ranks together once they can talk."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from altup_moe.checkpoint.manifest import Manifest
from altup_moe.checkpoint.source import Checkpoint
from altup_moe.checkpoint.store import complete_checkpoints, find_checkpoint, latest_checkpoint, set_aside
from altup_moe.config import ConfigError, DataError, RunConfig
from altup_moe.config.load import from_dict
from altup_moe.config.run_directory import checkpoints_dir
from altup_moe.parallel.control_collectives import first_problem
from altup_moe.parallel.topology import Topology

SAME = {
    "model": None,
    "altup": {"kernel"},
    "sequence": None,
    "moe": {"backend"},
    "data": {"cache"},
    "train": {
        "eval_interval",
        "eval_samples",
        "stop_after",
        "recompute",
        "micro_batch_size",
        "engine",
        "transformer_engine",
    },
}
"""Sections whose keys must be the checkpoint's, but for the named ones: else the run would not be the same run.
The layout is not among them."""

SAME_WEIGHTS = {
    "model": {"seq_length", "decoder_seq_length", "init_method_std", "attention_dropout", "hidden_dropout"},
    "altup": {"kernel"},
    "sequence": None,
    "moe": {"capacity_factor", "aux_loss_coeff", "z_loss_coeff", "expert_bias_update_rate", "dispatcher", "backend"},
}
"""The same for a run that takes over only weights."""

STREAMS = ("tensor", "pipeline", "virtual_pipeline", "expert", "expert_tensor", "context")
"""Keys of `parallel` that say which rank draws what (dropout)."""


@dataclass(frozen=True)
class ResumePoint:
    """The checkpoint a run starts from. ``weights_only``: a new run that takes over its weights."""

    directory: Path
    manifest: Manifest
    weights_only: bool = False

    def same_streams(self, config: RunConfig, world_size: int) -> bool:
        """Whether every rank of this layout stands where the rank that saved its random state stood."""
        stored, current = self.manifest.config.get("parallel", {}), config.to_dict()["parallel"]
        return self.manifest.world_size == world_size and all(stored.get(k) == current[k] for k in STREAMS)


def find_resume_point(config: RunConfig) -> ResumePoint | None:
    """Where to go on from, or None for a fresh start. Reads manifests and headers, not yet the tensors.

    Raises:
        ConfigError: it is of another model, data or schedule, or there is one and checkpoint.resume is false (nothing
            is overwritten).
        DataError: it is damaged, and checkpoint.fallback is false or finds no other.
    """
    return next(_usable(config), None) or _initial(config)


def verified(config: RunConfig, point: ResumePoint, topology: Topology) -> ResumePoint:
    """The point whose bytes are those that were saved: this one, or with checkpoint.fallback an older one. Collective.

    Ranks share the hashing. Checkpoints found damaged are set aside, not removed.

    Raises:
        DataError: on every rank, that of the lowest rank that found damage.
    """
    points: Iterator[ResumePoint] = iter([point]) if point.weights_only else _usable(config)
    for candidate in points:
        problem = first_problem(_damage(candidate.directory, topology), topology.device)
        if problem is None:
            if topology.is_first and config.checkpoint.fallback and not candidate.weights_only:
                root = checkpoints_dir(config.log.run_dir)
                damaged = [path for path in _candidates(config, root) if path.name > candidate.directory.name]
                set_aside(root, damaged, candidate.directory)
            first_problem(None, topology.device)
            return candidate
        if point.weights_only or not config.checkpoint.fallback:
            file, what = problem
            advice = "" if point.weights_only else _advice(candidate.directory.parent, candidate.directory, False)
            raise DataError(file, what + advice)
        if topology.is_first:
            print(f"checkpoint.fallback: {': '.join(problem)}", flush=True)
    raise DataError(checkpoints_dir(config.log.run_dir), "holds no checkpoint that is whole")


def _usable(config: RunConfig) -> Iterator[ResumePoint]:
    """Checkpoints of the run directory whose structure is whole: the latest, and with fallback older ones after it."""
    fallback = config.checkpoint.fallback
    root = checkpoints_dir(config.log.run_dir)
    candidates = _candidates(config, root)
    for directory in candidates:
        if not config.checkpoint.resume:
            fits = f"{root} holds a run; name another directory, or set checkpoint.resume true"
            raise ConfigError("log.run_dir", config.log.run_dir, fits)
        try:
            with Checkpoint(directory) as checkpoint:
                manifest = checkpoint.manifest
        except DataError as error:
            if fallback and directory != candidates[-1]:
                continue
            raise DataError(error.file, error.problem + _advice(root, directory, fallback)) from error
        _check(config, manifest, directory, SAME, "use that, or another log.run_dir")
        yield ResumePoint(directory, manifest)
        if not fallback:
            return


def _candidates(config: RunConfig, root: Path) -> list[Path]:
    older = complete_checkpoints(root)[::-1]
    try:
        newest = latest_checkpoint(config.log.run_dir)
    except DataError as error:
        if config.checkpoint.fallback and older:
            return older
        raise DataError(error.file, error.problem + _advice(root, None, config.checkpoint.fallback)) from error
    if newest is None:
        return []
    return [newest, *(path for path in older if path.name < newest.name)]


def _advice(root: Path, damaged: Path | None, fallback: bool) -> str:
    others = [path for path in complete_checkpoints(root) if path != damaged]
    return f"; --checkpoint.fallback true goes back to {others[-1].name}" if others and not fallback else ""


def _initial(config: RunConfig) -> ResumePoint | None:
    path = config.checkpoint.initial_load_path
    if path is None:
        return None
    directory = find_checkpoint(Path(path))
    with Checkpoint(directory) as checkpoint:
        _check(
            config, checkpoint.manifest, directory, SAME_WEIGHTS, "use that, or another checkpoint.initial_load_path"
        )
        return ResumePoint(directory, checkpoint.manifest, weights_only=True)


def _damage(directory: Path, topology: Topology) -> list[str] | None:
    """What is wrong with this rank's share of the files: [file, problem]."""
    try:
        with Checkpoint(directory) as checkpoint:
            names = sorted(checkpoint.manifest.files)[topology.rank :: topology.world_size]
            checkpoint.verify(names)
    except DataError as error:
        return [error.file, error.problem]
    return None


def _check(config: RunConfig, manifest: Manifest, directory: Path, same: dict[str, Any], instead: str) -> None:
    # What was written before a field existed has its default.
    current, written = config.to_dict(), from_dict(manifest.config).to_dict()
    for section, exempt in same.items():
        for key, value in current[section].items():
            stored = written[section][key]
            if key not in (exempt or ()) and stored != value:
                fits = f"{directory} was written with {stored!r}; {instead}"
                raise ConfigError(f"{section}.{key}", value, fits)
