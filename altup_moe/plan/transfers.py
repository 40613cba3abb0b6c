"""Collectives and sends as records, and the bytes that they put on the links inside a node and between nodes."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

TransferKind = Literal["tensor", "context", "expert", "pipeline", "data", "report"]
"""Purpose of a transfer.

expert: dispatch, combine and the router's reductions. data: gradients and updated weights. report: norms, losses and
counts, a few bytes each. The others carry activations.
"""
Operation = Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send"]
TransferPhase = Literal["forward", "backward", "recompute", "step"]
"""``step``: once for each step, after the backward passes."""


@dataclass(frozen=True)
class Transfer:
    """All calls of one operation of a rank in one step.

    ``size``: bytes of this rank's input, all calls together. ``ranks``: the group; for all_to_all and send the pair
    (from, to), because each pair is a transfer of its own. ``layer``: the layer that it belongs to, if any.
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
        """Bytes that leave this rank, by the ring algorithms (Patarasuk and Yuan, 2009).

        Multiples of the input: all_reduce 2 (n - 1) / n, reduce_scatter (n - 1) / n, all_gather n - 1; pairs 1.
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
        """The part of `sent` that leaves the node: for a ring, the share of its edges between nodes."""
        nodes = [rank // node_size for rank in self.ranks]
        if self.operation in ("all_to_all", "send"):
            return self.sent if nodes[0] != nodes[1] else 0.0
        crossing = sum(map(operator.ne, nodes, [*nodes[1:], nodes[0]]))
        return self.sent * crossing / len(nodes)


def times(transfers: Iterable[Transfer], factor: int) -> Iterator[Transfer]:
    """Each transfer `factor` times."""
    return (replace(t, calls=t.calls * factor, size=t.size * factor) for t in transfers)


@dataclass(frozen=True)
class LinkBytes:
    """Bytes that a rank sends in a step for one kind of transfer, inside its node and to other nodes, and the calls."""

    kind: str
    calls: int
    inside: float
    between: float


def link_bytes(transfers: Iterable[Transfer], node_size: int) -> list[LinkBytes]:
    """Sums of all transfers by kind, in order of first appearance."""
    sums: dict[str, tuple[int, float, float]] = {}
    for t in transfers:
        calls, inside, between = sums.get(t.kind, (0, 0.0, 0.0))
        out = t.between_nodes(node_size)
        sums[t.kind] = (calls + t.calls, inside + t.sent - out, between + out)
    return [LinkBytes(kind, *values) for kind, values in sums.items()]
