"""The routers' losses over the tokens of a micro-batch, which may lie on several ranks. Pure functions.

Shape legend: T tokens of this rank, padding left out; E experts. Each function returns this rank's part of a loss: the
parts of the ranks that share a micro-batch add up to it, however unevenly they share its tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor


def balance_loss(scores_TE: Tensor, shares_E: Tensor, tokens: Tensor) -> Tensor:
    """E sum_e f_e P_e; 1 when balanced. Scalar.

    Args:
        scores_TE: the router's scores of all experts, which add up to 1: P_e is their mean over the tokens.
        shares_E: f_e, the share of all routes that goes to each expert. No gradient flows through it.
        tokens: what the sum over tokens is divided by: as many as all ranks have.
    Source: Switch, arXiv 2101.03961 eq. 4; over a global batch arXiv 2501.11873 eq. 3.
    """
    experts = shares_E.shape[0]
    return experts * (scores_TE.sum(0) * shares_E).sum() / tokens.clamp(min=1)


def z_loss(logits_TE: Tensor, tokens: Tensor) -> Tensor:
    """The mean of logsumexp(logits)^2 (ST-MoE, arXiv 2202.08906 eq. 5). Scalar. ``tokens``: as of `balance_loss`."""
    return torch.logsumexp(logits_TE.float(), dim=-1).square().sum() / tokens.clamp(min=1)
