"""Search for the fastest layouts that fit a number of GPUs and their memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

from altup_moe.config import ConfigError, ParallelConfig, RunConfig
from altup_moe.config.checks import divisors
from altup_moe.plan.cluster import Cluster
from altup_moe.plan.layer_time import Factors
from altup_moe.plan.step import StepPlan, plan_step


@dataclass(frozen=True)
class Found:
    """A layout and its plan."""

    config: RunConfig
    plan: StepPlan


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
    config: RunConfig, cluster: Cluster, gpus: int, factors: Factors | None = None, keep: int = 10
) -> list[Found]:
    """The fastest layouts that fit the memory, at most `keep`; empty if none does."""
    found = []
    for candidate in candidates(config, cluster, gpus):
        try:
            plan = plan_step(candidate, cluster, gpus, factors)
        except ConfigError:
            continue
        if plan.fits:
            found.append(Found(candidate, plan))
            # Plans hold whole schedules, so only the best are kept in memory.
            found = sorted(found, key=lambda f: f.plan.seconds)[:keep]
    return found


def sweep(config: RunConfig, cluster: Cluster, sizes: Iterable[int], factors: Factors | None = None) -> Iterator[Found]:
    """The fastest layout for each number of GPUs; numbers that no layout fits are left out."""
    for gpus in sizes:
        yield from search(config, cluster, gpus, factors, keep=1)


def pareto_layouts(found: Iterable[Found]) -> list[Found]:
    """The Pareto front: layouts that no other with the same number of GPUs or fewer beats."""
    best, kept = 0.0, []
    for one in sorted(found, key=lambda f: (f.plan.gpus, -f.plan.tokens_per_second)):
        if one.plan.tokens_per_second > best:
            best = one.plan.tokens_per_second
            kept.append(one)
    return kept
