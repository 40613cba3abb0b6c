"""Exchanges that leave room: started, posted work done, the other half of the micro-batch let on, waited for.

Slots are the buffers [E, C, D] of backends that give every expert the same number C of rows of each rank.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from altup_moe.overlap.collectives import AllGather, AllToAll, ReduceScatter, all_to_all, start, wait
from altup_moe.overlap.deferred_work import run_posted
from altup_moe.overlap.two_batch import step_aside


def exchange_rows(exchange: AllToAll, tensors: Sequence[Tensor], overlap: bool) -> list[Tensor]:
    """What arrives of each tensor [rows, ...]. Without `overlap` it is waited for first, and posted work done after."""
    flights = [start(tensor, exchange) for tensor in tensors]
    if not overlap:
        arrived = [wait(flight) for flight in flights]
        run_posted()
        return arrived
    run_posted()
    step_aside()
    return [wait(flight) for flight in flights]


def exchange_slots(group: Any, slots_ECD: Tensor, name: str, overlap: bool) -> Tensor:
    """Every rank is sent the slots of as many experts as it has, and sends as many back."""
    each = [slots_ECD.shape[0] // group.size()] * group.size()
    return exchange_rows(all_to_all(group, each, each, name), [slots_ECD], overlap)[0]


def with_sharing_ranks(group: Any, rows: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
    """Expert-tensor parallelism: ranks that share an expert see each other's rows, and add up their shares."""
    if group.size() == 1:
        return compute(rows)
    return wait(start(compute(wait(start(rows, AllGather(group)))), ReduceScatter(group)))
