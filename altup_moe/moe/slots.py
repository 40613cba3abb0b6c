"""Our router's decision as routes to numbered slots: what DeepSpeed's and Tutel's MoE want. Knows no library.

Shape legend: T tokens of this rank, E experts, K routes of a token at most, C slots of an expert.

Their buffers are [E, C, D], whatever the routing: each of this rank's tokens has a slot of its expert's, and the
exchange sends all slots, empty ones too. So C must be the same on all ranks that exchange.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from altup_moe.moe.capacity import expert_capacity
from altup_moe.timeline.spans import in_flight, waiting


class Routes(NamedTuple):
    """Every route of every token, as `deepspeed.moe.sharded_moe` writes it down (its ``sparse_routes``)."""

    experts_KT: Tensor
    """Each route's expert; -1 where a token has fewer than K routes."""
    slots_KT: Tensor
    """Its slot, in the order of tokens."""
    gates_KT: Tensor
    """Its combine probability; 0 where there is no route."""


def positions_first(padding_mask_BS: Tensor | None) -> Tensor | None:
    """A layer's padding mask as its router takes it, bool [S, B]."""
    return None if padding_mask_BS is None else padding_mask_BS.transpose(0, 1).bool()


def routes_of(probs_TE: Tensor, map_TE: Tensor, top_k: int) -> Routes:
    """The routes of a decision: probabilities (with gradients) and a bool map with at most K True in a row."""
    # A stable sort brings a token's experts to the front, in order.
    experts_TK = torch.sort((~map_TE).to(torch.int8), dim=1, stable=True).indices[:, :top_k]
    taken_TK = map_TE.gather(1, experts_TK)
    slots_TK = (map_TE.cumsum(0) - 1).gather(1, experts_TK) * taken_TK
    gates_TK = probs_TE.gather(1, experts_TK) * taken_TK
    return Routes(*(r.t().contiguous() for r in (experts_TK.masked_fill(~taken_TK, -1), slots_TK, gates_TK)))


def slots_of(map_TE: Tensor, config: Any, groups: Any, training: bool) -> int | Tensor:
    """C: what the configured capacity allows, where that says enough; else what the fullest expert needs."""
    alone = groups.tp_cp.size() == 1 and not config.overlap_two_batch
    if training and config.moe_expert_capacity_factor is not None and alone:
        tokens, experts = map_TE.shape
        return min(tokens, expert_capacity(tokens, config.moe_router_topk, experts, config.moe_expert_capacity_factor))
    # Where several ranks or halves share a micro-batch, each has but a part of its capacity.
    return slots_needed(map_TE.sum(0), groups.tp_ep)


def slots_needed(counts_E: Tensor, group: Any) -> Tensor:
    """C without a capacity: the most routes that one expert has of one rank of a group."""
    most = counts_E.max()
    if group.size() > 1:
        work = dist.all_reduce(most, op=dist.ReduceOp.MAX, group=group, async_op=True)
        in_flight("slots", work)
        with waiting("slots", work):
            work.wait()
    return most
