"""Sequence-AltUp around an untouched Megatron `TransformerLayer`, which sees one token of every window.

It stands where a `TransformerLayer` stands: inside an `AltUpLayer`, or in the block itself. Whatever happens inside the
layer (experts, overlapped exchanges, recomputation) happens on the shorter sequence and knows nothing of it.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_layer import BaseTransformerLayer, TransformerLayer
from torch import Tensor, nn

from altup_moe.altup.sequence import all_padding, initial_coefficients, pick, place, pools
from altup_moe.model.attention import HeadParallelRelativeBias
from altup_moe.model.padding import on_tensor_rank
from altup_moe.model.transformer_config import AltUpTransformerConfig
from altup_moe.moe.records import RecordsRouting


class SequenceLayer(MegatronModule, BaseTransformerLayer):
    """A layer on every s-th token. Slices of a sequence begin at an anchor: s divides a rank's share of it.

    ``causal``: whether a position may only see earlier ones; an encoder's may see all.
    """

    def __init__(
        self, config: AltUpTransformerConfig, submodules: Any, causal: bool = True, *, pg_collection: Any, **kwargs: Any
    ) -> None:
        super().__init__(config=config)
        self.layer = TransformerLayer(config=config, submodules=submodules, pg_collection=pg_collection, **kwargs)
        for module in self.layer.modules():
            if isinstance(module, RecordsRouting):
                module.stride = config.sequence_stride
        self.stride, self.method, self.causal = config.sequence_stride, config.sequence_method, causal
        self.tp_group = pg_collection.tp
        device = torch.cuda.current_device()
        coefficients = initial_coefficients(self.method)
        self.sequence = nn.ParameterDict({name: nn.Parameter(value.to(device)) for name, value in coefficients.items()})
        for parameter in self.sequence.values():
            # Each tensor rank places its slice of the sequence: without the tag its gradient would stay partial.
            parameter.sequence_parallel = config.sequence_parallel

    @property
    def layer_number(self) -> int:
        """Global number of the layer, from 1 (Megatron's convention)."""
        return self.layer.layer_number

    def forward(
        self,
        hidden_states: Tensor,
        rotary_pos_emb: Tensor | None = None,
        attention_mask: Tensor | None = None,
        attention_bias: HeadParallelRelativeBias | None = None,
        padding_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Any]:
        """x [S, B, D] -> (y [S, B, D], context). Other arguments go to the layer as they are: in a decoder an encoder's
        whole output.

        Args:
            rotary_pos_emb: [positions, 1, 1, channels], all of this context rank's; the layer gets the anchors' rows.
            attention_mask: bool [B, 1, 1, positions], True on padding, which ends samples. The layer gets a mask of
                windows without a token.
            attention_bias: the layer gets one for positions that stand a stride apart.
            padding_mask: bool [B, S], True on padding, which ends samples. The layer gets the anchors'.
        """
        padding = None
        if attention_mask is not None:
            padding = on_tensor_rank(attention_mask[:, 0, 0], self.config, self.tp_group).T
        u = pick(hidden_states, self.method, self.stride, self.causal, self._before(hidden_states), padding)
        if rotary_pos_emb is not None:
            rotary_pos_emb = rotary_pos_emb[:: self.stride]
        if attention_mask is not None:
            attention_mask = all_padding(attention_mask, self.stride)
        strided_bias = None if attention_bias is None else partial(attention_bias, stride=self.stride)
        y, context = self.layer(
            u,
            rotary_pos_emb=rotary_pos_emb,
            attention_mask=attention_mask,
            attention_bias=strided_bias,
            padding_mask=None if padding_mask is None else padding_mask[:, :: self.stride],
            **kwargs,
        )
        return place(hidden_states, u, y, self.method, self.stride, dict(self.sequence.items())), context

    def _before(self, x: Tensor) -> Tensor | None:
        """The s - 1 tokens before this tensor rank's slice, where pooling asks for them."""
        size, rank, count = self.tp_group.size(), self.tp_group.rank(), self.stride - 1
        if not pools(self.method, self.causal) or not self.config.sequence_parallel or size == 1:
            return None
        ends = gather_from_sequence_parallel_region(x[-count:].contiguous(), group=self.tp_group).split(count)
        # The first rank asks too, or it would be missing in the reduction of the backward pass.
        first = torch.tensor(rank == 0, device=x.device)
        return torch.where(first, x[:1].expand(count, -1, -1), ends[rank - 1])
