"""Intervals of a fitted law: a bootstrap over runs (`bootstrap`).

Each draw gives every run the residuals of a run of its family, all of them together, and fits again. Points of a run
share its seed, so runs are drawn and not points. Before that, residuals are freed of the fit's own pull: a run's vector
is multiplied by (I - H)^-1, H its block of the hat matrix. To first order that is the residual of a fit without the run
(cluster jackknife: Bell and McCaffrey 2002; MacKinnon, Nielsen and Webb 2023). Drawing whole runs with their points
(cases) gives intervals that are too narrow for three seeds; `python -m tests.scaling_coverage` prints both.

Families with fewer than six runs of one number of points keep each run's own residuals, and draw a factor for each run
(wild bootstrap with Webb's six points: Webb 2014).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from altup_moe.config import UserError
from altup_moe.study.scaling.fit import Fit, Group, uncentred
from altup_moe.study.scaling.projection import Solution, minimise
from altup_moe.study.scaling.records import Array, Interval, interval

LEVEL = 0.9
DRAWS = 1000
FEWEST_RUNS = 6
POOL = 6
WEBB = np.sqrt([0.5, 1.0, 1.5])
LEAST_EIGENVALUE = 0.05
"""Of I - H: a run that decides a coefficient alone has 0 there, and no residual to learn from."""


@dataclass(frozen=True)
class Noise:
    """Drawn noise. `points` [R, points]: of log L. `donors`, `factors` [R, runs]: whose residuals, times what."""

    runs: tuple[str, ...]
    points: Array
    donors: NDArray[np.int64]
    factors: Array


@dataclass(frozen=True)
class Draws:
    """Laws of all draws. `e`, `a`, `alpha`, `b`, `beta`: [R, F]. `freed` [points]: residuals without the fit's pull."""

    fit: Fit
    families: tuple[str, ...]
    e: Array
    a: Array
    alpha: Array
    b: Array
    beta: Array
    freed: Array
    noise: Noise
    seed: int

    def index(self, family: str) -> int:
        """Where a family is on the last axis."""
        self.fit.family(family)
        return self.families.index(family)

    def loss(self, family: str, n: float | Array, d: float | Array) -> Array:
        """[R]: the loss at `n` parameters and `d` tokens in every draw; also with arrays that end in R's shape."""
        i = self.index(family)
        return np.asarray(self.e[:, i] + self.a[:, i] * n ** -self.alpha[:, i] + self.b[:, i] * d ** -self.beta[:, i])

    def coefficient(self, family: str, name: str, level: float = LEVEL) -> Interval:
        """Interval of a coefficient: e, a, alpha, b or beta."""
        return interval(getattr(self, name)[:, self.index(family)], level)

    def predicted(self, family: str, n: float, d: float, level: float = LEVEL) -> Interval:
        """Interval of the law's value at (n, d): of the mean over seeds, without the noise of a new run."""
        return interval(self.loss(family, n, d), level)


def bootstrap(fitted: Fit, *, draws: int = DRAWS, seed: int = 0) -> Draws:
    """Draw laws. One seed gives one result.

    Raises:
        UserError: a family, or the families of a shared fit, have fewer than six runs.
    """
    generator = np.random.default_rng(seed)
    for group in fitted.groups:
        runs = {(fitted.points[i].family, fitted.points[i].run) for i in group.at}
        if len(runs) < FEWEST_RUNS:
            raise UserError(f"{', '.join(group.families)}: {len(runs)} runs; intervals need at least {FEWEST_RUNS}")
    freed = np.zeros(len(fitted.points))
    for group in fitted.groups:
        freed[group.at] = _freed(fitted, group)
    noise = _noise(fitted, freed, draws, generator)
    found = [uncentred(group, _refit(group, noise)) for group in fitted.groups]
    e, a, alpha, b, beta = (np.concatenate(parts, axis=1) for parts in zip(*found, strict=True))
    families = tuple(name for group in fitted.groups for name in group.families)
    return Draws(fitted, families, e, a, alpha, b, beta, freed, noise, seed)


def members(fitted: Fit) -> dict[tuple[str, str], NDArray[np.int64]]:
    """(family, run) -> its points, by tokens."""
    found: dict[tuple[str, str], list[int]] = {}
    for i, point in enumerate(fitted.points):
        found.setdefault((point.family, point.run), []).append(i)
    return {key: np.array(sorted(own, key=lambda i: (fitted.points[i].d, i))) for key, own in found.items()}


def _freed(fitted: Fit, group: Group) -> Array:
    """[P]: residuals of the group's points as leaving their run out would give them, to first order."""
    root = np.sqrt(group.weights)
    slopes = group.slopes * root[:, None]
    size = np.maximum(np.sqrt((slopes**2).sum(0)), 1e-300)
    inverse = np.linalg.pinv((slopes / size).T @ (slopes / size))
    residuals = fitted.residuals[group.at] * root
    place = {int(i): j for j, i in enumerate(group.at)}
    found = np.zeros(len(group.at))
    for (family, _), run in members(fitted).items():
        if family not in group.families:
            continue
        at = [place[int(i)] for i in run]
        own = slopes[at] / size
        values, vectors = np.linalg.eigh(np.eye(len(at)) - own @ inverse @ own.T)
        found[at] = vectors @ ((vectors.T @ residuals[at]) / np.maximum(values, LEAST_EIGENVALUE))
    return found / root


def _noise(fitted: Fit, freed: Array, draws: int, generator: np.random.Generator) -> Noise:
    runs = members(fitted)
    pools: dict[tuple[str, int], list[int]] = {}
    for j, ((family, _), own) in enumerate(runs.items()):
        pools.setdefault((family, len(own)), []).append(j)
    at = list(runs.values())
    points = np.zeros((draws, len(freed)))
    donors, factors = np.tile(np.arange(len(at)), (draws, 1)), np.ones((draws, len(at)))
    for pool in pools.values():
        residuals = np.stack([freed[at[j]] for j in pool])
        if len(pool) >= POOL:
            residuals = residuals - residuals.mean(0)
            chosen = generator.integers(0, len(pool), (draws, len(pool)))
            drawn = residuals[chosen]
            donors[:, pool] = np.array(pool)[chosen]
        else:
            factors[:, pool] = generator.choice([*WEBB, *-WEBB], (draws, len(pool)))
            drawn = residuals * factors[:, pool, None]
        for k, j in enumerate(pool):
            points[:, at[j]] = drawn[:, k]
    return Noise(tuple(run for _, run in runs), points, donors, factors)


def _refit(group: Group, noise: Noise) -> Solution:
    losses = group.fitted * np.exp(noise.points[:, group.at])
    start = (np.repeat(group.solution.alpha, len(losses)), np.repeat(group.solution.beta, len(losses)))
    return minimise(group.points, losses, np.broadcast_to(group.weights, losses.shape), group.delta, start)
