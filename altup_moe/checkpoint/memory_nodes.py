"""Which ranks share a node's memory, whose files each keeps, and which files must travel before a load. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from altup_moe.checkpoint.manifest import DIGEST, MANIFEST


@dataclass(frozen=True)
class Nodes:
    """The ranks of each node, nodes in the order of their lowest ranks. A node's leader is its lowest rank."""

    ranks: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, identities: Sequence[str]) -> Nodes:
        """Ranks with the same identity, given by rank, share a node."""
        members: dict[str, list[int]] = {}
        for rank, identity in enumerate(identities):
            members.setdefault(identity, []).append(rank)
        return cls(tuple(tuple(ranks) for ranks in members.values()))

    def node(self, rank: int) -> int:
        """The node of a rank."""
        return next(number for number, ranks in enumerate(self.ranks) if rank in ranks)

    def leader(self, rank: int) -> int:
        """The leader of a rank's node."""
        return self.ranks[self.node(rank)][0]

    def receiver(self, rank: int) -> int | None:
        """The rank of the next node that keeps a copy of what `rank` writes; None with one node."""
        if len(self.ranks) == 1:
            return None
        own = self.node(rank)
        others = self.ranks[(own + 1) % len(self.ranks)]
        return others[self.ranks[own].index(rank) % len(others)]

    def writers(self, rank: int) -> tuple[int, ...]:
        """The ranks whose files the node of `rank` keeps: its own and those of the node before."""
        own = self.node(rank)
        before = self.ranks[own - 1] if len(self.ranks) > 1 else ()
        return tuple(sorted((*self.ranks[own], *before)))


@dataclass(frozen=True)
class Transfer:
    """A file that one rank sends to another."""

    source: int
    target: int
    file: str


def copy_transfers(nodes: Nodes, files: Mapping[int, Sequence[str]]) -> list[Transfer]:
    """What ranks send to the next node, given the files that each rank writes."""
    receivers = {rank: nodes.receiver(rank) for rank in sorted(files)}
    return [
        Transfer(rank, receiver, file)
        for rank, receiver in receivers.items()
        if receiver is not None
        for file in files[rank]
    ]


@dataclass(frozen=True)
class MemoryCopy:
    """What one node's memory has of a checkpoint.

    ``digest``: hash of the manifest. ``files``: names that are there with their whole size. ``all_files``: names that
    the manifest has.
    """

    step: int
    digest: str
    files: tuple[str, ...]
    all_files: tuple[str, ...]

    @property
    def lacks(self) -> list[str]:
        """Files that are not there, in the manifest's order."""
        return [file for file in self.all_files if file not in self.files]


def newest_whole(copies: Sequence[Sequence[MemoryCopy]]) -> tuple[int, str] | None:
    """(step, digest) of the newest checkpoint of which every file lies in the memory of some node.

    Args:
        copies: by node.
    """
    held: dict[tuple[int, str], set[str]] = {}
    wanted: dict[tuple[int, str], set[str]] = {}
    for copy in (copy for node in copies for copy in node):
        held.setdefault((copy.step, copy.digest), set()).update(copy.files)
        wanted[copy.step, copy.digest] = set(copy.all_files)
    return max((key for key, files in wanted.items() if files <= held[key]), default=None)


def fetches(nodes: Nodes, copies: Sequence[Sequence[MemoryCopy]], chosen: tuple[int, str]) -> list[Transfer]:
    """What has to travel so that every node has the whole checkpoint; the manifest comes last.

    Of several nodes that hold a file the first one after the receiver sends it.
    """
    of_node = [next((c for c in node if (c.step, c.digest) == chosen), None) for node in copies]
    whole = next(copy for copy in of_node if copy is not None).all_files
    transfers = []
    for number, own in enumerate(of_node):
        missing = [*whole, DIGEST, MANIFEST] if own is None else own.lacks
        for file in missing:
            after = (*range(number + 1, len(copies)), *range(number))
            source = next(other for other in after if _has(of_node[other], file))
            transfers.append(Transfer(nodes.ranks[source][0], nodes.ranks[number][0], file))
    return transfers


def _has(copy: MemoryCopy | None, file: str) -> bool:
    return copy is not None and (file in copy.files or file in (DIGEST, MANIFEST))
