"""Search for the fastest layouts that fit a number of GPUs and their memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

from altup_moe.config import ConfigError, ParallelConfig, RunConfig
from altup_moe.config.checks import divisors
from altup_moe.plan.cache import Cache
from altup_moe.plan.cluster import Cluster
from altup_moe.plan.costs import StepCosts, memory_limit, stage_memory, step_costs
from altup_moe.plan.groups import World
from altup_moe.plan.layer_time import Factors
from altup_moe.plan.step import StepPlan, check_layout, plan_step
from altup_moe.plan.traffic import check_modelled


@dataclass(frozen=True)
class Found:
    """A layout and its plan."""

    config: RunConfig
    plan: StepPlan


@dataclass(frozen=True)
class Progress:
    """How far a search is: layouts in all, those looked at and simulated; the fastest so far and its seconds."""

    gpus: int
    layouts: int
    looked: int = 0
    simulated: int = 0
    best: RunConfig | None = None
    seconds: float | None = None


def candidates(config: RunConfig, cluster: Cluster, gpus: int) -> Iterator[RunConfig]:
    """Layouts to plan. Tensor ranks stay inside a node; tensor, interleaving and batch sizes are powers of two.

    All layouts use the distributed optimizer: it sends no more bytes and saves memory.
    """
    m, moe = config.model, config.moe
    powers = [n for n in (1, 2, 4, 8) if n <= min(gpus, cluster.gpus_per_node)]
    stages = [n for n in divisors(m.num_layers) if n <= min(32, gpus)]
    experts = [n for n in divisors(moe.num_experts) if n <= gpus] if moe.num_experts else [1]
    recomputes: tuple[Literal["none", "selective", "full"], ...] = ("none", "selective", "full")
    choices = product(powers, stages, (1, 2, 4), experts, (1, 2, 4), recomputes)
    for tensor, pipeline, rounds, expert, samples, recompute in choices:
        if (rounds > 1 and pipeline == 1) or gpus % (tensor * pipeline) or m.num_layers % (pipeline * rounds):
            continue
        for expert_tensor in {1, tensor} if moe.num_experts else {1}:
            parallel = replace(
                ParallelConfig(tensor, pipeline, rounds),
                expert=expert,
                expert_tensor=expert_tensor,
                context=config.parallel.context,
                distributed_optimizer=True,
                overlap_grad_reduce=config.parallel.overlap_grad_reduce,
            )
            train = replace(config.train, micro_batch_size=samples, recompute=recompute)
            yield replace(config, parallel=parallel, train=train)


def search(
    config: RunConfig,
    cluster: Cluster,
    gpus: int,
    factors: Factors | None = None,
    keep: int = 10,
    report: Callable[[Progress], None] = lambda progress: None,
) -> list[Found]:
    """The fastest layouts that fit the memory, at most `keep`; empty if none does.

    Finds what planning every layout would find, but simulates only those that may be among the fastest: the others
    do not fit the memory, or their `least_seconds` are above the seconds of `keep` others.

    Args:
        report: is called with each layout that was looked at and after each simulation.
    Raises:
        ConfigError: the run is not modelled, whatever the layout.
    """
    check_modelled(config)
    factors, cache, every = factors or Factors(), Cache(), list(candidates(config, cluster, gpus))
    queue: list[tuple[float, int, StepCosts]] = []
    known: dict[int, float] = {}
    progress = Progress(gpus, len(every))

    def simulated(index: int, costs: StepCosts) -> Progress:
        known[index] = costs.seconds
        best = min(known, key=lambda i: (known[i], i))
        return replace(progress, simulated=len(known), best=every[best], seconds=known[best])

    for index, candidate in enumerate(every):
        costs = _costs(candidate, cluster, gpus, factors, cache)
        progress = replace(progress, looked=index + 1)
        if costs is not None:
            least = costs.least_seconds
            queue.append((least, index, costs))
            if progress.seconds is None or least < progress.seconds:
                progress = simulated(index, costs)
        report(progress)
    for least, index, costs in sorted(queue, key=lambda entry: entry[:2]):
        if index in known:
            continue
        if len(known) >= keep and least > sorted(known.values())[keep - 1]:
            break
        progress = simulated(index, costs)
        report(progress)
    fastest = sorted(known, key=lambda index: (known[index], index))[:keep]
    return [Found(every[i], plan_step(every[i], cluster, gpus, factors, cache)) for i in fastest]


def _costs(config: RunConfig, cluster: Cluster, gpus: int, factors: Factors, cache: Cache) -> StepCosts | None:
    """The costs of a layout; None if it does not fit the GPUs or their memory."""
    try:
        check_layout(config, gpus)
    except ConfigError:
        return None
    world, limit = World(config.parallel, gpus), memory_limit(cluster)
    if any(memory.total > limit for memory in stage_memory(config, world, cache)):
        return None
    return step_costs(config, cluster, world, factors, cache)


def sweep(
    config: RunConfig,
    cluster: Cluster,
    sizes: Iterable[int],
    factors: Factors | None = None,
    report: Callable[[Progress], None] = lambda progress: None,
) -> Iterator[Found]:
    """The fastest layout for each number of GPUs; numbers that no layout fits are left out."""
    for gpus in sizes:
        yield from search(config, cluster, gpus, factors, keep=1, report=report)


def pareto_layouts(found: Iterable[Found]) -> list[Found]:
    """The Pareto front: layouts that no other with the same number of GPUs or fewer beats."""
    best, kept = 0.0, []
    for one in sorted(found, key=lambda f: (f.plan.gpus, -f.plan.tokens_per_second)):
        if one.plan.tokens_per_second > best:
            best = one.plan.tokens_per_second
            kept.append(one)
    return kept
