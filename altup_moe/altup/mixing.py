"""Reading from and writing to the wide stream, with their derivatives: at once, or deferred.

A step turns the stream x [K blocks] into M x + g (x) y, and the next one reads r' of that. At once (`read`,
`mix_and_write`) all of it waits for the step's output y. Deferred, the product is taken apart:

    x' = H' + g (x) y,  H' = M x              `look_ahead`: one pass, does not know y: any time during the step
    u' = r' H' + (r' . g) y                   `catch_up`: one axpy on one block, once y is there

and x' itself is never formed: the next pass reads [H'; y] (`Pending`). Only what ends a chunk of layers is written out
(`write_back`). Every pass is one small matrix times the blocks (`altup.kernels`).

Two steps may share a pass (`join`), where the first has nothing to hide one under: with M, g of the first,
x' = (M W) [H; ys] + g (x) y stays unformed as well, and what the second reads,

    u' = a + c . [ys; y],  a = r' M H         `catch_up`: a comes from the pass before, as a row of its own

is another axpy. So a layer of two steps needs one pass, of K + 2 blocks, in the window of the second one.

Where outputs are delayed (altup.correct), the next read is r' H' alone (`read_ahead`, `write_later`): nothing waits.

Coefficients are fp32 and so are their gradients, whatever the stream's dtype. K blocks, S positions, B samples, D
width of a block; a stream is [K*S, B, D]; N = S*B*D.

Why the functions hand tensors on: the stream has two consumers, and left to autograd a read's gradient would be a
K-block tensor of mostly zeros, added to another one. The read therefore passes the stream through, and in the
backward pass adds its gradient in place to the block it is for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from altup_moe.altup.kernels import Kernel
from altup_moe.altup.static import Mixing
from altup_moe.timeline.spans import span


@dataclass(frozen=True)
class Pending:
    """The stream W [blocks; outputs], not yet formed; without outputs, the blocks themselves.

    ``blocks`` [K*S, B, D]; ``outputs``: up to two of [S, B, D]; ``weights``: W [K, K + n] fp32.
    """

    blocks: Tensor
    outputs: tuple[Tensor, ...] = ()
    weights: Tensor | None = None

    def mixed(self, rows: Tensor) -> Tensor:
        """rows W, [R, K + n], of rows [R, K] on the stream."""
        return rows if self.weights is None else rows @ self.weights


@dataclass(frozen=True)
class Reading:
    """The next read of the stream: a block's index or weights [K].

    ``last``: it is the last read of the stream. ``through``: r'' M' [K], the read after it through the next step's
    mix, where that step joins its pass to the one after it. ``weights`` None: they follow from the stream
    (`altup.per_token`).
    """

    weights: int | Tensor | None
    last: bool = False
    through: Tensor | None = None


@dataclass(frozen=True)
class Ahead:
    """Result of `look_ahead`: ``blocks`` H' [K*S, B, D]; ``a`` = r' H' [S, B, D] unless ``a`` is a block of H'; and
    ``through`` = r'' M' H' [S, B, D], if it was asked for."""

    blocks: Tensor | None
    a: Tensor | None
    through: Tensor | None = None


def _rows(stream: Tensor, width: int) -> Tensor:
    """Stream [K*S, B, D] -> X [K, N]."""
    return stream.view(width, -1)


class OnePass(torch.autograd.Function):
    """(x, W [R, C], ys) -> W [x; ys]: the first K rows as a stream (None unless asked for), then each other row."""

    @staticmethod
    def forward(
        ctx: Any, stream: Tensor, weights: Tensor, width: int, keep: bool, kernel: Kernel, *ys: Tensor
    ) -> tuple[Tensor | None, ...]:
        ctx.save_for_backward(stream, weights, *ys)
        ctx.width, ctx.kernel = width, kernel
        with span("mix"):
            out_RN = kernel.forward(_rows(stream, width), _flat(ys), weights)
        first = width if keep else 0
        block_shape = (stream.shape[0] // width, *stream.shape[1:])
        return out_RN[:width].view_as(stream) if keep else None, *(row.view(block_shape) for row in out_RN[first:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        stream, weights, *ys = ctx.saved_tensors
        d_blocks, *rest = grads
        with span("mix", backward=True):
            singles = _flat(tuple(d for d in rest if d is not None))
            if d_blocks is not None:
                d_RN = _rows(d_blocks.contiguous(), ctx.width)
            else:
                d_RN, singles = singles[0][None], singles[1:]
            d_x, d_ys, d_w = ctx.kernel.backward(d_RN, singles, _rows(stream, ctx.width), _flat(ys), weights)
        d_outputs = (d_y.view_as(y) for d_y, y in zip(d_ys, ys, strict=True))
        return d_x.view_as(stream), d_w, None, None, None, *d_outputs


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
            # Only a pass consumes the handed-on stream, or a write whose stream a pass does, and the pass's backward
            # allocates this tensor: adding in place is safe.
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
    """(held, c [n], ys) -> (held, ys, u = a + c . ys): the only step that needs the last of ys.

    `held` is a itself, or with `block` the stream whose block is a. It and ys are handed on to the next pass.
    """

    @staticmethod
    def forward(
        ctx: Any, held: Tensor, c: Tensor, block: int | None, kernel: Kernel, *ys: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(c, *ys)
        ctx.block, ctx.kernel = block, kernel
        a_N = held.view(-1, ys[0].numel())[block or 0]
        with span("axpy"):
            u = _axpy(kernel, a_N, c, _flat(ys)).view_as(ys[0])
        return held.view_as(held), *(y.view_as(y) for y in ys), u

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        c, *ys = ctx.saved_tensors
        d_held, *d_ys, d_u = grads
        assert d_u is not None
        with span("axpy", backward=True):
            du_N = d_u.reshape(-1)
            if ctx.block is None:
                d_held = d_u
            else:
                assert d_held is not None
                # As in Read: the next pass allocated it, and nothing else holds it.
                d_held = d_held.contiguous()
                d_held.view(-1, du_N.numel())[ctx.block].add_(du_N)
            d_c = torch.stack([torch.dot(du_N.float(), y_N.float()) for y_N in _flat(ys)])
            for n, (d_y, weight) in enumerate(zip(d_ys, c, strict=True)):
                if d_y is None:
                    d_ys[n] = (weight * d_u.float()).to(d_u.dtype)
                else:
                    d_ys[n] = _axpy(ctx.kernel, d_y.reshape(-1), weight[None], (du_N,)).view_as(d_u)
        return d_held, d_c, None, None, *d_ys


class WriteBack(torch.autograd.Function):
    """(x, y, g [K]) -> x + g (x) y. Its gradients need y and g alone: the blocks are not kept."""

    @staticmethod
    def forward(ctx: Any, stream: Tensor, y: Tensor, write: Tensor, kernel: Kernel) -> Tensor:
        ctx.save_for_backward(y, write)
        ctx.kernel = kernel
        with span("mix"):
            out_KN = kernel.forward(_rows(stream, write.numel()), _flat((y,)), _unmixed(write))
        return out_KN.view_as(stream)

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        y, write = ctx.saved_tensors
        with span("mix", backward=True):
            d_KN, y32_N = _rows(d_out.contiguous(), write.numel()), y.reshape(-1).float()
            d_y = ctx.kernel.forward(d_KN, (), write[None])[0].view_as(y)
            d_write = torch.stack([torch.dot(d_N.float(), y32_N) for d_N in d_KN])
        return d_out, d_y, d_write, None


def _axpy(kernel: Kernel, a_N: Tensor, c: Tensor, ys: tuple[Tensor, ...]) -> Tensor:
    """a + c . ys, [N], in one pass with c [n] in fp32."""
    return kernel.forward(a_N[None], ys, torch.cat([c.new_ones(1), c])[None])[0]


def _flat(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple(tensor.reshape(-1) for tensor in tensors)


def read(stream: Tensor, weights: int | Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Read from the stream [K*S, B, D]: a block, or with weights r [K].

    Returns:
        (stream, u): the stream for the next pass or read (and for no other use), and u = r X of shape [S, B, D].
    """
    return Read.apply(stream, weights, width)


