"""Masks of padding, cut as tensors along the sequence are."""

from __future__ import annotations

from typing import Any

from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor


def on_tensor_rank(mask: Tensor, config: TransformerConfig, tensor_group: Any) -> Tensor:
    """A mask [B, S] of a tensor rank's positions: under sequence parallelism its slice [B, S / ranks], else all."""
    if not config.sequence_parallel:
        return mask
    return mask.chunk(tensor_group.size(), dim=1)[tensor_group.rank()]
