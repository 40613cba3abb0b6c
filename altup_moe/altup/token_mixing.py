"""The passes over a stream whose weights differ from token to token, with their derivatives.

As in `altup.mixing`, all are one small matrix times the blocks, here one for every token (`altup.kernels`, token_*):

    u  = r X                                `read`
    X' = M X + g (x) y                      `mix_and_write`: inline, and what ends a chunk of steps
    X' = X + g (x) y                        `write`: where M is I, or M X is there already
    H  = M X,  a = r' H,  s = r' . g        `look_ahead`, then u' = a + s y (`catch_up`): where r' is known before y,
                                            as in single-pass hyper-connections

Shape legend: K blocks, S positions, B samples, T = S*B tokens, D width of a block; a stream is [K*S, B, D]. Weights
and their gradients are fp32 (float64 in a float64 stream).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from altup_moe.altup.dynamic import at_least_fp32
from altup_moe.altup.kernels import Kernel
from altup_moe.timeline.spans import span


def by_token(stream: Tensor, width: int) -> Tensor:
    """Stream [K*S, B, D] -> X [K, T, D]."""
    return stream.view(width, -1, stream.shape[-1])


class Projection(torch.autograd.Function):
    """(X [K, T, D], Q [N, K*D]) -> (X for the passes, Q x [N, T], sum of squares of x [T]).

    The passes' gradient of X is added to in place: by itself, each use of X would be K blocks more to write and to add.
    """

    @staticmethod
    def forward(ctx: Any, x_KTD: Tensor, project: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(x_KTD, project)
        k, t, d = x_KTD.shape
        with span("mix"):
            products_NT = project.new_zeros(project.shape[0], t)
            squares_T = project.new_zeros(t)
            for x_TD, q_ND in zip(x_KTD, project.view(-1, k, d).unbind(1), strict=True):
                x_TD = at_least_fp32(x_TD)
                products_NT.addmm_(q_ND, x_TD.t())
                squares_T += torch.linalg.vector_norm(x_TD, dim=-1).square_()
        return x_KTD.view_as(x_KTD), products_NT, squares_T

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        x_KTD, project = ctx.saved_tensors
        d_x, d_products_NT, d_squares_T = grads
        k, _, d = x_KTD.shape
        with span("mix", backward=True):
            # Only passes consume the handed-on stream, and their backward allocates this tensor: adding is safe.
            d_x, d_project = d_x.contiguous(), torch.empty_like(project)
            d_products_TN, twice_T1 = d_products_NT.t().contiguous(), 2 * d_squares_T[:, None]
            for block, q_ND in enumerate(project.view(-1, k, d).unbind(1)):
                x_TD, d_TD = at_least_fp32(x_KTD[block]), at_least_fp32(d_x[block])
                d_project.view(-1, k, d)[:, block] = d_products_NT @ x_TD
                d_TD.addmm_(d_products_TN, q_ND).addcmul_(x_TD, twice_T1)
                if d_TD.dtype is not d_x.dtype:
                    d_x[block] = d_TD
        return d_x, d_project


class TokenPass(torch.autograd.Function):
    """(X [K, T, D], y [T, D] or None, W [R, C, T]) -> W [x; y], [R, T, D]."""

    @staticmethod
    def forward(ctx: Any, x_KTD: Tensor, y_TD: Tensor | None, weights: Tensor, kernel: Kernel) -> Tensor:
        ctx.save_for_backward(x_KTD, y_TD, weights)
        ctx.kernel = kernel
        with span("mix"):
            return kernel.token_forward(x_KTD, y_TD, weights)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        x_KTD, y_TD, weights = ctx.saved_tensors
        with span("mix", backward=True):
            d_x, d_y, d_w = ctx.kernel.token_backward(grads[0].contiguous(), x_KTD, y_TD, weights)
        return d_x, d_y, d_w, None


class Write(torch.autograd.Function):
    """(X [K, T, D], y [T, D], g [K, T]) -> X + g (x) y, where blocks are not mixed.

    The gradient of X is that of the result, the same tensor. Whoever gave it may hold it, and it stays as it is: X has
    a read beside this write, and autograd adds their gradients up in a tensor of its own before `Projection` sees it.
    """

    @staticmethod
    def forward(ctx: Any, x_KTD: Tensor, y_TD: Tensor, write_KT: Tensor, kernel: Kernel) -> Tensor:
        ctx.save_for_backward(y_TD, write_KT)
        ctx.kernel = kernel
        with span("mix"):
            return kernel.token_write(x_KTD, y_TD, write_KT)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        y_TD, write_KT = ctx.saved_tensors
        with span("mix", backward=True):
            d_KTD = grads[0].contiguous()
            # y is the one block of a stream, g the matrix that makes K rows of it.
            d_y, _, d_write = ctx.kernel.token_backward(d_KTD, y_TD[None], None, write_KT[:, None])
        return d_KTD, d_y[0], d_write[:, 0], None


class CatchUp(torch.autograd.Function):
    """(a [T, D], y [T, D], s [T]) -> a + s y: all that waits for y."""

    @staticmethod
    def forward(ctx: Any, a_TD: Tensor, y_TD: Tensor, s_T: Tensor) -> Tensor:
        ctx.save_for_backward(y_TD, s_T)
        with span("axpy"):
            return torch.addcmul(at_least_fp32(a_TD), at_least_fp32(y_TD), s_T[:, None]).to(a_TD.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y_TD, s_T = ctx.saved_tensors
        with span("axpy", backward=True):
            d_TD = at_least_fp32(grads[0])
            d_y = (d_TD * s_T[:, None]).to(y_TD.dtype)
            return grads[0], d_y, torch.einsum("td,td->t", d_TD, at_least_fp32(y_TD))


def read(stream: Tensor, read_KT: Tensor, kernel: Kernel) -> Tensor:
    """u = r X: [S, B, D], from the stream [K*S, B, D]."""
    x_KTD = by_token(stream, read_KT.shape[0])
    return TokenPass.apply(x_KTD, None, read_KT[None], kernel).view(-1, *stream.shape[1:])


def mix_and_write(stream: Tensor, y: Tensor, mix_KKT: Tensor | None, write_KT: Tensor, kernel: Kernel) -> Tensor:
    """X' = M X + g (x) y, [K*S, B, D], in one pass. ``y``: [S, B, D]. ``mix_KKT``: None is I."""
    if mix_KKT is None:
        return write(stream, y, write_KT, kernel)
    x_KTD = by_token(stream, write_KT.shape[0])
    weights = torch.cat([mix_KKT, write_KT[:, None]], dim=1)
    return TokenPass.apply(x_KTD, y.reshape(x_KTD.shape[1:]), weights, kernel).view_as(stream)


