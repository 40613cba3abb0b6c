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

from altup_moe.altup.kernels import PLAIN, Kernel


class Sinkhorn(torch.autograd.Function):
    """(logits [K, K, T], iterations, eps, kernel) -> comb [K, K, T].

    Only the softmax is kept for the backward pass, which does the steps again (`kernels.plain_weights`): autograd keeps
    a matrix and more for each of them.
    """

    @staticmethod
    def forward(ctx: Any, logits_KKT: Tensor, iterations: int, eps: float, kernel: Kernel) -> Tensor:
        soft_KKT = logits_KKT.softmax(1)
        ctx.save_for_backward(soft_KKT)
        ctx.iterations, ctx.eps, ctx.kernel = iterations, eps, kernel
        return kernel.sinkhorn(soft_KKT, iterations, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (soft_KKT,) = ctx.saved_tensors
        return ctx.kernel.sinkhorn_backward(grads[0], soft_KKT, ctx.iterations, ctx.eps), None, None, None


def sinkhorn(logits_KKT: Tensor, iterations: int, eps: float, kernel: Kernel = PLAIN) -> Tensor:
    """The matrix of each token.

    Args:
        logits_KKT: [K (from), K (to), T], fp32 or float64.
        iterations: at least 1, of columns; one less of rows. eps: above 0.
    Returns:
        [K, K, T], whose columns sum to 1, and rows nearly, but for eps.
    """
    return Sinkhorn.apply(logits_KKT, iterations, eps, kernel)