def mix_and_write(stream: Tensor, y: Tensor, mixing: Mixing, kernel: Kernel) -> Tensor:
    """X' = M X + g (x) y in one pass, once y is known.

    Args:
        stream: [K*S, B, D] as `read` returned it. y: [S, B, D], the step's output.
    Returns:
        The next step's stream, [K*S, B, D].
    """
    weights = torch.cat([mixing.mix, mixing.write[:, None]], dim=1)
    return OnePass.apply(stream, weights, mixing.write.numel(), True, kernel, y)[0]


def look_ahead(stream: Pending, mixing: Mixing, reading: Reading | None, kernel: Kernel) -> Ahead:
    """The pass that does not need the step's output: H' = M x, a = r' H', and r'' M' H' for a step that joins.

    ``reading``: the next read r'; None at the end of a chunk, which has no next read.
    """
    width = mixing.write.numel()
    keep = reading is None or not reading.last
    read = None if reading is None or isinstance(reading.weights, int) else reading.weights
    through = None if reading is None else reading.through
    extra = [row[None] for row in (read, through) if row is not None]
    mixed = stream.mixed(mixing.mix)
    rows = torch.cat([mixed] * keep + [row @ mixed for row in extra])
    blocks, *found = OnePass.apply(stream.blocks, rows, width, keep, kernel, *stream.outputs)
    return Ahead(blocks, found[0] if read is not None else None, found[-1] if through is not None else None)


