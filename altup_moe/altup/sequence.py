"""Sequence-AltUp: a layer runs on every s-th token, and all tokens are updated from what it found there.

Shape legend: S positions, s stride, A = ceil(S / s) windows of s positions (the last may be shorter), B samples, D
width. Window w is positions w s .. w s + s - 1, and its first one is the anchor: a(i) = floor(i / s) s. A layer F that
maps [A, B, D] to [A, B, D] costs 1 / s of what it costs on all tokens, its attention scores 1 / s^2.

| method | F runs on | y_i |
|---|---|---|
| `altup` | the anchors x_a | y^_i + b (F(x)_a(i) - y^_a(i)), where y^_i = a1 x_i + a2 x_a(i) |
| `stride_and_skip` | the anchors x_a | F(x)_i at anchors, x_i between them |
| `average_pool` | the windows' means p | F(p) of the window |

Source: Baykal et al., arXiv 2301.13310, section 4.2 and Algorithm 2 (`altup`), section 5 (the two baselines). Its
average pooling pools once before a range of layers and spreads once after it. The form here, layer by layer, is the
same function: once spread, a window's tokens are equal, and the next layer's mean of them is what the last one put out.
(In the decoder's form below it is not: a window's mean there reaches into the window before.)

Causality. The first two need nothing: an anchor is the first token of its window. A mean may only hold what precedes,
so `causal` pools the s tokens that END at the anchor, w s - s + 1 .. w s (the first window: the first token). Tokens
between anchors are lost to such layers, which makes it a control in decoders, not a way to train them.

Padding, at the ends of samples, is shared out over windows as if it were tokens. Where an anchor is padding, so is all
of its window. A mean (of an encoder) is that of the window's tokens, and of its paddings where it has no token: nothing
that stands on a padding reaches a token, if attention does not look at such windows (`all_padding`).

Coefficients (`altup` alone): predict = (a1, a2), correct = (b,), fp32 with fp32 gradients. They start as (1, 0) and 1,
as block AltUp's P = I and g = 1: y_i = x_i + (F(x) - x)_a(i), every token takes its anchor's update.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor


def initial_coefficients(method: str) -> dict[str, Tensor]:
    """Learned coefficients of a layer by name, fp32."""
    return {"predict": torch.tensor([1.0, 0.0]), "correct": torch.ones(1)} if method == "altup" else {}


def pools(method: str, causal: bool) -> bool:
    """Whether a window's input holds tokens of the window before (`pick` then takes them as ``before``)."""
    return method == "average_pool" and causal


def pick(
    x: Tensor, method: str, stride: int, causal: bool, before: Tensor | None = None, padding: Tensor | None = None
) -> Tensor:
    """What the layer computes on.

    Args:
        x: [S, B, D].
        causal: whether a position may only see earlier ones.
        before: [s - 1, B, D], the tokens before x where x is a later slice of a sequence. Only causal pooling reads it.
        padding: bool [S, B], True on padding; None is all tokens. Only pooling that is not causal reads it.
    Returns:
        [A, B, D].
    """
    if method != "average_pool":
        return x[::stride]
    if not causal:
        there = _windows(torch.ones_like(x[:, :1, :1]), stride)
        counts = there if padding is None else _windows((~padding)[..., None].to(x.dtype), stride)
        counts = torch.where(counts.sum(1, keepdim=True) > 0, counts, there)
        return (_windows(x, stride) * counts).sum(1) / counts.sum(1)
    if before is None:
        before = x[:1].expand(stride - 1, -1, -1)
    windows = -(-x.shape[0] // stride)
    return _windows(torch.cat([before, x])[: windows * stride], stride).mean(1)


def all_padding(padding: Tensor, stride: int) -> Tensor:
    """Which windows hold no token: bool [..., S], True on padding -> [..., A]."""
    missing = -padding.shape[-1] % stride
    return F.pad(padding, (0, missing), value=True).unflatten(-1, (-1, stride)).all(-1)


def place(x: Tensor, u: Tensor, y: Tensor, method: str, stride: int, coefficients: Mapping[str, Tensor]) -> Tensor:
    """All tokens after the layer.

    Args:
        x: [S, B, D], before it. u: [A, B, D], what `pick` gave. y: [A, B, D] = F(u).
    Returns:
        [S, B, D].
    """
    if method == "stride_and_skip":
        placed = torch.cat([y[:, None], _windows(x, stride)[:, 1:]], dim=1)
    elif method == "average_pool":
        placed = y[:, None].expand(-1, stride, -1, -1)
    else:
        (a1, a2), b = coefficients["predict"], coefficients["correct"]
        # What a window's tokens have in common: a2 x_a + b (F(x)_a - y^_a).
        full = torch.promote_types(x.dtype, torch.float32)
        update = (a2 - b * (a1 + a2)) * u.to(full) + b * y.to(full)
        placed = (a1 * _windows(x, stride).to(full) + update[:, None]).to(x.dtype)
    return placed.flatten(0, 1)[: x.shape[0]]


def _windows(x: Tensor, stride: int) -> Tensor:
    """[S, B, D] -> [A, s, B, D], a view where s divides S and filled up with zeros elsewhere."""
    missing = -x.shape[0] % stride
    padded = F.pad(x, (0, 0, 0, 0, 0, missing)) if missing else x
    return padded.unflatten(0, (-1, stride))
