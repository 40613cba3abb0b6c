"""Seconds and memory of a step's stages, before their schedule is simulated. A search looks at these first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from altup_moe.altup.shape import is_moe_layer
from altup_moe.config import RunConfig
from altup_moe.config.checks import num_microbatches
from altup_moe.config.units import GIB
from altup_moe.moe.backends import walks_two_steps
from altup_moe.parallel.rank_coordinates import RankCoordinates, chunk_layers
from altup_moe.plan.buffers import PARAMETER_BYTES
from altup_moe.plan.cache import Cache
from altup_moe.plan.cluster import Cluster
from altup_moe.plan.groups import World
from altup_moe.plan.layer_time import Factors, Place, Times, chunk_times, layer_times, output_times
from altup_moe.plan.memory import Memory, rank_memory
from altup_moe.plan.parameters import HeldSum, held_sums, stage_coordinates
from altup_moe.plan.schedule import Durations, least_makespan, makespan
from altup_moe.plan.traffic import boundary_bytes, check_modelled, end_transfers, layer_transfers, update_transfers
from altup_moe.plan.transfer_time import transfer_seconds
from altup_moe.plan.transfers import Transfer


@dataclass(frozen=True)
class StageCosts:
    """One pipeline stage. ``passes``: (forward, backward) of each chunk for one micro-batch. Seconds of a step:

    ``reduce``: reducing gradients and gathering weights, as far as nothing hides it. ``update``: the optimizer.
    """

    passes: list[tuple[Times, Times]]
    reduce: float
    update: float


@dataclass(frozen=True)
class StepCosts:
    """All stages. ``send``: seconds of a send to the next stage, in which a stage computes on."""

    micro_batches: int
    stages: list[StageCosts]
    durations: Durations
    send: float

    @property
    def computing(self) -> float:
        """Seconds until the last pass of the simulated schedule ends."""
        return makespan(self.durations, self.micro_batches, self.send)

    @property
    def seconds(self) -> float:
        """Seconds of the step."""
        return self.computing + self._rest

    @property
    def least_seconds(self) -> float:
        """What `seconds` does not fall below, without simulating (`least_makespan`)."""
        return least_makespan(self.durations, self.micro_batches, self.send) + self._rest

    @property
    def _rest(self) -> float:
        return max(stage.reduce + stage.update for stage in self.stages)


FRAGMENTATION = 0.15
"""Share of the memory that an allocator loses in pieces too small to use.

