"""One collective or send as a record, and what it puts on the links inside a node and between nodes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

TransferKind = Literal["tensor", "context", "expert", "pipeline", "data", "report"]
"""Whose it is. expert: dispatch, combine and what goes with them; data: gradients and updated weights; report: norms,
losses and counts, a few bytes each."""
Operation = Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send"]
TransferPhase = Literal["forward", "backward", "recompute", "step"]
"""step: once a step, after the backward passes."""


@dataclass(frozen=True)
class Transfer:
    """`calls` of an operation in one step; this rank hands in `size` bytes, all calls together.

    ``ranks``: the group; of all_to_all and send (from, to): each pair is a transfer of its own.
    ``layer``: whose it is, of layers.
    """

    kind: TransferKind
    operation: Operation
    ranks: tuple[int, ...]
    calls: int
    size: float
    phase: TransferPhase = "forward"
    layer: int | None = None

    @property
    def sent(self) -> float:
        """Bytes that leave this rank, by the ring algorithms (Patarasuk and Yuan, 2009); pairs send what they hand in.

        all_reduce: 2 (n - 1) / n of what is handed in; reduce_scatter: (n - 1) / n; all_gather: n - 1 times.
        """
        n = len(self.ranks)
        match self.operation:
            case "all_reduce":
                return 2 * self.size * (n - 1) / n
            case "reduce_scatter":
                return self.size * (n - 1) / n
            case "all_gather":
                return self.size * (n - 1)
        return self.size

    def between_nodes(self, node_size: int) -> float:
        """The part of `sent` that leaves the node: of a ring, the share of its edges that do."""
        nodes = [rank // node_size for rank in self.ranks]
        if self.operation in ("all_to_all", "send"):
            return self.sent if nodes[0] != nodes[1] else 0.0
        crossing = sum(a != b for a, b in zip(nodes, [*nodes[1:], nodes[0]], strict=True))
        return self.sent * crossing / len(nodes)


def times(transfers: Iterable[Transfer], factor: int) -> Iterator[Transfer]:
    """The same, `factor` times."""
    return (replace(t, calls=t.calls * factor, size=t.size * factor) for t in transfers)


@dataclass(frozen=True)
class LinkBytes:
    """Bytes that a rank sends in a step, by kind: inside its node and out of it, and the calls."""

    kind: str
    calls: int
    inside: float
    between: float


def link_bytes(transfers: Iterable[Transfer], node_size: int) -> list[LinkBytes]:
    """Sums by kind, in order of appearance."""
    sums: dict[str, tuple[int, float, float]] = {}
    for t in transfers:
        calls, inside, between = sums.get(t.kind, (0, 0.0, 0.0))
        out = t.between_nodes(node_size)
        sums[t.kind] = (calls + t.calls, inside + t.sent - out, between + out)
    return [LinkBytes(kind, *values) for kind, values in sums.items()]
