"""Intervals of a law: what is drawn, how often they hold the truth, and the largest size held out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from altup_moe.config import UserError
from altup_moe.study.scaling.bootstrap import bootstrap, members
from altup_moe.study.scaling.fit import fit
from altup_moe.study.scaling.held_out import predict_largest
from altup_moe.study.scaling.records import interval
from tests.scaling_coverage import held_out, law_intervals, multipliers
from tests.unit.study.scaling.surfaces import measured, random_surface


def test_an_interval_has_the_draws_that_it_says() -> None:
    found = interval(np.array([np.inf, *range(100)][::-1], dtype=float), 0.9)
    assert (found.low, found.high) == (5.0, 95.0)
    assert interval(np.array([1.0, np.inf, np.inf]), 0.9).high == np.inf
    assert [found.holds(value) for value in (4.9, 5.0, 95.0)] == [False, True, True]


def test_points_of_a_run_are_drawn_together() -> None:
    drawn = bootstrap(fit(random_surface(0).points), draws=50)
    runs = list(members(drawn.fit).values())
    freed = np.stack([drawn.freed[at] for at in runs])
    freed = freed - freed.mean(0)
    for j, at in enumerate(runs):
        np.testing.assert_allclose(drawn.noise.points[:, at], freed[drawn.noise.donors[:, j]])
    assert len(np.unique(drawn.noise.donors)) == len(runs)


def test_residuals_are_freed_as_leaving_the_run_out_would() -> None:
    surface = random_surface(5)
    whole = fit(surface.points, delta=1e9)
    freed = bootstrap(whole, draws=2).freed
    for (_, run), at in members(whole).items():
        law = fit([p for p in surface.points if p.run != run], delta=1e9).family("dense")
        left = [np.log(surface.points[i].loss / law.loss(surface.points[i].n, surface.points[i].d)) for i in at]
        np.testing.assert_allclose(freed[at], left, atol=2e-4)
    assert np.abs(freed).mean() > 1.05 * np.abs(whole.residuals).mean()


def test_a_family_of_few_alike_runs_draws_factors() -> None:
    points = random_surface(0).points
    short = [p for i, p in enumerate(points) if not (p.run.endswith("-0") and i % 3 == 2)]
    drawn = bootstrap(fit(short), draws=200)
    runs = list(members(drawn.fit).values())
    few = [j for j, at in enumerate(runs) if len(at) == 2]
    assert len(few) == 4
    assert (np.abs(drawn.noise.factors[:, few]) != 0).all()
    assert sorted(np.unique(np.round(drawn.noise.factors[:, few] ** 2, 6))) == [0.5, 1.0, 1.5]
    assert (drawn.noise.factors[:, [j for j in range(12) if j not in few]] == 1).all()


def test_one_seed_gives_one_result() -> None:
    fitted = fit(random_surface(0).points)
    one, same, other = (bootstrap(fitted, draws=30, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.alpha, same.alpha)
    assert (one.alpha != other.alpha).any()


def test_more_seeds_make_an_interval_smaller() -> None:
    def width(seeds: int) -> float:
        points = measured(random_surface(0).law, np.random.default_rng(0), 0.006, seeds=seeds)
        found = bootstrap(fit(points), draws=300).coefficient("dense", "e")
        return found.high - found.low

    assert width(12) == pytest.approx(width(3) / 2, rel=0.4)


def test_too_few_runs_are_told() -> None:
    points = [point for point in random_surface(0).points if point.run.endswith("-0")]
    with pytest.raises(UserError, match="dense: 4 runs; intervals need at least 6"):
        bootstrap(fit(points))


def test_intervals_hold_the_truth_quick() -> None:
    """Bounds: what a binomial count of 9 in 10 leaves with a chance of one in a thousand, on either side."""
    count = 60
    low, high = stats.binom.ppf([0.001, 0.999], count, 0.9)
    for name, held in law_intervals(range(1000, 1000 + count), draws=200).items():
        assert low <= sum(held) <= high, name


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_intervals_hold_the_truth() -> None:
    """On 200 surfaces: all figures together in 87 to 93 of 100; each as a binomial count of 9 in 10 allows."""
    count = 200
    low, high = stats.binom.ppf([0.001, 0.999], count, 0.9)
    found = law_intervals(range(count)) | {"held out": held_out(range(count))} | multipliers(range(count))
    for name, held in found.items():
        assert low <= sum(held) <= high, name
    assert 0.87 <= np.mean(list(found.values())) <= 0.93


def test_the_largest_size_is_predicted() -> None:
    surface = random_surface(7)
    found = predict_largest(surface.points, draws=300)
    assert [one.d / one.n for one in found] == pytest.approx([10, 20, 40])
    assert all(one.n == max(p.n for p in surface.points) and one.runs == 3 for one in found)
    assert all(one.inside for one in found)
    # A size that the law does not go on to is said so, and did not take part in the fit.
    bent = [replace(p, loss=p.loss + 0.2) if p.n == found[0].n else p for p in surface.points]
    again = predict_largest(bent, draws=300)
    assert [one.inside for one in again] == [False] * 3
    assert [one.predicted for one in again] == [one.predicted for one in found]
    assert [one.interval for one in again] == [one.interval for one in found]


def test_a_prediction_of_one_run_is_wider_than_of_twelve() -> None:
    points = measured(random_surface(7).law, np.random.default_rng(0), 0.005, seeds=12)
    largest = max(p.n for p in points)
    one = [p for p in points if p.n < largest or p.run.endswith("-0")]
    wide, narrow = predict_largest(one, draws=500)[1], predict_largest(points, draws=500)[1]
    assert (wide.runs, narrow.runs) == (1, 12)
    assert wide.interval.high - wide.interval.low > 1.4 * (narrow.interval.high - narrow.interval.low)


def test_one_size_cannot_be_held_out() -> None:
    with pytest.raises(UserError, match="cannot be held out"):
        predict_largest([p for p in random_surface(0).points if p.n == 1e6])
