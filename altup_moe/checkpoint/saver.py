"""Saves checkpoints from all ranks in the background: each rank writes its share of the global tensors.

- `start` (every rank, between two steps) agrees on who writes what and starts a thread on each rank. The thread copies
  the rank's share of the tensors, then writes, flushes and hashes its files.
- `settle` (before the optimizer's update) waits for the copy. Only an update changes weights and optimizer state, so
  the copy runs beside the next step's forward and backward passes, as in DataStates-LLM (arXiv 2406.10707).
- `advance` (every rank, once no thread is busy) gathers the hashes and starts rank 0's thread that publishes the
  checkpoint. The next call ends the save.

If one rank fails, the save ends on all ranks with the same `SaveError`; the checkpoint before it stays the latest.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from torch import Tensor

from altup_moe.checkpoint.manifest import Manifest, StoredFile
from altup_moe.checkpoint.save_threads import (
    ThreadResult,
    changes_in_forward,
    copy_and_write,
    publish_and_prune,
    start_thread,
)
from altup_moe.checkpoint.slices import full_slice
from altup_moe.checkpoint.staging_buffer import StagingBuffer
from altup_moe.checkpoint.state import LocalTensor
from altup_moe.checkpoint.store import SPARE_BYTES, open_partial, step_name
from altup_moe.checkpoint.tensors import DTYPE_NAMES
from altup_moe.checkpoint.write import NamedSlice, TensorSpec
from altup_moe.checkpoint.write_balancing import WriteAssignment, assign_writes
from altup_moe.config import CheckpointConfig, UserError
from altup_moe.parallel.control_collectives import first_problem, gather_json
from altup_moe.parallel.topology import Topology


class SaveError(UserError):
    """A checkpoint was not saved; every rank raises it with the same message."""


@dataclass(frozen=True)
class Saved:
    """A complete checkpoint.

    ``bytes``: of the tensors of all ranks. ``waited``: seconds for which the save blocked training on this rank.
    ``seconds``: from `start` to the end.
    """

    directory: Path
    bytes: int
    waited: float
    seconds: float


@dataclass(frozen=True)
class _RunningSave:
    """A save that has not ended. All ranks write first; then rank 0 alone has a thread, which publishes.

    ``began``: time of the call of `start`; ``waited``: seconds spent in calls so far.
    """

    head: Manifest
    partial: Path
    thread: threading.Thread | None
    result: ThreadResult
    began: float
    waited: float
    publishing: bool = False


class Saver:
    """Saves checkpoints of one run on one rank, one at a time."""

    def __init__(self, root: Path, config: CheckpointConfig, topology: Topology) -> None:
        self.root, self.config, self.topology = root, config, topology
        self._assignment: WriteAssignment | None = None
        self._save: _RunningSave | None = None
        self._staging = StagingBuffer()

    @property
    def pending(self) -> bool:
        """Whether a save has been started and has not ended (the same on every rank)."""
        return self._save is not None

    @property
    def busy(self) -> bool:
        """Whether a thread of this rank is running."""
        return self._save is not None and self._save.thread is not None and self._save.thread.is_alive()

    def start(self, head: Manifest, held: Iterable[LocalTensor], streams: Mapping[str, Tensor]) -> None:
        """Start to save the present values of `held` and of the random `streams`. Collective.

        The thread may read weights and optimizer state until `settle` returns. Buffers and streams are copied here.

        Args:
            head: everything of the manifest but files and tensors.
            held: this rank's slices of weights, buffers and optimizer state.
            streams: states of this rank's random generators, by name.
        Raises:
            SaveError: the disk is too full, or the directory cannot be made.
        """
        assert self._save is None, "conclude the save before the next one"
        began = time.perf_counter()
        tensors = self._rank_tensors(held, streams)
        assignment = self._assignment = self._assignment or self._assign(tensors)
        partial = self.root / f"{step_name(head.step)}.partial"
        self._all_succeed(head.step, self._prepare(head, assignment) if self._makes_directory else None)
        wanted = {part: tensors[part].tensor for parts in assignment.mine.values() for part in parts}
        staging = self._staging if self.config.asynchronous else None
        if staging is not None:
            wanted |= staging.stage({part: t for part, t in wanted.items() if changes_in_forward(part.name)})
        # The thread gets its own references: it may still be starting when this save is waited for.
        result = ThreadResult()
        thread = start_thread(self._write, result, partial, assignment, wanted, staging)
        if not self.config.asynchronous:
            thread.join()
        self._save = _RunningSave(head, partial, thread, result, began, time.perf_counter() - began)

    def settle(self) -> None:
        """Wait until this rank's tensors are copied. Call it before weights or optimizer state are updated."""
        if self._save is None or self._save.publishing:
            return
        began = time.perf_counter()
        self._save.result.copied.wait()
        self._save = replace(self._save, waited=self._save.waited + time.perf_counter() - began)

    def advance(self) -> Saved | None:
        """Take the running save to its next stage, once no rank is busy. Collective.

        Returns:
            The checkpoint if this call ended the save, else None.
        Raises:
            SaveError: a rank could not write, or a file on the disk is not what was written.
        """
        save, self._save = self._save, None
        assert save is not None
        assert self._assignment is not None
        began = time.perf_counter()
        mine = {name: asdict(file) for name, file in save.result.files.items()}
        results = gather_json([save.result.problem, mine], self.topology.device)
        problem = next((found for found, _ in results if found is not None), None)
        if problem is not None:
            if self.topology.is_first:
                shutil.rmtree(save.partial, ignore_errors=True)
            raise SaveError(not_saved(save.head.step, problem))
        now = time.perf_counter()
        waited = save.waited + now - began
        if save.publishing:
            return Saved(save.partial.with_suffix(""), self._assignment.bytes, waited, now - save.began)
        thread, result = None, ThreadResult()
        if self.topology.is_first:
            written = {name: StoredFile(**entry) for _, files in results for name, entry in files.items()}
            thread = start_thread(
                publish_and_prune, result, save.partial, save.head, written, self._assignment, self.config
            )
        self._save = replace(save, thread=thread, result=result, waited=waited, publishing=True)
        return None

    def conclude(self) -> Saved | None:
        """Wait for the running save and return its checkpoint; None if there is none. Collective.

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

    def abandon(self) -> None:
        """Wait for this rank's thread, and leave a save that has not ended as it is. Not collective: for a failure."""
        save, self._save = self._save, None
        if save is not None and save.thread is not None:
            save.thread.join()

    def _rank_tensors(
        self, held: Iterable[LocalTensor], streams: Mapping[str, Tensor]
    ) -> dict[NamedSlice, LocalTensor]:
        """What this rank could write, by slice."""
        tensors = {each.part: each for each in held}
        for name, state in streams.items():
            spec = TensorSpec(tuple(state.shape), DTYPE_NAMES[state.dtype])
            part = NamedSlice(f"rng/{self.topology.rank:05d}/{name}", full_slice(spec.shape))
            tensors[part] = LocalTensor(part, spec, state)
        return tensors

    def _assign(self, tensors: Mapping[NamedSlice, LocalTensor]) -> WriteAssignment:
        """Gather what every rank holds, once a run: layouts do not change while a run lasts."""
        held = [[part.name, part.tensor_slice, each.spec.shape, each.spec.dtype] for part, each in tensors.items()]
        return assign_writes(gather_json(held, self.topology.device), self.topology.rank)

    @property
    def _makes_directory(self) -> bool:
        """Whether this rank makes the directory that files are written to."""
        return self.topology.is_first

    def _write(
        self,
        result: ThreadResult,
        partial: Path,
        assignment: WriteAssignment,
        tensors: dict[NamedSlice, Tensor],
        staging: StagingBuffer | None,
    ) -> None:
        """The work of a rank's thread."""
        copy_and_write(result, partial, assignment, tensors, staging, self.topology.rank)

    def _prepare(self, head: Manifest, assignment: WriteAssignment) -> str | None:
        """On one rank: check the free space and make the directory. Returns the problem, if there is one."""
        return make_partial(self.root, head.step, assignment.bytes)

    def _all_succeed(self, step: int, problem: str | None) -> None:
        problem = first_problem(problem, self.topology.device)
        if problem is not None:
            raise SaveError(not_saved(step, problem))


def make_partial(root: Path, step: int, needed: int) -> str | None:
    """Check the free space and make the directory of a checkpoint's files. Returns the problem, if there is one.

    Args:
        needed: bytes, without `SPARE_BYTES`.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        free, needed = shutil.disk_usage(root).free, needed + SPARE_BYTES
        if free < needed:
            return f"{root} has {free / 1e6:,.0f} MB free; {needed / 1e6:,.0f} MB are needed"
        open_partial(root, step)
    except OSError as error:
        return f"{root}: {error.strerror}"
    return None


def not_saved(step: int, problem: str) -> str:
    """What a `SaveError` says."""
    return f"checkpoint of step {step} was not saved: {problem}"
