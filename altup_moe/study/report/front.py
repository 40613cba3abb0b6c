"""The Pareto front: models that no other beats in loss and cost, by their means, and which of them is told apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

from altup_moe.study.records import StudyRow
from altup_moe.study.report.comparisons import adjusted_p, figures, log_latency
from altup_moe.study.report.intervals import LEVEL, difference
from altup_moe.study.report.models import AXES, LATENCIES, LOSS_UNITS, Axis, LossUnit, Model, quality

CostLoss = tuple[float, float]
"""(cost, loss); less of either is better."""
Rings = dict[LossUnit, dict[Axis, list[int]]]


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


def unbeaten_indices(models: Sequence[Model], axis: Axis, unit: LossUnit) -> list[int]:
    """Indices of the models on the Pareto front of their means, by cost."""
    costs = [model.along(axis) for model in models]
    return pareto_front(
        [c and (c.mean, model.quality(unit).mean) for c, model in zip(costs, models, strict=True)]  # type: ignore[misc]
    )


def told_apart(models: Sequence[Model]) -> Rings:
    """Indices of the models of each front that are told apart from all others.

    A model is, where every other that has the cost too is shown to be worse in loss or to cost more (two-sided
    t-tests; the counts of parameters are exact). Its p-value is the largest over the others, since all must be shown;
    the models of a front are adjusted by Holm. A model with one seed shows nothing.
    """

    @cache
    def more(i: int, j: int, figure: Axis | LossUnit) -> float:
        """P-value that model j has more of a figure than i."""

        def value(row: StudyRow) -> float | None:
            if figure in LATENCIES:
                return log_latency(row, figure)
            return quality(row, figure) if figure in LOSS_UNITS else getattr(row, figure)

        if figure in ("parameters", "active_parameters"):
            counts = ([value(row) or 0 for row in models[k].rows] for k in (i, j))
            return 0.0 if max(next(counts)) < min(next(counts)) else 1.0
        ours, theirs, paired = figures(models[j], models[i], value)
        if min(len(ours), len(theirs)) < 2 or ours.mean() <= theirs.mean():
            return 1.0
        return float(difference(ours, theirs, paired).p)

    def ringed(axis: Axis, unit: LossUnit) -> list[int]:
        front = unbeaten_indices(models, axis, unit)
        others = [j for j, model in enumerate(models) if model.along(axis)]
        worst = [max((min(more(i, j, unit), more(i, j, axis)) for j in others if j != i), default=0.0) for i in front]
        return [i for i, p in zip(front, adjusted_p(worst), strict=True) if p is not None and p < LEVEL]

    return {unit: {axis: ringed(axis, unit) for axis in AXES} for unit in LOSS_UNITS}
