"""Compare a model with another: their losses by a difference, their latencies by a ratio. All of it is pure.

Two models are compared in pairs, seed by seed, where a seed is one draw for both: the same data in the same order, the
same held-out part, and the same initial weights wherever both have a tensor (they follow from seed, name and shape).
What a seed does to both then cancels. Others are compared by Welch's t-test. Which it is follows from the design of the
study, never from its figures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from altup_moe.study.records import StudyRow
from altup_moe.study.report.intervals import LEVEL, Floats, difference, holm, mean, seeds_needed
from altup_moe.study.report.models import Interval, LatencyKind, LossUnit, Model, latency, quality

Figure = Callable[[StudyRow], float | None]
DRAWN_BY_SEED = ("model.", "data.", "train.")
"""Overrides under which a seed is another draw: other initial weights, other tokens, another order."""


@dataclass(frozen=True)
class Comparison:
    """A model against another: its mean less the other's, or its geometric mean over the other's.

    `p` is that of this comparison alone, `adjusted` by Holm among all models of the report, `seeds_needed` as
    `intervals.seeds_needed` says. These and the interval are None where a model has one seed.
    """

    other: str
    value: float
    interval: Interval | None
    paired: bool
    p: float | None
    seeds_needed: int | None
    adjusted: float | None = None

    @property
    def no_difference(self) -> bool:
        """Whether no difference was found; False where none was looked for."""
        return not_told_apart(self.adjusted)


def not_told_apart(adjusted: float | None) -> bool:
    """Whether a comparison was made and found nothing."""
    return adjusted is not None and adjusted >= LEVEL


def share_draws(model: Model, other: Model) -> bool:
    """Whether a seed is the same draw for both models, as far as their rows know."""
    drawn = {
        (
            row.tokens,
            row.steps,
            repr(sorted((k, v) for k, v in row.overrides.items() if k.startswith(DRAWN_BY_SEED))),
        )
        for row in (*model.rows, *other.rows)
    }
    return len(drawn) == 1


def figures(model: Model, other: Model, value: Figure) -> tuple[Floats, Floats, bool]:
    """Figures of two models, [seeds] each, and whether they are pairs: then only of the seeds that both have."""
    ours, theirs = ({row.seed: v for row in m.rows if (v := value(row)) is not None} for m in (model, other))
    common = sorted(ours.keys() & theirs.keys())
    paired = len(common) > 1 and share_draws(model, other)
    if paired:
        return np.array([ours[seed] for seed in common]), np.array([theirs[seed] for seed in common]), True
    return np.array(list(ours.values())), np.array(list(theirs.values())), False


def comparison(model: Model, other: Model, value: Figure, ratio: bool = False, among: int = 1) -> Comparison | None:
    """Compare a figure of two models.

    Args:
        value: of a row; None where it has none.
        ratio: the figure is a logarithm: its difference is given as a ratio.
        among: comparisons that are made together, for the seeds that would be needed.

    Returns:
        None where one of the models has no such figure.
    """
    ours, theirs, paired = figures(model, other, value)
    if not min(len(ours), len(theirs)):
        return None
    scale: Callable[[float], float] = math.exp if ratio else float
    gap = scale(ours.mean() - theirs.mean())
    if min(len(ours), len(theirs)) < 2:
        return Comparison(other.name, gap, None, paired, None, None)
    found, needed = difference(ours, theirs, paired), seeds_needed(ours, theirs, paired, among)
    interval = Interval(scale(float(found.low)), scale(float(found.high)))
    return Comparison(other.name, gap, interval, paired, float(found.p), needed)


def loss_difference(model: Model, other: Model, among: int = 1) -> Comparison:
    """The mean held-out loss less the other's, nats a token."""
    found = comparison(model, other, lambda row: quality(row, "loss"), among=among)
    assert found is not None
    return found


def own_loss(model: Model, unit: LossUnit) -> Interval | None:
    """Interval of the model's own held-out loss; None for one seed."""
    if len(model.rows) < 2:
        return None
    found = mean(np.array([quality(row, unit) for row in model.rows]))
    return Interval(float(found.low), float(found.high))


def latency_ratio(model: Model, other: Model, kind: LatencyKind, among: int = 1) -> Comparison | None:
    """The latency over the other's; None where one was not measured."""
    return comparison(model, other, lambda row: log_latency(row, kind), ratio=True, among=among)


def log_latency(row: StudyRow, kind: LatencyKind) -> float | None:
    """Logarithm of a latency in ms."""
    ms = latency(row, kind)
    return None if ms is None else math.log(ms)


def adjusted_p(p_values: Sequence[float | None]) -> list[float | None]:
    """P-values of one column of comparisons, adjusted by Holm; None stays None, and does not count."""
    tested = [i for i, p in enumerate(p_values) if p is not None]
    found: list[float | None] = [None] * len(p_values)
    for i, value in zip(tested, holm([p for p in p_values if p is not None]), strict=True):
        found[i] = value
    return found


def nearest_size(model: Model, reference: Sequence[Model]) -> Model | None:
    """The reference model whose number of active parameters is nearest, as a ratio; of those that were trained on as
    many tokens, if there are any."""

    def size(one: Model) -> float | None:
        found = one.along("active_parameters") or one.along("parameters")
        return found.mean if found and found.mean > 0 else None

    own = size(model)
    sized = [(other, s) for other in reference if (s := size(other))]
    if own is None or not sized:
        return None
    trained = {row.tokens for row in model.rows}

    def distance(pair: tuple[Model, float]) -> tuple[bool, float]:
        return {row.tokens for row in pair[0].rows} != trained, abs(math.log(pair[1] / own))

    return min(sized, key=distance)[0]
