"""The learned coefficients of a layer: their shapes and initial values. It imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

InitialValue = Literal["identity", "one_hot", "ones", "zeros", "normal", "mean_logit", "spread"]
"""Initial values: I; e_j of the block j that the layer computes on; 1; 0; drawn with model.init_method_std; the number
whose sigmoid is 1 / K; from -SPREAD to SPREAD in equal steps."""
SPREAD = 0.01
"""So that blocks which start equal do not stay equal (Megatron-LM's pull 6716, `streamwise_sigmoid_init_scale`)."""


def gate_rank(hidden_size: int) -> int:
    """The rank of a gate: D/8, rounded up (of Qwen4-exp, 320 for 2,560 features)."""
    return -(-hidden_size // 8)


@dataclass(frozen=True)
class Coefficient:
    """One learned parameter of each layer. It is fp32, and so is its gradient, whatever train.precision is.

    Args:
        shape: its dimensions: a number, or a product as in "K*(K+2)" of K (blocks), D (features of a block) and
            numbers. R is the rank of a gate (`gate_rank`).
        initial: its initial value.
        neutral: its value in a layer added by growing, which leaves the stream as it is where the layer's output is
            its input; None is the initial value. One that is drawn needs it to be grown.
        weight_decay: whether the optimizer decays it.
        kind: what it is for optim.parametrization mup (`altup_moe.parallel.parametrization`).
    """

    shape: tuple[int | str, ...]
    initial: InitialValue
    neutral: InitialValue | None = None
    weight_decay: bool = False
    kind: Literal["other", "hidden", "router"] = "other"

    @property
    def has_blocks(self) -> bool:
        """Whether its shape depends on the number of blocks."""
        return any("K" in str(n) for n in self.shape)

    def sizes(self, width: int, hidden_size: int) -> tuple[int, ...]:
        """The shape of a stream of `width` blocks of `hidden_size` features."""
        k, d = width, hidden_size
        symbols = {
            "K": k,
            "2*K": 2 * k,
            "K*K": k * k,
            "K*(K+2)": k * (k + 2),
            "D": d,
            "K*D": k * d,
            "R": gate_rank(d),
        }
        return tuple(n if isinstance(n, int) else symbols[n] for n in self.shape)
