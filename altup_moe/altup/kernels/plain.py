"""The one pass in plain torch: the definition that the fused kernels are tested against."""

from __future__ import annotations

import torch
from torch import Tensor

from altup_moe.altup.dynamic import at_least_fp32
from altup_moe.altup.kernels import Rows


def forward(x_KN: Tensor, ys: Rows, w_RC: Tensor) -> Tensor:
    """out = W [x; ys], [R, N]: one product over the blocks, then a rank-one update in place for each of ys."""
    blocks = x_KN.shape[0]
    out_RN = torch.mm(w_RC[:, :blocks], x_KN.float())
    for column, y_N in enumerate(ys, blocks):
        out_RN.addr_(w_RC[:, column], y_N.float())
    return out_RN.to(x_KN.dtype)


def backward(d_RN: Tensor, ds: Rows, x_KN: Tensor, ys: Rows, w_RC: Tensor) -> tuple[Tensor, Rows, Tensor]:
    """d_x = W_x^T d, d_ys = W_y^T d, d_W = d [x; ys]^T (fp32), where d is [d_RN; ds]."""
    (first, _), blocks = d_RN.shape, x_KN.shape[0]
    d32_RN, x32_KN = d_RN.float(), x_KN.float()
    singles = [d_N.float() for d_N in ds]
    outputs = [y_N.float() for y_N in ys]
    d_x = w_RC[:first, :blocks].t() @ d32_RN
    for row, d_N in enumerate(singles, first):
        d_x.addr_(w_RC[row, :blocks], d_N)
    d_ys = [w_RC[:first, column] @ d32_RN for column in range(blocks, w_RC.shape[1])]
    for column, d_y in enumerate(d_ys, blocks):
        for row, d_N in enumerate(singles, first):
            d_y.addcmul_(w_RC[row, column], d_N)
    d_w = torch.empty_like(w_RC)
    d_w[:first, :blocks] = d32_RN @ x32_KN.t()
    for row, d_N in enumerate(singles, first):
        d_w[row, :blocks] = x32_KN @ d_N
    for column, y_N in enumerate(outputs, blocks):
        d_w[:first, column] = d32_RN @ y_N
        for row, d_N in enumerate(singles, first):
            d_w[row, column] = torch.dot(d_N, y_N)
    return d_x.to(x_KN.dtype), tuple(d_y.to(x_KN.dtype) for d_y in d_ys), d_w


def token_forward(x_KTD: Tensor, y_TD: Tensor | None, w_RCT: Tensor) -> Tensor:
    """out[r] = sum over c of W[r, c] [x; y][c], with W of each token: [R, T, D] in x's dtype."""
    inputs = [*at_least_fp32(x_KTD)] if y_TD is None else [*at_least_fp32(x_KTD), at_least_fp32(y_TD)]
    return _combine(w_RCT, inputs).to(x_KTD.dtype)


def token_backward(
    d_RTD: Tensor, x_KTD: Tensor, y_TD: Tensor | None, w_RCT: Tensor
) -> tuple[Tensor, Tensor | None, Tensor]:
    """d_x = W_x^T d, d_y = w_y^T d, d_W = d [x; y]^T (fp32), each for every token."""
    blocks, d_full_RTD = x_KTD.shape[0], at_least_fp32(d_RTD)
    d_x = _combine(w_RCT[:, :blocks].transpose(0, 1), [*d_full_RTD]).to(x_KTD.dtype)
    d_w = torch.empty_like(w_RCT, memory_format=torch.contiguous_format)
    d_w[:, :blocks] = torch.einsum("rtd,ktd->rkt", d_full_RTD, at_least_fp32(x_KTD))
    if y_TD is None:
        return d_x, None, d_w
    d_w[:, blocks] = torch.einsum("rtd,td->rt", d_full_RTD, at_least_fp32(y_TD))
    return d_x, _combine(w_RCT[None, :, blocks], [*d_full_RTD])[0].to(y_TD.dtype), d_w


def token_write(x_KTD: Tensor, y_TD: Tensor, g_KT: Tensor) -> Tensor:
    """x + g y, [K, T, D] in x's dtype."""
    return torch.addcmul(at_least_fp32(x_KTD), g_KT[..., None], at_least_fp32(y_TD)).to(x_KTD.dtype)


def _combine(w_RCT: Tensor, inputs: list[Tensor]) -> Tensor:
    """[R, T, D] from inputs [T, D], at least fp32."""
    # A product of matrices would lay the rows of a token side by side.
    out_RTD = torch.empty(w_RCT.shape[0], *inputs[0].shape, dtype=inputs[0].dtype, device=w_RCT.device)
    for row_TD, w_CT in zip(out_RTD, w_RCT, strict=True):
        torch.mul(inputs[0], w_CT[0, :, None], out=row_TD)
        for w_T, input_TD in zip(w_CT[1:], inputs[1:], strict=True):
            row_TD.addcmul_(w_T[:, None], input_TD)
    return out_RTD
