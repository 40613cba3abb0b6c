"""Statistics of a study: the Pareto front, speed at equal quality, differences of losses. All of it is pure.

Speed at equal quality: the reference family's models that no other of them beats (in loss and latency both) are a
falling curve, loss over latency. Between two of them the logarithm of the latency is linear in the loss, since sizes of
a family grow by factors. What the curve says at a model's loss, over the model's own latency, is the figure: 1.3 means
that the family needs 1.3 times as long for the same loss. Nothing is extrapolated.

Intervals are percentile bootstraps (Efron 1979) over seeds: every draw takes, for each model, as many of its rows as it
has, with replacement, loss and latency of a row together. A draw off the curve is no figure but still has its place in
the order: better than the whole curve is more than any ratio, worse is less. From few seeds such an interval is too
narrow: with three it is about the range of the seeds, which holds the true median three times in four.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from altup_moe.study.report.models import LatencyKind, Model, latency, quality

CostLoss = tuple[float, float]
"""(cost, loss); less of either is better."""
Reached = Literal["yes", "better", "worse"]
CONFIDENCE = 0.95


def pareto_front(points: Sequence[CostLoss | None]) -> list[int]:
    """Indices, by cost, of the points that no other beats (as good in both, better in one). Equal points all count."""
    known = sorted((point, i) for i, point in enumerate(points) if point is not None)
    kept: list[int] = []
    best: CostLoss = (-math.inf, math.inf)
    for point, i in known:
        if point[1] < best[1] or point == best:
            best = point
            kept.append(i)
    return kept


def cost_at(loss: float, curve: Sequence[CostLoss]) -> float:
    """Interpolate the cost of a family's curve at a loss.

    Args:
        loss: where to look.
        curve: points that are not beaten, by cost (`pareto_front`); at least one.

    Returns:
        The cost; inf where the loss is better than the whole curve, -inf where it is worse.
    """
    if loss > curve[0][1]:
        return -math.inf
    for (cost, above), (next_cost, below) in pairwise(curve):
        if loss >= below:
            share = (above - loss) / (above - below)
            return math.exp((1 - share) * math.log(cost) + share * math.log(next_cost))
    return curve[-1][0] if loss == curve[-1][1] else math.inf


def unbeaten(points: Iterable[CostLoss]) -> list[CostLoss]:
    """Those points that no other beats, by cost."""
    points = list(points)
    return [points[i] for i in pareto_front(points)]


@dataclass(frozen=True)
class BootstrapInterval:
    """Percentile bootstrap interval. Infinite ends lie off the curve; so did `better` and `worse` of the `draws`."""

    low: float
    high: float
    draws: int
    better: int = 0
    worse: int = 0

    def holds(self, value: float) -> bool:
        """Whether a value lies inside, the ends included."""
        return self.low <= value <= self.high


@dataclass(frozen=True)
class Speed:
    """Speed at equal quality. `ratio` is None unless reached.

    `at_least`: where a model is better than the whole curve, the latency of the curve's best over its own.
    `interval` is None where the model or one of the curve's has one seed.
    """

    reached: Reached
    ratio: float | None
    at_least: float | None
    interval: BootstrapInterval | None

    @property
    def no_difference(self) -> bool:
        """Whether the interval holds 1."""
        return self.interval is not None and self.interval.holds(1.0)


@dataclass(frozen=True)
class LossDifference:
    """A model's mean loss less another's, nats a token."""

    other: str
    loss: float
    interval: BootstrapInterval | None

    @property
    def no_difference(self) -> bool:
        """Whether the interval holds 0."""
        return self.interval is not None and self.interval.holds(0.0)


@dataclass(frozen=True)
class Bootstrap:
    """Number of bootstrap draws, and their random seed."""

    draws: int
    seed: int

    def means(self, model: Model, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """[rows, figures] -> [draws, figures]: means of drawn rows. A model's draws do not depend on other models."""
        draw = np.random.default_rng([self.seed, zlib.crc32(model.name.encode())])
        return values[draw.integers(0, len(values), (self.draws, len(values)))].mean(1)


def _pairs(model: Model, kind: LatencyKind) -> NDArray[np.float64]:
    """[rows, 2]: latency and loss of the rows that have both."""
    found = [(ms, quality(row, "loss")) for row in model.rows if (ms := latency(row, kind)) is not None]
    return np.array(found, dtype=np.float64).reshape(-1, 2)


def speed(model: Model, reference: Sequence[Model], kind: LatencyKind, bootstrap: Bootstrap) -> Speed | None:
    """Speed at equal quality; None where the model has no such latency, or fewer than two of the reference have."""
    own = _pairs(model, kind)
    others = [(other, pairs) for other in reference if len(pairs := _pairs(other, kind))]
    if not len(own) or len(others) < 2:
        return None
    ms, loss = own.mean(0)
    curve = unbeaten(tuple(pairs.mean(0).tolist()) for _, pairs in others)
    cost = cost_at(loss, curve)
    interval = None
    if len(own) > 1 and all(len(pairs) > 1 for _, pairs in others):
        drawn = bootstrap.means(model, own)
        curves = np.stack([bootstrap.means(other, pairs) for other, pairs in others], axis=1)
        draws = zip(drawn.tolist(), curves.tolist(), strict=True)
        interval = _interval(
            [_over(cost_at(at, unbeaten(map(tuple, points))), own_ms) for (own_ms, at), points in draws]
        )
    if cost == math.inf:
        return Speed("better", None, float(curve[-1][0] / ms), interval)
    if cost == -math.inf:
        return Speed("worse", None, None, interval)
    return Speed("yes", float(cost / ms), None, interval)


def _over(cost: float, own: float) -> float:
    return cost / own if cost > 0 else -math.inf


def _interval(values: Sequence[float]) -> BootstrapInterval:
    """Interval of values. Its ends are order statistics, so that infinite values need no arithmetic."""
    ordered = sorted(values)
    tail = (1 - CONFIDENCE) / 2 * len(ordered)
    low, high = math.floor(tail), math.ceil(len(ordered) - tail) - 1
    better, worse = ordered.count(math.inf), ordered.count(-math.inf)
    return BootstrapInterval(ordered[low], ordered[high], len(ordered), better, worse)


def loss_difference(model: Model, other: Model, bootstrap: Bootstrap) -> LossDifference:
    """Difference of the mean losses; the interval needs two seeds of both models."""
    ours, theirs = (np.array([[quality(row, "loss")] for row in m.rows]) for m in (model, other))
    interval = None
    if min(len(ours), len(theirs)) > 1:
        drawn = bootstrap.means(model, ours) - bootstrap.means(other, theirs)
        interval = _interval(drawn[:, 0].tolist())
    return LossDifference(other.name, float(ours.mean() - theirs.mean()), interval)


def nearest_size(model: Model, reference: Sequence[Model]) -> Model | None:
    """The reference model whose number of active parameters is nearest, as a ratio."""

    def size(one: Model) -> float | None:
        found = one.along("active_parameters") or one.along("parameters")
        return found.mean if found and found.mean > 0 else None

    own = size(model)
    sized = [(other, s) for other in reference if (s := size(other))]
    if own is None or not sized:
        return None
    return min(sized, key=lambda pair: abs(math.log(pair[1] / own)))[0]
