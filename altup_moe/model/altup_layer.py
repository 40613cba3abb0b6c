"""The steps of the wide stream as Megatron modules: around a whole layer, or around each of its two branches.

A step reads one block, computes on it, mixes and writes. It owns its coefficients; the arithmetic on the stream is that
of its variant's kind (model.step_arithmetic).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_layer import BaseTransformerLayer, TransformerLayer
from torch import Tensor, nn

from altup_moe.altup.coefficients import Coefficient
from altup_moe.altup.kernels import kernel
from altup_moe.altup.mixing import Reading
from altup_moe.altup.shape import step_of
from altup_moe.altup.variants import next_block, selected_block, stream_row
from altup_moe.model.recompute import Travelling
from altup_moe.model.step_arithmetic import StepArithmetic, StepSettings, arithmetic_of
from altup_moe.model.transformer_config import AltUpTransformerConfig


def coefficient_parameters(config: AltUpTransformerConfig, rows: Mapping[str, Coefficient]) -> nn.ParameterDict:
    """Learned coefficients of a step or of the stream's end, fp32. Values are set by global name (parallel.seeds)."""
    device = torch.cuda.current_device()
    parameters = nn.ParameterDict()
    for name, coefficient in rows.items():
        value = torch.zeros(coefficient.sizes(config.altup_width, config.hidden_size), device=device)
        parameters[name] = parameter = nn.Parameter(value)
        # Each tensor rank mixes its slice of the sequence: without the tag its gradient would stay partial.
        parameter.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
        parameter.weight_decay = coefficient.weight_decay  # type: ignore[attr-defined]
    return parameters


class AltUpStep(MegatronModule):
    """One step of the wide stream, with its coefficients. What computes on the block, `compute`, is a subclass's."""

    arithmetic: StepArithmetic
    joins = False
    """Whether its pass over the stream is that of the step after it, in the same layer (`altup.mixing.join`)."""

    def add_coefficients(self, step: int) -> None:
        """Make the coefficients of step `step` (from 0) of the stack."""
        c: AltUpTransformerConfig = self.config
        row = stream_row(c.altup_variant, c.altup_width)
        self.coefficients = coefficient_parameters(c, row.coefficients)
        settings = StepSettings(
            variant=row,
            width=c.altup_width,
            block=selected_block(step, c.altup_width, c.altup_select),
            level=c.altup_level,
            eps=c.layernorm_epsilon,
            clip=c.altup_coef_clip,
            kernel=kernel(c.altup_kernel, torch.device("cuda" if torch.cuda.is_available() else "cpu")),
            joins=self.joins,
            next_block=next_block(step, c.altup_width, c.altup_select, c.altup_correct),
        )
        self.arithmetic = arithmetic_of(settings, self.coefficients)

    def compute(self, u: Tensor, **kwargs: Any) -> tuple[Tensor, Any]:
        """(y [S, B, D], context) of the block u [S, B, D]."""
        raise NotImplementedError

    def forward(self, state: Travelling, after: Reading | None = None, **kwargs: Any) -> Travelling:
        """The whole step, inline. ``after``: the next read. Other arguments go to `compute` as they are."""
        return self.arithmetic.inline(state, after, partial(self.compute, **kwargs))


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
        super().__init__(config=config)
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

    def __init__(self, config: AltUpTransformerConfig, step: int, run: Callable[..., Tensor], first: bool) -> None:
        super().__init__(config=config)
        self._run = run
        # Attention has no exchange to hide a pass under, but for tensor parallelism's, and the experts' is long.
        row = stream_row(config.altup_variant, config.altup_width)
        self.joins = first and row.joins("branch", config.altup_correct)
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
                name: AltUpBranch(config, step_of(self.layer_number - 1, name, "branch"), run, name == "self_attn")
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