def catch_up(
    ahead: Ahead, y: Tensor, mixing: Mixing, reading: Reading, kernel: Kernel
) -> tuple[Pending | None, Tensor]:
    """The step that needs the output y [S, B, D].

    Returns:
        The stream H' + g (x) y as the next step takes it (None after the last reading), and u' [S, B, D].
    """
    weights = _unmixed(mixing.write)
    if isinstance(reading.weights, int):
        c, block = mixing.write[reading.weights, None], reading.weights
        blocks, y, u = CatchUp.apply(ahead.blocks, c, block, kernel, y)
        return Pending(blocks, (y,), weights), u
    assert reading.weights is not None
    _, y, u = CatchUp.apply(ahead.a, (reading.weights @ mixing.write)[None], None, kernel, y)
    return None if ahead.blocks is None else Pending(ahead.blocks, (y,), weights), u


def read_ahead(ahead: Ahead, reading: Reading | None, width: int) -> Ahead:
    """Where the next read does not see the step's output: with ``a`` also where it is a block of H'."""
    if reading is None or not isinstance(reading.weights, int):
        return ahead
    assert ahead.blocks is not None
    blocks, a = read(ahead.blocks, reading.weights, width)
    return Ahead(blocks, a, ahead.through)


def write_later(ahead: Ahead, y: Tensor, mixing: Mixing) -> Pending:
    """The stream H' + g (x) y as the next step takes it, whose input (``ahead.a``) does not see y [S, B, D]."""
    assert ahead.blocks is not None
    return Pending(ahead.blocks, (y,), _unmixed(mixing.write))


def join(
    stream: Pending, a: Tensor | None, y: Tensor, mixing: Mixing, reading: Reading, kernel: Kernel
) -> tuple[Pending, Tensor]:
    """A step without a pass of its own, whose output y [S, B, D] is known: the next one's mixes for both.

    Args:
        a: r' M H [S, B, D] of the stream's blocks H, from `look_ahead`; None reads it now, of a stream that is formed.
    Returns:
        The stream M x + g (x) y, unformed, and u' [S, B, D].
    """
    width = mixing.write.numel()
    weights = torch.cat([stream.mixed(mixing.mix), mixing.write[:, None]], dim=1)
    assert reading.weights is not None
    row = weights[reading.weights] if isinstance(reading.weights, int) else reading.weights @ weights
    blocks = stream.blocks
    if a is None:
        blocks, a = read(blocks, row[:width], width)
    _, *outputs, u = CatchUp.apply(a, row[width:], None, kernel, *stream.outputs, y)
    return Pending(blocks, tuple(outputs), weights), u


def write_back(blocks: Tensor, y: Tensor, write: Tensor, kernel: Kernel) -> Tensor:
    """The stream that leaves a chunk of layers: blocks + write (x) y, [K*S, B, D]."""
    return WriteBack.apply(blocks, y, write, kernel)


def _unmixed(write: Tensor) -> Tensor:
    """[I | g], of a stream whose blocks stay as they are, [K, K + 1]."""
    return torch.cat([torch.eye(write.numel(), device=write.device), write[:, None]], dim=1)
