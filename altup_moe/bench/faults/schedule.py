"""Which fault comes when: a pure function of the options and a seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from altup_moe.bench.options import HANG_KINDS, FaultKind

JITTER = 0.25
"""A fault comes up to this share of the interval before or after its time."""
HELD_SHARE, HELD_MOST = 0.3, 20.0
"""How long a fault that passes (a slow rank, a full disk) is held: this share of the interval, at most so many s."""

HANG_HELD = 300.0
"""Most seconds of a fault that the watchdog ends; it is taken back when the ranks have ended."""


@dataclass(frozen=True)
class Planned:
    """A fault to come.

    Attributes:
        second: when, after the first step of training.
        kind: what.
        draw: in [0, 1), says which rank or node.
        held: seconds until a fault that passes is taken back.
    """

    second: float
    kind: FaultKind
    draw: float
    held: float


def schedule(kinds: Sequence[FaultKind], seconds: float, every: float, seed: int) -> list[Planned]:
    """Faults about every `every` seconds of `seconds`; after the last one there is time to recover.

    Every kind comes once before one comes again, in an order that the seed shuffles.
    """
    choose = random.Random(seed)
    planned: list[Planned] = []
    bag: list[FaultKind] = []
    held = min(HELD_SHARE * every, HELD_MOST)
    while (middle := every * (len(planned) + 1)) <= seconds - every / 2:
        if not bag:
            bag = list(kinds)
            choose.shuffle(bag)
        second = middle + every * JITTER * choose.uniform(-1, 1)
        kind = bag.pop()
        planned.append(Planned(second, kind, choose.random(), HANG_HELD if kind in HANG_KINDS else held))
    return planned


def victim(draw: float, candidates: Sequence[int]) -> int:
    """The candidate that a draw in [0, 1) means."""
    return sorted(candidates)[int(draw * len(candidates))]
