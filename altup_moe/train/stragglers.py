"""Which rank is slow: every rank's own time of a step, compared every `log.straggler_interval` steps.

A rank's own time is the step's wall-clock time without the time for which its main thread waited for collectives: a
slow rank makes the others wait, and waits little itself. Under NCCL the GPU waits, not the host, so that all ranks'
times are about the same there, and none is named.

Stages of a pipeline do different work. A rank is compared with the ranks of its own stage; one that is alone there
with its own fastest interval.

The links between nodes are measured at the same steps (`train.link_speeds`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import median, median_low

from altup_moe.config import LogConfig
from altup_moe.parallel.control_collectives import gather_json
from altup_moe.parallel.topology import Topology
from altup_moe.parallel.watchdog.notes import blocked_seconds
from altup_moe.train.link_speeds import RELEASE, STEADY, LinkSpeeds, SlowestLink


@dataclass(frozen=True)
class Straggler:
    """What an interval showed.

    ``rank``: the named one, None if there is none; ``score``: of the slowest rank. ``link``: of several nodes, where
    their links were measured.
    """

    score: float
    rank: int | None
    link: SlowestLink | None = None


def scores(own: Sequence[float], stages: Sequence[int], fastest: Sequence[float]) -> list[float]:
    """Own time of each rank over the lower median of its stage's ranks; of one alone there, over its fastest.

    Args:
        own: seconds of a step, by rank. stages: pipeline stage, by rank. fastest: least `own` so far, by rank.
    """
    found = []
    for seconds, stage, least in zip(own, stages, fastest, strict=True):
        peers = [other for other, place in zip(own, stages, strict=True) if place == stage]
        found.append(seconds / max(median_low(peers) if len(peers) > 1 else least, 1e-9))
    return found


class Naming:
    """Who is named, interval by interval. Mutable."""

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self._suspect, self._times = -1, 0
        self.named: int | None = None

    def interval(self, found: Sequence[float]) -> Straggler:
        """Take the scores of an interval."""
        if self.named is not None and found[self.named] < max(1.0, self.threshold * RELEASE):
            self.named = None
        worst = max(range(len(found)), key=found.__getitem__)
        if found[worst] < self.threshold:
            self._suspect, self._times = -1, 0
        else:
            self._times = self._times + 1 if worst == self._suspect else 1
            self._suspect = worst
            if self._times >= STEADY:
                self.named = worst
        return Straggler(found[worst], self.named)


class Stragglers:
    """Times this rank's steps; every `log.straggler_interval` steps compares the ranks' times and the nodes' links.

    Off with 0, and in a world of one.
    """

    def __init__(self, log: LogConfig, topology: Topology) -> None:
        self.interval = log.straggler_interval if topology.world_size > 1 else 0
        self._topology, self._naming = topology, Naming(log.straggler_threshold)
        self._links = LinkSpeeds(log.slow_link_threshold, topology)
        self._own: list[float] = []
        self._fastest = [float("inf")] * topology.world_size
        self._first = True

    @contextmanager
    def step(self) -> Iterator[None]:
        """One training step is taken inside."""
        began, blocked = time.perf_counter(), blocked_seconds()
        yield
        self._own.append(time.perf_counter() - began - (blocked_seconds() - blocked))

    def settle(self) -> Straggler | None:
        """After a step: what the interval showed if it was the interval's last. Collective then."""
        if not self.interval:
            self._own.clear()
            return None
        if len(self._own) < self.interval:
            return None
        mine, self._own = median(self._own), []
        every = gather_json([mine, self._topology.pipeline_rank], self._topology.device)
        own, stages = zip(*every, strict=True)
        if self._first:
            # Compilers, caches and allocators: a start is no measurement.
            self._first = False
            return None
        self._fastest = [min(pair) for pair in zip(self._fastest, own, strict=True)]
        return replace(self._naming.interval(scores(own, stages, self._fastest)), link=self._links.settle())
