"""Which checkpoint a run goes on from: its structure is checked on every rank before any process group exists, its
bytes by all ranks together once they can talk."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from altup_moe.checkpoint.manifest import Manifest
from altup_moe.checkpoint.source import Checkpoint
from altup_moe.checkpoint.store import complete_checkpoints, find_checkpoint, latest_checkpoint, set_aside
from altup_moe.config import ConfigError, DataError, RunConfig
from altup_moe.config.load import from_dict
from altup_moe.config.resume_keys import Changes, changes_record, differing
from altup_moe.config.run_directory import checkpoints_dir

if TYPE_CHECKING:
    from altup_moe.parallel.topology import Topology

STREAMS = ("tensor", "pipeline", "virtual_pipeline", "expert", "expert_tensor", "context")
"""Keys of `parallel` that say which rank draws what (dropout)."""


@dataclass(frozen=True)
class ResumePoint:
    """The checkpoint a run starts from.

    ``weights_only``: a new run that takes over its weights. ``changes``: keys that the run changes there.
    ``in_memory``: it lies in the memory of the nodes (checkpoint.memory_interval), not on the disk. ``branched``: it is
    another run's (checkpoint.branch_from).
    """

    directory: Path
    manifest: Manifest
    weights_only: bool = False
    changes: Changes = field(default_factory=dict)
    in_memory: bool = False
    branched: bool = False

    @property
    def history(self) -> list[dict[str, Any]]:
        """What later checkpoints' manifests say of changed keys."""
        own = [changes_record(self.manifest.step, self.changes)] if self.changes else []
        return [*self.manifest.changes, *own]

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
    # Imports torch; `find_resume_point`, which a dry run calls, does not need it.
    from altup_moe.parallel.control_collectives import first_problem

    others = point.weights_only or point.branched
    points: Iterator[ResumePoint] = iter([point]) if others else _usable(config)
    for candidate in points:
        problem = first_problem(_damage(candidate.directory, topology), topology.device)
        if problem is None:
            if topology.is_first and config.checkpoint.fallback and not others:
                root = checkpoints_dir(config.log.run_dir)
                damaged = [path for path in _candidates(config, root) if path.name > candidate.directory.name]
                set_aside(root, damaged, candidate.directory)
            first_problem(None, topology.device)
            return candidate
        if others or not config.checkpoint.fallback:
            file, what = problem
            advice = "" if others else _advice(candidate.directory.parent, candidate.directory, False)
            raise DataError(file, what + advice)
        if topology.is_first:
            print(f"checkpoint.fallback: {': '.join(problem)}", flush=True)
    raise DataError(checkpoints_dir(config.log.run_dir), "holds no checkpoint that is whole")


def point_at(config: RunConfig, path: str | Path, weights_only: bool) -> ResumePoint:
    """A checkpoint, or the latest of a run directory, as a point that a run may go on from. Not yet its bytes.

    Raises:
        UserError: there is none. ConfigError: it is of another model, data or schedule. DataError: it is damaged.
    """
    directory = find_checkpoint(Path(path))
    if weights_only:
        return _weights_of(config, directory)
    with Checkpoint(directory) as checkpoint:
        manifest = checkpoint.manifest
    return ResumePoint(directory, manifest, changes=changes_of(config, manifest, directory))


def check_bytes(point: ResumePoint, topology: Topology) -> None:
    """Raise DataError on every rank unless the point's bytes are those that were saved. Ranks share the hashing."""
    from altup_moe.parallel.control_collectives import first_problem

    if problem := first_problem(_damage(point.directory, topology), topology.device):
        raise DataError(problem[0], problem[1])


def check_tokens(point: ResumePoint | None, fingerprint: str, tokenizer_sha256: str = "") -> None:
    """Raise ConfigError if the run goes on with other tokens, or another tokenizer, than those it was trained with.

    Args:
        fingerprint: of the samples (`train.samples.Samples`). tokenizer_sha256: identity of their tokenizer;
            empty where it is not known.
    """
    if point is None or point.weights_only:
        return
    # A converted model was not trained here: no tokens to compare.
    if point.manifest.data_fingerprint not in ("", fingerprint):
        fits = f"{point.directory} was trained on other tokens; use the same data, or another log.run_dir"
        raise ConfigError("data.corpus", fingerprint[:12], fits)
    if tokenizer_sha256 and point.manifest.tokenizer_sha256 not in ("", tokenizer_sha256):
        fits = f"{point.directory} was trained with {point.manifest.tokenizer_sha256[:12]}; use the same tokenizer"
        raise ConfigError("data.tokenizer", tokenizer_sha256[:12], fits)


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
        yield ResumePoint(directory, manifest, changes=changes_of(config, manifest, directory))
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
    if (branch := config.checkpoint.branch_from) is not None:
        return replace(point_at(config, branch, weights_only=False), branched=True)
    path = config.checkpoint.initial_load_path
    if path is None:
        return None
    return _weights_of(config, find_checkpoint(Path(path)))


def _weights_of(config: RunConfig, directory: Path) -> ResumePoint:
    with Checkpoint(directory) as checkpoint:
        other = differing(checkpoint.config, config, ("model",))
        _refuse(other, directory, "use that, or another checkpoint.initial_load_path")
        rate = checkpoint.config.moe.expert_bias_update_rate
        if rate and not config.moe.expert_bias_update_rate:
            fits = f"the routing of {directory} depends on its biases; {rate} would fit, or another that is not 0"
            raise ConfigError("moe.expert_bias_update_rate", 0.0, fits)
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


def changes_of(config: RunConfig, manifest: Manifest, directory: Path) -> Changes:
    """Keys that the run changes when it goes on from a checkpoint. Raises ConfigError for one that it cannot change."""
    # What was written before a field existed has its default.
    written = from_dict(manifest.config)
    refused, changes = (differing(written, config, kinds) for kinds in (("model", "run"), ("recorded",)))
    if not manifest.has_optimizer and (other := refused.pop("optim.optimizer", None)):
        # No state of the other optimizer is there.
        changes["optim.optimizer"] = other
    _refuse(refused, directory, "use that, or another log.run_dir")
    if config.train.steps < manifest.step:
        fits = f"{directory} has done {manifest.step} steps; at least {manifest.step} would fit, or another log.run_dir"
        raise ConfigError("train.steps", config.train.steps, fits)
    if "checkpoint.initial_load_path" in changes:
        before, path = changes["checkpoint.initial_load_path"]
        if path is None:  # the run has started, so it is of no use any more
            del changes["checkpoint.initial_load_path"]
        elif before is None:
            fits = f"the run goes on from its own checkpoint {directory}; null would fit, or another log.run_dir"
            raise ConfigError("checkpoint.initial_load_path", path, fits)
    return changes


def _refuse(other: Changes, directory: Path, instead: str) -> None:
    for key, (before, now) in other.items():
        raise ConfigError(key, now, f"{directory} was written with {before!r}; {instead}")
