"""AltUp whose coefficients are computed for every token: Gemma-3n's form, `Gemma3nTextAltUp` in transformers.

    m(z) = tanh(R norm(z) / D)                          what a block of a token asks for, K numbers
    x^_i = x_i + sum_k C(m(x_j))_ik x_k                 predict: the identity and a change
    y    = F(x^_j)                                      compute on the PREDICTED block j
    x'_i = x^_i + (1 + G m(y))_i (y - x^_j)             correct

with the learned R ``router`` [K, D], the norm's weight ``router_norm`` [D], C ``prediction`` [K*K, K] (row i*K + k
makes C_ik) and G ``correction`` [K, K]. At both ends of the stream K - 1 learned matrices [D, D] make the blocks from
the embedding and bring them back, each time scaled to the magnitude of block 0 (`expand`, `contract`).

Gemma's ``correct_output_scale`` has no place here: it scales a copy of the active block that only its per-layer
embeddings read, and never touches the stream.

Shape legend: K blocks, S positions, B samples, D width of a block; a stream is [K*S, B, D]. Coefficients are fp32, and
everything is computed in fp32 (float64 stays), whatever the stream's dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

MAGNITUDE_FLOOR = 1e-5
"""Smallest mean square of a projected block that is scaled up to block 0's magnitude in full."""

Projection = Callable[[Tensor], Tensor]
"""[..., D] -> [..., D], linear."""


@dataclass(frozen=True)
class Dynamic:
    """One layer's settings.

    ``block``: the active block j. ``eps``: of the router's norm. ``clip``: largest magnitude of a weight of
    ``prediction`` and ``correction`` that is used; the weights themselves are left alone.
    """

    block: int
    eps: float
    clip: float | None = None


def at_least_fp32(x: Tensor) -> Tensor:
    """Half types become fp32, the rest stays."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def _modalities(z_SBD: Tensor, c: Mapping[str, Tensor], eps: float) -> Tensor:
    """m(z): [S, B, K]."""
    z_SBD = at_least_fp32(z_SBD)
    normed = F.rms_norm(z_SBD, z_SBD.shape[-1:], c["router_norm"], eps)
    return torch.tanh(F.linear(normed / z_SBD.shape[-1], c["router"]))


def _clipped(weight: Tensor, clip: float | None, passing: bool) -> Tensor:
    """The weight as it is used. ``passing``: whether one beyond the clip still has a gradient."""
    if clip is None:
        return weight
    used = weight.clamp(-clip, clip)
    return weight + (used - weight).detach() if passing else used


def predict(stream: Tensor, c: Mapping[str, Tensor], layer: Dynamic) -> Tensor:
    """The predicted blocks x^, [K*S, B, D], from the stream [K*S, B, D].

    Gemma cuts the weights of C to the clip in place, in training: the next gradient reaches them all the same.
    """
    k = c["correction"].shape[0]
    x_KSBD = at_least_fp32(stream.view(k, -1, *stream.shape[1:]))
    wanted_SBK = _modalities(x_KSBD[layer.block], c, layer.eps)
    change_SBKK = F.linear(wanted_SBK, _clipped(c["prediction"], layer.clip, passing=True)).unflatten(-1, (k, k))
    predicted_KSBD = x_KSBD + torch.einsum("sbik,ksbd->isbd", change_SBKK, x_KSBD)
    return predicted_KSBD.to(stream.dtype).contiguous().view_as(stream)


def active(stream: Tensor, layer: Dynamic, width: int) -> Tensor:
    """Block j of a stream of `width` blocks: [S, B, D]."""
    return stream.chunk(width)[layer.block]


def correct(predicted: Tensor, y_SBD: Tensor, c: Mapping[str, Tensor], layer: Dynamic) -> Tensor:
    """The next stream [K*S, B, D], from the predicted blocks [K*S, B, D] and the layer's output y.

    Here Gemma clips a copy, as we do: weights of G beyond the clip have no gradient.
    """
    k = c["correction"].shape[0]
    gains_SBK = 1 + F.linear(_modalities(y_SBD, c, layer.eps), _clipped(c["correction"], layer.clip, passing=False))
    innovation_SBD = at_least_fp32(y_SBD) - at_least_fp32(active(predicted, layer, k))
    corrections_KSBD = gains_SBK.movedim(-1, 0).unsqueeze(-1) * innovation_SBD
    return (at_least_fp32(predicted) + corrections_KSBD.reshape(predicted.shape)).to(predicted.dtype)


def _mean_square(x: Tensor) -> Tensor:
    return at_least_fp32(x).square().mean(-1, keepdim=True)


def _matched(x: Tensor, to: Tensor) -> Tensor:
    """x with the root mean square over features that `to` has."""
    # The first floor is there for rows of zeros alone: their root has no gradient.
    target = _mean_square(to).clamp(min=torch.finfo(torch.float32).tiny).sqrt()
    return (at_least_fp32(x) * target / _mean_square(x).clamp(min=MAGNITUDE_FLOOR).sqrt()).to(x.dtype)


def expand(embedded_SBD: Tensor, projections: Sequence[Projection]) -> Tensor:
    """The embedding as block 0, and its K - 1 projections of the same magnitude: [K*S, B, D].

    Source: `altup_projections` in transformers' Gemma3nTextModel.
    """
    return torch.cat([embedded_SBD, *(_matched(project(embedded_SBD), embedded_SBD) for project in projections)])


def contract(stream: Tensor, projections: Sequence[Projection]) -> Tensor:
    """The mean of block 0 and the other blocks' projections, each of block 0's magnitude: [S, B, D].

    Source: `altup_unembed_projections` in transformers' Gemma3nTextModel.
    """
    first, *others = stream.chunk(len(projections) + 1)
    back = [_matched(project(block), first) for project, block in zip(projections, others, strict=True)]
    return torch.stack([at_least_fp32(block) for block in (first, *back)]).mean(0).to(stream.dtype)
