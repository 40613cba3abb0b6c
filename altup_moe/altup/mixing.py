"""Reading from and writing to the wide stream, with their derivatives: at once, or deferred.

A layer turns the stream x [K blocks] into M x + g (x) y, and the next one reads r' of that. At once (`read`,
`mix_and_write`) all of it waits for the layer's output y. Deferred, the product is taken apart:

    x' = H' + g (x) y,  H' = M x              `look_ahead`: one pass, does not know y: any time during the layer
    u' = r' H' + (r' . g) y                   `catch_up`: one axpy on one block, once y is there

and x' itself is never formed: the next pass reads [H'; y] (`Pending`). Only what ends a chunk of layers is written out
(`write_back`). Every pass is one small matrix times the blocks (`altup.kernels`).

Coefficients are fp32 and so are their gradients, whatever the stream's dtype. K blocks, S positions, B samples, D
width of a block; a stream is [K*S, B, D]; N = S*B*D.

Why the functions hand tensors on: the stream has two consumers, and left to autograd a read's gradient would be a
K-block tensor of mostly zeros, added to another one. The read therefore passes the stream through, and in the
backward pass adds its gradient in place to the block it is for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from altup_moe.altup.kernels import Kernel
from altup_moe.altup.static import Mixing
from altup_moe.timeline.spans import span


@dataclass(frozen=True)
class Pending:
    """The stream blocks + write (x) y, with y not yet written; or, without y, the stream itself.

    ``blocks`` [K*S, B, D], ``y`` [S, B, D], ``write`` [K] fp32.
    """

    blocks: Tensor
    y: Tensor | None = None
    write: Tensor | None = None


@dataclass(frozen=True)
class Reading:
    """The next read of the stream: a block's index or weights [K]. ``last``: it is the last read of the stream.

    None: the weights follow from the stream (`altup.per_token`).
    """

    weights: int | Tensor | None
    last: bool = False


@dataclass(frozen=True)
class Ahead:
    """Result of `look_ahead`: ``blocks`` H' [K*S, B, D], and ``a`` = r' H' [S, B, D] unless ``a`` is a block of H'."""

    blocks: Tensor | None
    a: Tensor | None


def _rows(stream: Tensor, width: int) -> Tensor:
    """Stream [K*S, B, D] -> X [K, N]."""
    return stream.view(width, -1)


class OnePass(torch.autograd.Function):
    """(x, y or None, W [R, C]) -> W [x; y], as (first K rows or None, the row after them or None)."""

    @staticmethod
    def forward(
        ctx: Any, stream: Tensor, y: Tensor | None, weights: Tensor, width: int, keep: bool, kernel: Kernel
    ) -> tuple[Tensor | None, Tensor | None]:
        ctx.save_for_backward(stream, y, weights)
        ctx.width, ctx.keep, ctx.kernel = width, keep, kernel
        with span("mix"):
            out_RN = kernel.forward(_rows(stream, width), None if y is None else y.reshape(-1), weights)
        blocks = out_RN[:width].view_as(stream) if keep else None
        extra = out_RN.shape[0] - (width if keep else 0)
        a = out_RN[-1].view(stream.shape[0] // width, *stream.shape[1:]) if extra else None
        return blocks, a

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        stream, y, weights = ctx.saved_tensors
        d_blocks, d_a = grads
        with span("mix", backward=True):
            rows = [] if d_blocks is None else [_rows(d_blocks.contiguous(), ctx.width)]
            if d_a is not None:
                rows.append(d_a.reshape(1, -1))
            d_RN = rows[0] if len(rows) == 1 else torch.cat(rows)
            y_N = None if y is None else y.reshape(-1)
            d_x, d_y, d_w = ctx.kernel.backward(d_RN, _rows(stream, ctx.width), y_N, weights)
        return d_x.view_as(stream), None if y is None else d_y.view_as(y), d_w, None, None, None


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
            with span("mix"):
                u = (read @ x_KN.float()).to(stream.dtype).view(block_shape)
        return stream.view_as(stream), u

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None]:
        grad_stream, grad_u = grads
        with span("mix", backward=True):
            # Only a pass consumes the handed-on stream, and its backward allocates this tensor: adding in place is
            # safe.
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


class CatchUp(torch.autograd.Function):
    """(held, y, c) -> (held, y, u = a + c y): the only step that needs y.

    `held` is a itself, or with `block` the stream whose block is a. It and y are handed on to the next pass.
    """

    @staticmethod
    def forward(
        ctx: Any, held: Tensor, y: Tensor, c: Tensor, block: int | None, kernel: Kernel
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(y, c)
        ctx.block, ctx.kernel = block, kernel
        a_N = held.view(-1, y.numel())[block or 0]
        with span("axpy"):
            u = _axpy(kernel, a_N, y.reshape(-1), c).view_as(y)
        return held.view_as(held), y.view_as(y), u

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        y, c = ctx.saved_tensors
        d_held, d_y, d_u = grads
        assert d_u is not None
        with span("axpy", backward=True):
            du_N = d_u.reshape(-1)
            if ctx.block is None:
                d_held = d_u
            else:
                assert d_held is not None
                # As in Read: the next pass allocated it, and nothing else holds it.
                d_held = d_held.contiguous()
                d_held.view(-1, y.numel())[ctx.block].add_(du_N)
            d_c = torch.dot(du_N.float(), y.reshape(-1).float())
            if d_y is None:
                d_y = (c * d_u.float()).to(d_u.dtype)
            else:
                d_y = _axpy(ctx.kernel, d_y.reshape(-1), du_N, c).view_as(y)
        return d_held, d_y, d_c, None, None


def _axpy(kernel: Kernel, a_N: Tensor, y_N: Tensor, c: Tensor) -> Tensor:
    """a + c y, [N], in one pass with c in fp32."""
    return kernel.forward(a_N[None], y_N, torch.stack([torch.ones_like(c), c])[None])[0]


def read(stream: Tensor, mixing: Mixing, width: int) -> tuple[Tensor, Tensor]:
    """Read the layer's input from the stream.

    Args:
        stream: [K*S, B, D].
    Returns:
        (stream, u): the stream for the layer's pass (and for no other use), and u = r X of shape [S, B, D].
    """
    return Read.apply(stream, mixing.read, width)


def mix_and_write(stream: Tensor, y: Tensor, mixing: Mixing, kernel: Kernel) -> Tensor:
    """X' = M X + g (x) y in one pass, once y is known.

    Args:
        stream: [K*S, B, D] as `read` returned it. y: [S, B, D], the layer's output.
    Returns:
        The next layer's stream, [K*S, B, D].
    """
    weights = torch.cat([mixing.mix, mixing.write[:, None]], dim=1)
    return OnePass.apply(stream, y, weights, mixing.write.numel(), True, kernel)[0]


def look_ahead(stream: Pending, mixing: Mixing, reading: Reading | None, kernel: Kernel) -> Ahead:
    """The pass that does not need the layer's output: H' = M x, and a = r' H'. ``reading``: the next read r'; None at
    the end of a chunk, which has no next read.
    """
    width, rows = mixing.write.numel(), mixing.mix
    if stream.write is not None:
        rows = torch.cat([rows, (rows @ stream.write)[:, None]], dim=1)
    keep = reading is None or not reading.last
    if reading is not None and not isinstance(reading.weights, int):
        assert reading.weights is not None
        extra = (reading.weights @ rows)[None]
        rows = torch.cat([rows, extra]) if keep else extra
    return Ahead(*OnePass.apply(stream.blocks, stream.y, rows, width, keep, kernel))


def catch_up(
    ahead: Ahead, y: Tensor, mixing: Mixing, reading: Reading, kernel: Kernel
) -> tuple[Pending | None, Tensor]:
    """The step that needs the layer's output y [S, B, D].

    Returns:
        The stream H' + g (x) y as the next layer takes it (None after the last reading), and u' [S, B, D].
    """
    if isinstance(reading.weights, int):
        blocks, y, u = CatchUp.apply(ahead.blocks, y, mixing.write[reading.weights], reading.weights, kernel)
        return Pending(blocks, y, mixing.write), u
    assert reading.weights is not None
    _, y, u = CatchUp.apply(ahead.a, y, reading.weights @ mixing.write, None, kernel)
    return None if ahead.blocks is None else Pending(ahead.blocks, y, mixing.write), u


def write_back(blocks: Tensor, y: Tensor, write: Tensor, kernel: Kernel) -> Tensor:
    """The stream that leaves a chunk of layers: blocks + write (x) y, [K*S, B, D]."""
    return mix_and_write(blocks, y, Mixing(0, torch.eye(write.numel(), device=write.device), write), kernel)
