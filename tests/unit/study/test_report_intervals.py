"""The intervals of a study's report hold what they say, and equal those of independent formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from altup_moe.study.report.intervals import MOST_SEEDS, difference, holm, mean, seeds_needed, total
from tests.interval_coverage import REPORTED, SEEDS, bootstrap, pairs

STUDIES = 20_000
"""The standard error of a share of 95 % is 0.15 % then."""


@pytest.mark.parametrize("seeds", SEEDS)
@pytest.mark.parametrize("name", REPORTED)
def test_an_interval_holds_the_truth_in_93_to_98_of_100_studies(name: str, seeds: int) -> None:
    assert 0.93 <= REPORTED[name](np.random.default_rng(seeds), seeds, STUDIES) <= 0.98


def test_the_bootstrap_that_was_given_up_did_not() -> None:
    assert bootstrap(np.random.default_rng(0), 3, 400) < 0.9


def test_pairs_take_out_what_a_seed_does_to_both() -> None:
    """Welch's interval of the same figures is several times as wide, and holds the truth always: it says less."""
    ours, theirs = pairs(np.random.default_rng(0), 5, 1000)
    narrow, wide = (difference(ours, theirs, paired) for paired in (True, False))
    assert np.median((wide.high - wide.low) / (narrow.high - narrow.low)) > 3
    assert ((wide.low <= -0.02) & (wide.high >= -0.02)).mean() > 0.99


def test_two_seeds_by_hand() -> None:
    """Differences of -0.011 and -0.013: the mean -0.012, its standard error 0.001, and t(1) = 12.706."""
    found = difference(np.array([6.050, 6.130]), np.array([6.061, 6.143]), paired=True)
    assert (float(found.low), float(found.high)) == pytest.approx((-0.012706 - 0.012, 0.012706 - 0.012), abs=1e-6)
    assert float(found.p) == pytest.approx(2 / math.pi * math.atan(1 / 12.0))  # Student's t with 1 degree is Cauchy's


def test_a_sum_of_two_parts_is_welchs_test() -> None:
    draw = np.random.default_rng(1)
    ours, theirs = draw.normal(3.0, 0.1, (50, 4)), draw.normal(3.1, 0.3, (50, 7))
    found, expected = total([ours, -theirs]), difference(ours, theirs, paired=False)
    for part in ("value", "low", "high", "p"):
        np.testing.assert_allclose(getattr(found, part), getattr(expected, part), rtol=1e-9)


def test_figures_without_spread_are_one_point() -> None:
    same, more = np.array([2.0, 2.0, 2.0]), np.array([2.5, 2.5, 2.5])
    for found in (difference(more, same, True), difference(more, same, False), total([more, -same])):
        assert (float(found.low), float(found.high), float(found.p)) == (0.5, 0.5, 0.0)
    for found in (difference(same, same, True), difference(same, same, False), total([same, -same])):
        assert (float(found.low), float(found.high), float(found.p)) == (0.0, 0.0, 1.0)
    assert (float(mean(same).low), float(mean(same).high)) == (2.0, 2.0)


def test_holm_by_hand() -> None:
    # In order 0.01, 0.02, 0.03, 0.04: times 4, 3, 2, 1, and never less than one before.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_finds_nothing_among_many_that_are_equal() -> None:
    """Of 400 reports with eight models that do not differ, about 5 % say that one does; without Holm, a third."""
    draw = np.random.default_rng(2)
    p = difference(draw.normal(0, 1, (400, 8, 3)), draw.normal(0, 1, (400, 8, 3)), paired=True).p
    assert np.mean([min(holm(list(each))) < 0.05 for each in p]) < 0.08
    assert np.mean(p.min(axis=1) < 0.05) > 0.2


@pytest.mark.parametrize("paired", [True, False])
def test_as_many_seeds_as_needed_find_the_difference_in_four_of_five_studies(paired: bool) -> None:
    ours, theirs = np.array([1.00, 1.10, 1.14, 0.90]), np.array([1.02, 1.24, 1.15, 1.03])
    gap = float(theirs.mean() - ours.mean())
    needed = seeds_needed(ours, theirs, paired)
    assert needed is not None
    draw = np.random.default_rng(3)
    found = []
    for seeds in (needed, needed - 1):
        # Pairs are drawn by their differences, which have the observed spread.
        spreads = ((ours - theirs).std(ddof=1), 0.0) if paired else (ours.std(ddof=1), theirs.std(ddof=1))
        one, other = (draw.normal(0, s, (STUDIES, seeds)) if s else np.zeros((STUDIES, seeds)) for s in spreads)
        found.append(float((difference(one, other + gap, paired).p < 0.05).mean()))
    assert found[0] > 0.79
    assert found[1] < 0.81


def test_more_comparisons_need_more_seeds_and_nothing_needs_none() -> None:
    ours, theirs = np.array([3.0, 3.1, 2.9]), np.array([3.2, 3.2, 3.05])
    alone, among = (seeds_needed(ours, theirs, True, count) for count in (1, 8))
    assert alone is not None
    assert among is not None
    assert among > alone
    # 0.0001 apart, spread 0.1: (2.8 * 0.1 * sqrt(2) / 0.0001)^2 seeds.
    assert seeds_needed(ours, ours[[1, 2, 0]] + 1e-4, False) is None
    assert seeds_needed(ours, ours, True) is None
    assert seeds_needed(ours, ours + 1.0, True) == 2
    assert MOST_SEEDS == 1000


def test_the_library_has_these_intervals() -> None:
    draw = np.random.default_rng(4)
    ours, theirs = draw.normal(3.0, 0.1, 5), draw.normal(3.1, 0.1, 5)
    pair = difference(ours, theirs, True)
    d = ours - theirs
    expected = stats.t.interval(0.95, 4, loc=d.mean(), scale=stats.sem(d))
    assert (float(pair.low), float(pair.high)) == pytest.approx(expected)
    own = mean(ours)
    assert (float(own.low), float(own.high)) == pytest.approx(
        stats.t.interval(0.95, 4, loc=ours.mean(), scale=stats.sem(ours))
    )
