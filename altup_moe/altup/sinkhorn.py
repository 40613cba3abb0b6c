"""Sinkhorn-Knopp: a positive matrix for every token becomes doubly stochastic."""

from __future__ import annotations

import torch
from torch import Tensor


def sinkhorn(logits_KKT: Tensor, iterations: int, eps: float) -> Tensor:
    """As DeepSeek-V4: softmax over columns, then columns and rows are divided by their sums in turn.

    Args:
        logits_KKT: [K from, K to, T].
    """
    comb = torch.softmax(logits_KKT, 1) + eps
    comb = comb / (comb.sum(0, keepdim=True) + eps)
    for _ in range(iterations - 1):
        comb = comb / (comb.sum(1, keepdim=True) + eps)
        comb = comb / (comb.sum(0, keepdim=True) + eps)
    return comb
