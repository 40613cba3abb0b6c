"""Learned modules at the ends of the wide stream: projections of `dynamic`, and what collapses the blocks of others.

The projections' matrices [D, D] are ordinary weights: of the parameters' dtype, with weight decay (their scale is
taken out of the function, so that decay only sets how fast they turn). Every tensor rank holds them whole and sees its
slice of the sequence.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from megatron.core.transformer.module import MegatronModule
from torch import Tensor, nn

from altup_moe.altup.dynamic import at_least_fp32, contract, expand
from altup_moe.altup.lazy import load_object
from altup_moe.altup.mixing import Reading
from altup_moe.altup.token_mixing import by_token
from altup_moe.altup.variants import find_variant
from altup_moe.model.altup_layer import coefficient_parameters
from altup_moe.model.transformer_config import AltUpTransformerConfig


class _Projections(nn.ModuleList):
    """K - 1 square matrices."""

    def __init__(self, config: AltUpTransformerConfig) -> None:
        d, dtype = config.hidden_size, config.params_dtype
        super().__init__(nn.Linear(d, d, bias=False, dtype=dtype) for _ in range(1, config.altup_width))
        for parameter in self.parameters():
            # Without the tag the gradient would stay that of this rank's slice of the sequence.
            parameter.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]


class Expand(_Projections):
    """Behind the embedding, on the first stage: [S, B, D] -> stream [K*S, B, D]."""

    def forward(self, embedded: Tensor) -> Tensor:
        """See `altup.dynamic.expand`."""
        return expand(embedded, list(self))


class Contract(_Projections):
    """Before the final norm, on the last stage: stream [K*S, B, D] -> [S, B, D]."""

    def forward(self, stream: Tensor) -> Tensor:
        """See `altup.dynamic.contract`."""
        return contract(stream, list(self))


class Collapse(MegatronModule):
    """Before the final norm, on the last stage: the blocks become one, by the function of the variant's row."""

    def __init__(self, config: AltUpTransformerConfig) -> None:
        super().__init__(config=config)
        self.row = find_variant(config.altup_variant)
        self.coefficients = coefficient_parameters(config, self.row.head)

    @property
    def _coefficients(self) -> Mapping[str, Tensor]:
        return dict(self.coefficients.items())

    def reading(self) -> Reading | None:
        """The last read of the stream, where its weights are the same for all tokens."""
        if self.row.per_token:
            return None
        return Reading(load_object(self.row.collapse)(self._coefficients), last=True)

    def forward(self, stream: Tensor) -> Tensor:
        """Stream [K*S, B, D] -> [S, B, D]."""
        c, x_KTD = self.config, by_token(stream, self.config.altup_width)
        if self.row.per_token:
            out = load_object(self.row.collapse)(x_KTD, self._coefficients, c.layernorm_epsilon)
        else:
            weights_K = load_object(self.row.collapse)(self._coefficients)
            out = torch.einsum("k,ktd->td", weights_K, at_least_fp32(x_KTD))
        return out.to(stream.dtype).view(-1, *stream.shape[1:])
