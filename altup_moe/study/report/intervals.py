"""Means and differences over seeds with their intervals and p-values, all by `scipy.stats`; pure, on arrays.

Figures are [..., seeds]: the last axis is reduced, the others stay, so that a test can look at thousands of studies at
once. Every interval is one of Student's t at 95 %. It holds a true value in 95 of 100 studies where the figures of
seeds are normal, from two seeds on. Percentile bootstraps do not: two seeds have no tails to draw from.
"""

from __future__ import annotations

import bisect
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]
CONFIDENCE = 0.95
LEVEL = 1 - CONFIDENCE
POWER = 0.8
MOST_SEEDS = 1000


@dataclass(frozen=True)
class Estimate:
    """A value with the ends of its interval, and the two-sided p-value that the true value is 0. All have one shape."""

    value: Floats
    low: Floats
    high: Floats
    p: Floats


@contextmanager
def _degenerate_is_fine() -> Iterator[None]:
    """Seeds without any spread divide by zero: the interval is one point, the p-value 0, or 1 for a value of 0."""
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        yield


def _estimate(value: Floats, low: Floats, high: Floats, p: Floats) -> Estimate:
    return Estimate(value, low, high, np.where(np.isnan(p), np.where(value == 0, 1.0, 0.0), p))


def mean(values: Floats) -> Estimate:
    """The mean with its t interval. `values`: [..., seeds], two or more."""
    with _degenerate_is_fine():
        test = stats.ttest_1samp(values, 0.0, axis=-1)
        ends = test.confidence_interval(CONFIDENCE)
    return _estimate(values.mean(-1), ends.low, ends.high, test.pvalue)


def difference(ours: Floats, theirs: Floats, paired: bool) -> Estimate:
    """Our mean less theirs.

    Args:
        ours: [..., seeds].
        theirs: [..., their seeds]; in the order of ours if they are paired.
        paired: a seed is one draw for both, so that the differences of seeds are what varies: a paired t-test.
            Otherwise Welch's, for independent draws of unequal spread (Welch 1947).
    """
    with _degenerate_is_fine():
        if paired:
            test = stats.ttest_rel(ours, theirs, axis=-1)
        else:
            test = stats.ttest_ind(ours, theirs, axis=-1, equal_var=False)
        ends = test.confidence_interval(CONFIDENCE)
    return _estimate(ours.mean(-1) - theirs.mean(-1), ends.low, ends.high, test.pvalue)


def total(parts: Sequence[Floats]) -> Estimate:
    """The sum of independent means, each of its own spread and number of seeds, with Satterthwaite's (1946) freedom.

    Args:
        parts: [..., seeds of the part] each. Of two parts it is Welch's t-test.
    """
    value = sum((part.mean(-1) for part in parts), np.float64(0.0))
    squares = [part.var(-1, ddof=1) / part.shape[-1] for part in parts]
    square = sum(squares, np.float64(0.0))
    with _degenerate_is_fine():
        inner = sum((s**2 / (part.shape[-1] - 1) for s, part in zip(squares, parts, strict=True)), np.float64(0.0))
        freedom = np.where(inner > 0, square**2 / inner, 1.0)
        error = np.sqrt(square)
        reach = stats.t.ppf(1 - LEVEL / 2, freedom) * error
        p = 2 * stats.t.sf(np.abs(value / error), freedom)
    return _estimate(np.asarray(value), np.asarray(value - reach), np.asarray(value + reach), np.asarray(p))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979) adjusted p-values: at a level, the chance of one false finding or more among all is that level.

    scipy has procedures for the false discovery rate, and none for this.
    """
    adjusted, worst = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = worst
    return adjusted


def seeds_needed(ours: Floats, theirs: Floats, paired: bool, among: int = 1) -> int | None:
    """Seeds of each model that tell a difference as large as the observed one, in four of five studies (power 0.8).

    The spread is taken as observed. The power is that of the t-test (noncentral t).

    Args:
        ours: [seeds].
        theirs: [their seeds].
        paired: as in `difference`.
        among: comparisons made together: the level is 0.05 over all of them (Bonferroni).

    Returns:
        Two or more; None where the difference is 0, or `MOST_SEEDS` are too few.
    """
    gap = abs(float(ours.mean() - theirs.mean()))
    squares = [float((ours - theirs).var(ddof=1))] if paired else [float(one.var(ddof=1)) for one in (ours, theirs)]
    if gap == 0:
        return None
    if sum(squares) == 0:
        return 2

    def power(seeds: int) -> float:
        freedom = sum(squares) ** 2 / sum(s**2 / (seeds - 1) for s in squares)
        edge = stats.t.ppf(1 - LEVEL / among / 2, freedom)
        return float(stats.nct.sf(edge, freedom, gap / math.sqrt(sum(squares) / seeds)))

    found = bisect.bisect_left(range(2, MOST_SEEDS + 1), POWER, key=power) + 2
    return found if found <= MOST_SEEDS else None
