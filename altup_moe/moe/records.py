"""What routers did, as the training loop reads it. Knows no backend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class RoutingRecord:
    """What one router did on this rank since it was last cleared, over micro-batches.

    ``counts`` [E]: routes chosen per expert, before dropping. ``dropped``: routes over capacity. ``aux``, ``z``: this
    rank's shares of the weighted losses (their sum over ranks that share a micro-batch is its loss).
    """

    counts: Tensor
    dropped: Tensor
    aux: Tensor
    z: Tensor

    @classmethod
    def zero(cls, num_experts: int, device: torch.device | str) -> RoutingRecord:
        """An empty record."""
        zero = torch.zeros((), device=device)
        return cls(torch.zeros(num_experts, device=device), zero.clone(), zero.clone(), zero.clone())


class RecordsRouting:
    """A router that keeps a `RoutingRecord`; the training loop finds routers by this class.

    It counts a route once: in training, while gradients are enabled (a recomputed layer's first pass is not counted).
    """

    record: RoutingRecord
    layer_number: int
    """Global number of its layer, from 1."""
    stride: int = 1
    """It sees every n-th token (Sequence-AltUp)."""
    in_encoder: bool = False
    """Whether the tokens are the encoder's."""
    tokens_of_micro_batch: Tensor | None = None
    """Tokens that it routes in a micro-batch of this step, on average over the step: what its losses over a step's
    tokens are divided by. fp32 scalar on the device; None is as many as there are in each."""

    def clear_record(self) -> None:
        """Forget what was recorded."""
        raise NotImplementedError

    def step_taken(self, counts_E: Sequence[float], bias_update_rate: float) -> None:
        """An optimizer step was taken; ``counts_E``: routes to each expert in it, of all micro-batches and ranks."""
        raise NotImplementedError
