"""Every collective that a rank's step really makes, seen where torch hands it to the backend.

All of torch.distributed's calls (and Megatron's, and autograd's) end in operators of the namespace `c10d`; a dispatch
mode sees them with their tensors and their group, whoever made the call and under whatever name it was imported.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from altup_moe.config import RunConfig
from tests.distributed.cases import own_batches, skewed

Seen = tuple[str, tuple[int, ...], int]
"""(operation, ranks of the group in their order, bytes that this rank hands in); a send's group is (from, to)."""

OPERATIONS = {
    "allreduce_": "all_reduce",
    "allreduce_coalesced_": "all_reduce",
    "_allgather_base_": "all_gather",
    "allgather_": "all_gather",
    "allgather_into_tensor_coalesced_": "all_gather",
    "_reduce_scatter_base_": "reduce_scatter",
    "reduce_scatter_tensor_coalesced_": "reduce_scatter",
    "alltoall_base_": "all_to_all",
    "broadcast_": "broadcast",
    "send": "send",
}
"""Names of c10d's operators, as the plan calls them."""
SILENT = {"recv_", "barrier", "monitored_barrier_"}


class Traffic(TorchDispatchMode):
    """Counts, while open, what this rank hands to collectives: `seen[Seen]` calls."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[Seen] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func.namespace == "c10d":
            self._note(func._schema.name.partition("::")[2], func._schema.arguments, args)
        return func(*args, **(kwargs or {}))

    def _note(self, name: str, arguments: Any, args: tuple) -> None:
        if name in SILENT:
            return
        given = {a.name: value for a, value in zip(arguments, args, strict=False)}
        group = dist.ProcessGroup.unbox(given["process_group"])
        ranks = tuple(dist.get_process_group_ranks(group))
        if len(ranks) == 1:
            return
        # What a call hands in: its inputs where it has some beside its outputs, else its tensors.
        handed = next(
            given[key] for key in ("input", "inputs", "input_tensor", "input_tensors", "tensors") if key in given
        )
        tensors = [handed] if isinstance(handed, torch.Tensor) else _flat(handed)
        size = sum(t.numel() * t.element_size() for t in tensors)
        if name == "alltoall_base_":
            rows = given["input_split_sizes"] or [tensors[0].shape[0] // len(ranks)] * len(ranks)
            each = size // max(1, sum(rows))
            for to, n in zip(ranks, rows, strict=True):
                if to != dist.get_rank():
                    self.seen["all_to_all", (dist.get_rank(), to), n * each] += 1
            return
        if name == "send":
            ranks = (dist.get_rank(), ranks[given["dst"]])
        self.seen[OPERATIONS[name], ranks, size] += 1


def _flat(tensors: Any) -> list[torch.Tensor]:
    return [t for item in tensors for t in (item if isinstance(item, list | tuple) else [item])]


@dataclass
class Counted:
    """What a rank saw in one step: (operation, group) -> (calls, bytes), and (layer) -> routes of each micro-batch."""

    transfers: dict[tuple[str, tuple[int, ...]], tuple[int, int]]
    routes: dict[int, list[list[int]]]


def step_traffic(config: RunConfig) -> Counted:
    """On a rank: what one training step, update included, hands to collectives. Routing is skewed."""
    from altup_moe.model.build import set_weights
    from altup_moe.parallel.topology import topology
    from altup_moe.train.engine import build_engine
    from altup_moe.train.step import train_step

    with topology(config.parallel) as topo:
        engine = build_engine(config, topo)
        set_weights(list(engine.chunks), config, topo, skewed)
        # The first step also agrees on the sizes of its exchanges; those after it do not.
        agreed = patch("altup_moe.overlap.collectives.agree_on_sizes")
        with agreed, _routes() as routes, Traffic() as traffic:
            train_step(engine, own_batches(config, topo), config, topo)
        totals: dict[tuple[str, tuple[int, ...]], tuple[int, int]] = {}
        for (operation, ranks, size), count in traffic.seen.items():
            calls, total = totals.get((operation, ranks), (0, 0))
            totals[operation, ranks] = (calls + count, total + count * size)
        return Counted(totals, routes)


@contextmanager
def _routes() -> Iterator[dict[int, list[list[int]]]]:
    """Fills, while open, the routes of every layer's micro-batches, after capacity. Recomputation is not counted."""
    from altup_moe.moe.router import CapacityRouter

    routing, found = CapacityRouter.routing, {}

    def noted(self: Any, *args: Any, **kwargs: Any) -> Any:
        probs, chosen = routing(self, *args, **kwargs)
        if torch.is_grad_enabled():
            found.setdefault(self.layer_number - 1, []).append(chosen.sum(0).tolist())
        return probs, chosen

    CapacityRouter.routing = noted
    try:
        yield found
    finally:
        CapacityRouter.routing = routing
