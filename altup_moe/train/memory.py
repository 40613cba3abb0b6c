"""`checkpoint.memory_interval` of a run: opens the memory of the nodes, goes on from it, saves into it step by step."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from altup_moe.checkpoint.memory import MemorySaver
from altup_moe.checkpoint.memory_directory import (
    found_copies,
    memory_base,
    memory_directory,
    node_identity,
    open_directory,
    remove_forgotten,
    remove_steps,
    run_identity,
    write_note,
)
from altup_moe.checkpoint.memory_exchange import exchange
from altup_moe.checkpoint.memory_nodes import MemoryCopy, Nodes, fetches, newest_whole
from altup_moe.checkpoint.saver import SaveError
from altup_moe.checkpoint.source import Checkpoint
from altup_moe.checkpoint.store import complete_checkpoints, step_name, step_of
from altup_moe.config import ConfigError, DataError, RunConfig, UserError
from altup_moe.parallel.control_collectives import first_problem, gather_json
from altup_moe.parallel.topology import Topology
from altup_moe.train.resume import ResumePoint, changes_of

KEY = "checkpoint.memory_interval"


@dataclass
class RunMemory:
    """The memory of the nodes for one run, on one rank. Mutable: it remembers what it has warned of.

    ``directory``: of this rank's node. ``lock``: held by the node's leader, else None.
    """

    config: RunConfig
    topology: Topology
    nodes: Nodes
    directory: Path
    group: Any
    lock: int | None
    saver: MemorySaver
    identity: str | None
    failing: bool = False

    @property
    def leads(self) -> bool:
        """Whether this rank is its node's leader."""
        return self.nodes.leader(self.topology.rank) == self.topology.rank

    def newer_point(self, disk_step: int) -> ResumePoint | None:
        """The newest checkpoint in memory, whole and verified on every node, unless the disk's step is newer.

        What nodes lack is fetched from those that hold it. A damaged copy is refused in one line. Collective.

        Args:
            disk_step: step of the newest checkpoint on disk; -1 if there is none.
        Raises:
            ConfigError: it is of another model, data or schedule, or there is one and checkpoint.resume is false.
        """
        run_dir, device = self.config.log.run_dir, self.topology.device
        own = found_copies(self.directory, run_dir, self.identity) if self.leads else []
        told = gather_json([[c.step, c.digest, c.files, c.all_files] for c in own], device)
        of_rank = [[MemoryCopy(s, d, tuple(f), tuple(a)) for s, d, f, a in copies] for copies in told]
        copies = [of_rank[ranks[0]] for ranks in self.nodes.ranks]
        chosen = newest_whole(copies)
        if chosen is None or chosen[0] < disk_step:
            return None
        if not self.config.checkpoint.resume:
            held = f"memory holds step {chosen[0]} of it ({self.directory})"
            fits = f"{held}; name another directory, or set checkpoint.resume true"
            raise ConfigError("log.run_dir", run_dir, fits)
        path = self.directory / step_name(chosen[0])
        problem = self._fetched(path, copies, chosen)
        if problem is None:
            problem = first_problem(self._damage(path), device)
        if problem is not None:
            if self.topology.is_first:
                print(f"{KEY}: the copy of step {chosen[0]} is not used: {problem}", flush=True)
            return None
        with Checkpoint(path) as checkpoint:
            manifest = checkpoint.manifest
        return ResumePoint(path, manifest, changes=changes_of(self.config, manifest, path), in_memory=True)

    def _fetched(self, path: Path, copies: list[list[MemoryCopy]], chosen: tuple[int, str]) -> str | None:
        """Have every node hold the whole checkpoint. Returns the first problem. Collective."""
        problem = None
        try:
            if self.leads:
                path.mkdir(mode=0o700, exist_ok=True)
            exchange(fetches(self.nodes, copies, chosen), path, self.topology.rank, self.group)
        except OSError as error:
            problem = f"rank {self.topology.rank}: {path}: {error.strerror}"
        return first_problem(problem, self.topology.device)

    def _damage(self, path: Path) -> str | None:
        """What is wrong with this rank's share of its node's files."""
        ranks = self.nodes.ranks[self.nodes.node(self.topology.rank)]
        try:
            with Checkpoint(path) as checkpoint:
                names = sorted(checkpoint.manifest.files)[ranks.index(self.topology.rank) :: len(ranks)]
                checkpoint.verify(names)
        except DataError as error:
            return str(error)
        return None

    def begin(self, step: int) -> None:
        """The run starts at `step`: what memory holds of others, or of later steps, goes. Collective."""
        self._forget_after(step)
        identity = gather_json(run_identity(self.config.log.run_dir), self.topology.device)[0]
        if self.leads and identity != self.identity:
            remove_steps(self.directory)
        self.identity = identity
        self._note()

    def go_back(self, step: int) -> None:
        """The run has gone back to `step`. Collective."""
        with suppress(SaveError):
            self.saver.finish()
        self._forget_after(step)

    def _forget_after(self, step: int) -> None:
        for path in complete_checkpoints(self.directory) if self.leads else ():
            if step_of(path) > step:
                shutil.rmtree(path, ignore_errors=True)

    def _note(self) -> None:
        """Have every node say which run its memory is of. Collective."""
        problem = None
        if self.leads:
            try:
                write_note(self.directory, self.config.log.run_dir, self.identity or "")
            except OSError as error:
                problem = f"{self.directory}: {error.strerror}"
        self._say(first_problem(problem, self.topology.device))

    def after_step(self, step: int, save: Any, leaving: bool) -> None:
        """Complete the save that the step before has started; start one if it is due. Collective.

        Args:
            save: starts to save the run by the given `Saver`.
            leaving: the run ends with a checkpoint on disk.
        """
        interval = self.config.checkpoint.memory_interval
        assert interval is not None
        try:
            if self.saver.finish() is not None and self.failing:
                self.failing = False
                self._note()
                if self.topology.is_first:
                    print(f"{KEY}: saved in memory again", flush=True)
            if not leaving and step % interval == 0:
                save(self.saver)
        except SaveError as error:
            self._say(f"{error}; training goes on")

    def end(self) -> None:
        """The run has ended well, and its last checkpoint is on disk: nothing stays in memory. Collective."""
        first_problem(None, self.topology.device)
        if self.lock is not None:
            shutil.rmtree(self.directory, ignore_errors=True)
        self.close()

    def close(self) -> None:
        """Leave what is in memory to the next start. Not collective."""
        self.saver.abandon()
        if self.lock is not None:
            os.close(self.lock)
            self.lock = None

    def _say(self, problem: str | None) -> None:
        """Print a problem on rank 0, the first of several in a row."""
        if problem is not None and not self.failing:
            self.failing = True
            if self.topology.is_first:
                print(f"{KEY}: {problem}", flush=True)


