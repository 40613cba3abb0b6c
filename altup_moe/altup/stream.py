"""The wide stream: K blocks of width d, K-major.

Shape legend: K blocks, S positions, B samples, D width of a block. A stream is [K*S, B, D]: block k is the
contiguous slice [k*S : (k+1)*S], so a Transformer block or a pipeline schedule sees a longer sequence and nothing else.
"""

from __future__ import annotations

from torch import Tensor

from altup_moe.altup.shape import stream_width
from altup_moe.altup.variants import find_variant


def split_blocks(wide_SBE: Tensor, width: int) -> Tensor:
    """[S, B, K*D] (block k is features [k*D : (k+1)*D]) -> stream [K*S, B, D]."""
    s, b, e = wide_SBE.shape
    return wide_SBE.view(s, b, width, e // width).permute(2, 0, 1, 3).reshape(width * s, b, e // width)


def join_blocks(stream: Tensor, width: int) -> Tensor:
    """Stream [K*S, B, D] -> [S, B, K*D], the inverse of `split_blocks`."""
    ks, b, d = stream.shape
    return stream.view(width, ks // width, b, d).permute(1, 2, 0, 3).reshape(ks // width, b, width * d)


def copy_blocks(narrow_SBD: Tensor, width: int) -> Tensor:
    """Recycled-AltUp's start: [S, B, D] -> K equal blocks [K*S, B, D] (arXiv 2301.13310, section 4.1)."""
    return narrow_SBD.repeat(width, 1, 1)


def sum_blocks(stream: Tensor, width: int) -> Tensor:
    """Recycled-AltUp's end: stream [K*S, B, D] -> sum over blocks [S, B, D]."""
    ks, b, d = stream.shape
    return stream.view(width, ks // width, b, d).sum(0)


def sum_features(wide_SBE: Tensor, width: int) -> Tensor:
    """The control `sum`: the K blocks of a wide embedding [S, B, K*D] added up to [S, B, D]."""
    s, b, e = wide_SBE.shape
    return wide_SBE.view(s, b, width, e // width).sum(2)


def widen(embedding: Tensor, width: int, variant: str, recycled: bool) -> Tensor:
    """Embedding output, [S, B, D] (recycled or K = 1) or [S, B, K*D], to what enters the first layer."""
    if width == 1:
        return embedding
    if not find_variant(variant).blocks:
        return sum_features(embedding, width)
    return copy_blocks(embedding, width) if recycled else split_blocks(embedding, width)


def narrow(stream: Tensor, width: int, variant: str, recycled: bool) -> Tensor:
    """What leaves the last layer to what the final norm sees: [S, B, D], or [S, B, K*D] with wide tables."""
    if stream_width(width, variant) == 1:
        return stream
    return sum_blocks(stream, width) if recycled else join_blocks(stream, width)
