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

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from altup_moe.altup.dynamic import at_least_fp32
from altup_moe.altup.kernels import Kernel
from altup_moe.timeline.spans import span


def by_token(stream: Tensor, width: int) -> Tensor:
    """Stream [K*S, B, D] -> X [K, T, D]."""
    return stream.view(width, -1, stream.shape[-1])


Weighting = Callable[..., tuple[Tensor, Tensor]]
"""(Q x [N, T], sums of squares of x [T], parameters...) -> (r [K, T], whatever follows later from the rest)."""


class Projection(torch.autograd.Function):
    """(X [K, T, D], Q [N, K*D], parameters of the weighting) -> (X for the passes, r or u, the weighting's rest).

    `Weighting` makes r of the products of x with Q; with ``reads`` the result is u = r X [T, D]. All uses of X but one
    are in here, so that the gradient of X is formed once: it is the gradient of that one, a pass, to which the products
    and the read are added in place. By autograd each would be K blocks more to write and to add.

    Kept: X, and N + 1 numbers a token. The weighting is done again for its derivative.
    """

    @staticmethod
    def forward(
        ctx: Any, how: Projecting, x_KTD: Tensor, project: Tensor, *parameters: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        with span("mix"):
            found = how.kernel.project(x_KTD, project)
            first, rest = how.weighting(*found, *parameters)
            ctx.how = how
            ctx.save_for_backward(x_KTD, project, first, *found, *parameters)
            if how.reads:
                first = how.kernel.token_forward(x_KTD, None, first[None])[0]
        return x_KTD.view_as(x_KTD), first, rest

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_KTD, project, read_KT, *given = ctx.saved_tensors
        d_x, d_first, d_rest = grads
        how: Projecting = ctx.how
        with span("mix", backward=True):
            d_read = how.kernel.dots(x_KTD, d_first) if how.reads else d_first
            with torch.enable_grad():
                leaves = [tensor.detach().requires_grad_() for tensor in given]
                found = how.weighting(*leaves)
            d_products_NT, d_squares_T, *d_parameters = torch.autograd.grad(found, leaves, [d_read, d_rest])
            # A pass has allocated this tensor for its only consumer, but a write hands on what it was given.
            d_x = d_x.contiguous() if how.mixes else d_x.clone(memory_format=torch.contiguous_format)
            reads = (read_KT, d_first) if how.reads else None
            d_project = how.kernel.project_backward(d_x, x_KTD, project, d_products_NT, d_squares_T, reads)
        return None, d_x, d_project, *d_parameters


@dataclass(frozen=True)
class Projecting:
    """How `Projection` works. ``mixes``: whether the handed-on X goes into one pass, and nowhere else."""

    weighting: Weighting
    reads: bool
    mixes: bool
    kernel: Kernel


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


class PassAhead(torch.autograd.Function):
    """(X [K, T, D], W [K + 1, K, T]) -> (H = M X [K, T, D], a = r' H [T, D]) in one pass.

    ``outlives``: a is kept when H is gone, so that it has memory of its own and does not hold H's.
    """

    @staticmethod
    def forward(ctx: Any, x_KTD: Tensor, weights: Tensor, outlives: bool, kernel: Kernel) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x_KTD, weights)
        ctx.kernel = kernel
        ctx.set_materialize_grads(False)
        with span("mix"):
            out_RTD = kernel.token_forward(x_KTD, None, weights)
            a_TD = out_RTD[-1]
            return out_RTD[:-1], a_TD.clone() if outlives else a_TD

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        x_KTD, weights = ctx.saved_tensors
        with span("mix", backward=True):
            # Left to autograd, each of both would become as large as all rows, mostly zeros, to be added up.
            d_RTD = x_KTD.new_empty(weights.shape[0], *x_KTD.shape[1:])
            for part, grad in zip((d_RTD[:-1], d_RTD[-1]), grads, strict=True):
                part.zero_() if grad is None else part.copy_(grad)
            d_x, _, d_w = ctx.kernel.token_backward(d_RTD, x_KTD, None, weights)
        return d_x, d_w, None, None


class Write(torch.autograd.Function):
    """(X [K, T, D], y [T, D], g [K, T]) -> X + g (x) y, where blocks are not mixed.

    The gradient of X is that of the result, the same tensor. Whoever gave it may hold it, and it stays as it is
    (`Projecting.mixes`).
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
    stream: Tensor, mix_KKT: Tensor, write_KT: Tensor, next_read_KT: Tensor, delayed: bool, kernel: Kernel
) -> tuple[Tensor, Tensor, Tensor]:
    """What of a step needs no output, where the next read r' is known.

    Args:
        delayed: a is what the next step reads; else `catch_up` makes that of it, and it is not kept.
    Returns:
        H = M X [K*S, B, D], a = r' H [S, B, D] and s = r' . g [T].
    """
    k = write_KT.shape[0]
    row = torch.einsum("kt,kjt->jt", next_read_KT, mix_KKT)[None]
    h_KTD, a_TD = PassAhead.apply(by_token(stream, k), torch.cat([mix_KKT, row]), delayed, kernel)
    s_T = torch.einsum("kt,kt->t", next_read_KT, write_KT)
    return h_KTD.view_as(stream), a_TD.view(-1, *stream.shape[1:]), s_T


def catch_up(a: Tensor, y: Tensor, s_T: Tensor) -> Tensor:
    """u' = a + s y, [S, B, D], once y [S, B, D] is there."""
    return CatchUp.apply(a.flatten(0, 1), y.flatten(0, 1), s_T).view_as(y)
