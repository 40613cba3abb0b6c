"""Curves of a fitted law with their bands: best losses by cost (`best_losses`), losses by size at one (`slice_at`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from altup_moe.study.scaling.bootstrap import LEVEL, Draws
from altup_moe.study.scaling.costs import Axis, drawn_token_cost, token_cost
from altup_moe.study.scaling.multiplier import best
from altup_moe.study.scaling.records import Array, Point, interval

STOPS = 40
"""Points of a curve."""
NEAR = 1.5
"""A run is near a number of FLOPs if it took within so many times of it."""
EVERY = 4
"""Of the sizes that `TokenCost` offers, every so manyth is tried in each draw."""


@dataclass(frozen=True)
class LawCurve:
    """A family's losses along a law, nats a token. All arrays [K].

    cost: FLOPs or seconds, by `axis`. n, d: sizes and tokens. low, high: ends of the law's interval.
    inside: whether size and tokens lie between the least and the most that the family was trained with.
    """

    family: str
    axis: Axis
    cost: Array
    n: Array
    d: Array
    loss: Array
    low: Array
    high: Array
    inside: NDArray[np.bool_]


def best_losses(draws: Draws, family: str, axis: Axis, *, level: float = LEVEL, stops: int = STOPS) -> LawCurve:
    """The law's loss at the best size for each cost, from the family's cheapest run to its dearest.

    The band is of the best loss, each draw at its own best size and with its own cost of a token.

    Raises:
        UserError: an unknown family, or points without that cost.
    """
    rates = token_cost(draws.fit, family, axis)
    spent = [float(getattr(point, axis)) for point in _own(draws, family)]
    costs, sizes = np.geomspace(min(spent), max(spent), stops), rates.sizes()
    n, d = np.array([best(draws, family, axis, float(cost)) for cost in costs]).T
    i = draws.index(family)
    e, alpha, beta = (values[:, i, None] for values in (draws.e, draws.alpha, draws.beta))
    # Tokens are cost over rate, and only the cost differs from stop to stop. Near the best size the loss is flat, so
    # that a few sizes tell it.
    few = sizes[::EVERY]
    of_size = e + draws.a[:, i, None] * few**-alpha
    of_rate = draws.b[:, i, None] * drawn_token_cost(draws, family, axis).at(few) ** beta
    lowest = np.stack([(of_size + of_rate * cost**-beta).min(1) for cost in costs])
    return _curve(draws, family, axis, costs, n, d, lowest, level)


def slice_at(
    draws: Draws, family: str, axis: Axis, cost: float, *, level: float = LEVEL, stops: int = STOPS
) -> LawCurve:
    """The law's losses of sizes between the smallest and the largest, each with the tokens that one cost buys.

    Raises:
        UserError: an unknown family, or points without that cost.
    """
    trained = [point.n for point in _own(draws, family)]
    sizes = np.geomspace(min(trained), max(trained), stops)
    tokens = cost / token_cost(draws.fit, family, axis).at(sizes)[0]
    losses = np.stack([draws.loss(family, n, d) for n, d in zip(sizes, tokens, strict=True)])
    return _curve(draws, family, axis, np.full(stops, cost), sizes, tokens, losses, level)


def budgets(points: Sequence[Point], count: int = 4, near: float = NEAR) -> list[float]:
    """Numbers of FLOPs from the cheapest run's to the dearest's, one in each of `count` equal ratios of that range.

    Each is the one with runs of the most sizes within `near` times of it, of several the one in the middle.
    """
    known = [(point.flops, point.n) for point in points if point.flops]
    if not known:
        return []
    edges = np.geomspace(min(known)[0], max(known)[0], count + 1)
    found = []
    for low, high in pairwise(edges):
        middle = float(np.sqrt(low * high))

        def worth(flops: float, middle: float = middle) -> tuple[int, float]:
            sizes = {n for other, n in known if max(other / flops, flops / other) <= near}
            return len(sizes), -abs(float(np.log(flops / middle)))

        found.append(max((flops for flops, _ in known if low <= flops <= high), key=worth, default=middle))
    return list(dict.fromkeys(found))


def _own(draws: Draws, family: str) -> list[Point]:
    draws.fit.family(family)
    return [point for point in draws.fit.points if point.family == family]


def _curve(
    draws: Draws, family: str, axis: Axis, cost: Array, n: Array, d: Array, losses: Array, level: float
) -> LawCurve:
    """`losses` [K, R]: of all draws."""
    law, own = draws.fit.family(family), _own(draws, family)
    bands = [interval(each, level) for each in losses]
    inside = np.ones(len(n), dtype=bool)
    for name, values in (("n", n), ("d", d)):
        trained = [getattr(point, name) for point in own]
        inside &= (values >= min(trained) * (1 - 1e-9)) & (values <= max(trained) * (1 + 1e-9))
    return LawCurve(
        family=family,
        axis=axis,
        cost=cost,
        n=n,
        d=d,
        loss=law.e + law.a * n**-law.alpha + law.b * d**-law.beta,
        low=np.array([band.low for band in bands]),
        high=np.array([band.high for band in bands]),
        inside=inside,
    )
