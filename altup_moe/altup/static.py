"""Static variants: a layer's three weights (r, M, g) from its learned coefficients, the same for every token.

`altup_moe.altup.variants` names the functions below, the coefficients and their initial values.
Source: Baykal et al., AltUp, arXiv 2301.13310, Algorithm 1 (predict, compute, correct), rewritten in one line.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from altup_moe.altup.coefficients import SPREAD, InitialValue

MOST_FORGOTTEN = 0.1
"""Share of a block that a step of `wide_residual_kept` forgets at most (`retention_max_forget`)."""


@dataclass(frozen=True)
class Mixing:
    """The three weights of one layer, fp32.

    ``read``: the block index j where the layer reads block j alone, else weights [K].
    ``mix``: [K, K]. ``write``: [K]. ``branch``: whether the layer writes y - u, which it added to its input, and not
    its output y.
    """

    read: int | Tensor
    mix: Tensor
    write: Tensor
    branch: bool = False

    def written(self, u: Tensor, y: Tensor) -> Tensor:
        """What is written of a layer that turned u into y, both [S, B, D]."""
        return y - u if self.branch else y

    def around_branch(self) -> Mixing:
        """The same step around a branch, whose y comes without a residual: M X + g (u + y) = (M + g r) X + g y."""
        if self.branch:
            return replace(self, branch=False)
        width = self.write.numel()
        read = one_hot(width, self.read).to(self.write.device) if isinstance(self.read, int) else self.read
        return replace(self, mix=self.mix + torch.outer(self.write, read))


def one_hot(width: int, block: int) -> Tensor:
    """e_j: [K], fp32."""
    e = torch.zeros(width)
    e[block] = 1.0
    return e


def initial_value(initial: InitialValue, shape: tuple[int, ...], block: int) -> Tensor:
    """The initial value of a coefficient of a layer that computes on block `block`, fp32.

    Raises:
        ValueError: it is drawn at random (`parallel.seeds` draws it by the parameter's global name), or unknown.
    """
    match initial:
        case "identity":
            return torch.eye(*shape)
        case "one_hot":
            return one_hot(shape[0], block)
        case "ones":
            return torch.ones(shape)
        case "zeros":
            return torch.zeros(shape)
        case "mean_logit":
            return torch.full(shape, -math.log(shape[0] - 1) if shape[0] > 1 else math.inf)
        case "spread":
            return torch.linspace(-SPREAD, SPREAD, *shape)
    raise ValueError(
        f"a coefficient that starts as {initial!r} has no value of its own; identity, one_hot, ones, zeros, mean_logit "
        "and spread do"
    )


def masked(write: Tensor, block: int) -> Tensor:
    """The coefficient [K] without its entry for block `block`, which has no gradient then."""
    return write * (1 - one_hot(write.numel(), block)).to(write)


def plain(block: int, c: Mapping[str, Tensor]) -> Mixing:
    """A residual stream of one block: u = x, x' = x + (y - u)."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Mixing(0, torch.ones(1, 1, device=device), torch.ones(1, device=device), branch=True)


def altup(block: int, c: Mapping[str, Tensor]) -> Mixing:
    """Predict x^_i = sum_m P_im x_m, compute on the OLD block j, correct x_i = x^_i + g_i (y - x^_j)."""
    predict, correct = c["predict"], c["correct"]
    return Mixing(block, predict - torch.outer(correct, predict[block]), correct)


def gemma(block: int, c: Mapping[str, Tensor]) -> Mixing:
    """As `altup`, but the layer computes on the PREDICTED block x^_j (the static form of Gemma-3n's)."""
    return Mixing(c["predict"][block], altup(block, c).mix, c["correct"])


def round_robin(block: int, c: Mapping[str, Tensor]) -> Mixing:
    """Read a learned blend of all blocks, leave them as they are, add the scaled output to block j."""
    width = c["read"].numel()
    return Mixing(c["read"], torch.eye(width).to(c["read"]), one_hot(width, block).to(c["scale"]) * c["scale"])


def gemma_around_branches(block: int, c: Mapping[str, Tensor]) -> Mixing:
    """`gemma` around a branch: x_i = x^_i + g_i (x^_j + F(x^_j) - x^_j). M = P, in which nothing has to cancel."""
    return Mixing(c["predict"][block], c["predict"], c["correct"])


def gemma_of_change(block: int, c: Mapping[str, Tensor]) -> Mixing:
    """`gemma` that writes y - u instead of y - x^_j.

    These differ where u lacks the last output (altup.correct delayed): x^_j has it, and y - x^_j would take it out of
    all blocks again.
    """
    return replace(gemma_around_branches(block, c), branch=True)


def hyper_connections(block: int, c: Mapping[str, Tensor]) -> Mixing:
    """Static hyper-connections (arXiv 2409.19606), X' = M X + g (x) (y - u), around a whole layer.

    The paper has them around attention and feed-forward one by one, whose branches it writes without their residual. So
    does this: y - u, formed once. (M - g r and y would be the same function, but nearly all of r's gradient would
    cancel between its two places, and with it the digits of fp32.)
    """
    return Mixing(c["read"], c["mix"], c["write"], branch=True)


def wide_residual(block: int, c: Mapping[str, Tensor]) -> Mixing:
    """NVIDIA's wide residual stream (Megatron-LM's pulls 6716 and 7579, read in November 2026).

    u = sum_k sigmoid(r_k) x_k and x'_i = x_i + 2 sigmoid(g_i) (y - u): blocks are never mixed. r starts with sigmoid
    1 / K, g nearly at 0, with a small spread: the mean over the blocks is the plain Transformer.
    """
    eye = torch.eye(c["read"].numel()).to(c["read"])
    return Mixing(torch.sigmoid(c["read"]), eye, 2 * torch.sigmoid(c["write"]), branch=True)


def kept_wide_residual(block: int, c: Mapping[str, Tensor]) -> Mixing:
    """`wide_residual` with its learned retention: x'_i = k_i x_i + ..., k_i in (0.9, 1), 0.999 at first."""
    mixing = wide_residual(block, c)
    forgotten = MOST_FORGOTTEN * torch.sigmoid(-(c["keep"] + math.log(99)))
    return replace(mixing, mix=torch.diag(1 - forgotten))


def wide_residual_end(c: Mapping[str, Tensor]) -> Tensor:
    """The weights [K] with which the blocks of a wide residual stream are summed before the final norm."""
    return torch.sigmoid(c["read"])
