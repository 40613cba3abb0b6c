"""Which tokens an expert keeps when it may take only so many.

Shape legend: T tokens of one micro-batch in [S, B]-flattened order (index s*B + b), E experts.

The rule looks at all T tokens of the micro-batch at once, wherever they lie, so that every layout drops the same
ones. Megatron-Core's own rule (`apply_router_token_dropping`) applies it to each rank's tokens apart: there the
number of tensor-parallel ranks would change the loss.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def expert_capacity(tokens: int, top_k: int, num_experts: int, capacity_factor: float) -> int:
    """Tokens one expert takes of a micro-batch: C = ceil(T * top_k / E * capacity_factor).

    Args:
        tokens: T, tokens of the whole micro-batch (all ranks that share it).
        capacity_factor: capacity as a multiple of a perfectly balanced expert's tokens.
    Source: GShard, arXiv 2006.16668, section 2.2; the order of operations is that of Megatron-Core's `get_capacity`.
    """
    return math.ceil(tokens * top_k / num_experts * capacity_factor)


def keep_within_capacity(probs_TE: Tensor, routing_map_TE: Tensor, capacity: int) -> Tensor:
    """The assignments that survive: each expert keeps its `capacity` tokens of largest combine probability.

    Among equal probabilities the earlier token stays. What remains is not renormalised; the caller sets the others'
    probabilities to 0.

    Args:
        probs_TE: combine probabilities; only entries under the map are looked at. No gradient is taken.
        routing_map_TE: bool, True where token t is routed to expert e.
    Returns:
        bool [T, E], a subset of the map with at most `capacity` True per column.
    """
    candidates_TE = probs_TE.detach().masked_fill(~routing_map_TE, -math.inf)
    order_TE = torch.sort(candidates_TE, dim=0, descending=True, stable=True).indices
    places_TE = torch.arange(probs_TE.shape[0], device=probs_TE.device)[:, None].expand_as(order_TE)
    rank_TE = torch.empty_like(order_TE).scatter_(0, order_TE, places_TE)
    return routing_map_TE & (rank_TE < capacity)
