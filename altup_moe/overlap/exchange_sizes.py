"""Sizes of an exchange, agreed by its ranks before they use them: gloo aborts the process in C++ where they differ.

Numbers of rows come from the data, and change with every exchange; but all ranks of a group compute them from the same
gathered counts. So what could differ (a row's width, its dtype, who sends to whom) differs at the first exchange of a
kind as well: one small all-gather then, none later.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor

_agreed: WeakKeyDictionary[Any, set[str]] = WeakKeyDictionary()
"""Group -> names of exchanges that its ranks have agreed on."""


def agree_on_sizes(group: Any, name: str, sent: Tensor, send: Sequence[int], receive: Sequence[int]) -> None:
    """Compare sizes on all ranks of a group, at the first exchange of this name. Collective then.

    Args:
        sent: [rows, ...]. send, receive: rows to and from each rank of the group.
    Raises:
        ValueError: on every rank of the group; who sends how many rows, and who expects another number.
    """
    if not isinstance(group, dist.ProcessGroup) or name in _agreed.setdefault(group, set()):
        return
    row = sent.element_size() * torch.Size(sent.shape[1:]).numel()
    mine = torch.tensor([row, *send, *receive], device=sent.device)
    every = [torch.empty_like(mine) for _ in range(group.size())]
    dist.all_gather(every, mine, group=group)
    ranks = [dist.get_global_rank(group, number) for number in range(group.size())]
    if problem := size_problem([one.tolist() for one in every], ranks):
        raise ValueError(f"{name}: {problem}")
    _agreed[group].add(name)


def size_problem(every: Sequence[Sequence[int]], ranks: Sequence[int]) -> str | None:
    """What does not fit, in words; None if everything does. Pure.

    Args:
        every: of each rank of the group, in order: bytes of a row, rows to each rank, rows from each rank.
        ranks: their numbers in the world.
    """
    size = len(every)
    for number, (row, *_) in enumerate(every):
        if row != every[0][0]:
            return f"a row has {every[0][0]} bytes on rank {ranks[0]} and {row} on rank {ranks[number]}"
    for sender, sizes in enumerate(every):
        for receiver, rows in enumerate(sizes[1 : 1 + size]):
            expected = every[receiver][1 + size + sender]
            if rows != expected:
                return f"rank {ranks[sender]} sends {rows} rows to rank {ranks[receiver]}, which expects {expected}"
    return None
