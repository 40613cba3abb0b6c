"""Causal attention in Megatron's core-attention slot, on torch's scaled_dot_product_attention.

The same code runs on CPU and GPU (flash kernels where torch has them), never forms the [S, S] matrix itself, and adds
what Megatron's unfused attention lacks: context parallelism without Transformer Engine.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region, get_cuda_rng_tracker
from megatron.core.transformer.module import MegatronModule
from torch import Tensor

from altup_moe.model.transformer_config import AltUpTransformerConfig


def zigzag_positions(length: int, rank: int, size: int, device: torch.device) -> Tensor:
    """Global positions of the `length` tokens that context rank `rank` of `size` holds.

    Megatron cuts the sequence into 2 * size chunks and gives rank r chunks r and 2 * size - 1 - r, so that
    causal work is even (megatron.core.utils.get_batch_on_this_cp_rank).
    """
    half = torch.arange(length // 2, device=device)
    return torch.cat([half + rank * (length // 2), half + (2 * size - 1 - rank) * (length // 2)])


class CoreAttention(MegatronModule):
    """softmax(Q K^T / sqrt(channels)) V with a causal mask.

    Under context parallelism keys and values are gathered over the context ranks (their gradients scattered back),
    and the mask compares global positions.
    """

    def __init__(
        self,
        config: AltUpTransformerConfig,
        layer_number: int,
        attn_mask_type: Any = None,
        attention_type: str = "self",
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        cp_comm_type: str | None = None,
        pg_collection: Any = None,
        **_: Any,
    ) -> None:
        super().__init__(config=config)
        self.cp_group = pg_collection.cp
        self.scale = softmax_scale
        self.dropout = config.attention_dropout if attention_dropout is None else attention_dropout

    def forward(self, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Query [S, B, heads, channels], key and value [S, B, groups, channels] -> [S, B, heads * channels]."""
        size, rank = self.cp_group.size(), self.cp_group.rank()
        mask = None
        if size > 1:
            local = zigzag_positions(query.shape[0], rank, size, query.device)
            everywhere = torch.cat([zigzag_positions(query.shape[0], r, size, query.device) for r in range(size)])
            mask = local[:, None] >= everywhere[None, :]
            key = gather_from_sequence_parallel_region(key.contiguous(), group=self.cp_group)
            value = gather_from_sequence_parallel_region(value.contiguous(), group=self.cp_group)
        dropout = self.dropout if self.training else 0.0
        # Heads are split over tensor ranks, so each needs a dropout stream of its own; with sequence
        # parallelism the block has opened it already.
        fork = dropout > 0 and not self.config.sequence_parallel
        with get_cuda_rng_tracker().fork() if fork else nullcontext():
            out_BHSC = F.scaled_dot_product_attention(
                query.permute(1, 2, 0, 3),
                key.permute(1, 2, 0, 3),
                value.permute(1, 2, 0, 3),
                attn_mask=mask,
                dropout_p=dropout,
                is_causal=mask is None,
                scale=self.scale,
                enable_gqa=query.shape[2] != key.shape[2],
            )
        s, b = query.shape[:2]
        return out_BHSC.permute(2, 0, 1, 3).reshape(s, b, -1)
