"""Saves checkpoints into the memory of each node and of the next one, from where a restart reads them without a disk.

It is a `Saver` whose ranks write into their own node's directory (`memory_directory`). The thread that writes a rank's
files then sends them to a rank of the next node, through a group of its own. Each node's leader completes what its
node has. At every moment a whole checkpoint is there: the one before goes once the next is complete on all nodes.

Source of the scheme: checkpoints in the memory of peers, as in Gemini (SOSP 2023); here by node, and with the hashes
of files.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from altup_moe.checkpoint.manifest import StoredFile, write_manifest
from altup_moe.checkpoint.memory_directory import remove_steps
from altup_moe.checkpoint.memory_exchange import exchange
from altup_moe.checkpoint.memory_nodes import Nodes, copy_transfers
from altup_moe.checkpoint.save_threads import ThreadResult, reported
from altup_moe.checkpoint.saver import Saved, SaveError, Saver, make_partial, not_saved
from altup_moe.checkpoint.staging_buffer import StagingBuffer
from altup_moe.checkpoint.store import complete_checkpoints, step_of
from altup_moe.checkpoint.write import NamedSlice, WritePlan, stored_tensors
from altup_moe.checkpoint.write_balancing import WriteAssignment, part_bytes
from altup_moe.config import CheckpointConfig
from altup_moe.parallel.control_collectives import first_problem, gather_json
from altup_moe.parallel.topology import Topology


class MemorySaver(Saver):
    """Saves checkpoints of one run on one rank into `root`, the directory of this node's memory.

    Args:
        nodes: which ranks share a node.
        group: a gloo group of all ranks for the copies alone; None with one node.
    """

    def __init__(self, root: Path, config: CheckpointConfig, topology: Topology, nodes: Nodes, group: Any) -> None:
        super().__init__(root, config, topology)
        self._nodes, self._group = nodes, group

    def finish(self) -> Saved | None:
        """Wait for the running save and complete it; None if there is none. Collective.

        Raises:
            SaveError: a rank could not write or send, on every rank. The checkpoint before is still there.
        """
        save, self._save = self._save, None
        if save is None:
            return None
        began = time.perf_counter()
        assert save.thread is not None
        assert self._assignment is not None
        save.thread.join()
        mine = {name: asdict(file) for name, file in save.result.files.items()}
        results = gather_json([save.result.problem, mine], self.topology.device)
        problem = next((found for found, _ in results if found is not None), None)
        if self._makes_directory:
            if problem is None:
                written = {name: StoredFile(**entry) for _, files in results for name, entry in files.items()}
                problem = self._complete(save.partial, save.head, written, self._assignment)
            if problem is not None:
                shutil.rmtree(save.partial, ignore_errors=True)
        # Also the barrier after which the checkpoint before may go.
        problem = first_problem(problem, self.topology.device)
        if problem is not None:
            raise SaveError(not_saved(save.head.step, problem))
        now = time.perf_counter()
        return Saved(save.partial.with_suffix(""), self._assignment.bytes, save.waited + now - began, now - save.began)

    @property
    def _makes_directory(self) -> bool:
        return self._nodes.leader(self.topology.rank) == self.topology.rank

    def _prepare(self, head: Any, assignment: WriteAssignment) -> str | None:
        """On a node's leader: leave the newest whole checkpoint before this step, check the space."""
        older = [path for path in complete_checkpoints(self.root) if step_of(path) < head.step]
        remove_steps(self.root, keep=older[-1] if older else None)
        return make_partial(self.root, head.step, node_bytes(self._nodes, self.topology.rank, assignment))

    def _write(
        self,
        result: ThreadResult,
        partial: Path,
        assignment: WriteAssignment,
        tensors: dict[NamedSlice, Tensor],
        staging: StagingBuffer | None,
    ) -> None:
        super()._write(result, partial, assignment, tensors, staging)
        if self._group is None:
            return
        if result.problem is not None:
            # What is there in part must not be sent; the receiver is told so.
            for name in assignment.mine:
                (partial / name).unlink(missing_ok=True)
        sending = result.problem
        with reported(result, f"rank {self.topology.rank}: copy for the next node"):
            transfers = copy_transfers(self._nodes, writers_files(assignment.files))
            exchange(transfers, partial, self.topology.rank, self._group)
        result.problem = sending or result.problem

    def _complete(
        self, partial: Path, head: Any, written: Mapping[str, StoredFile], assignment: WriteAssignment
    ) -> str | None:
        """On a node's leader: complete what the node has of the checkpoint. Returns the problem, if any."""
        final = partial.with_suffix("")
        files = {name: written[name] for name in assignment.files}
        try:
            manifest = replace(head, files=files, tensors=stored_tensors(assignment.files, assignment.specs))
            write_manifest(partial, manifest)
            os.rename(partial, final)
        except OSError as error:
            return f"{final}: {error.strerror}"
        return None


def writers_files(plan: WritePlan) -> dict[int, list[str]]:
    """The files of each rank that writes any, by rank."""
    found: dict[int, list[str]] = {}
    for name in plan:
        found.setdefault(int(name.split("_")[1]), []).append(name)
    return found


def node_bytes(nodes: Nodes, rank: int, assignment: WriteAssignment) -> int:
    """Bytes of the tensors that the node of `rank` keeps of one checkpoint: its ranks' and those of the node before."""
    keeps = nodes.writers(rank)
    files = writers_files(assignment.files)
    names = [name for writer in keeps for name in files.get(writer, ())]
    return sum(part_bytes(part, assignment.specs) for name in names for part in assignment.files[name])
