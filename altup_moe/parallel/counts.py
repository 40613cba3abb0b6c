"""Numbers of parameters of a run's model: all, those active for one token, and those of experts."""

from __future__ import annotations

import math
from dataclasses import dataclass

from altup_moe.config import RunConfig
from altup_moe.parallel.parameter_names import global_shapes, is_buffer


@dataclass(frozen=True)
class ParameterCounts:
    """Numbers of parameters. ``active``: those that process one token. ``experts``: those of all experts (in total).
    ``tables``: those of the embedding and of an output layer of its own.
    """

    total: int
    active: int
    experts: int
    tables: int


def count_parameters(config: RunConfig) -> ParameterCounts:
    """Parameters of the whole model, for any layout. A tied output layer is counted once, with the embedding."""
    shapes = {name: math.prod(shape) for name, shape in global_shapes(config).items() if not is_buffer(name)}
    total, experts = sum(shapes.values()), sum(size for name, size in shapes.items() if ".experts." in name)
    tables = sum(shapes.get(name, 0) for name in (config.model.architecture.embedding, "lm_head.weight"))
    unused = max(0, config.moe.num_experts - config.moe.top_k)
    return ParameterCounts(total, total - experts * unused // max(1, config.moe.num_experts), experts, tables)