What a defragmenting allocator won back from PyTorch's in the mean of eight language models on A100s of 80 GB; up to
0.33 (Guo et al., GMLake, arXiv 2401.08156, abstract).
"""


def memory_limit(cluster: Cluster, fragmentation: float = 0.0) -> float:
    """Bytes that a run may fill. ``fragmentation``: share that its allocator loses."""
    return cluster.memory_gib * GIB * cluster.usable_memory * (1 - fragmentation)


def stage_memory(config: RunConfig, world: World, cache: Cache) -> list[Memory]:
    """Memory of a rank of each stage."""
    first = stage_coordinates(config, world.size)
    return [rank_memory(config, world, c, _held(config, c, cache)) for c in first]


def step_costs(config: RunConfig, cluster: Cluster, world: World, factors: Factors, cache: Cache) -> StepCosts:
    """Costs of the stages of a layout that `check_layout` accepts. Raises ConfigError: the run is not modelled."""
    check_modelled(config)
    if cluster.cpu_cost_model is not None and world.size == 1:
        cluster = replace(cluster, cpu_cost_model=cluster.cpu_cost_model.alone())
    p, first = config.parallel, stage_coordinates(config, world.size)
    stages = [_stage(config, world, cluster, coordinates, factors, cache) for coordinates in first]
    send = _send_seconds(config, cluster, world, first[0]) if p.pipeline > 1 else 0.0
    durations = [[(forward.total, backward.total) for forward, backward in stage.passes] for stage in stages]
    if cluster.cpu_cost_model is not None and send:
        # A GPU sends while its next pass runs. With a `CpuCostModel` the sending core does the work itself.
        durations, send = _with_sends(durations, send), 0.0
    return StepCosts(num_microbatches(config, world.size), stages, durations, send)


def _with_sends(durations: Durations, send: float) -> list[list[tuple[float, float]]]:
    ends = (0, 0), (len(durations) - 1, len(durations[0]) - 1)
    return [
        [
            (forward + send * ((stage, chunk) != ends[1]), backward + send * ((stage, chunk) != ends[0]))
            for chunk, (forward, backward) in enumerate(chunks)
        ]
        for stage, chunks in enumerate(durations)
    ]


def _send_seconds(config: RunConfig, cluster: Cluster, world: World, coordinates: RankCoordinates) -> float:
    pair = (coordinates.rank, world.neighbour(coordinates, 1))
    return transfer_seconds(Transfer("pipeline", "send", pair, 1, boundary_bytes(config)), cluster)


def _held(config: RunConfig, coordinates: RankCoordinates, cache: Cache) -> list[HeldSum]:
    return cache.get(("held", coordinates.pipeline, config.parallel), lambda: held_sums(config, coordinates, cache))


def _stage(
    config: RunConfig, world: World, cluster: Cluster, coordinates: RankCoordinates, factors: Factors, cache: Cache
) -> StageCosts:
    held = _held(config, coordinates, cache)
    passes = _passes(config, world, cluster, coordinates, held, factors, cache)
    key = "update", coordinates.pipeline, config.parallel
    reduce, rest, update = cache.get(key, lambda: _update(config, world, cluster, coordinates, held))
    if config.parallel.overlap_grad_reduce:
        # The backward of the last micro-batch hides as much of the reduction as it lasts.
        reduce = max(0.0, reduce - sum(backward.total for _, backward in passes))
    return StageCosts(passes, reduce + rest, update)


def _passes(
    config: RunConfig,
    world: World,
    cluster: Cluster,
    coordinates: RankCoordinates,
    held: Sequence[HeldSum],
    factors: Factors,
    cache: Cache,
) -> list[tuple[Times, Times]]:
    """(forward, backward) of each chunk of a stage for one micro-batch. Layers of the same kind cost the same."""
    p, train = config.parallel, config.train
    # Groups inside a stage lie alike on the nodes where their first ranks do.
    place = coordinates.rank % cluster.gpus_per_node
    key = place, p.tensor, p.context, p.expert, p.expert_tensor, train.micro_batch_size, train.recompute

    def layer_cost(layer: int, at: Place) -> tuple[Times, Times]:
        found = layer_transfers(config, world, coordinates, layer)
        return layer_times(config, world, cluster, coordinates, layer, found, factors, at)

    def end_cost() -> tuple[Times, Times]:
        return output_times(config, cluster, end_transfers(config, world, coordinates), factors)

    passes, in_twos = [], walks_two_steps(config)
    for number, chunk in enumerate(chunk_layers(config, coordinates.pipeline)):
        parts = []
        for layer in chunk.layers:
            kind = is_moe_layer(layer, config.moe.num_experts, config.moe.layer_freq)
            at = Place(layer == chunk.layers[0], layer == chunk.layers[-1]) if in_twos else Place()
            parts.append(cache.get(("layer", kind, at, *key), partial(layer_cost, layer, at)))
        if cluster.cpu_cost_model is not None:
            size = sum(h.size for h in held if h.chunk == number)
            parts.append(chunk_times(config, cluster.cpu_cost_model, chunk, size))
        if chunk.last:
            parts.append(cache.get(("output", coordinates.pipeline == 0, *key), end_cost))
        passes.append((sum((f for f, _ in parts), Times()), sum((b for _, b in parts), Times())))
    return passes


def _update(
    config: RunConfig, world: World, cluster: Cluster, coordinates: RankCoordinates, held: Sequence[HeldSum]
) -> tuple[float, float, float]:
    """Seconds of (the reduction of gradients, other transfers once for each step, the optimizer)."""
    once = update_transfers(config, world, coordinates, held)
    reduce = sum(transfer_seconds(t, cluster) for t in once if t.operation == "reduce_scatter" or _is_gradient(t))
    rest = sum(transfer_seconds(t, cluster) for t in once) - reduce
    sharded = config.parallel.distributed_optimizer
    share = len(world.data(coordinates)) if sharded else 1
    expert_share = len(world.expert_data(coordinates)) if sharded else 1
    updated = sum(h.size / (expert_share if h.expert else share) for h in held)
    if cluster.cpu_cost_model is not None:
        return reduce, rest, cluster.cpu_cost_model.update(updated)
    # Reads gradient, weight and both moments; writes weight and moments, and the weight in its own type.
    moved = updated * (16 + 12 + PARAMETER_BYTES[config.train.precision])
    return reduce, rest, moved / cluster.memory_rate


def _is_gradient(transfer: Transfer) -> bool:
    return transfer.kind == "data" and transfer.operation == "all_reduce"
