"""AltUp coefficients of a layer when the stream becomes wider. Pure functions of one tensor.

A stream of K blocks becomes one of K' = m K: new block i is a copy of old block i mod K. Of a block's m copies the
layer computes on one, j' = l mod K' (or 0). Since j' mod K = j, the layer gets the same input as before.

Every layer but the last: P' = I_m (x) P and g' = (g, g, ..., g). Copy t is predicted from the blocks of copy t and
corrected as before, so the copies stay equal. (P / m everywhere would preserve the function too, but it has rank K: the
next layer would average away any later difference between copies. I_m (x) P has m times the rank of P, and turns P = I
into the I of a new model.)

The last layer of a recycled stream: the final norm reads the sum of the blocks. The sum of m equal copies is m times
the old sum, and the norm cancels that factor only up to its epsilon. So each copy carries a share of its block,

    x'_i = share_i x^_c + (g_c / m) (y - x^_j)      c = i mod K

where share_i = 1 / m for c != j. For c = j, block j' must be predicted in full, since the correction subtracts x^_j;
the other copies of j predict 0. The sum over the copies of c is x^_c + g_c (y - x^_j), the old block. Other shares are
impossible: for c = j the sum is (1 + sum of the other shares) x^_j.

In training the copies come apart: from the first step on, the gradients of P' and g' differ between blocks that a
layer computes on and copies that are only carried along. But P' never mixes two copies of the K blocks. Two copies
of which no layer computes on any block (`identical_blocks`) have equal gradients in every step, so only noise
separates them.

A plain Transformer (K = 1) is P = [1], g = [1]: x' = x + (y - x) = y.

`round_robin` adds to one block and has no correction, so copies cannot stay equal. But its input and the model's
output are sums over blocks, so it suffices that the copies SUM to the old block: the recycled embedding is divided by
m, the read row is repeated, and each write goes to one of the copies.

`hc` reads the correction's input by itself (u = r X), so its layers read the set of copies that contains j'. In the
last layer of a recycled stream every copy has an equal share: M' = (I_m (x) M) / m, g' = (g, ..., g) / m.
"""

from __future__ import annotations

import torch
from torch import Tensor

from altup_moe.altup.coefficients import Coefficient
from altup_moe.altup.static import initial_value, one_hot
from altup_moe.altup.variants import Level, selected_block


def neutral_value(coefficient: Coefficient, width: int, hidden_size: int, block: int, level: Level = "layer") -> Tensor:
    """A coefficient of a layer that leaves a stream of `width` blocks as it is, if its output equals its input. fp32.

    P = I, g = 1; for `round_robin`, which adds, scale 0; for `hc` r = e_j, M = I, g = 1. A branch that gives 0 leaves
    the stream as it is with the initial values too, and `round_robin`'s scale must not be 0: neither would ever learn.
    """
    value = (coefficient.neutral if level == "layer" else None) or coefficient.initial
    return initial_value(value, coefficient.sizes(width, hidden_size), block)


def widened_prediction(coefficient: str, value: Tensor, times: int, block: int, summed: bool) -> Tensor:
    """A coefficient of `altup` and `gemma` for a stream `times` as wide.

    Args:
        coefficient: its name.
        value: it, for K blocks: predict [K, K], correct [K].
        times: m.
        block: j', the block that the layer computes on among m K.
        summed: whether it is the last layer of a recycled stream, whose blocks are summed.
    Returns:
        [m K, m K] or [m K].
    """
    if coefficient == "predict":
        wide = torch.block_diag(*[value] * times)
        return wide * last_layer_shares(times, len(value), block)[:, None] if summed else wide
    return value.repeat(times) / (times if summed else 1)


def widened_reading(coefficient: str, value: Tensor, times: int, block: int, summed: bool) -> Tensor:
    """A coefficient of `round_robin`, read [K] or scale [1]; arguments as in `widened_prediction`."""
    return value.repeat(times) if coefficient == "read" else value


def widened_connection(coefficient: str, value: Tensor, times: int, block: int, summed: bool) -> Tensor:
    """A coefficient of `hc`, mix [K, K], read or write [K]; arguments as in `widened_prediction`."""
    if coefficient == "read":
        wide = torch.zeros(times, len(value))
        wide[block // len(value)] = value
        return wide.flatten()
    wide = torch.block_diag(*[value] * times) if coefficient == "mix" else value.repeat(times)
    return wide / (times if summed else 1)


def last_layer_shares(times: int, width: int, block: int) -> Tensor:
    """The share of its old block that the last layer predicts in each new block, [m K]; shares of copies sum to 1."""
    of_block = torch.arange(times * width) % width == block % width
    return torch.where(of_block, one_hot(times * width, block), 1 / times)


def identical_blocks(width: int, times: int, steps: int, select: str) -> list[int]:
    """Blocks among `times` * `width` that training without noise leaves copies of others: those of copies (of all
    `width` old blocks) that no step computes on, if there are several.
    """
    wide = times * width
    computed = {selected_block(step, wide, select) for step in range(steps)}
    copies = [range(start, start + width) for start in range(0, wide, width)]
    idle = [copy for copy in copies if computed.isdisjoint(copy)]
    return [block for copy in idle for block in copy] if len(idle) > 1 else []
