"""How many parameters a run's model has, and how many of them a token meets."""

from __future__ import annotations

import math
from dataclasses import dataclass

from altup_moe.config import RunConfig
from altup_moe.parallel.parameter_mapping import global_shapes, is_buffer


@dataclass(frozen=True)
class ParameterCounts:
    """Numbers of parameters. ``active``: those that one token meets. ``experts``: in all experts (a part of total)."""

    total: int
    active: int
    experts: int


def count_parameters(config: RunConfig) -> ParameterCounts:
    """The model's, whatever the layout. A tied output layer is the embedding, and counts once."""
    shapes = {name: math.prod(shape) for name, shape in global_shapes(config).items() if not is_buffer(name)}
    total, experts = sum(shapes.values()), sum(size for name, size in shapes.items() if ".experts." in name)
    unmet = max(0, config.moe.num_experts - config.moe.top_k)
    return ParameterCounts(total, total - experts * unmet // max(1, config.moe.num_experts), experts)
