"""Attention in Megatron's core-attention slot, on torch's scaled_dot_product_attention.

The same code runs on CPU and GPU (flash kernels where torch has them), never forms the [S, S] matrix itself unless a
bias does, and adds what Megatron's unfused attention lacks: context parallelism without Transformer Engine, and biases.

Shape legend: S queries, T keys, B samples, H heads of this tensor rank.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region, get_cuda_rng_tracker
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from torch import Tensor, nn

from altup_moe.model.relative import relative_buckets
from altup_moe.model.transformer_config import AltUpTransformerConfig


def zigzag_positions(length: int, rank: int, size: int, device: torch.device) -> Tensor:
    """Global positions of the `length` tokens that context rank `rank` of `size` holds.

    Megatron cuts the sequence into 2 * size chunks and gives rank r chunks r and 2 * size - 1 - r, so that
    causal work is even (megatron.core.utils.get_batch_on_this_cp_rank).
    """
    half = torch.arange(length // 2, device=device)
    return torch.cat([half + rank * (length // 2), half + (2 * size - 1 - rank) * (length // 2)])


class HeadParallelRelativeBias(nn.Module):
    """T5's bias on attention scores: a number for each head and bucket of distances, one table for a stack's layers.

    It is handed to the layers as it is, in the place of a tensor, and each asks for the bias anew: a tensor that all
    layers share would be differentiated through again and again where layers are recomputed. Cut by heads, so that
    no gradient has to be summed over tensor ranks.
    """

    def __init__(self, config: AltUpTransformerConfig, buckets: int, max_distance: int, bidirectional: bool) -> None:
        super().__init__()
        heads = config.num_attention_heads // config.tensor_model_parallel_size
        device = torch.cuda.current_device()
        self.weight = nn.Parameter(torch.empty(buckets, heads, dtype=config.params_dtype, device=device))
        self.max_distance, self.bidirectional = max_distance, bidirectional

    def forward(self, length: int, stride: int = 1) -> Tensor:
        """Bias [1, H, length, length] on the scores of a sequence's queries and keys, which stand `stride` apart."""
        positions = torch.arange(0, length * stride, stride, device=self.weight.device)
        distances = positions[None, :] - positions[:, None]
        buckets = relative_buckets(distances, len(self.weight), self.max_distance, self.bidirectional)
        return self.weight[buckets].permute(2, 0, 1)[None]


class CoreAttention(MegatronModule):
    """softmax(scale Q K^T + bias) V with a causal mask (Megatron's mask type `causal`), or with one of padding.

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
        self.causal = attn_mask_type in (None, AttnMaskType.causal)
        self.scale = softmax_scale
        self.dropout = config.attention_dropout if attention_dropout is None else attention_dropout

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None = None,
        *args: Any,
        attention_bias: Callable[[int], Tensor] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Query [S, B, H, channels], key and value [T, B, groups, channels] -> [S, B, H * channels].

        Args:
            attention_mask: bool [B, 1, 1, T], True where a key is padding (Megatron's sense). A query whose keys are
                all masked sees them all alike.
            attention_bias: function from a number of positions to the bias on their scores: a
                `HeadParallelRelativeBias`, or one with its stride bound.
        """
        size, rank = self.cp_group.size(), self.cp_group.rank()
        mask = self._mask(query.shape[0], query.dtype, attention_mask, attention_bias)
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
                is_causal=self.causal and mask is None,
                scale=self.scale,
                enable_gqa=query.shape[2] != key.shape[2],
            )
        s, b = query.shape[:2]
        return out_BHSC.permute(2, 0, 1, 3).reshape(s, b, -1)

    def _mask(self, s: int, dtype: torch.dtype, padding: Tensor | None, relative: Any) -> Tensor | None:
        """What is added to the scores, [B or 1, H or 1, S or 1, T]; None where being causal or not says it all."""
        if padding is None and relative is None:
            return None
        lowest = torch.finfo(dtype).min
        device = padding.device if padding is not None else torch.cuda.current_device()
        added = relative(s).to(dtype) if relative is not None else torch.zeros(1, 1, 1, 1, dtype=dtype, device=device)
        if self.causal:
            later = torch.ones(s, s, dtype=torch.bool, device=added.device).triu(1)
            added = added.masked_fill(later, lowest)
        return added if padding is None else added.masked_fill(padding, lowest)
