"""Assign the samples of a mixture to its components by number, with exact shares in every prefix."""

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
        component: [P] int64, component of each sample of one period.
        index: [P] int64, number of earlier samples of the period with the same component.
        per_period: [C] int64, samples of each component in one period.
    """

    component: np.ndarray
    index: np.ndarray
    per_period: np.ndarray

    def __getitem__(self, number: int) -> tuple[int, int]:
        """(component, sample number within the component) of sample `number`."""
        period, at = divmod(number, len(self.component))
        component = int(self.component[at])
        return component, period * int(self.per_period[component]) + int(self.index[at])

    def counts(self, samples: int) -> list[int]:
        """Number of samples of each component among the first `samples`."""
        periods, rest = divmod(samples, len(self.component))
        counts = periods * self.per_period + np.bincount(self.component[:rest], minlength=len(self.per_period))
        return [int(count) for count in counts]


def mixture_order(weights: Sequence[Fraction], longest: int) -> MixtureOrder:
    """Assign samples 0, 1, ... to components, so that each component's count is within one sample of its exact share.

    Tijdeman's algorithm for the chairman assignment problem (Discrete Mathematics 32, 1980): among the components that
    lag by 1 / (2C - 2) or more, take the one that would be first to lag by 1 - 1 / (2C - 2). No component ever deviates
    by more than that. The arithmetic is exact, so every machine gets the same order. With integer weights p and their
    sum q, the order repeats after q samples.

    Args:
        weights: positive, one for each of the C components; shares are relative to their sum.
        longest: number of samples that will be requested; a longer period is cut there.
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
    """The first n at which a component with `had` samples lags by 1 - 1 / slack."""
    return -(-(slack * (had + 1) - 1) * q // (slack * share))
