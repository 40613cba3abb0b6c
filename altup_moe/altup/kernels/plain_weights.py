"""What computes the weights of every token, in plain torch: the definition that the fused code is tested against.

Shape legend: K blocks, T tokens, D width of a block, N rows of Q. Blocks come one at a time: their features of a token
do not lie together. Everything is computed in fp32 (float64 stays).
"""

from __future__ import annotations

import torch
from torch import Tensor

from altup_moe.altup.dynamic import at_least_fp32
from altup_moe.altup.kernels import Reads


def project(x_KTD: Tensor, project: Tensor) -> tuple[Tensor, Tensor]:
    """(Q x [N, T], sums of squares of x [T])."""
    k, t, d = x_KTD.shape
    products_NT, squares_T = project.new_zeros(project.shape[0], t), project.new_zeros(t)
    for x_TD, q_ND in zip(x_KTD, project.view(-1, k, d).unbind(1), strict=True):
        x_TD = at_least_fp32(x_TD)
        products_NT.addmm_(q_ND, x_TD.t())
        squares_T += torch.linalg.vector_norm(x_TD, dim=-1).square_()
    return products_NT, squares_T


def project_backward(
    d_KTD: Tensor, x_KTD: Tensor, project: Tensor, d_products_NT: Tensor, d_squares_T: Tensor, reads: Reads | None
) -> Tensor:
    """d_x += Q^T d_products + 2 d_squares x + r d_u, in place; d_Q [N, K*D]."""
    k, _, d = x_KTD.shape
    d_project = torch.empty_like(project)
    d_products_TN, twice_T1 = d_products_NT.t().contiguous(), 2 * d_squares_T[:, None]
    for block, q_ND in enumerate(project.view(-1, k, d).unbind(1)):
        x_TD, d_TD = at_least_fp32(x_KTD[block]), at_least_fp32(d_KTD[block])
        d_project.view(-1, k, d)[:, block] = d_products_NT @ x_TD
        d_TD.addmm_(d_products_TN, q_ND).addcmul_(x_TD, twice_T1)
        if reads is not None:
            read_KT, d_u = reads
            d_TD.addcmul_(at_least_fp32(d_u), read_KT[block, :, None])
        if d_TD.dtype is not d_KTD.dtype:
            d_KTD[block] = d_TD
    return d_project


def dots(x_KTD: Tensor, u_TD: Tensor) -> Tensor:
    """x . u of each block and token, [K, T]."""
    return torch.einsum("ktd,td->kt", at_least_fp32(x_KTD), at_least_fp32(u_TD))


def sinkhorn(soft_KKT: Tensor, iterations: int, eps: float) -> Tensor:
    """Softmax plus eps, columns over their sums; (iterations - 1) times rows and columns over theirs."""
    return _balanced(soft_KKT, iterations, eps)[0]


def sinkhorn_backward(d_KKT: Tensor, soft_KKT: Tensor, iterations: int, eps: float) -> Tensor:
    """The gradient of the logits. The steps are done again, and their sums kept.

    A matrix before a step is the one after it times the sums, so none in between is kept: autograd keeps K times as
    much. With A = gradient * matrix instead of the gradient, a step back q = p / s is

        A_p = A_q - q sum(A_q)

    which is three operations in place: the sum, this, and p = q s.
    """
    comb_KKT, sums_IKT = _balanced(soft_KKT, iterations, eps)
    a_KKT = d_KKT * comb_KKT
    for step in reversed(range(len(sums_IKT))):
        along = step % 2
        a_KKT.addcmul_(comb_KKT, a_KKT.sum(along, keepdim=True), value=-1)
        comb_KKT.mul_(sums_IKT[step].unsqueeze(along))
    a_KKT.mul_(soft_KKT / (soft_KKT + eps))
    return a_KKT.addcmul_(soft_KKT, a_KKT.sum(1, keepdim=True), value=-1)


def _balanced(soft_KKT: Tensor, iterations: int, eps: float) -> tuple[Tensor, Tensor]:
    """(comb [K, K, T], what it was divided by [2 iterations - 1, K, T])."""
    comb_KKT = (soft_KKT + eps).contiguous()
    sums_IKT = comb_KKT.new_empty(2 * iterations - 1, *comb_KKT.shape[1:])
    for step, sums_KT in enumerate(sums_IKT):
        along = step % 2  # columns are summed over the rows, dimension 0, first
        torch.sum(comb_KKT, along, out=sums_KT).add_(eps)
        comb_KKT.div_(sums_KT.unsqueeze(along))
    return comb_KKT, sums_IKT
