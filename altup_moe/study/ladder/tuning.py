"""The best value of a tuned key: a coarse grid, further values where the best lies at its end, then a parabola."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

MOST_EXTENSIONS = 2
"""How many values are added beyond an end of the grid, at most."""


@dataclass(frozen=True)
class Tuned:
    """What the tries say.

    Attributes:
        value: the best one: the lowest point of the parabola through the best try and its neighbours, on the logarithm.
        at_edge: the best try has no neighbour on one side, so a better value may lie outside.
    """

    value: float
    at_edge: bool


def next_value(tried: Mapping[float, float], grid: int) -> float | None:
    """A further value to try, where the best of all tries is the smallest or the largest; None if there is none.

    Args:
        tried: loss by value; inf where a try has failed. grid: how many values there were at first.
    """
    values = sorted(tried)
    best = min(values, key=lambda value: tried[value])
    if len(values) >= grid + MOST_EXTENSIONS or len(values) < 2 or not math.isfinite(tried[best]):
        return None
    if best == values[0]:
        return _short(values[0] * values[0] / values[1])
    return _short(values[-1] * values[-1] / values[-2]) if best == values[-1] else None


def best_value(tried: Mapping[float, float]) -> Tuned | None:
    """The best value; None if every try has failed."""
    values = sorted(tried)
    best = min(values, key=lambda value: tried[value])
    if not math.isfinite(tried[best]):
        return None
    at = values.index(best)
    if at in (0, len(values) - 1):
        return Tuned(best, True)
    sides = values[at - 1], values[at + 1]
    if not all(math.isfinite(tried[side]) for side in sides):
        # A try that failed is no point of a parabola; it does say that nothing better lies beyond it.
        return Tuned(best, False)
    return Tuned(_short(_lowest(sides[0], best, sides[1], tried)), False)


def _lowest(left: float, middle: float, right: float, tried: Mapping[float, float]) -> float:
    """Where a parabola through three points in the logarithm of the value is lowest; it lies between the outer two."""
    a, b = math.log(left / middle), math.log(right / middle)
    fall, rise = tried[left] - tried[middle], tried[right] - tried[middle]
    curvature = fall * b - rise * a
    if curvature <= 0:  # all three are equal
        return middle
    return middle * math.exp((fall * b * b - rise * a * a) / (2 * curvature))


def _short(value: float) -> float:
    """Three digits: a name has to hold it."""
    return float(f"{value:.3g}")
