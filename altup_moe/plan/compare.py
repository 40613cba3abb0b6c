"""Planned step times beside measured ones: small runs on this machine's cores under eight layouts. It runs torch."""

from __future__ import annotations

import itertools
import os
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from altup_moe.config import AltUpConfig, ModelConfig, MoEConfig, ParallelConfig, RunConfig, TrainConfig
from altup_moe.plan.cluster import Cluster
from altup_moe.plan.layer_time import Factors
from altup_moe.plan.ranks import Start, TimedStep, here, on_ranks
from altup_moe.plan.step import plan_step

_MODEL = ModelConfig(4, 256, 704, 8, 4, 256, 2048, share_embeddings_and_output_weights=False)
_EXPERTS = MoEConfig(4, ffn_hidden_size=352)
_BASE = RunConfig(_MODEL, AltUpConfig(width=2), _EXPERTS, train=TrainConfig(micro_batch_size=2, global_batch_size=8))
_DENSE = replace(_BASE, moe=MoEConfig())

LAYOUTS: dict[str, tuple[int, RunConfig]] = {
    "dense, K 4": (1, replace(_DENSE, altup=AltUpConfig(width=4))),
    "experts": (1, _BASE),
    "experts, recomputed": (1, replace(_BASE, train=replace(_BASE.train, recompute="full"))),
    "experts, DP 2": (2, _BASE),
    "experts, EP 2": (2, replace(_BASE, parallel=ParallelConfig(expert=2))),
    "experts, PP 2": (2, replace(_BASE, parallel=ParallelConfig(pipeline=2))),
    "dense, TP 2": (2, replace(_DENSE, parallel=ParallelConfig(tensor=2))),
    "dense, PP 2, VP 2": (2, replace(_DENSE, parallel=ParallelConfig(pipeline=2, virtual_pipeline=2))),
}
"""Name -> (ranks, run); no more ranks than two cores have."""

STEPS = 11
"""Timed steps of a layout, after two that are not."""


GOAL = 0.2
"""How far a planned step time may be from the measured one, as a share of it."""


@dataclass(frozen=True)
class Compared:
    """Seconds of a step: the fastest of those measured (what others do on the machine only adds), and the plan's.

    ``spread``: middle of the measured ones over the fastest, less one. ``load``: the machine's before, a minute's.
    ``busy``: the processor's seconds of the busiest rank; of one rank as many as measured, where nobody else works.
    """

    name: str
    measured: float
    planned: float
    spread: float = 0.0
    load: float = 0.0
    busy: float = 0.0
    imbalance: float = 1.0
    """Rows of the fullest expert rank over the mean, which the plan was told."""

    @property
    def ratio(self) -> float:
        """Planned over measured."""
        return self.planned / self.measured


def compare(cluster: Cluster, start: Start = here) -> Iterator[Compared]:
    """One layout after another. ``start``: starts the ranks, where these are to be nodes of a network."""
    for name, (ranks, config) in LAYOUTS.items():
        load = os.getloadavg()[0]
        found = on_ranks(ranks, "layout", name, start if ranks > 1 else here)
        by_rank = [[TimedStep(*step) for step in taken] for taken in found]
        steps = [max(step.seconds for step in taken) for taken in zip(*by_rank, strict=True)]
        spread = statistics.median(steps) / min(steps) - 1
        busy = max(min(step.busy for step in taken) for taken in by_rank)
        # Random routers are not even. That is no property of the machine, so the plan is told.
        factors = Factors(imbalance=statistics.median(step.imbalance for step in by_rank[0]))
        planned = plan_step(config, cluster, ranks, factors).seconds
        yield Compared(name, min(steps), planned, spread, load, busy, factors.imbalance)


def pairs_in_order(compared: Sequence[Compared]) -> tuple[int, int]:
    """(pairs of layouts that the plan puts in the measured order, all pairs)."""
    pairs = list(itertools.combinations(compared, 2))
    agree = sum((a.measured < b.measured) == (a.planned < b.planned) for a, b in pairs)
    return agree, len(pairs)


def apart(compared: Sequence[Compared]) -> Iterator[tuple[Compared, Compared]]:
    """Pairs whose measured times differ by more than either's spread (and by 3 % at least)."""
    for a, b in itertools.combinations(compared, 2):
        if abs(a.measured / b.measured - 1) > max(a.spread, b.spread, 0.03):
            yield a, b


def verdict(compared: Sequence[Compared]) -> Iterator[str]:
    """How far off the plan is, whether it ranks as the measurements do, and what that says of the goal."""
    worst = max(compared, key=lambda one: abs(one.ratio - 1))
    yield f"worst: {worst.name}, {worst.ratio - 1:+.0%}; steps spread by {max(c.spread for c in compared):.0%} at most"
    clear = list(apart(compared))
    wrong = [f"{a.name} / {b.name}" for a, b in clear if (a.measured < b.measured) != (a.planned < b.planned)]
    yield "{} of {} pairs of layouts in the measured order".format(*pairs_in_order(compared))
    yield f"{len(clear) - len(wrong)} of {len(clear)} that differ by more than their spread; not: {wrong or 'none'}"
    met = abs(worst.ratio - 1) <= GOAL and not wrong
    yield f"goal (within {GOAL:.0%}, ranked as measured): {'met' if met else 'not met'}"
