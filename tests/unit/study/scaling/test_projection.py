"""The fit: what it recovers, that it ends in the least minimum, and that one wrong run does not bend it."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize, nnls

from altup_moe.config import UserError
from altup_moe.study.scaling.fit import fit
from altup_moe.study.scaling.projection import LEAST, minimise, project
from altup_moe.study.scaling.records import Law, Point
from tests.unit.study.scaling.surfaces import measured, random_surface

COEFFICIENTS = ("e", "a", "alpha", "b", "beta")


def close(found: Law, law: Law, share: float) -> bool:
    """Whether every coefficient is within a share of the other's."""
    return all(getattr(found, name) == pytest.approx(getattr(law, name), rel=share) for name in COEFFICIENTS)


def hoffmann(points: list[Point], start: np.ndarray, delta: float) -> float:
    """The objective of Hoffmann et al. after L-BFGS-B over log A, log B, log E, alpha and beta from one start."""
    log_n, log_d, log_loss = (np.log([getattr(point, name) for point in points]) for name in ("n", "d", "loss"))

    def objective(theta: np.ndarray) -> float:
        a, b, e, alpha, beta = theta
        said = np.logaddexp(np.logaddexp(a - alpha * log_n, b - beta * log_d), e)
        size = np.abs(said - log_loss)
        return float(np.where(size <= delta, size**2 / 2, delta * (size - delta / 2)).sum())

    return float(minimize(objective, start, method="L-BFGS-B", options={"ftol": 1e-15, "gtol": 1e-12}).fun)


@pytest.mark.parametrize("number", range(10))
def test_points_without_noise_give_the_law_back(number: int) -> None:
    law = random_surface(number).law
    found = fit(measured(law, np.random.default_rng(0), 0.0))
    assert close(found.family("dense"), law, 1e-5)
    assert np.abs(found.residuals).max() < 1e-8


@pytest.mark.parametrize("number", range(6))
def test_no_start_of_another_method_ends_lower(number: int) -> None:
    points = random_surface(number).points
    (group,) = fit(points, delta=1e-3).groups
    generator = np.random.default_rng(number)
    starts = generator.uniform([0, 0, -1, 0, 0], [25, 25, 1, 1, 1], (12, 5))
    least = min(hoffmann(points, start, 1e-3) for start in starts)
    assert group.solution.cost[0] <= least * (1 + 1e-6)
    theta = fit(points, delta=1e-3).family("dense")
    own = np.array([np.log(theta.a), np.log(theta.b), np.log(theta.e), theta.alpha, theta.beta])
    assert hoffmann(points, own, 1e-3) == pytest.approx(group.solution.cost[0], rel=1e-6)


@pytest.mark.parametrize("number", [4, 10, 18, 34])
def test_the_grid_leaves_no_lower_minimum(number: int) -> None:
    """A third of the points far off: there are several minima, and one start alone ends in another one."""
    (group,) = fit(random_surface(number).points).groups
    generator = np.random.default_rng(number)
    count = len(group.at)
    losses = group.fitted * np.exp(0.002 * generator.standard_normal(count))
    losses[generator.choice(count, 12, replace=False)] *= np.exp(generator.uniform(0.05, 0.4, 12))
    starts = generator.uniform(0.03, 2.4, (2, 25))
    many = minimise(group.points, np.tile(losses, (25, 1)), np.ones((25, count)), 1e-3, (starts[0], starts[1]))
    found = minimise(group.points, losses[None], np.ones((1, count)), 1e-3)
    assert found.cost[0] <= many.cost.min() * (1 + 1e-6)
    assert many.cost.max() > 1.001 * found.cost[0]


def test_draws_end_in_the_minimum_that_the_grid_finds() -> None:
    surface = random_surface(3)
    (group,) = fit(surface.points).groups
    generator = np.random.default_rng(0)
    losses = group.fitted * np.exp(0.004 * generator.standard_normal((40, len(group.at))))
    weights = np.ones_like(losses)
    start = (np.repeat(group.solution.alpha, 40), np.repeat(group.solution.beta, 40))
    near = minimise(group.points, losses, weights, group.delta, start)
    far = minimise(group.points, losses, weights, group.delta)
    np.testing.assert_allclose(near.cost, far.cost, rtol=1e-8)
    np.testing.assert_allclose(near.alpha, far.alpha, rtol=1e-4)


