"""The plan of one training step on a cluster: time, memory and communication."""

from __future__ import annotations

from dataclasses import dataclass

from altup_moe.altup.shape import is_moe_layer
from altup_moe.config import ConfigError, RunConfig
from altup_moe.config.checks import CHECKS, check_files
from altup_moe.config.start_advice import replace_start
from altup_moe.model.flops import flops_per_token
from altup_moe.parallel.rank_coordinates import RankCoordinates, chunk_layers
from altup_moe.plan.cache import Cache
from altup_moe.plan.cluster import Cluster
from altup_moe.plan.costs import FRAGMENTATION, StageCosts, memory_limit, stage_memory, step_costs
from altup_moe.plan.groups import World
from altup_moe.plan.layer_time import Factors, Times, Window, window
from altup_moe.plan.memory import Memory
from altup_moe.plan.parameters import held_sums, stage_coordinates
from altup_moe.plan.schedule import PipelineTask, Slot, busy, makespan, simulate
from altup_moe.plan.traffic import layer_transfers, step_transfers
from altup_moe.plan.transfers import LinkBytes, link_bytes


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
    fits_fragmented: bool
    """Whether it fits also where the allocator loses the share `FRAGMENTATION` of the memory."""
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


def plan_step(
    config: RunConfig, cluster: Cluster, gpus: int, factors: Factors | None = None, cache: Cache | None = None
) -> StepPlan:
    """Plan one step of a run on `gpus` GPUs. Raises ConfigError: the layout does not fit, or is not modelled.

    Args:
        cache: what other layouts of the same run have computed already, with the same cluster, GPUs and factors.
    """
    check_layout(config, gpus)
    world, p, cache = World(config.parallel, gpus), config.parallel, cache or Cache()
    costs = step_costs(config, cluster, world, factors or Factors(), cache)
    durations, count = costs.durations, costs.micro_batches

    def seconds(stage: int, task: PipelineTask) -> float:
        return durations[stage][task.chunk][task.backward]

    slots = simulate(p.pipeline, p.virtual_pipeline, count, seconds, costs.send)
    computing = max(slot.end for slot in slots)
    undelayed = makespan([[(f.total, b.total) for f, b in stage.passes] for stage in costs.stages], count)
    first = stage_coordinates(config, gpus)
    memory = stage_memory(config, world, cache)
    stages = [_stage(config, world, cluster, *parts, count) for parts in zip(first, costs.stages, memory, strict=True)]
    total = computing + max(stage.reduce + stage.update for stage in stages)
    tokens = config.train.global_batch_size * config.model.seq_length
    idle = 1 - sum(busy(slots, p.pipeline)) / (p.pipeline * computing)
    fullest = max(stage.memory.total for stage in stages)
    return StepPlan(
        gpus=gpus,
        tokens=tokens,
        seconds=total,
        mfu=tokens * flops_per_token(config) / (total * gpus * cluster.peak(config.train.precision)),
        bubble=idle,
        pipeline=computing - undelayed,
        stages=stages,
        dense_window=_window(config, world, cluster, first, experts=False),
        moe_window=_window(config, world, cluster, first, experts=True),
        fits=fullest <= memory_limit(cluster),
        fits_fragmented=fullest <= memory_limit(cluster, FRAGMENTATION),
        slots=slots,
    )


def _stage(
    config: RunConfig,
    world: World,
    cluster: Cluster,
    coordinates: RankCoordinates,
    costs: StageCosts,
    memory: Memory,
    count: int,
) -> StagePlan:
    return StagePlan(
        coordinates=coordinates,
        parameters=sum(h.size for h in held_sums(config, coordinates)),
        memory=memory,
        links=link_bytes(step_transfers(config, world, coordinates), cluster.gpus_per_node),
        busy=sum((forward + backward for forward, backward in costs.passes), Times()) * count,
        reduce=costs.reduce,
        update=costs.update,
    )


def _window(
    config: RunConfig, world: World, cluster: Cluster, first: list[RankCoordinates], experts: bool
) -> Window | None:
    """The window of the first layer with or without experts; None if there is no such layer."""
    for coordinates in first:
        for chunk in chunk_layers(config, coordinates.pipeline):
            for layer in chunk.layers:
                if is_moe_layer(layer, config.moe.num_experts, config.moe.layer_freq) == experts:
                    found = layer_transfers(config, world, coordinates, layer)
                    return window(config, world, cluster, coordinates, layer, found)
    return None
