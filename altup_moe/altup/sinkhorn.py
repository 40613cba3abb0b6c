"""Doubly stochastic matrices, one for each token: Sinkhorn-Knopp as DeepSeek-V4 has it.

Source: `DeepseekV4HyperConnection.forward` in transformers (manifold-constrained hyper-connections, Xie et al. 2026):
softmax of each row plus eps, columns over their sums, then (iterations - 1) times rows over their sums and columns
over theirs, eps added to every sum.

Shape legend: K blocks, T tokens. A matrix is [K (from), K (to), T]: tokens last, so that a step is a few vector loops
over tokens, whatever K is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class Sinkhorn(torch.autograd.Function):
    """(logits [K, K, T], iterations, eps) -> comb [K, K, T].

    Kept for the backward pass: the softmax, the result and the sums, [2 iterations - 1, K, T]. A matrix before a step
    is the one after it times the sums, so none in between is kept or computed anew: autograd keeps K times as much.
    With A = gradient * matrix instead of the gradient, a step back q = p / s is

        A_p = A_q - q sum(A_q)

    which is three operations in place: the sum, this, and p = q s.
    """

    @staticmethod
    def forward(ctx: Any, logits_KKT: Tensor, iterations: int, eps: float) -> Tensor:
        soft_KKT = logits_KKT.softmax(1)
        comb_KKT = (soft_KKT + eps).contiguous()
        sums_IKT = comb_KKT.new_empty(2 * iterations - 1, *comb_KKT.shape[1:])
        for step, sums_KT in enumerate(sums_IKT):
            along = step % 2  # columns are summed over the rows, dimension 0, first
            torch.sum(comb_KKT, along, out=sums_KT).add_(eps)
            comb_KKT.div_(sums_KT.unsqueeze(along))
        ctx.save_for_backward(soft_KKT, comb_KKT, sums_IKT)
        ctx.eps = eps
        return comb_KKT

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        soft_KKT, comb_KKT, sums_IKT = ctx.saved_tensors
        a_KKT, comb_KKT = grads[0] * comb_KKT, comb_KKT.clone()
        for step in reversed(range(len(sums_IKT))):
            along = step % 2
            a_KKT.addcmul_(comb_KKT, a_KKT.sum(along, keepdim=True), value=-1)
            comb_KKT.mul_(sums_IKT[step].unsqueeze(along))
        a_KKT.mul_(soft_KKT / (soft_KKT + ctx.eps))
        return a_KKT.addcmul_(soft_KKT, a_KKT.sum(1, keepdim=True), value=-1), None, None


def sinkhorn(logits_KKT: Tensor, iterations: int, eps: float) -> Tensor:
    """The matrix of each token.

    Args:
        logits_KKT: [K (from), K (to), T], fp32 or float64.
        iterations: at least 1, of columns; one less of rows. eps: above 0.
    Returns:
        [K, K, T], whose columns sum to 1, and rows nearly, but for eps.
    """
    return Sinkhorn.apply(logits_KKT, iterations, eps)
