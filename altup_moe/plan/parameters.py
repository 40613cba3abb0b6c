"""Exact parameter counts of the model, of the parameters active for a token, and of every rank."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from altup_moe.config import RunConfig
from altup_moe.parallel.counts import ParameterCounts, count_parameters
from altup_moe.parallel.parameter_names import is_buffer
from altup_moe.parallel.rank_coordinates import RankCoordinates, all_rank_coordinates, held_tensors

__all__ = [
    "HeldParameter",
    "ParameterCounts",
    "count_parameters",
    "held_parameters",
    "stage_coordinates",
    "stage_parameters",
]


@dataclass(frozen=True)
class HeldParameter:
    """A parameter of a rank.

    ``name``: in its chunk. ``size``: numbers. ``whole``: every tensor rank holds all of it (norms, routers,
    coefficients), so its gradient is summed over them. ``coefficient``: an AltUp coefficient, always fp32.
    """

    chunk: int
    name: str
    size: int
    expert: bool
    whole: bool
    coefficient: bool


def held_parameters(config: RunConfig, coordinates: RankCoordinates) -> Iterator[HeldParameter]:
    """The parameters of a rank, in the order of its modules."""
    for tensor in held_tensors(config, coordinates):
        if any(is_buffer(piece.name) for piece in tensor.pieces):
            continue
        slices = [math.prod(stop - start for start, stop in piece.global_slice) for piece in tensor.pieces]
        coefficient = ".coefficients." in tensor.name
        whole = coefficient or "norm" in tensor.name or ".router." in tensor.name
        yield HeldParameter(tensor.chunk, tensor.name, sum(slices), ".experts." in tensor.name, whole, coefficient)


def stage_coordinates(config: RunConfig, world_size: int) -> list[RankCoordinates]:
    """The first rank of every pipeline stage. All ranks of a stage hold the same number of parameters."""
    stage = world_size // config.parallel.pipeline
    return all_rank_coordinates(config.parallel, world_size)[::stage]


def stage_parameters(config: RunConfig, world_size: int) -> list[int]:
    """Number of parameters of one rank, by pipeline stage."""
    return [
        sum(held.size for held in held_parameters(config, coordinates))
        for coordinates in stage_coordinates(config, world_size)
    ]
