"""Saving from all ranks, in the background: each writes its share of the global tensors, and all agree on the end.

A save has three parts. `start` (every rank, between two steps) agrees on who writes what and takes a copy of this
rank's share, so that no later step leaks into it. A thread writes the files, flushes and hashes them. `conclude`
(every rank, once no thread is writing) brings the hashes together; rank 0 adds the manifest and moves `latest`.
A failure anywhere ends the save on all ranks with the same `SaveError`, and the checkpoint before it stays the latest.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from altup_moe.checkpoint.boxes import whole
from altup_moe.checkpoint.manifest import Manifest, StoredFile
from altup_moe.checkpoint.share import part_bytes, share
from altup_moe.checkpoint.state import Held
from altup_moe.checkpoint.store import open_partial, prune, publish, step_name
from altup_moe.checkpoint.tensors import STORED, items
from altup_moe.checkpoint.write import Form, Part, Plan, cut_files, stored_tensors, write_file
from altup_moe.config import CheckpointConfig, UserError
from altup_moe.parallel.agree import first_problem, gather
from altup_moe.parallel.topology import Topology

SPARE_BYTES = 1 << 24
"""Free space asked for beyond the tensors: headers and the manifest."""


class SaveError(UserError):
    """A checkpoint was not saved; every rank has the same message."""


@dataclass(frozen=True)
class Saved:
    """A complete checkpoint. ``bytes``: of all ranks' tensors. ``waited``: seconds in which this rank did not train."""

    directory: Path
    bytes: int
    waited: float
    seconds: float


@dataclass(frozen=True)
class _Division:
    """Who writes what, the same on every rank: every file of the checkpoint, and those of this rank."""

    forms: dict[str, Form]
    files: Plan
    mine: Plan
    bytes: int


@dataclass
class _Outcome:
    """What a rank's thread leaves: the files that it wrote, and what went wrong."""

    files: dict[str, StoredFile] = field(default_factory=dict)
    problem: str | None = None


@dataclass(frozen=True)
class _Writing:
    """A save under way. ``began``: when `start` was called; ``waited``: seconds that it took."""

    head: Manifest
    partial: Path
    thread: threading.Thread
    outcome: _Outcome
    began: float
    waited: float