def write(stream: Tensor, y: Tensor, write_KT: Tensor, kernel: Kernel) -> Tensor:
    """X + g (x) y, [K*S, B, D]. ``y``: [S, B, D]."""
    x_KTD = by_token(stream, write_KT.shape[0])
    return Write.apply(x_KTD, y.reshape(x_KTD.shape[1:]), write_KT, kernel).view_as(stream)


def mix(stream: Tensor, mix_KKT: Tensor, kernel: Kernel) -> Tensor:
    """H = M X, [K*S, B, D]."""
    return TokenPass.apply(by_token(stream, mix_KKT.shape[0]), None, mix_KKT, kernel).view_as(stream)


def look_ahead(
    stream: Tensor, mix_KKT: Tensor, write_KT: Tensor, next_read_KT: Tensor, kernel: Kernel
) -> tuple[Tensor, Tensor, Tensor]:
    """What of a step needs no output, where the next read r' is known.

    Returns:
        H = M X [K*S, B, D], a = r' H [S, B, D] and s = r' . g [T].
    """
    k = write_KT.shape[0]
    row = torch.einsum("kt,kjt->jt", next_read_KT, mix_KKT)[None]
    out = TokenPass.apply(by_token(stream, k), None, torch.cat([mix_KKT, row]), kernel)
    s_T = torch.einsum("kt,kt->t", next_read_KT, write_KT)
    return out[:k].view_as(stream), out[k].view(-1, *stream.shape[1:]), s_T


def catch_up(a: Tensor, y: Tensor, s_T: Tensor) -> Tensor:
    """u' = a + s y, [S, B, D], once y [S, B, D] is there."""
    return CatchUp.apply(a.flatten(0, 1), y.flatten(0, 1), s_T).view_as(y)
