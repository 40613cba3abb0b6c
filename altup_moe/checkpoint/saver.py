"""Saving from all ranks, in the background: each writes its share of the global tensors, and all agree on the end.

`start` (every rank, between two steps) agrees on who writes what. A thread copies this rank's share, then writes the
files, flushes and hashes them. Weights and optimizer state change only when a step updates them, so the copying goes on
beside the next step's forward and backward, and `settle`, called before the update, waits for the rest of it: no later
step leaks into a checkpoint. (DataStates-LLM, arXiv 2406.10707, copies while the state stands still, too.)
`advance` (every rank, once no thread is at work) brings the hashes together and sets rank 0's thread to make the
checkpoint complete; called again after that, it ends the save. A failure anywhere ends it on all ranks with the same
`SaveError`, and the checkpoint before it stays the latest.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from altup_moe.checkpoint.manifest import Manifest, StoredFile
from altup_moe.checkpoint.slices import full_slice
from altup_moe.checkpoint.staging_buffer import StagingBuffer
from altup_moe.checkpoint.state import LocalTensor
from altup_moe.checkpoint.store import open_partial, prune, publish, step_name
from altup_moe.checkpoint.tensors import DTYPE_NAMES, items
from altup_moe.checkpoint.write import NamedSlice, TensorSpec, WritePlan, plan_files, stored_tensors, write_files
from altup_moe.checkpoint.write_balancing import balance_writes, part_bytes
from altup_moe.config import CheckpointConfig, UserError
from altup_moe.parallel.control_collectives import first_problem, gather_json
from altup_moe.parallel.parameter_mapping import is_buffer
from altup_moe.parallel.topology import Topology

SPARE_BYTES = 1 << 24
"""Free space asked for beyond the tensors: headers and the manifest."""

WRITE_THREADS = 2
"""Files that a rank writes at a time."""


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

    forms: dict[str, TensorSpec]
    files: WritePlan
    mine: WritePlan
    bytes: int


@dataclass
class _Outcome:
    """What a thread leaves: that it needs the live tensors no more, the files that it wrote, and what went wrong."""

    settled: threading.Event = field(default_factory=threading.Event)
    files: dict[str, StoredFile] = field(default_factory=dict)
    problem: str | None = None


@dataclass(frozen=True)
class _Save:
    """A save under way: writing, then ``publishing`` (on rank 0; the others have no thread then).

    ``began``: when `start` was called; ``waited``: seconds of calls so far.
    """

    head: Manifest
    partial: Path
    thread: threading.Thread | None
    outcome: _Outcome
    began: float
    waited: float
    publishing: bool = False


class Saver:
    """The saves of one run on one rank, one at a time."""

    def __init__(self, root: Path, config: CheckpointConfig, topology: Topology) -> None:
        self.root, self.config, self.topology = root, config, topology
        self._division: _Division | None = None
        self._save: _Save | None = None
        self._copies = StagingBuffer()

    @property
    def pending(self) -> bool:
        """Whether a save has been started and has not ended (the same on every rank)."""
        return self._save is not None

    @property
    def busy(self) -> bool:
        """Whether this rank's thread is at work."""
        return self._save is not None and self._save.thread is not None and self._save.thread.is_alive()

    def start(self, head: Manifest, held: Iterable[LocalTensor], streams: Mapping[str, Tensor]) -> None:
        """Begin to save what `held` and the random `streams` are now. Collective.

        What an optimizer updates may be read until `settle` returns; buffers and streams are copied here.

        Args:
            head: everything of the manifest but files and tensors.
        Raises:
            SaveError: no space, or the directory cannot be made.
        """
        assert self._save is None, "conclude the save before the next one"
        began = time.perf_counter()
        tensors = self._mine(held, streams)
        division = self._division = self._division or self._divide(tensors)
        partial = self.root / f"{step_name(head.step)}.partial"
        self._all_succeed(head.step, self._prepare(head, division.bytes) if self.topology.is_first else None)
        wanted = {part: tensors[part].tensor for parts in division.mine.values() for part in parts}
        copies = self._copies if self.config.asynchronous else None
        if copies is not None:
            wanted |= copies.take({part: t for part, t in wanted.items() if _changes_in_forward(part.name)})
        # The thread is handed all it needs: by the time it runs, this save may already be waited for.
        outcome = _Outcome()
        thread = _run(_write, outcome, partial, division, wanted, copies, self.topology.rank)
        if not self.config.asynchronous:
            thread.join()
        self._save = _Save(head, partial, thread, outcome, began, time.perf_counter() - began)

    def settle(self) -> None:
        """Wait until this rank's share is copied: called before anything updates weights or optimizer state."""
        if self._save is None or self._save.publishing:
            return
        began = time.perf_counter()
        self._save.outcome.settled.wait()
        self._save = replace(self._save, waited=self._save.waited + time.perf_counter() - began)

    def advance(self) -> Saved | None:
        """Take the save under way one part further, once no rank is busy; the checkpoint if that was the last.

        Collective.

        Raises:
            SaveError: a rank could not write, or a file on the disk is not what was written.
        """
        save, self._save = self._save, None
        assert save is not None
        assert self._division is not None
        began = time.perf_counter()
        mine = {name: asdict(file) for name, file in save.outcome.files.items()}
        outcomes = gather_json([save.outcome.problem, mine], self.topology.device)
        problem = next((found for found, _ in outcomes if found is not None), None)
        if problem is not None:
            if self.topology.is_first:
                shutil.rmtree(save.partial, ignore_errors=True)
            raise SaveError(_not_saved(save.head.step, problem))
        now = time.perf_counter()
        waited = save.waited + now - began
        if save.publishing:
            return Saved(save.partial.with_suffix(""), self._division.bytes, waited, now - save.began)
        thread, outcome = None, _Outcome()
        if self.topology.is_first:
            written = {name: StoredFile(**entry) for _, files in outcomes for name, entry in files.items()}
            thread = _run(_publish, outcome, save.partial, save.head, written, self._division, self.config)
        self._save = replace(save, thread=thread, outcome=outcome, waited=waited, publishing=True)
        return None

    def conclude(self) -> Saved | None:
        """Wait for the save under way and return its checkpoint; None if there is none. Collective.

        Raises:
            SaveError: as `advance`.
        """
        saved = None
        while self._save is not None:
            began = time.perf_counter()
            if self._save.thread is not None:
                self._save.thread.join()
            self._save = replace(self._save, waited=self._save.waited + time.perf_counter() - began)
            saved = self.advance()
        return saved

    def _mine(self, held: Iterable[LocalTensor], streams: Mapping[str, Tensor]) -> dict[NamedSlice, LocalTensor]:
        tensors = {each.part: each for each in held}
        for name, state in streams.items():
            form = TensorSpec(tuple(state.shape), DTYPE_NAMES[state.dtype])
            part = NamedSlice(f"rng/{self.topology.rank:05d}/{name}", full_slice(form.shape))
            tensors[part] = LocalTensor(part, form, state)
        return tensors

    def _divide(self, tensors: Mapping[NamedSlice, LocalTensor]) -> _Division:
        """Ask every rank what it holds, once: layouts do not change while a run lasts."""
        described = [[part.name, part.box, each.form.shape, each.form.dtype] for part, each in tensors.items()]
        forms: dict[str, TensorSpec] = {}
        holders: dict[NamedSlice, list[int]] = {}
        for rank, parts in enumerate(gather_json(described, self.topology.device)):
            for name, box, shape, dtype in parts:
                forms[name] = TensorSpec(tuple(shape), dtype)
                holders.setdefault(NamedSlice(name, tuple((a, b) for a, b in box)), []).append(rank)
        writers = balance_writes(holders, forms)
        files: WritePlan = {}
        for rank in range(self.topology.world_size):
            written = plan_files(rank, (part for part, writer in writers.items() if writer == rank), forms)
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

    def _all_succeed(self, step: int, problem: str | None) -> None:
        problem = first_problem(problem, self.topology.device)
        if problem is not None:
            raise SaveError(_not_saved(step, problem))


