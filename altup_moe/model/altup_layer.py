"""A step of the wide stream: read one block, compute on it, mix and write. A whole layer, or one of its two branches.

The arithmetic has two orders (altup.mixing). `inline` mixes once the output is known. `deferred` posts the pass over
the stream as deferred work, which runs while the step communicates; only an axpy waits for the output.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_layer import BaseTransformerLayer, TransformerLayer
from torch import Tensor, nn

from altup_moe.altup.kernels import kernel
from altup_moe.altup.mixing import Ahead, Pending, Reading, catch_up, look_ahead, mix_and_write, read, write_back
from altup_moe.altup.shape import step_of
from altup_moe.altup.static import Mixing
from altup_moe.altup.variants import find_variant, selected_block
from altup_moe.model.transformer_config import AltUpTransformerConfig
from altup_moe.overlap.deferred_work import later


class AltUpStep(MegatronModule):
    """One step of the wide stream, with its coefficients. What computes on the block, `compute`, is a subclass's."""

    def __init__(self, config: AltUpTransformerConfig) -> None:
        super().__init__(config=config)
        self.width, self.variant = config.altup_width, find_variant(config.altup_variant)
        self.kernel = kernel(config.altup_kernel, torch.device("cuda" if torch.cuda.is_available() else "cpu"))

    def add_coefficients(self, step: int) -> None:
        """Make the coefficients of step `step` (from 0) of the stack."""
        config = self.config
        self.block = selected_block(step, self.width, config.altup_select)
        device = torch.cuda.current_device()
        self.coefficients = nn.ParameterDict()
        for name, coefficient in self.variant.coefficients.items():
            # Values are set by global name, as all weights' (parallel.seeds).
            value = torch.zeros(coefficient.sizes(self.width, config.hidden_size), device=device)
            self.coefficients[name] = parameter = nn.Parameter(value)
            # Each tensor rank mixes its slice of the sequence: without the tag its gradient would stay partial.
            parameter.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
            parameter.weight_decay = coefficient.weight_decay  # type: ignore[attr-defined]

    def compute(self, u: Tensor, **kwargs: Any) -> tuple[Tensor, Any]:
        """(y [S, B, D], context) of the block u [S, B, D]."""
        raise NotImplementedError

    def mixing(self) -> Mixing:
        """The step's weights (r, M, g)."""
        return self.variant.mixing(self.block, dict(self.coefficients.items()), self.config.altup_level)

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> tuple[Tensor, Any]:
        """Inline: stream [K*S, B, D] -> (next stream, context). Other arguments go to `compute` as they are."""
        mixing = self.mixing()
        stream, u = read(hidden_states, mixing, self.width)
        y, context = self.compute(u, **kwargs)
        return mix_and_write(stream, mixing.written(u, y), mixing, self.kernel), context

    def deferred(
        self, stream: Pending, u: Tensor | None, reading: Reading | None, **kwargs: Any
    ) -> tuple[Pending | None, Tensor | None]:
        """One step whose pass runs while it communicates.

        Args:
            stream: as the step before left it. u: this step's input, None at the start of a chunk.
            reading: the next step's read; None at the end of a chunk, where the stream is written out.
        Returns:
            (stream, next u); the stream is None after the last reading.
        """
        mixing = self.mixing()
        if u is None:
            blocks, u = read(stream.blocks, mixing, self.width)
            stream = Pending(blocks)
        ahead = later(lambda: look_ahead(stream, mixing, reading, self.kernel))
        y, _ = self.compute(u, **kwargs)
        return self._after(ahead.result(), mixing.written(u, y), mixing, reading)

    def mix(self, stream: Pending, y: Tensor, reading: Reading | None) -> tuple[Pending | None, Tensor | None]:
        """The result of `deferred` for a known output: ``y`` [S, B, D] is what the step writes."""
        mixing = self.mixing()
        return self._after(look_ahead(stream, mixing, reading, self.kernel), y, mixing, reading)

    def _after(
        self, ahead: Ahead, y: Tensor, mixing: Mixing, reading: Reading | None
    ) -> tuple[Pending | None, Tensor | None]:
        if reading is None:
            assert ahead.blocks is not None
            return Pending(write_back(ahead.blocks, y, mixing.write, self.kernel)), None
        return catch_up(ahead, y, mixing, reading, self.kernel)


class AltUpLayer(AltUpStep, BaseTransformerLayer):
    """A step around a whole layer. It contains a `TransformerLayer` and overrides nothing of it.

    ``layer``: the class of what it contains, `TransformerLayer` or one that stands for it (`SequenceLayer`).
    """

    def __init__(
        self,
        config: AltUpTransformerConfig,
        submodules: Any,
        layer: Callable[..., Any] = TransformerLayer,
        **kwargs: Any,
    ) -> None:
        super().__init__(config)
        self.layer = layer(config=config, submodules=submodules, **kwargs)
        self.add_coefficients(self.layer_number - 1)

    @property
    def layer_number(self) -> int:
        """Global number of the layer, from 1 (Megatron's convention)."""
        return self.layer.layer_number

    def compute(self, u: Tensor, **kwargs: Any) -> tuple[Tensor, Any]:
        """The layer, its own residual included."""
        return self.layer(u, **kwargs)


class AltUpBranch(AltUpStep):
    """A step around one branch of a layer, whose modules it does not own: `run` is (u, arguments) -> y [S, B, D]."""

    def __init__(self, config: AltUpTransformerConfig, step: int, run: Callable[..., Tensor]) -> None:
        super().__init__(config)
        self._run = run
        self.add_coefficients(step)

    def compute(self, u: Tensor, **kwargs: Any) -> tuple[Tensor, Any]:
        """The branch, without a residual."""
        return self._run(u, **kwargs), None


class AltUpBranches(MegatronModule, BaseTransformerLayer):
    """A layer of two steps: attention, then MLP or experts. It contains a `TransformerLayer` and calls its parts."""

    def __init__(self, config: AltUpTransformerConfig, submodules: Any, **kwargs: Any) -> None:
        super().__init__(config=config)
        self.layer = TransformerLayer(config=config, submodules=submodules, **kwargs)
        runs: dict[str, Callable[..., Tensor]] = {"self_attn": self._attention, "mlp": self._mlp}
        self.branches = nn.ModuleDict(
            {
                name: AltUpBranch(config, step_of(self.layer_number - 1, name, "branch"), run)
                for name, run in runs.items()
            }
        )

    @property
    def layer_number(self) -> int:
        """Global number of the layer, from 1 (Megatron's convention)."""
        return self.layer.layer_number

    def _attention(
        self, u: Tensor, attention_mask: Tensor | None = None, rotary_pos_emb: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        normed = self.layer.input_layernorm(u)
        y, _ = self.layer.self_attention(normed, attention_mask=attention_mask, rotary_pos_emb=rotary_pos_emb)
        return self._dropout(y)

    def _mlp(self, u: Tensor, padding_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        y, _ = self.layer.mlp(self.layer.pre_mlp_layernorm(u), padding_mask=padding_mask)
        return self._dropout(y)

    def _dropout(self, y: Tensor) -> Tensor:
        return F.dropout(y, self.layer.hidden_dropout, self.training)
