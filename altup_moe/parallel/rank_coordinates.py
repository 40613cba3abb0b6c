"""Coordinates of every rank of a layout and the tensors that it holds, computed without starting any process.

Megatron numbers ranks tensor-fastest: tensor, context, data, pipeline; and, beside it, for the experts: expert-tensor,
expert, expert-data, pipeline (`parallel_state.RankGenerator`, order "tp-cp-ep-dp-pp").
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from altup_moe.config import ParallelConfig, RunConfig
from altup_moe.config.checks import stage_layers
from altup_moe.parallel.parameter_mapping import Piece, Shard, pieces
from altup_moe.parallel.parameter_names import local_names


@dataclass(frozen=True)
class RankCoordinates:
    """A rank's index in each dimension of parallelism, from 0."""

    rank: int
    tensor: int
    context: int
    data: int
    pipeline: int
    expert: int
    expert_tensor: int
    expert_data: int


@dataclass(frozen=True)
class ChunkLayers:
    """A model chunk: global indices of its layers, whether it has the embedding, whether it has the output layer."""

    layers: range
    first: bool
    last: bool


@dataclass(frozen=True)
class HeldTensor:
    """A parameter or persistent buffer of a rank: number of its chunk, local name, and the global pieces in it."""

    chunk: int
    name: str
    pieces: tuple[Piece, ...]


def all_rank_coordinates(parallel: ParallelConfig, world_size: int) -> list[RankCoordinates]:
    """Coordinates of all ranks, by rank. ``parallel``: a layout that `check_config` accepts for this world size."""
    return [rank_coordinates(parallel, world_size, rank) for rank in range(world_size)]


def rank_coordinates(parallel: ParallelConfig, world_size: int, rank: int) -> RankCoordinates:
    """Coordinates of one rank. ``parallel``: a layout that `check_config` accepts for this world size."""
    stage_ranks = world_size // parallel.pipeline
    pipeline, inside = divmod(rank, stage_ranks)
    rest, tensor = divmod(inside, parallel.tensor)
    data, context = divmod(rest, parallel.context)
    expert_rest, expert_tensor = divmod(inside, parallel.expert_tensor)
    expert_data, expert = divmod(expert_rest, parallel.expert)
    return RankCoordinates(rank, tensor, context, data, pipeline, expert, expert_tensor, expert_data)


def shard_at(parallel: ParallelConfig, coordinates: RankCoordinates) -> Shard:
    """The coordinates that decide which shard of the parameters a rank holds."""
    return Shard(
        tensor=(coordinates.tensor, parallel.tensor),
        expert=(coordinates.expert, parallel.expert),
        expert_tensor=(coordinates.expert_tensor, parallel.expert_tensor),
    )


def chunk_layers(config: RunConfig, pipeline_rank: int) -> list[ChunkLayers]:
    """The model chunks of a pipeline rank, in order: one, or `parallel.virtual_pipeline` of them.

    Interleaving assigns layers in rounds: each round gives every stage one chunk, in the order of the stages.
    """
    p = config.parallel
    counts = stage_layers(config.model.num_layers, p.pipeline, p.first_stage_layers, p.last_stage_layers)
    if counts is None:
        raise AssertionError("the layers do not share out over the stages: check_config was not called")
    each = [count // p.virtual_pipeline for count in counts]
    before, own = sum(each[:pipeline_rank]), each[pipeline_rank]
    last_stage, last_round = pipeline_rank == p.pipeline - 1, p.virtual_pipeline - 1
    return [
        ChunkLayers(
            layers=range(start := number * sum(each) + before, start + own),
            first=pipeline_rank == 0 and number == 0,
            last=last_stage and number == last_round,
        )
        for number in range(p.virtual_pipeline)
    ]


def held_tensors(config: RunConfig, coordinates: RankCoordinates) -> Iterator[HeldTensor]:
    """Every parameter and persistent buffer of a rank's model chunks, as Megatron's modules name them."""
    for number, chunk in enumerate(chunk_layers(config, coordinates.pipeline)):
        yield from chunk_tensors(config, coordinates, number, chunk)


def chunk_tensors(
    config: RunConfig, coordinates: RankCoordinates, number: int, chunk: ChunkLayers
) -> Iterator[HeldTensor]:
    """Every parameter and persistent buffer of one model chunk of a rank."""
    shard = shard_at(config.parallel, coordinates)
    experts = config.moe.num_experts // config.parallel.expert
    for name in local_names(config, chunk.layers, chunk.first, chunk.last, experts):
        yield HeldTensor(number, name, tuple(pieces(name, chunk.layers.start, shard, config)))
