"""The wide stream with coefficients for every token (`altup.dynamic`): its layer, and the modules at both ends.

The ends' matrices [D, D] are ordinary weights: of the parameters' dtype, with weight decay (their scale is taken out of
the function, so that decay only sets how fast they turn). Every tensor rank holds them whole and sees its slice of the
sequence.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from altup_moe.altup.dynamic import Dynamic, active, contract, correct, expand, predict
from altup_moe.model.altup_layer import AltUpLayer
from altup_moe.model.transformer_config import AltUpTransformerConfig
from altup_moe.timeline.spans import span


class DynamicAltUpLayer(AltUpLayer):
    """Predict, compute on the predicted block, correct. Always inline: the correction needs the layer's output."""

    @property
    def _settings(self) -> Dynamic:
        return Dynamic(self.block, self.config.layernorm_epsilon, self.config.altup_coef_clip)

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> tuple[Tensor, Any]:
        """Stream [K*S, B, D] -> (next stream, context). Other arguments go to the layer as they are."""
        settings, coefficients = self._settings, dict(self.coefficients.items())
        with span("mix"):
            predicted = predict(hidden_states, coefficients, settings)
        y, context = self.compute(active(predicted, settings, self.width), **kwargs)
        with span("mix"):
            return correct(predicted, y, coefficients, settings), context


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
