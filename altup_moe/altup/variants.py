"""A variant of the wide stream is three small weights per layer: what it reads, how it mixes, where it writes.

For a token's state X in R^{K x d} and a layer F that computes on one block of width d:

    u  = r X                    read
    y  = F(u)                   compute
    X' = M X + g (x) y          mix and write

A `Variant` names the learned coefficients of a layer with their initial values and turns them into (r, M, g).
Source: Baykal et al., AltUp, arXiv 2301.13310, Algorithm 1 (predict, compute, correct), rewritten in one line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Mixing:
    """The three weights of one layer, fp32.

    ``read``: the block index j where the layer reads block j alone, else weights [K].
    ``mix``: [K, K]. ``write``: [K]. ``branch``: whether what is written is not the layer's output y but what the layer
    added to its input, y - u.
    """

    read: int | Tensor
    mix: Tensor
    write: Tensor
    branch: bool = False

    def written(self, u: Tensor, y: Tensor) -> Tensor:
        """What is written of a layer that turned u into y, both [S, B, D]."""
        return y - u if self.branch else y


@dataclass(frozen=True)
class Variant:
    """One row of the table.

    ``initial(K, j)`` gives the layer's learned coefficients by name (fp32) for width K and selected block j;
    ``mixing(j, coefficients)`` turns them into a `Mixing`.
    """

    initial: Callable[[int, int], dict[str, Tensor]]
    mixing: Callable[[int, Mapping[str, Tensor]], Mixing]


def one_hot(width: int, block: int) -> Tensor:
    """e_j: [K], fp32."""
    e = torch.zeros(width)
    e[block] = 1.0
    return e


def predict_and_correct(width: int, block: int) -> dict[str, Tensor]:
    """P = I [K, K] and g = 1 [K]: with equal blocks the layer then equals the plain Transformer's."""
    return {"predict": torch.eye(width), "correct": torch.ones(width)}


def altup(block: int, c: Mapping[str, Tensor]) -> Mixing:
    """Predict x^_i = sum_m P_im x_m, compute on the OLD block j, correct x_i = x^_i + g_i (y - x^_j)."""
    predict, correct = c["predict"], c["correct"]
    return Mixing(block, predict - torch.outer(correct, predict[block]), correct)


def gemma(block: int, c: Mapping[str, Tensor]) -> Mixing:
    """As `altup`, but the layer computes on the PREDICTED block x^_j (the static form of Gemma-3n's)."""
    return Mixing(c["predict"][block], altup(block, c).mix, c["correct"])


def round_robin(block: int, c: Mapping[str, Tensor]) -> Mixing:
    """Read a learned blend of all blocks, leave them as they are, add the scaled output to block j."""
    device, width = c["scale"].device, c["read"].numel()
    return Mixing(c["read"], torch.eye(width, device=device), one_hot(width, block).to(device) * c["scale"])


def connections(width: int, block: int) -> dict[str, Tensor]:
    """r = e_j, M = I, g = 1, as in arXiv 2409.19606: with equal blocks the plain Transformer's layer."""
    return {"read": one_hot(width, block), "mix": torch.eye(width), "write": torch.ones(width)}


def hyper_connections(block: int, c: Mapping[str, Tensor]) -> Mixing:
    """Static hyper-connections (arXiv 2409.19606), X' = M X + g (x) (y - u), around a whole layer.

    The paper has them around attention and feed-forward one by one, whose branches it writes without their residual. So
    does this: y - u, formed once. (M - g r and y would be the same function, but nearly all of r's gradient would
    cancel between its two places, and with it the digits of fp32.)
    """
    return Mixing(c["read"], c["mix"], c["write"], branch=True)


VARIANTS: dict[str, Variant] = {
    "altup": Variant(predict_and_correct, altup),
    "gemma": Variant(predict_and_correct, gemma),
    "round_robin": Variant(lambda k, j: {"read": one_hot(k, j), "scale": torch.ones(1)}, round_robin),
    "hc": Variant(connections, hyper_connections),
}
"""Variants with a block-structured stream and three weights a layer. `sum` has no such stream (its wide embedding is
summed before the first layer), and `dynamic` computes its weights for every token (`altup.dynamic`)."""


def selected_block(layer: int, width: int, select: str) -> int:
    """Block that layer `layer` (from 0) computes on: l mod K (`alternating`) or always 0 (`same`)."""
    return layer % width if select == "alternating" else 0
