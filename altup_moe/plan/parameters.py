"""Exact parameter counts of the model, of the parameters active for a token, and of every rank."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial

from altup_moe.altup.shape import is_moe_layer
from altup_moe.config import RunConfig
from altup_moe.config.sequence import strided_layers
from altup_moe.parallel.counts import ParameterCounts, count_parameters
from altup_moe.parallel.parameter_names import is_buffer
from altup_moe.parallel.rank_coordinates import (
    ChunkLayers,
    HeldTensor,
    RankCoordinates,
    chunk_layers,
    chunk_tensors,
    held_tensors,
    rank_coordinates,
)
from altup_moe.plan.cache import Cache

__all__ = [
    "HeldParameter",
    "HeldSum",
    "ParameterCounts",
    "count_parameters",
    "held_parameters",
    "held_sums",
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


HeldKind = tuple[bool, bool, bool, bool]
"""(expert, whole, coefficient, table) of `HeldSum`."""
WHOLE = ("norm", ".router.", "expand.", ".contract.")
"""Parts of names of weights that every tensor rank holds whole, beside coefficients."""
TABLES = ("embedding.word_embeddings.weight", "output_layer.weight")
ALIGNMENT = 64
"""Parameters start at multiples of this in a buffer, as in megatron.core.distributed.param_and_grad_buffer."""


@dataclass(frozen=True)
class HeldSum:
    """All parameters of one kind in a chunk of a rank; the kinds are those of `HeldParameter`.

    ``table``: the embedding or the output layer. ``size``: numbers. ``aligned``: with each parameter rounded up to a
    multiple of `ALIGNMENT`.
    """

    chunk: int
    expert: bool
    whole: bool
    coefficient: bool
    table: bool
    size: int
    aligned: int


def held_parameters(config: RunConfig, coordinates: RankCoordinates) -> Iterator[HeldParameter]:
    """The parameters of a rank, in the order of its modules."""
    return _parameters(held_tensors(config, coordinates))


def _parameters(tensors: Iterable[HeldTensor]) -> Iterator[HeldParameter]:
    for tensor in tensors:
        if any(is_buffer(piece.name) for piece in tensor.pieces):
            continue
        slices = [math.prod(stop - start for start, stop in piece.global_slice) for piece in tensor.pieces]
        coefficient = ".coefficients." in tensor.name
        whole = coefficient or any(part in tensor.name for part in WHOLE)
        yield HeldParameter(tensor.chunk, tensor.name, sum(slices), ".experts." in tensor.name, whole, coefficient)


def held_sums(config: RunConfig, coordinates: RankCoordinates, cache: Cache | None = None) -> list[HeldSum]:
    """The parameters of a rank in sums, by chunk. Layers of the same kind hold the same, so one of each is counted."""
    cache, p = cache or Cache(), config.parallel
    found = []
    for number, chunk in enumerate(chunk_layers(config, coordinates.pipeline)):
        sums: Counter[HeldKind] = Counter()
        aligned: Counter[HeldKind] = Counter()
        for name, part, count in _parts(config, chunk):
            key = "sums", name, p.tensor, p.expert, p.expert_tensor
            for kind, (size, padded) in cache.get(key, partial(_sums, config, coordinates, part)).items():
                sums[kind] += count * size
                aligned[kind] += count * padded
        found += [HeldSum(number, *kind, size, aligned[kind]) for kind, size in sums.items()]
    return found


def _parts(config: RunConfig, chunk: ChunkLayers) -> Iterator[tuple[Hashable, ChunkLayers, int]]:
    """(name, example, number) of the parts of a chunk that hold the same parameters: its ends, its layers by kind."""
    ends = "ends", chunk.first, chunk.last
    if config.model.encoder_decoder:
        # Both stacks are one chunk.
        yield ends, chunk, 1
        return
    yield ends, replace(chunk, layers=range(0)), 1
    moe, strided = config.moe, strided_layers(config.sequence, config.model.num_layers)
    kinds = [(is_moe_layer(layer, moe.num_experts, moe.layer_freq), layer in strided) for layer in chunk.layers]
    for kind, count in Counter(kinds).items():
        layer = chunk.layers[kinds.index(kind)]
        yield kind, ChunkLayers(range(layer, layer + 1), first=False, last=False), count


def _sums(config: RunConfig, coordinates: RankCoordinates, part: ChunkLayers) -> dict[HeldKind, tuple[int, int]]:
    found: dict[HeldKind, tuple[int, int]] = {}
    for held in _parameters(chunk_tensors(config, coordinates, 0, part)):
        kind = held.expert, held.whole, held.coefficient, held.name in TABLES
        size, aligned = found.get(kind, (0, 0))
        found[kind] = size + held.size, aligned + -(-held.size // ALIGNMENT) * ALIGNMENT
    return found


def stage_coordinates(config: RunConfig, world_size: int) -> list[RankCoordinates]:
    """The first rank of every pipeline stage. All ranks of a stage hold the same number of parameters."""
    stage = world_size // config.parallel.pipeline
    return [rank_coordinates(config.parallel, world_size, rank) for rank in range(0, world_size, stage)]


def stage_parameters(config: RunConfig, world_size: int) -> list[int]:
    """Number of parameters of one rank, by pipeline stage."""
    return [
        sum(held.size for held in held_parameters(config, coordinates))
        for coordinates in stage_coordinates(config, world_size)
    ]
