"""Other ways to do AltUp's work around a layer, for comparison: (x, y) -> the next x, by autograd.

Each returns a function of x [K, 1, T, d] and y [1, T, d] (a layer's output, given), and its parameters. They are:
the paper's predict/compute/correct as loops over blocks, the same by einsum, transformers' Gemma3nTextAltUp (dynamic
coefficients: a router computes them for every token) and hyper-connections from PyPI (dynamic too).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Update = Callable[[Tensor, Tensor], Any]
"""(x [K, 1, T, d], y [1, T, d]) -> the next stream, one tensor or a list of blocks."""

GEMMA = "Gemma3nTextAltUp (dynamic)"
LITERAL = "literal loops"
HYPER_MISSING = "hyper-connections is not installed: pip install hyper-connections==0.4.11 brings it"


def rivals(width: int, hidden_size: int, dtype: torch.dtype) -> dict[str, tuple[Update, list[Tensor]]]:
    """The installed implementations: name -> (update, parameters)."""
    found = {
        LITERAL: _literal(width),
        "einsum": _einsum(width, dtype),
        GEMMA: _gemma(width, hidden_size, dtype),
    }
    if importlib.util.find_spec("hyper_connections") is not None:
        found["hyper-connections (dynamic)"] = _hyper(width, hidden_size, dtype)
    return found


def _coefficients(width: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    predict = torch.eye(width) + 0.1 * torch.randn(width, width, generator=generator)
    return predict.requires_grad_(), torch.ones(width).requires_grad_()


def _literal(width: int) -> tuple[Update, list[Tensor]]:
    predict, correct = _coefficients(width)

    def update(x: Tensor, y: Tensor) -> list[Tensor]:
        predicted = [sum(predict[i, j] * x[j] for j in range(width)) for i in range(width)]
        return [predicted[i] + correct[i] * (y - predicted[0]) for i in range(width)]

    return update, [predict, correct]


def _einsum(width: int, dtype: torch.dtype) -> tuple[Update, list[Tensor]]:
    predict, correct = (c.detach().to(dtype).requires_grad_() for c in _coefficients(width))

    def update(x: Tensor, y: Tensor) -> Tensor:
        predicted = torch.einsum("ij,jbtd->ibtd", predict, x)
        return predicted + torch.einsum("i,btd->ibtd", correct, y - predicted[0])

    return update, [predict, correct]


def _gemma(width: int, hidden_size: int, dtype: torch.dtype) -> tuple[Update, list[Tensor]]:
    from transformers import Gemma3nTextConfig
    from transformers.models.gemma3n.modeling_gemma3n import Gemma3nTextAltUp

    config = Gemma3nTextConfig(hidden_size=hidden_size, altup_num_inputs=width, altup_active_idx=0)
    module = Gemma3nTextAltUp(config).to(dtype)

    def update(x: Tensor, y: Tensor) -> Tensor:
        return module.correct(module.predict(x), y)

    # The scale of the corrected output belongs to another part of Gemma's layer.
    return update, [p for name, p in module.named_parameters() if name != "correct_output_scale"]


def _hyper(width: int, hidden_size: int, dtype: torch.dtype) -> tuple[Update, list[Tensor]]:
    from hyper_connections import HyperConnections

    module = HyperConnections(width, dim=hidden_size, layer_index=0).to(dtype)

    def update(x: Tensor, y: Tensor) -> Tensor:
        _, add_residual = module(x.flatten(0, 1))
        return add_residual(y)

    return update, list(module.parameters())
