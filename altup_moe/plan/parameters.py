"""Exact parameter counts: of the model, of a token's active part, of every rank."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from altup_moe.altup.shape import is_moe_layer
from altup_moe.config import RunConfig
from altup_moe.parallel.names import global_shapes, is_buffer
from altup_moe.parallel.places import Place, held_tensors, places


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters. ``active``: those that one token meets. ``experts``: in all experts (a part of total)."""

    total: int
    active: int
    experts: int


@dataclass(frozen=True)
class Held:
    """A parameter of a rank: its chunk, name there, numbers, and what decides how it is reduced and stored.

    ``whole``: every tensor rank holds all of it (norms, routers, coefficients): its gradient is summed over them.
    """

    chunk: int
    name: str
    size: int
    expert: bool
    whole: bool
    coefficient: bool


def parameters(config: RunConfig) -> Parameters:
    """The model's, whatever the layout. A tied output layer is the embedding, and counts once."""
    shapes = {name: math.prod(shape) for name, shape in global_shapes(config).items() if not is_buffer(name)}
    moe, layers = config.moe, range(config.model.num_layers)
    moe_layers = sum(is_moe_layer(layer, moe.num_experts, moe.layer_freq) for layer in layers)
    expert = 3 * config.model.hidden_size * moe.ffn_hidden_size
    total = sum(shapes.values())
    return Parameters(
        total=total,
        active=total - moe_layers * max(0, moe.num_experts - moe.top_k) * expert,
        experts=moe_layers * moe.num_experts * expert,
    )


def held_parameters(config: RunConfig, place: Place) -> Iterator[Held]:
    """What a rank holds, in the order of its modules."""
    for tensor in held_tensors(config, place):
        if any(is_buffer(piece.name) for piece in tensor.pieces):
            continue
        boxes = [math.prod(stop - start for start, stop in piece.box) for piece in tensor.pieces]
        coefficient = ".coefficients." in tensor.name
        whole = coefficient or "norm" in tensor.name or ".router." in tensor.name
        yield Held(tensor.chunk, tensor.name, sum(boxes), ".experts." in tensor.name, whole, coefficient)


def stage_places(config: RunConfig, world_size: int) -> list[Place]:
    """The first rank of every pipeline stage. All of a stage's ranks hold as many parameters."""
    stage = world_size // config.parallel.pipeline
    return places(config.parallel, world_size)[::stage]


def stage_parameters(config: RunConfig, world_size: int) -> list[int]:
    """Parameters of one rank, by pipeline stage."""
    return [sum(held.size for held in held_parameters(config, place)) for place in stage_places(config, world_size)]