def _not_saved(step: int, problem: str) -> str:
    return f"checkpoint of step {step} was not saved: {problem}"


def _run(work: Callable[..., None], *args: object) -> threading.Thread:
    thread = threading.Thread(target=work, args=args, name="checkpoint", daemon=True)
    thread.start()
    return thread


def _changes_in_forward(name: str) -> bool:
    """Whether a stored tensor may change before the next update: routers' biases and random streams do."""
    return name.startswith("rng/") or is_buffer(name)


def _write(
    outcome: _Outcome,
    partial: Path,
    division: _Division,
    tensors: dict[NamedSlice, Tensor],
    copies: StagingBuffer | None,
    rank: int,
) -> None:
    """In a thread: copy what was not copied yet, and write this rank's files; what happens is left in `outcome`."""
    with _noted(outcome, f"rank {rank}: {partial}"):
        try:
            if copies is not None:
                tensors |= copies.take({p: tensor for p, tensor in tensors.items() if not _changes_in_forward(p.name)})
        finally:
            outcome.settled.set()
        outcome.files = write_files(
            partial,
            division.mine,
            division.forms,
            lambda n, box: items(tensors[NamedSlice(n, box)].to("cpu")),
            WRITE_THREADS,
        )


def _publish(
    outcome: _Outcome,
    partial: Path,
    head: Manifest,
    files: Mapping[str, StoredFile],
    division: _Division,
    config: CheckpointConfig,
) -> None:
    """In rank 0's thread: make a written checkpoint complete, and remove old ones."""
    with _noted(outcome, f"{partial}"):
        # In the order of the plan: the same checkpoint has the same manifest.
        ordered = {name: files[name] for name in division.files}
        publish(partial, replace(head, files=ordered, tensors=stored_tensors(division.files, division.forms)))
        prune(partial.parent, config.keep, config.keep_every)


@contextmanager
def _noted(outcome: _Outcome, where: str) -> Iterator[None]:
    """Leave what goes wrong in the block as the outcome's problem: nobody catches what a thread raises."""
    try:
        yield
    except OSError as error:
        outcome.problem = f"{where}: {error.strerror}"
    except UserError as error:
        outcome.problem = f"{error}"
    except BaseException as error:
        outcome.problem = f"{where}: {type(error).__name__}: {error}"


def library_versions() -> dict[str, str]:
    """Versions worth knowing of a checkpoint's writer."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("altup-moe", "torch", "megatron-core", "safetensors"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found | {"torch.cuda": torch.version.cuda or "none"}
