"""Compare planned step times with measured ones: small runs on this machine's cores."""

from __future__ import annotations

import itertools
import os
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from altup_moe.parallel.start_ranks import Start
from altup_moe.plan.calibrate.jobs import run_job
from altup_moe.plan.calibrate.layouts import LAYOUTS
from altup_moe.plan.cluster import Cluster
from altup_moe.plan.layer_time import Factors
from altup_moe.plan.step import plan_step

MAX_DEVIATION = 0.2
"""Goal of the planner: how far a planned step time may be from the measured one, as a share of the latter."""


@dataclass(frozen=True)
class Compared:
    """Seconds of a step of one layout.

    ``measured``: the fastest of the measured steps, because other load only adds time. ``spread``: the median of the
    measured steps over the fastest, minus 1. ``load``: the machine's load average of the minute before. ``busy``:
    processor seconds of the busiest rank; on an idle machine a single rank is busy for the whole step.
    """

    name: str
    measured: float
    planned: float
    spread: float = 0.0
    load: float = 0.0
    busy: float = 0.0
    imbalance: float = 1.0
    """Rows of the fullest expert rank over the mean. The plan is given this figure."""

    @property
    def ratio(self) -> float:
        """Planned over measured."""
        return self.planned / self.measured


def compare_steps(cluster: Cluster, start: Start | None = None) -> Iterator[Compared]:
    """Measure and plan each of `LAYOUTS`. Raises RankError if a rank fails.

    Args:
        start: starts the ranks of a layout that has more than one, for example on nodes of a netlab; None starts
            processes of this machine.
    """
    for name, (ranks, config) in LAYOUTS.items():
        load = os.getloadavg()[0]
        # A `TimedStep` of each rank and step: (seconds, busy, imbalance).
        by_rank = run_job(ranks, "layout", name, start if ranks > 1 else None)
        steps = [max(seconds for seconds, _, _ in step) for step in zip(*by_rank, strict=True)]
        spread = statistics.median(steps) / min(steps) - 1
        busy = max(min(busy for _, busy, _ in taken) for taken in by_rank)
        # A random router is uneven. The machine does not determine that, so the plan is given the measured figure.
        factors = Factors(imbalance=statistics.median(imbalance for _, _, imbalance in by_rank[0]))
        planned = plan_step(config, cluster, ranks, factors).seconds
        yield Compared(name, min(steps), planned, spread, load, busy, factors.imbalance)


def pairs_in_order(compared: Sequence[Compared]) -> tuple[int, int]:
    """(pairs of layouts that the plan orders as the measurements do, all pairs)."""
    pairs = list(itertools.combinations(compared, 2))
    agree = sum((a.measured < b.measured) == (a.planned < b.planned) for a, b in pairs)
    return agree, len(pairs)


def distinguishable(compared: Sequence[Compared]) -> Iterator[tuple[Compared, Compared]]:
    """Pairs whose measured times differ by more than the spread of either (and by 3 % at least)."""
    for a, b in itertools.combinations(compared, 2):
        if abs(a.measured / b.measured - 1) > max(a.spread, b.spread, 0.03):
            yield a, b


def verdict(compared: Sequence[Compared]) -> Iterator[str]:
    """Lines for the user: the largest deviation, the pairs in the measured order, and whether the goal is met."""
    worst = max(compared, key=lambda one: abs(one.ratio - 1))
    yield f"worst: {worst.name}, {worst.ratio - 1:+.0%}; steps spread by {max(c.spread for c in compared):.0%} at most"
    clear = list(distinguishable(compared))
    wrong = [f"{a.name} / {b.name}" for a, b in clear if (a.measured < b.measured) != (a.planned < b.planned)]
    yield "{} of {} pairs of layouts in the measured order".format(*pairs_in_order(compared))
    yield f"{len(clear) - len(wrong)} of {len(clear)} that differ by more than their spread; not: {wrong or 'none'}"
    met = abs(worst.ratio - 1) <= MAX_DEVIATION and not wrong
    yield f"goal (within {MAX_DEVIATION:.0%}, ranked as measured): {'met' if met else 'not met'}"
