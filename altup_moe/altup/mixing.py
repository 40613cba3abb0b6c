"""Reading from and writing to the wide stream, with their derivatives.

Coefficients are fp32 and so are their gradients, whatever the stream's dtype. The stream is seen as X [K, N] with
N = S*B*D, so reading is one [1, K] x [K, N] product and mixing one [K, K] x [K, N] product plus a rank-one update
in place: K blocks read, K + 1 written, one read. No loop over blocks.

Why a pair of functions: X is used twice, by the read and by the mix. Left to autograd, the read's gradient would be
a K-block tensor of mostly zeros and one more K-block addition. `Read` therefore hands X on to `MixWrite`, and in
the backward pass adds the read's gradient in place to the one that arrives there: one block for a plain read.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from altup_moe.altup.variants import Mixing


def _rows(stream: Tensor, width: int) -> Tensor:
    """Stream [K*S, B, D] -> X [K, N]."""
    return stream.view(width, -1)


class Read(torch.autograd.Function):
    """(X, r) -> (X, u = r X). `r` is a block index or weights [K]."""

    @staticmethod
    def forward(ctx: Any, stream: Tensor, read: int | Tensor, width: int) -> tuple[Tensor, Tensor]:
        x_KN = _rows(stream, width)
        block_shape = (stream.shape[0] // width, *stream.shape[1:])
        ctx.width, ctx.block = width, read if isinstance(read, int) else None
        if isinstance(read, int):
            u = x_KN[read].view(block_shape)
        else:
            ctx.save_for_backward(stream, read)
            u = (read @ x_KN.float()).to(stream.dtype).view(block_shape)
        return stream.view_as(stream), u

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None]:
        grad_stream, grad_u = grads
        # Only MixWrite consumes the handed-on stream, and its backward allocates this tensor: adding in place is safe.
        grad_stream = grad_stream.contiguous()
        dx_KN, du_N = _rows(grad_stream, ctx.width), grad_u.reshape(-1)
        if ctx.block is not None:
            dx_KN[ctx.block].add_(du_N)
            return grad_stream, None, None
        stream, read = ctx.saved_tensors
        du32_N = du_N.float()
        if dx_KN.dtype == torch.float32:
            dx_KN.addr_(read, du32_N)
        else:
            dx_KN.add_(torch.outer(read, du32_N))
        return grad_stream, _rows(stream, ctx.width).float() @ du32_N, None


class MixWrite(torch.autograd.Function):
    """(X, y, M, g) -> X' = M X + g (x) y. `mix` None is the identity."""

    @staticmethod
    def forward(ctx: Any, stream: Tensor, y: Tensor, mix: Tensor | None, write: Tensor) -> Tensor:
        ctx.save_for_backward(stream, y, mix, write)
        x_KN, y_N = _rows(stream, write.numel()).float(), y.reshape(-1).float()
        # The result owns its memory (it is no view): Megatron's pipeline frees what it has sent.
        out = torch.empty_like(stream, dtype=torch.float32)
        out_KN = _rows(out, write.numel())
        if mix is None:
            out_KN.copy_(x_KN)
        else:
            torch.mm(mix, x_KN, out=out_KN)
        out_KN.addr_(write, y_N)
        return out.to(stream.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        stream, y, mix, write = ctx.saved_tensors
        width, (grad,) = write.numel(), grads
        g_KN = _rows(grad.contiguous(), width).float()
        x_KN, y_N = _rows(stream, width).float(), y.reshape(-1).float()
        d_y = (write @ g_KN).to(y.dtype).view_as(y)
        d_write = g_KN @ y_N
        if mix is None:
            return grad.clone(), d_y, None, d_write
        d_stream = (mix.t() @ g_KN).to(stream.dtype).view_as(stream)
        return d_stream, d_y, g_KN @ x_KN.t(), d_write


def read(stream: Tensor, mixing: Mixing, width: int) -> tuple[Tensor, Tensor]:
    """What the layer computes on.

    Args:
        stream: [K*S, B, D].
    Returns:
        (stream, u): the stream to hand to `mix_and_write` (and to nothing else), and u = r X of shape [S, B, D].
    """
    return Read.apply(stream, mixing.read, width)


def mix_and_write(stream: Tensor, y: Tensor, mixing: Mixing) -> Tensor:
    """X' = M X + g (x) y.

    Args:
        stream: [K*S, B, D] as `read` returned it. y: [S, B, D], the layer's output.
    Returns:
        The next layer's stream, [K*S, B, D].
    """
    return MixWrite.apply(stream, y, mixing.mix, mixing.write)
