"""Activations of gated MLPs, by transformers' names."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor


def gelu_new(x: Tensor) -> Tensor:
    """GELU by its tanh approximation (arXiv 1606.08415), which T5 v1.1 was trained with."""
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"silu": F.silu, "gelu_new": gelu_new}
"""`ModelConfig.activation` -> function."""
