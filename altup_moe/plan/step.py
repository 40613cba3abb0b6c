"""The plan of one training step on a cluster: time, memory and communication."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from altup_moe.altup.shape import is_moe_layer
from altup_moe.config import ConfigError, RunConfig
from altup_moe.config.checks import CHECKS, check_files, num_microbatches
from altup_moe.config.start_advice import replace_start
from altup_moe.config.units import GIB
from altup_moe.model.flops import flops_per_token
from altup_moe.parallel.rank_coordinates import RankCoordinates, chunk_layers
from altup_moe.plan.buffers import PARAMETER_BYTES
from altup_moe.plan.cluster import Cluster
from altup_moe.plan.groups import World
from altup_moe.plan.layer_time import (
    Factors,
    Times,
    Window,
    chunk_times,
    layer_times,
    output_times,
    window,
)
from altup_moe.plan.memory import Memory, rank_memory
from altup_moe.plan.parameters import held_parameters, stage_coordinates
from altup_moe.plan.schedule import PipelineTask, Slot, busy, simulate
from altup_moe.plan.traffic import boundary_bytes, step_transfers
from altup_moe.plan.transfer_time import transfer_seconds
from altup_moe.plan.transfers import LinkBytes, Transfer, link_bytes


@dataclass(frozen=True)
class StagePlan:
    """One pipeline stage: what each of its ranks holds and sends, and its seconds of a step."""

    coordinates: RankCoordinates
    parameters: int
    memory: Memory
    links: list[LinkBytes]
    busy: Times
    reduce: float
    """Exposed seconds of reducing gradients and gathering weights."""
    update: float


@dataclass(frozen=True)
class StepPlan:
    """The time of a step and its parts, in seconds. `mfu` and `bubble` are shares."""

    gpus: int
    tokens: int
    seconds: float
    mfu: float
    bubble: float
    pipeline: float
    """Seconds by which sends between stages lengthen the step."""
    stages: list[StagePlan]
    dense_window: Window | None
    moe_window: Window | None
    fits: bool
    slots: list[Slot]

    @property
    def tokens_per_second(self) -> float:
        """Tokens a second of all GPUs together."""
        return self.tokens / self.seconds

    @property
    def slowest(self) -> StagePlan:
        """The stage that computes longest."""
        return max(self.stages, key=lambda stage: stage.busy.total)

    @property
    def peak_memory(self) -> float:
        """Bytes of the fullest rank."""
        return max(stage.memory.total for stage in self.stages)

    def exposed(self) -> dict[str, float]:
        """Seconds of exposed communication on the slowest stage, by kind."""
        stage = self.slowest
        times = stage.busy
        return {
            "tensor": times.tensor,
            "context": times.context,
            "expert": times.expert,
            "pipeline": self.pipeline,
            "data": stage.reduce,
        }


def check_layout(config: RunConfig, world_size: int) -> None:
    """`check_config` without the check of files, because a plan needs no corpus. Raises ConfigError."""

    def gpus(ranks: int) -> str:
        # A given number of data-parallel ranks leaves one size; else a multiple fits as well.
        size = ranks if config.parallel.data else ranks * max(1, -(-world_size // ranks))
        return f"--gpus {size} would fit (--nodes gives them as well)"

    try:
        for check in CHECKS:
            if check is not check_files:
                check(config, world_size)
    except ConfigError as error:
        raise ConfigError(error.key, error.value, replace_start(error.fits, gpus)) from None


def per_micro_batch(transfers: Sequence[Transfer], count: int) -> list[Transfer]:
    """The transfers of one of `count` micro-batches. Those once for each step are left out."""
    return [replace(t, calls=t.calls // count, size=t.size / count) for t in transfers if t.phase != "step"]


def plan_step(config: RunConfig, cluster: Cluster, gpus: int, factors: Factors | None = None) -> StepPlan:
    """Plan one step of a run on `gpus` GPUs. Raises ConfigError: the layout does not fit, or is not modelled."""
    check_layout(config, gpus)
    factors = factors or Factors()
    if cluster.cpu_cost_model is not None and gpus == 1:
        cluster = replace(cluster, cpu_cost_model=cluster.cpu_cost_model.alone())
    world, count, p = World(config.parallel, gpus), num_microbatches(config, gpus), config.parallel
    first = stage_coordinates(config, gpus)
    transfers = [step_transfers(config, world, coordinates) for coordinates in first]
    single = [per_micro_batch(found, count) for found in transfers]
    passes = [_passes(config, world, cluster, *pair, factors) for pair in zip(first, single, strict=True)]

    def seconds(stage: int, task: PipelineTask) -> float:
        return passes[stage][task.chunk][task.backward].total

    send = _send_seconds(config, cluster, world, first[0]) if p.pipeline > 1 else 0.0

    def with_send(stage: int, task: PipelineTask) -> float:
        position, last = task.chunk * p.pipeline + stage, p.pipeline * p.virtual_pipeline - 1
        return seconds(stage, task) + (send if position != (0 if task.backward else last) else 0.0)

    # A GPU sends while its next pass runs. With a `CpuCostModel` the sending core does the work itself.
    copied = (seconds, send) if cluster.cpu_cost_model is None else (with_send, 0.0)
    slots = simulate(p.pipeline, p.virtual_pipeline, count, *copied)
    computing = max(slot.end for slot in slots)
    undelayed = max(s.end for s in simulate(p.pipeline, p.virtual_pipeline, count, seconds)) if send else computing
    stages = [
        _stage(config, world, cluster, coordinates, found, spent, count)
        for coordinates, found, spent in zip(first, transfers, passes, strict=True)
    ]
    total = computing + max(stage.reduce + stage.update for stage in stages)
    tokens = config.train.global_batch_size * config.model.seq_length
    idle = 1 - sum(busy(slots, p.pipeline)) / (p.pipeline * computing)
    limit = cluster.memory_gib * GIB * cluster.usable_memory
    return StepPlan(
        gpus=gpus,
        tokens=tokens,
        seconds=total,
        mfu=tokens * flops_per_token(config) / (total * gpus * cluster.peak(config.train.precision)),
        bubble=idle,
        pipeline=computing - undelayed,
        stages=stages,
        dense_window=_window(config, world, cluster, first, single, experts=False),
        moe_window=_window(config, world, cluster, first, single, experts=True),
        fits=all(stage.memory.total <= limit for stage in stages),
        slots=slots,
    )


def _send_seconds(config: RunConfig, cluster: Cluster, world: World, coordinates: RankCoordinates) -> float:
    pair = (coordinates.rank, world.neighbour(coordinates, 1))
    return transfer_seconds(Transfer("pipeline", "send", pair, 1, boundary_bytes(config)), cluster)


def _passes(
    config: RunConfig,
    world: World,
    cluster: Cluster,
    coordinates: RankCoordinates,
    transfers: list[Transfer],
    factors: Factors,
) -> list[tuple[Times, Times]]:
    """(forward, backward) of each chunk of a stage for one micro-batch. Layers of the same kind cost the same."""
    known: dict[bool, tuple[Times, Times]] = {}
    found = []
    for number, chunk in enumerate(chunk_layers(config, coordinates.pipeline)):
        forward = backward = Times()
        for layer in chunk.layers:
            kind = is_moe_layer(layer, config.moe.num_experts, config.moe.layer_freq)
            if kind not in known:
                known[kind] = layer_times(config, world, cluster, coordinates, layer, transfers, factors)
            forward, backward = forward + known[kind][0], backward + known[kind][1]
        if cluster.cpu_cost_model is not None:
            held = sum(h.size for h in held_parameters(config, coordinates) if h.chunk == number)
            beside = chunk_times(config, cluster.cpu_cost_model, chunk, held)
            forward, backward = forward + beside[0], backward + beside[1]
        if chunk.last:
            ends = output_times(config, cluster, transfers, factors)
            forward, backward = forward + ends[0], backward + ends[1]
        found.append((forward, backward))
    return found


def _stage(
    config: RunConfig,
    world: World,
    cluster: Cluster,
    coordinates: RankCoordinates,
    transfers: list[Transfer],
    passes: list[tuple[Times, Times]],
    count: int,
) -> StagePlan:
    held = list(held_parameters(config, coordinates))
    once = [t for t in transfers if t.phase == "step"]
    reduce = sum(transfer_seconds(t, cluster) for t in once if t.operation == "reduce_scatter" or _is_gradient(t))
    rest = sum(transfer_seconds(t, cluster) for t in once) - reduce
    if config.parallel.overlap_grad_reduce:
        # The backward of the last micro-batch hides as much of the reduction as it lasts.
        reduce = max(0.0, reduce - sum(backward.total for _, backward in passes))
    share = len(world.data(coordinates)) if config.parallel.distributed_optimizer else 1
    expert_share = len(world.expert_data(coordinates)) if config.parallel.distributed_optimizer else 1
    updated = sum(h.size / (expert_share if h.expert else share) for h in held)
    # Reads gradient, weight and both moments; writes weight and moments, and the weight in its own type.
    moved = updated * (16 + 12 + PARAMETER_BYTES[config.train.precision])
    both = sum((forward + backward for forward, backward in passes), Times())
    model = cluster.cpu_cost_model
    return StagePlan(
        coordinates=coordinates,
        parameters=sum(h.size for h in held),
        memory=rank_memory(config, world, coordinates),
        links=link_bytes(transfers, cluster.gpus_per_node),
        busy=both * count,
        reduce=reduce + rest,
        update=model.update(updated) if model else moved / cluster.memory_rate,
    )


def _is_gradient(transfer: Transfer) -> bool:
    return transfer.kind == "data" and transfer.operation == "all_reduce"


def _window(
    config: RunConfig,
    world: World,
    cluster: Cluster,
    first: list[RankCoordinates],
    transfers: list[list[Transfer]],
    experts: bool,
) -> Window | None:
    """The window of the first layer with or without experts; None if there is no such layer."""
    for coordinates, found in zip(first, transfers, strict=True):
        for chunk in chunk_layers(config, coordinates.pipeline):
            for layer in chunk.layers:
                if is_moe_layer(layer, config.moe.num_experts, config.moe.layer_freq) == experts:
                    return window(config, world, cluster, coordinates, layer, found)
    return None
