"""Expert exchanges that overlap: start, run deferred work, let the other half of the micro-batch compute, wait.

Slots are the buffers [E, C, D] of backends that give every expert the same number C of rows of each rank.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from altup_moe.overlap.alternate import yield_to_other
from altup_moe.overlap.collectives import (
    AllGather,
    AllToAll,
    ReduceScatter,
    all_to_all,
    start_collective,
    wait_for_collective,
)
from altup_moe.overlap.deferred_work import run_posted


def exchange_rows(exchange: AllToAll, tensors: Sequence[Tensor], overlap: bool) -> list[Tensor]:
    """The received rows of each tensor [rows, ...]. Without `overlap` the deferred work runs after the wait."""
    flights = [start_collective(tensor, exchange) for tensor in tensors]
    if not overlap:
        arrived = [wait_for_collective(flight) for flight in flights]
        run_posted()
        return arrived
    run_posted()
    yield_to_other()
    return [wait_for_collective(flight) for flight in flights]


def exchange_slots(group: Any, slots_ECD: Tensor, name: str, overlap: bool) -> Tensor:
    """Send each rank the slots of its experts, and receive this rank's: [E, C, D] -> the same shape."""
    each = [slots_ECD.shape[0] // group.size()] * group.size()
    return exchange_rows(all_to_all(group, each, each, name), [slots_ECD], overlap)[0]


def with_sharing_ranks(group: Any, rows: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
    """Expert-tensor parallelism: gather the rows of the ranks that share an expert, compute, and sum their outputs."""
    if group.size() == 1:
        return compute(rows)
    return wait_for_collective(
        start_collective(compute(wait_for_collective(start_collective(rows, AllGather(group)))), ReduceScatter(group))
    )