@contextmanager
def memory_of(config: RunConfig, topology: Topology) -> Iterator[RunMemory | None]:
    """`open_memory` around a block. After a failure what is in memory stays there."""
    memory = open_memory(config, topology)
    try:
        yield memory
    finally:
        if memory is not None:
            memory.close()


def open_memory(config: RunConfig, topology: Topology) -> RunMemory | None:
    """The memory of the nodes; None where the key is null, or memory cannot be used (said in one line). Collective."""
    if config.checkpoint.memory_interval is None:
        return None
    base, device = memory_base(os.environ), topology.device
    where, problem = "", None
    try:
        where = node_identity(base)
    except OSError as error:
        problem = f"{base}: {error.strerror}"
    told = gather_json([where, problem, run_identity(config.log.run_dir)], device)
    nodes = Nodes.of([identity for identity, _, _ in told])
    problem = next((found for _, found, _ in told if found is not None), None)
    directory, lock = memory_directory(base, config.log.run_dir), None
    if problem is None:
        if nodes.leader(topology.rank) == topology.rank:
            try:
                remove_forgotten(base, directory)
                lock = open_directory(directory)
            except OSError as error:
                problem = f"{directory}: {error.strerror}"
            except UserError as error:
                problem = str(error)
        problem = first_problem(problem, device)
    if problem is not None:
        if lock is not None:
            os.close(lock)
        if topology.is_first:
            print(f"{KEY}: off, {problem}", flush=True)
        return None
    group = dist.new_group(backend="gloo") if len(nodes.ranks) > 1 else None
    saver = MemorySaver(directory, config.checkpoint, topology, nodes, group)
    if topology.is_first:
        copies = f"and of a neighbour ({len(nodes.ranks)} nodes)" if group else "(one node: no copy elsewhere)"
        print(f"{KEY}: a checkpoint every {config.checkpoint.memory_interval} step(s) in memory {copies}", flush=True)
    return RunMemory(config, topology, nodes, directory, group, lock, saver, told[0][2])
