"""The AltUp layer: read one block, run an untouched Megatron `TransformerLayer` on it, mix and write."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_layer import BaseTransformerLayer, TransformerLayer
from torch import Tensor, nn

from altup_moe.altup.mixing import mix_and_write, read
from altup_moe.altup.variants import VARIANTS, selected_block
from altup_moe.model.transformer_config import AltUpTransformerConfig


class AltUpLayer(MegatronModule, BaseTransformerLayer):
    """One layer of the wide stream. It contains a `TransformerLayer` and overrides nothing of it."""

    def __init__(self, config: AltUpTransformerConfig, submodules: Any, **kwargs: Any) -> None:
        super().__init__(config=config)
        self.layer = TransformerLayer(config=config, submodules=submodules, **kwargs)
        self.width = config.altup_width
        self.variant = VARIANTS[config.altup_variant]
        self.block = selected_block(self.layer_number - 1, self.width, config.altup_select)
        device = torch.cuda.current_device()
        self.coefficients = nn.ParameterDict(
            {
                name: nn.Parameter(value.to(device))
                for name, value in self.variant.initial(self.width, self.block).items()
            }
        )
        for parameter in self.coefficients.values():
            # Each tensor rank mixes its slice of the sequence: without the tag its gradient would stay partial.
            parameter.sequence_parallel = config.sequence_parallel

    @property
    def layer_number(self) -> int:
        """Global number of the layer, from 1 (Megatron's convention)."""
        return self.layer.layer_number

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Any]:
        """Stream [K*S, B, D] -> (next stream [K*S, B, D], context). Other arguments go to the layer as they are."""
        mixing = self.variant.mixing(self.block, dict(self.coefficients.items()))
        stream, u = read(hidden_states, mixing, self.width)
        y, context = self.layer(u, *args, **kwargs)
        return mix_and_write(stream, y, mixing), context
