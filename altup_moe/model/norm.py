"""RMSNorm that sequence parallelism accepts: in plain torch, or Transformer Engine's."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from altup_moe.altup.shape import output_width
from altup_moe.device.regions import region
from altup_moe.model.transformer_config import AltUpTransformerConfig


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension, in fp32, rounded to x's dtype."""
    return F.rms_norm(x.float(), weight.shape, weight.float(), eps).to(x.dtype)


class SequenceParallelRMSNorm(nn.Module):
    """`rms_norm`, a region.

    Megatron's own torch norm refuses sequence parallelism. All it takes is the tag on the weight: each tensor rank
    sees its slice of the sequence, so Megatron must add the weight's gradients over tensor ranks. The norms of queries
    and keys see the whole sequence of this rank's heads: their gradients are parts of a sum as well.
    """

    def __init__(self, config: AltUpTransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__()
        self.eps, self.compiled = eps, config.compiled
        self.weight = nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, x: Tensor) -> Tensor:
        """Any [..., hidden_size] -> the same shape and dtype."""
        return region(self.compiled, rms_norm, x, self.weight, self.eps)


def norm_class(config: AltUpTransformerConfig) -> type:
    """What stands in the slots of norms; either has one parameter, `weight`."""
    if not config.fused:
        return SequenceParallelRMSNorm
    from megatron.core.extensions.transformer_engine import TENorm

    return TENorm


class FinalNorm:
    """RMSNorm of what the last layer's stream is narrowed to, [S, B, D] or with wide tables [S, B, K*D].

    It stands in the slot of a Megatron `TransformerBlock`'s final norm, which only the last stage builds.
    """

    def __new__(cls, config: AltUpTransformerConfig, hidden_size: int, eps: float = 1e-5, **kwargs: Any) -> Any:
        width = output_width(hidden_size, config.altup_width, config.altup_variant, config.altup_recycled)
        return norm_class(config)(config, width, eps, **kwargs)
