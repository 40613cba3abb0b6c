"""Curves of a law: they are the law's best losses, their bands hold the truth, and slices lie where runs are."""

from __future__ import annotations

import numpy as np
import pytest

from altup_moe.config import UserError
from altup_moe.study.scaling.bootstrap import Draws, bootstrap
from altup_moe.study.scaling.costs import Axis
from altup_moe.study.scaling.curves import best_losses, budgets, slice_at
from altup_moe.study.scaling.fit import fit
from altup_moe.study.scaling.records import Law, Point
from tests.unit.study.scaling.surfaces import SIZES, measured

LAW = Law(1.9, 90.0, 0.33, 600.0, 0.36)


@pytest.fixture(scope="module")
def draws() -> Draws:
    points = measured(LAW, np.random.default_rng(3), 0.004)
    return bootstrap(fit(points), draws=200)


@pytest.mark.parametrize("axis", ["flops", "seconds"])
def test_the_best_loss_for_a_cost_is_the_lowest_of_all_sizes(draws: Draws, axis: Axis) -> None:
    curve = best_losses(draws, "dense", axis, stops=9)
    law = draws.fit.family("dense")
    spent = [getattr(point, axis) for point in draws.fit.points]
    assert (curve.cost[0], curve.cost[-1]) == pytest.approx((min(spent), max(spent)))
    rate = 6.0 if axis == "flops" else 6.0 / 1e12
    sizes = np.geomspace(1e5, 2e8, 4000)
    for cost, loss, inside in zip(curve.cost, curve.loss, curve.inside, strict=True):
        # Beyond the sizes that were timed, the seconds of a token are a guess.
        if axis == "seconds" and not inside:
            continue
        brute = law.e + law.a * sizes**-law.alpha + law.b * (cost / (rate * sizes)) ** -law.beta
        assert loss == pytest.approx(brute.min(), abs=2e-5 if axis == "flops" else 1e-2)
    assert (curve.low < curve.loss).all()
    assert (curve.loss < curve.high).all()
    # The truth lies inside the band (90 %: at most stops, whose draws are the same, do not hold it).
    truth = [
        min(LAW.loss(n, cost / (6 * n)) for n in sizes[::20]) for cost in best_losses(draws, "dense", "flops").cost
    ]
    band = best_losses(draws, "dense", "flops")
    assert np.mean((band.low <= truth) & (truth <= band.high)) > 0.6


def test_beyond_what_was_trained_is_said(draws: Draws) -> None:
    curve = best_losses(draws, "dense", "flops")
    trained = (curve.n >= SIZES[0] * 0.999) & (curve.n <= SIZES[-1] * 1.001)
    assert not curve.inside[~trained].any()
    assert curve.inside.any()
    low = slice_at(draws, "dense", "flops", 6 * SIZES[0] ** 2 * 10)
    # The cheapest run's cost: its size has its tokens, larger ones have fewer than any run had.
    assert low.inside[0]
    assert not low.inside[-1]
    assert low.d * low.n * 6 == pytest.approx(low.cost)
    assert low.loss[0] == pytest.approx(draws.fit.family("dense").loss(SIZES[0], SIZES[0] * 10))


def test_slices_lie_where_runs_of_most_sizes_are() -> None:
    def point(n: float, flops: float) -> Point:
        return Point(n, 1e6, 3.0, "dense", f"{n}", flops=flops)

    # In each of two parts of the range: one run alone nearer to the middle, two sizes beside each other elsewhere.
    points = [point(1, 1.0), point(1, 10.0), point(2, 3.0), point(3, 3.3), point(4, 50.0), point(5, 100.0)]
    assert budgets(points, 2) == [3.3, 50.0]
    assert budgets([Point(1.0, 1.0, 3.0, "dense", "a")]) == []


def test_an_unknown_family_is_named(draws: Draws) -> None:
    with pytest.raises(UserError, match="'moe' was not fitted; there are dense"):
        best_losses(draws, "moe", "flops")
