"""The learned coefficients of a layer: their shapes and initial values. It imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

InitialValue = Literal["identity", "one_hot", "ones", "zeros", "normal"]
"""Initial values: I; e_j of the block j that the layer computes on; 1; 0; drawn with model.init_method_std."""


@dataclass(frozen=True)
class Coefficient:
    """One learned parameter of each layer. It is fp32, and so is its gradient, whatever train.precision is.

    Args:
        shape: its dimensions: a number, "K" (blocks), "K*K", or "D" (features of a block).
        initial: its initial value.
        neutral: its value in a layer added by growing, which leaves the stream as it is where the layer's output is
            its input; None is the initial value. One that is drawn needs it to be grown.
        weight_decay: whether the optimizer decays it.
    """

    shape: tuple[int | str, ...]
    initial: InitialValue
    neutral: InitialValue | None = None
    weight_decay: bool = False

    @property
    def has_blocks(self) -> bool:
        """Whether its shape depends on the number of blocks."""
        return any(n in ("K", "K*K") for n in self.shape)

    def sizes(self, width: int, hidden_size: int) -> tuple[int, ...]:
        """The shape of a stream of `width` blocks of `hidden_size` features."""
        symbols = {"K": width, "K*K": width * width, "D": hidden_size}
        return tuple(n if isinstance(n, int) else symbols[n] for n in self.shape)
