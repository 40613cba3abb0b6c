"""Speed at equal quality of a study. All of it is pure.

The reference family's models that no other of them beats (in loss and latency both) are a falling curve, loss over
latency. Between two of them the logarithm of the latency is linear in the loss, since sizes of a family grow by
factors. What the curve says at a model's loss, over the model's own latency, is the figure: 1.3 means that the family
needs 1.3 times as long for the same loss. Nothing is extrapolated.

Its interval is that of the logarithm, by the delta method: near the means the logarithm of the ratio is a sum of one
term for each of three models (the model and the two of the curve that its loss lies between), each with the gradient of
its loss and of its latency. Loss and latency of a row stay together. Terms of models that share their seeds' draws
(`comparisons`) are added seed by seed; the others are independent, with Satterthwaite's degrees of freedom.

An end is open where the curve ends: `better` where the model's loss is not shown to be worse than that of the curve's
best, `worse` where it is not shown to be better than that of its fastest. Where the losses of the curve's two models
are not told apart, the curve says nothing between them, and both ends are open.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from altup_moe.study.report.comparisons import (
    latency_ratio,
    log_latency,
    loss_difference,
    not_told_apart,
    share_draws,
)
from altup_moe.study.report.front import CostLoss, pareto_front
from altup_moe.study.report.intervals import Floats, total
from altup_moe.study.report.models import Interval, LatencyKind, Model, quality

Reached = Literal["yes", "better", "worse"]


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


@dataclass(frozen=True)
class Speed:
    """Speed at equal quality. `ratio` is None unless reached.

    `at_least`: where a model is better than the whole curve, the latency of the curve's best over its own. `interval`
    and `p` are None where the model or one of the curve's has one seed. `adjusted`: `p` by Holm among the models.
    """

    reached: Reached
    ratio: float | None
    at_least: float | None
    interval: Interval | None
    p: float | None
    adjusted: float | None = None

    @property
    def no_difference(self) -> bool:
        """Whether no difference was found; False where none was looked for."""
        return not_told_apart(self.adjusted)


@dataclass(frozen=True)
class _Measured:
    """A model with its rows that have both figures, [rows, 2]: logarithm of the latency, loss."""

    model: Model
    seeds: tuple[int, ...]
    rows: Floats

    @property
    def mean(self) -> CostLoss:
        cost, loss = self.rows.mean(0).tolist()
        return cost, loss


def _measured(model: Model, kind: LatencyKind) -> _Measured:
    rows = [row for row in model.rows if log_latency(row, kind) is not None]
    found = np.array([(log_latency(row, kind), quality(row, "loss")) for row in rows], dtype=np.float64)
    return _Measured(model, tuple(row.seed for row in rows), found.reshape(-1, 2))


def speed(model: Model, reference: Sequence[Model], kind: LatencyKind) -> Speed | None:
    """Speed at equal quality; None where the model has no such latency, or fewer than two of the reference have."""
    own = _measured(model, kind)
    others = [found for other in reference if len((found := _measured(other, kind)).rows)]
    if not len(own.rows) or len(others) < 2:
        return None
    curve = [others[i] for i in pareto_front([other.mean for other in others])]
    log_ms, loss = own.mean
    cost = cost_at(loss, [(math.exp(one.mean[0]), one.mean[1]) for one in curve])
    interval, p = None, None
    if min(len(one.rows) for one in (own, *curve)) > 1:
        interval, p = _interval(own, curve, kind)
    if cost == math.inf:
        return Speed("better", None, math.exp(curve[-1].mean[0] - log_ms), interval, p)
    if cost == -math.inf:
        return Speed("worse", None, None, interval, p)
    return Speed("yes", cost / math.exp(log_ms), None, interval, p)


def log_ratio_terms(own: Floats, above: Floats, below: Floats) -> tuple[Floats, Floats, Floats]:
    """Terms whose means add up to the logarithm of the speed at equal quality, to first order around the means.

    Args:
        own: [..., seeds, 2], logarithm of the latency and loss of the model.
        above: the same of the curve's faster model, whose loss is higher.
        below: the same of its slower model.

    Returns:
        [..., seeds] each.
    """
    (_, loss), (a, la), (b, lb) = (np.moveaxis(x.mean(-2), -1, 0)[..., None] for x in (own, above, below))
    slope = (b - a) / (la - lb)
    share = (la - loss) / (la - lb)
    ours = -(own[..., 0] + slope * (own[..., 1] - loss))
    faster = (1 - share) * (above[..., 0] + slope * (above[..., 1] - la))
    slower = share * (below[..., 0] + slope * (below[..., 1] - lb))
    return ours, faster, slower


def _interval(own: _Measured, curve: Sequence[_Measured], kind: LatencyKind) -> tuple[Interval, float]:
    """Interval of the speed, and the p-value that it is 1."""
    best, first, loss = curve[-1], curve[0], own.mean[1]
    past_best, past_first = _loss(own, best), _loss(own, first)
    if past_best.high < 0:
        return _beyond(own, best, kind, better=True)
    if past_first.low > 0:
        return _beyond(own, first, kind, better=False)
    low, high = -math.inf, math.inf
    place = next((i for i in range(len(curve) - 1) if loss >= curve[i + 1].mean[1]), len(curve) - 2)
    if place < 0 or _loss(curve[place], curve[place + 1]).low <= 0:
        return Interval(low, high), 1.0
    found = total(_independent((own, curve[place], curve[place + 1])))
    if past_first.high < 0:
        low = _exp(found.low)
    if past_best.low > 0:
        high = _exp(found.high)
    elif loss < best.mean[1]:  # no extrapolation: not more than is known at the curve's end
        low = min(low, _beyond(own, best, kind, better=True)[0].low)
    shown = low > 1 or high < 1 or (low > -math.inf and high < math.inf)
    return Interval(low, high), float(found.p) if shown else 1.0


def _independent(three: Sequence[_Measured]) -> list[Floats]:
    """Terms of the ratio's logarithm; those of models that share their seeds' draws are added seed by seed."""
    parts: list[tuple[_Measured, Floats]] = []
    for one, term in zip(three, log_ratio_terms(*(one.rows for one in three)), strict=True):
        twin = next((i for i, (other, _) in enumerate(parts) if _same_draws(one, other)), None)
        if twin is None:
            parts.append((one, term))
        else:
            parts[twin] = (one, parts[twin][1] + term)
    return [term for _, term in parts]


def _same_draws(one: _Measured, other: _Measured) -> bool:
    return one.seeds == other.seeds and share_draws(one.model, other.model)


def _loss(one: _Measured, other: _Measured) -> Interval:
    """Interval of the difference of two losses."""
    found = loss_difference(one.model, other.model).interval
    assert found is not None
    return found


def _beyond(own: _Measured, end: _Measured, kind: LatencyKind, better: bool) -> tuple[Interval, float]:
    """The speed of a model whose loss lies off the curve: more (less) than the ratio to the latency of the curve's end.

    That it differs from 1 takes both, the loss and the ratio: the larger p-value of the two.
    """
    ratio, loss = latency_ratio(end.model, own.model, kind), loss_difference(own.model, end.model)
    assert ratio is not None
    assert ratio.interval is not None
    assert ratio.p is not None
    assert loss.p is not None
    p = max(loss.p, ratio.p) if (ratio.value > 1) == better else 1.0
    return (Interval(ratio.interval.low, math.inf) if better else Interval(-math.inf, ratio.interval.high)), p


def _exp(value: Floats) -> float:
    """A ratio from its logarithm, which two seeds may leave almost anywhere."""
    return math.exp(min(700.0, float(value)))
