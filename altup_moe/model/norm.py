"""RMSNorm that sequence parallelism accepts, and the end of the wide stream in the final norm's slot."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from altup_moe.altup.stream import narrow, output_width
from altup_moe.model.transformer_config import AltUpTransformerConfig


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension, computed in fp32.

    Megatron's own torch norm refuses sequence parallelism. All it takes is the tag on the weight: each tensor rank
    sees its slice of the sequence, so Megatron must add the weight's gradients over tensor ranks.
    """

    def __init__(self, config: AltUpTransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, x: Tensor) -> Tensor:
        """Any [..., hidden_size] -> the same shape and dtype."""
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps).to(x.dtype)


class NarrowAndNorm(RMSNorm):
    """The stream [K*S, B, D] narrowed to [S, B, D] (or [S, B, K*D] with wide tables), then RMSNorm.

    It stands in the slot of a Megatron `TransformerBlock`'s final norm, which only the last stage builds.
    """

    def __init__(self, config: AltUpTransformerConfig, hidden_size: int, eps: float = 1e-5, **kwargs: Any) -> None:
        self._shape = (config.altup_width, config.altup_variant, config.altup_recycled)
        super().__init__(config, output_width(hidden_size, *self._shape), eps, **kwargs)

    def forward(self, x: Tensor) -> Tensor:
        """Stream [K*S, B, D] -> [S, B, output width]."""
        return super().forward(narrow(x, *self._shape))
