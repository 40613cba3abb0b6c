"""Which component of a mixture each sample comes from: exact shares over every prefix, by number alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np


@dataclass(frozen=True)
class MixtureOrder:
    """A periodic assignment of sample numbers to components.

    Args:
        component: [P] int64, the component of each number of one period.
        index: [P] int64, how many earlier numbers of the period have the same component.
        per_period: [C] int64, numbers of each component in one period.
    """

    component: np.ndarray
    index: np.ndarray
    per_period: np.ndarray

    def __getitem__(self, number: int) -> tuple[int, int]:
        """(component, its own sample number) of a sample."""
        period, at = divmod(number, len(self.component))
        component = int(self.component[at])
        return component, period * int(self.per_period[component]) + int(self.index[at])

    def counts(self, samples: int) -> list[int]:
        """Samples of each component among the first `samples`."""
        periods, rest = divmod(samples, len(self.component))
        counts = periods * self.per_period + np.bincount(self.component[:rest], minlength=len(self.per_period))
        return [int(count) for count in counts]


def mixture_order(weights: Sequence[Fraction], longest: int) -> MixtureOrder:
    """Numbers 0, 1, ... to components, so that after n of them each has had its share of n to within one sample.

    Tijdeman's answer to the chairman assignment problem (Discrete Mathematics 32, 1980): among the components that are
    behind by 1 / (2C - 2) or more, the one that would next be behind by 1 - 1 / (2C - 2). No component is ever off by
    more than that. Whole-number arithmetic: no rounding, one order on every machine. With weights p / q (q their sum in
    whole numbers) all are even after q numbers, and the order repeats.

    Args:
        weights: positive, one a component, C of them; their sum is what they are shares of.
        longest: numbers that will be asked for; an order whose period is longer is cut there.
    """
    if len(weights) == 1:
        return MixtureOrder(np.zeros(1, np.int64), np.zeros(1, np.int64), np.ones(1, np.int64))
    scale = math.lcm(*(weight.denominator for weight in weights))
    p = [int(weight * scale) for weight in weights]
    common = math.gcd(*p)
    p = [share // common for share in p]
    q, slack, length = sum(p), 2 * len(p) - 2, min(sum(p), longest)
    had = [0] * len(p)
    component, index = np.empty(length, np.int64), np.empty(length, np.int64)
    deadlines = [_deadline(0, share, q, slack) for share in p]
    for n in range(length):
        behind = [c for c, share in enumerate(p) if slack * ((n + 1) * share - had[c] * q) >= q]
        chosen = min(behind, key=deadlines.__getitem__)
        component[n], index[n] = chosen, had[chosen]
        had[chosen] += 1
        deadlines[chosen] = _deadline(had[chosen], p[chosen], q, slack)
    return MixtureOrder(component, index, np.array(had, np.int64))


def _deadline(had: int, share: int, q: int, slack: int) -> int:
    """The first n at which a component that has had so many is behind by 1 - 1 / slack."""
    return -(-(slack * (had + 1) - 1) * q // (slack * share))