class Saver:
    """The saves of one run on one rank, one at a time."""

    def __init__(self, root: Path, config: CheckpointConfig, topology: Topology) -> None:
        self.root, self.config, self.topology = root, config, topology
        self._division: _Division | None = None
        self._writing: _Writing | None = None

    @property
    def pending(self) -> bool:
        """Whether a save has been started and not concluded (the same on every rank)."""
        return self._writing is not None

    @property
    def busy(self) -> bool:
        """Whether this rank is still writing."""
        return self._writing is not None and self._writing.thread.is_alive()

    def start(self, head: Manifest, held: Iterable[Held], streams: Mapping[str, Tensor]) -> None:
        """Begin to save what `held` and the random `streams` are now. Collective.

        Args:
            head: everything of the manifest but files and tensors.
        Raises:
            SaveError: no space, or the directory cannot be made.
        """
        assert self._writing is None, "conclude the save before the next one"
        began = time.perf_counter()
        tensors = self._mine(held, streams)
        division = self._division = self._division or self._divide(tensors)
        partial = self.root / f"{step_name(head.step)}.partial"
        self._all_succeed(head.step, self._prepare(head, division.bytes) if self.topology.is_first else None)
        wanted = {part: tensors[part].tensor for parts in division.mine.values() for part in parts}
        if self.config.asynchronous:
            wanted = {part: tensor.to("cpu", copy=True) for part, tensor in wanted.items()}
        # The thread is handed all it needs: by the time it runs, this save may already be waited for.
        outcome = _Outcome()
        work = (outcome, partial, division, wanted, self.topology.rank)
        thread = threading.Thread(target=_write, args=work, name="checkpoint", daemon=True)
        thread.start()
        if not self.config.asynchronous:
            thread.join()
        self._writing = _Writing(head, partial, thread, outcome, began, time.perf_counter() - began)

    def conclude(self) -> Saved | None:
        """Wait until every rank has written, and make the checkpoint complete; None if there is none. Collective.

        Raises:
            SaveError: a rank could not write, or a file on the disk is not what was written.
        """
        writing, self._writing = self._writing, None
        if writing is None:
            return None
        assert self._division is not None
        began = time.perf_counter()
        writing.thread.join()
        mine = {name: asdict(file) for name, file in writing.outcome.files.items()}
        outcomes = gather([writing.outcome.problem, mine], self.topology.device)
        problem = next((found for found, _ in outcomes if found is not None), None)
        final = writing.partial.with_suffix("")
        if self.topology.is_first:
            if problem is None:
                written = {name: StoredFile(**entry) for _, files in outcomes for name, entry in files.items()}
                problem = self._publish(writing, written)
            if problem is not None:
                shutil.rmtree(writing.partial, ignore_errors=True)
        self._all_succeed(writing.head.step, problem)
        now = time.perf_counter()
        return Saved(final, self._division.bytes, writing.waited + now - began, now - writing.began)

    def _mine(self, held: Iterable[Held], streams: Mapping[str, Tensor]) -> dict[Part, Held]:
        tensors = {each.part: each for each in held}
        for name, state in streams.items():
            form = Form(tuple(state.shape), STORED[state.dtype])
            part = Part(f"rng/{self.topology.rank:05d}/{name}", whole(form.shape))
            tensors[part] = Held(part, form, state)
        return tensors

    def _divide(self, tensors: Mapping[Part, Held]) -> _Division:
        """Ask every rank what it holds, once: layouts do not change while a run lasts."""
        described = [[part.name, part.box, each.form.shape, each.form.dtype] for part, each in tensors.items()]
        forms: dict[str, Form] = {}
        holders: dict[Part, list[int]] = {}
        for rank, parts in enumerate(gather(described, self.topology.device)):
            for name, box, shape, dtype in parts:
                forms[name] = Form(tuple(shape), dtype)
                holders.setdefault(Part(name, tuple((a, b) for a, b in box)), []).append(rank)
        writers = share(holders, forms)
        files: Plan = {}
        for rank in range(self.topology.world_size):
            written = cut_files(rank, (part for part, writer in writers.items() if writer == rank), forms)
            files |= written
            if rank == self.topology.rank:
                mine = written
        return _Division(forms, files, mine, sum(part_bytes(part, forms) for part in writers))

    def _prepare(self, head: Manifest, needed: int) -> str | None:
        """On rank 0, before anything is written. Returns what is wrong."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.root).free
            if free < needed + SPARE_BYTES:
                return f"{self.root} has {free / 1e6:,.0f} MB free; {(needed + SPARE_BYTES) / 1e6:,.0f} MB are needed"
            open_partial(self.root, head.step)
        except OSError as error:
            return f"{self.root}: {error.strerror}"
        return None

    def _publish(self, writing: _Writing, files: dict[str, StoredFile]) -> str | None:
        """On rank 0. Returns what went wrong."""
        assert self._division is not None
        tensors = stored_tensors(self._division.files, self._division.forms)
        # In the order of the plan: the same checkpoint has the same manifest.
        ordered = {name: files[name] for name in self._division.files}
        try:
            publish(writing.partial, replace(writing.head, files=ordered, tensors=tensors))
            prune(self.root, self.config.keep, self.config.keep_every)
        except (OSError, UserError) as error:
            return f"{error}"
        return None

    def _all_succeed(self, step: int, problem: str | None) -> None:
        problem = first_problem(problem, self.topology.device)
        if problem is not None:
            raise SaveError(f"checkpoint of step {step} was not saved: {problem}")


def _write(outcome: _Outcome, partial: Path, division: _Division, tensors: Mapping[Part, Tensor], rank: int) -> None:
    """In the thread: write this rank's files; whatever happens is left for `conclude`."""
    path = partial
    try:
        for name, parts in division.mine.items():
            path = partial / name
            outcome.files[name] = write_file(
                path, parts, division.forms, lambda n, box: items(tensors[Part(n, box)].to("cpu"))
            )
    except OSError as error:
        outcome.problem = f"rank {rank}: {path}: {error.strerror}"
    except BaseException as error:
        outcome.problem = f"rank {rank}: {path}: {type(error).__name__}: {error}"


def libraries() -> dict[str, str]:
    """Versions worth knowing of a checkpoint's writer."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("altup-moe", "torch", "megatron-core", "safetensors"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found | {"torch.cuda": torch.version.cuda or "none"}
