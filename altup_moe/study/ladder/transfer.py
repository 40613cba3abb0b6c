"""Does a rate that was tuned at the smallest size do at the largest? What muP is for (`optim.parametrization`)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from altup_moe.study.ladder.law import TunedModel


@dataclass(frozen=True)
class Transfer:
    """A family's tuned value at its smallest size, tried at its largest.

    Attributes:
        smallest, largest: sizes. value: tuned at the smallest. best: tuned at the largest.
        loss: held-out loss at the largest with `value`, read off the parabola through the three tries nearest to it;
            None where it lies beyond what was tried there.
        best_loss: the same with `best`.
        at_edge: whether one of both values is the last that was tried.
    """

    family: str
    key: str
    smallest: int
    largest: int
    value: float
    best: float
    loss: float | None
    best_loss: float | None
    at_edge: bool

    @property
    def cost(self) -> float | None:
        """Nats that the smallest size's value loses at the largest."""
        return None if self.loss is None or self.best_loss is None else self.loss - self.best_loss


def transfers(tuned: Iterable[TunedModel]) -> Iterator[Transfer]:
    """One for each family that is tuned at two sizes or more."""
    families: dict[str, dict[int, TunedModel]] = {}
    for model in tuned:
        if model.found is not None:
            families.setdefault(model.family, {})[model.size] = model
    for family, sizes in families.items():
        small, large = sizes[min(sizes)], sizes[max(sizes)]
        if small is large:
            continue
        start, best = small.found, large.found
        assert start is not None
        assert best is not None
        loss, best_loss = (loss_at(large.tried, one.value) for one in (start, best))
        edge = start.at_edge or best.at_edge
        yield Transfer(family, small.key, small.size, large.size, start.value, best.value, loss, best_loss, edge)


def loss_at(tried: Mapping[float, float], value: float) -> float | None:
    """The loss of a value between those that were tried, by the parabola in the logarithm through the nearest three."""
    finite = {one: loss for one, loss in tried.items() if math.isfinite(loss)}
    if value in finite:
        return finite[value]
    if len(finite) < 3 or not min(finite) < value < max(finite):
        return None
    at = math.log(value)
    nearest = sorted(finite, key=lambda one: abs(math.log(one) - at))[:3]
    points = [(math.log(one), finite[one]) for one in nearest]
    total = 0.0
    for x, y in points:  # Lagrange
        others = [other for other, _ in points if other != x]
        total += y * math.prod((at - other) / (x - other) for other in others)
    return total
