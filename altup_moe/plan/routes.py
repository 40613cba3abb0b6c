"""How many routes the tokens of a rank take to each expert."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence

from altup_moe.config import RunConfig

RouteCounts = Callable[[int, int, int], Sequence[float]]
"""(layer, rank, micro-batch) -> routes of that rank's tokens to each expert."""


def local_tokens(config: RunConfig) -> int:
    """Tokens of a micro-batch on one rank. Tensor ranks (sequence parallelism) and context ranks share a sequence."""
    p = config.parallel
    return config.train.micro_batch_size * config.model.seq_length // (p.tensor * p.context)


def balanced(config: RunConfig) -> RouteCounts:
    """Routes that choose every expert equally often. A capacity factor below 1 drops the rest."""
    moe = config.moe
    share = min(1.0, moe.capacity_factor or 1.0)
    each = local_tokens(config) * moe.top_k / max(1, moe.num_experts) * share
    return lambda layer, rank, micro_batch: [each] * moe.num_experts


def nodes_met(experts: int, top_k: int, nodes: int) -> float:
    """Mean number of nodes that hold a token's experts, for `top_k` random experts spread evenly over `nodes`.

    A dispatch that sends a token to each node once sends this many rows of a token; one that sends every route sends
    `top_k`.
    """
    elsewhere = experts - experts // nodes
    missed = math.comb(elsewhere, top_k) / math.comb(experts, top_k)
    return nodes * (1 - missed)


def rank_imbalance(counts: Sequence[Sequence[float]], ranks: int) -> float:
    """Rows of the fullest of `ranks` expert ranks over the mean, averaged over the layers.

    ``counts[layer][expert]``: rows that the router sent. Layers without rows are left out.
    """
    sums = [
        [sum(layer[i : i + len(layer) // ranks]) for i in range(0, len(layer), len(layer) // ranks)] for layer in counts
    ]
    ratios = [max(by_rank) * ranks / sum(by_rank) for by_rank in sums if sum(by_rank)]
    return statistics.mean(ratios) if ratios else 1.0
