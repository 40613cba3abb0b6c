"""Records of a scaling law: what was measured, the law, an interval."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Point:
    """One measured loss.

    n: parameters. d: tokens trained on. loss: on held-out text, nats a token; all points on the same text.
    run: which run it comes from. Points of one run share its seed, so they are not independent: intervals keep them
    together. weight: of the squared residual. flops, seconds: of the training up to this point, None where unknown.
    """

    n: float
    d: float
    loss: float
    family: str
    run: str
    weight: float = 1.0
    flops: float | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Law:
    """L(N, D) = e + a N^-alpha + b D^-beta, nats a token (Hoffmann et al. 2022, arXiv 2203.15556, equation 2)."""

    e: float
    a: float
    alpha: float
    b: float
    beta: float

    def loss(self, n: float, d: float) -> float:
        """The law's loss at `n` parameters and `d` tokens."""
        return float(self.e + self.a * n**-self.alpha + self.b * d**-self.beta)


@dataclass(frozen=True)
class Interval:
    """Ends of an interval of a figure, and the share of such intervals that should hold the truth."""

    low: float
    high: float
    level: float

    def holds(self, value: float) -> bool:
        """Whether a value lies inside, the ends included."""
        return self.low <= value <= self.high


def interval(draws: Array, level: float) -> Interval:
    """Percentile interval of draws. Its ends are draws, so that infinite ones need no arithmetic."""
    ordered = np.sort(draws)
    tail = (1 - level) / 2 * len(ordered)
    low, high = math.floor(tail + 1e-9), math.ceil(len(ordered) - tail - 1e-9) - 1
    return Interval(float(ordered[low]), float(ordered[high]), level)
