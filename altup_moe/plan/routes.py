"""How many routes a rank's tokens take to every expert: balanced, or as they were counted."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from altup_moe.config import RunConfig

Routes = Callable[[int, int, int], Sequence[float]]
"""(layer, rank, micro-batch) -> routes of that rank's tokens to each expert."""


def local_tokens(config: RunConfig) -> int:
    """Tokens of a micro-batch on one rank: tensor (sequence parallelism) and context ranks share a sequence."""
    p = config.parallel
    return config.train.micro_batch_size * config.model.seq_length // (p.tensor * p.context)


def balanced(config: RunConfig) -> Routes:
    """Every expert is chosen as often; a capacity below 1 drops what is above it."""
    moe = config.moe
    share = min(1.0, moe.capacity_factor or 1.0)
    each = local_tokens(config) * moe.top_k / max(1, moe.num_experts) * share
    return lambda layer, rank, micro_batch: [each] * moe.num_experts


def nodes_met(experts: int, top_k: int, nodes: int) -> float:
    """Nodes that a token's experts lie on, in the mean: top_k of `experts` at random, the same number on each node.

    What a dispatch that sends a token to a node once, and spreads it there, would send; sending every route, it is
    `top_k`.
    """
    elsewhere = experts - experts // nodes
    missed = math.comb(elsewhere, top_k) / math.comb(experts, top_k)
    return nodes * (1 - missed)