def test_coefficients_are_those_of_least_squares_above_zero() -> None:
    generator = np.random.default_rng(0)
    at = np.linspace(-1.5, 1.5, 12)
    held = 0
    for _ in range(100):
        alpha, beta = generator.uniform(0.05, 2, 2)
        x = np.stack([np.ones(12), np.exp(-alpha * at), np.exp(-beta * generator.permutation(at))], 1)
        y = x @ generator.uniform(-0.3, 1, 3) + 0.1 * generator.standard_normal(12)
        expected, norm = nnls(x, y)
        (found,) = project(x[None], y[None], np.ones((1, 12)))
        assert np.linalg.norm(x @ found - y) <= norm * (1 + 1e-8)
        held += int((expected == 0).any())
    assert held > 20


def test_one_wrong_run_bends_the_law_little() -> None:
    surface = random_surface(1)
    clean = fit(surface.points).family("dense")
    wrong = [
        Point(p.n, p.d, p.loss + 0.3 * (i in (17, 30)), p.family, p.run, p.weight) for i, p in enumerate(surface.points)
    ]
    n, d = 1e8, 2e9
    robust, squares = fit(wrong).family("dense"), fit(wrong, delta=1e9).family("dense")
    assert abs(robust.loss(n, d) - clean.loss(n, d)) < 0.2 * abs(squares.loss(n, d) - clean.loss(n, d))


def test_a_weight_of_two_is_a_point_twice() -> None:
    points = random_surface(2).points
    twice = [*points, *points[:9]]
    heavy = [Point(p.n, p.d, p.loss, p.family, p.run, weight=2.0 if i < 9 else 1.0) for i, p in enumerate(points)]
    assert close(fit(heavy, delta=1e9).family("dense"), fit(twice, delta=1e9).family("dense"), 1e-6)


def test_families_share_what_they_are_told_to() -> None:
    law = random_surface(4).law
    other = Law(law.e, 0.7 * law.a, law.alpha, 0.9 * law.b, law.beta)
    generator = np.random.default_rng(0)
    points = measured(law, generator, 0.004) + measured(other, generator, 0.004, family="altup")
    together, apart = fit(points, shared=True), fit(points)
    dense, altup = together.family("dense"), together.family("altup")
    assert (dense.e, dense.alpha, dense.beta) == (altup.e, altup.alpha, altup.beta)
    assert altup.a / dense.a == pytest.approx(0.7, abs=0.03)
    assert altup.b / dense.b == pytest.approx(0.9, abs=0.03)
    assert apart.family("dense") == fit([p for p in points if p.family == "dense"]).family("dense")
    assert apart.family("dense").alpha != apart.family("altup").alpha


def test_a_term_that_is_not_there_is_said() -> None:
    law = Law(2.0, 0.0, 0.3, 300.0, 0.35)
    found = fit(measured(law, np.random.default_rng(0), 0.004))
    assert any("alpha" in note for note in found.notes)
    assert fit(random_surface(0).points).notes == ()
    assert found.family("dense").alpha >= LEAST


@pytest.mark.parametrize(
    ("points", "says"),
    [
        ([], "there are none"),
        ([Point(1e6, 1e7, -1.0, "dense", "r1")], "run 'r1': loss is -1.0; a number above 0 fits"),
        ([Point(1e6, 1e7 * k, 3.0, "dense", "r") for k in range(1, 9)], "1 sizes and 8 token counts"),
        ([Point(1e6 * k, 1e7, 3.0, "dense", "r") for k in (1, 2)], "run 'r' of 'dense' has several sizes"),
    ],
)
def test_what_cannot_be_fitted_is_told(points: list[Point], says: str) -> None:
    with pytest.raises(UserError, match=says):
        fit(points)


def test_a_family_that_was_not_fitted_is_told() -> None:
    with pytest.raises(UserError, match="family 'moe' was not fitted; there are dense"):
        fit(random_surface(0).points).family("moe")
