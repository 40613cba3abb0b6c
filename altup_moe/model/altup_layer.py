"""The AltUp layer: read one block, run an untouched Megatron `TransformerLayer` on it, mix and write.

The arithmetic has two orders (altup.mixing). `inline` mixes once the layer's output is known. `deferred` posts the pass
over the stream as deferred work, which runs while the layer communicates; only an axpy waits for the output.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_layer import BaseTransformerLayer, TransformerLayer
from torch import Tensor, nn

from altup_moe.altup.kernels import kernel
from altup_moe.altup.mixing import Ahead, Pending, Reading, catch_up, look_ahead, mix_and_write, read, write_back
from altup_moe.altup.static import Mixing
from altup_moe.altup.variants import find_variant, selected_block
from altup_moe.model.transformer_config import AltUpTransformerConfig
from altup_moe.overlap.deferred_work import later


class AltUpLayer(MegatronModule, BaseTransformerLayer):
    """One layer of the wide stream. It contains a `TransformerLayer` and overrides nothing of it.

    ``layer``: the class of what it contains, `TransformerLayer` or one that stands for it (`SequenceLayer`).
    """

    def __init__(
        self,
        config: AltUpTransformerConfig,
        submodules: Any,
        layer: Callable[..., Any] = TransformerLayer,
        **kwargs: Any,
    ) -> None:
        super().__init__(config=config)
        self.layer = layer(config=config, submodules=submodules, **kwargs)
        self.width = config.altup_width
        self.block = selected_block(self.layer_number - 1, self.width, config.altup_select)
        self.kernel = kernel(config.altup_kernel, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        device = torch.cuda.current_device()
        self.variant = find_variant(config.altup_variant)
        self.coefficients = nn.ParameterDict()
        for name, coefficient in self.variant.coefficients.items():
            # Values are set by global name, as all weights' (parallel.seeds).
            value = torch.zeros(coefficient.sizes(self.width, config.hidden_size), device=device)
            self.coefficients[name] = parameter = nn.Parameter(value)
            # Each tensor rank mixes its slice of the sequence: without the tag its gradient would stay partial.
            parameter.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
            parameter.weight_decay = coefficient.weight_decay  # type: ignore[attr-defined]

    @property
    def layer_number(self) -> int:
        """Global number of the layer, from 1 (Megatron's convention)."""
        return self.layer.layer_number

    def mixing(self) -> Mixing:
        """The layer's weights (r, M, g)."""
        return self.variant.mixing(self.block, dict(self.coefficients.items()))

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> tuple[Tensor, Any]:
        """Inline: stream [K*S, B, D] -> (next stream, context). Other arguments go to the layer as they are."""
        mixing = self.mixing()
        stream, u = read(hidden_states, mixing, self.width)
        y, context = self.layer(u, **kwargs)
        return mix_and_write(stream, mixing.written(u, y), mixing, self.kernel), context

    def deferred(
        self, stream: Pending, u: Tensor | None, reading: Reading | None, **kwargs: Any
    ) -> tuple[Pending | None, Tensor | None]:
        """One layer whose pass runs while the layer communicates.

        Args:
            stream: as the layer before left it. u: this layer's input, None at the start of a chunk.
            reading: the next layer's read; None at the end of a chunk, where the stream is written out.
        Returns:
            (stream, next u); the stream is None after the last reading.
        """
        mixing = self.mixing()
        if u is None:
            blocks, u = read(stream.blocks, mixing, self.width)
            stream = Pending(blocks)
        ahead = later(lambda: look_ahead(stream, mixing, reading, self.kernel))
        y, _ = self.layer(u, **kwargs)
        return self._after(ahead.result(), mixing.written(u, y), mixing, reading)

    def mix(self, stream: Pending, y: Tensor, reading: Reading | None) -> tuple[Pending | None, Tensor | None]:
        """The result of `deferred` for a known output: ``y`` [S, B, D] is what the layer writes."""
        mixing = self.mixing()
        return self._after(look_ahead(stream, mixing, reading, self.kernel), y, mixing, reading)

    def _after(
        self, ahead: Ahead, y: Tensor, mixing: Mixing, reading: Reading | None
    ) -> tuple[Pending | None, Tensor | None]:
        if reading is None:
            assert ahead.blocks is not None
            return Pending(write_back(ahead.blocks, y, mixing.write, self.kernel)), None
        return catch_up(ahead, y, mixing, reading, self.kernel)
