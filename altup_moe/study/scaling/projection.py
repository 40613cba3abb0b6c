"""Least squares of L = E + A N^-alpha + B D^-beta by variable projection, many weightings of the same points at once.

For fixed exponents the law is linear in E, A and B: they are solved for (`project`), and only the two exponents are
searched, first on a grid that covers their range, then by damped Gauss-Newton steps. No start has to be given, and none
can be wrong. Golub and Pereyra 1973; Kaufman 1975 for the step; arXiv 2603.22339 for this law.

The objective is Huber's loss of log(fitted / measured), as in Hoffmann et al. 2022 (arXiv 2203.15556, section 3.3): a
run that went wrong pulls little, and a share of the loss counts alike at every size. Weights that are renewed in every
step minimise it. Shapes: R weightings, P points, F families, C = 1 + 2F columns: E, then each family's A and B.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

Array = NDArray[np.float64]

LEAST, MOST = 0.02, 2.5
"""Bounds of the exponents. Below, a term cannot be told from E; above, it is gone after the smallest size."""
GRID = np.geomspace(LEAST, MOST, 24)
MINIMA = 8
"""Nodes of the grid that steps start from, at the most."""
STEPS = 200
TOLERANCE = 1e-7
"""Steps end when no exponent moves by more than this share of itself."""


@dataclass(frozen=True)
class Points:
    """What is fitted, as arrays [P]. `log_n` and `log_d` are centred, so that the columns are of one magnitude."""

    log_n: Array
    log_d: Array
    family: NDArray[np.int64]
    families: int


@dataclass(frozen=True)
class Solution:
    """Minima. `coefficients` [R, C]: E, then A and B of each family, in centred units. `alpha`, `beta`, `cost`: [R]."""

    coefficients: Array
    alpha: Array
    beta: Array
    cost: Array


def columns(points: Points, alpha: Array, beta: Array) -> Array:
    """[R] exponents -> [R, P, C] derivatives of the loss with respect to E and each family's A and B."""
    found = np.zeros((len(alpha), len(points.log_n), 1 + 2 * points.families))
    at = np.arange(len(points.log_n))
    found[:, :, 0] = 1.0
    found[:, at, 1 + 2 * points.family] = np.exp(-alpha[:, None] * points.log_n)
    found[:, at, 2 + 2 * points.family] = np.exp(-beta[:, None] * points.log_d)
    return found


def project(x: Array, y: Array, weights: Array) -> Array:
    """Weighted least squares with coefficients of no less than 0. [R, P, C], [R, P], [R, P] -> [R, C].

    All are solved at once by their normal equations; those with a negative coefficient again, by scipy's `nnls`.
    """
    weighted = np.swapaxes(x * weights[:, :, None], 1, 2)
    found = _solve(weighted @ x, (weighted @ y[:, :, None])[:, :, 0])
    for r in np.flatnonzero((found < 0).any(1)):
        root = np.sqrt(weights[r])
        found[r] = nnls(x[r] * root[:, None], y[r] * root)[0]
    return found


def _solve(normal: Array, right: Array, damping: Array | float = 0.0) -> Array:
    """Solve normal equations [R, K, K] with columns of one size; `damping` [R, K] is added to their diagonal of ones.

    A little more is always added: columns that are alike, or 0, leave nothing singular.
    """
    size = np.sqrt(np.maximum(np.diagonal(normal, axis1=1, axis2=2), 1e-300))
    scaled = normal / (size[:, :, None] * size[:, None, :])
    diagonal = np.arange(right.shape[1])
    scaled[:, diagonal, diagonal] = 1.0 + 1e-12 + damping
    found: Array = np.linalg.solve(scaled, (right / size)[:, :, None])[:, :, 0] / size
    return found


def huber(residuals: Array, delta: float) -> Array:
    """Huber's loss: half the square up to `delta`, then linear."""
    size = np.abs(residuals)
    return np.where(size <= delta, 0.5 * size**2, delta * (size - 0.5 * delta))


def _reweighted(fitted: Array, y: Array, delta: float) -> Array:
    """Weights under which squares of (fitted - y) have the slope of Huber's loss of log(fitted / y)."""
    log = np.log(fitted / y)
    gap = fitted - y
    flat = np.abs(log) < 1e-9
    slope = np.where(flat, 1.0 / fitted**2, log / np.where(flat, 1.0, fitted * gap))
    return slope * np.minimum(1.0, delta / np.maximum(np.abs(log), 1e-300))


def minimise(
    points: Points, y: Array, weights: Array, delta: float, start: tuple[Array, Array] | None = None
) -> Solution:
    """Minimise the weighted sum of Huber's loss. `y`, `weights`: [R, P]; `start`: exponents [R], else from the grid."""
    if start is None:
        return _from_grid(points, y, weights, delta)
    alpha, beta = (exponents.copy() for exponents in start)
    x = columns(points, alpha, beta)
    coefficients = project(x, y, weights / y**2)
    cost = _cost(x, coefficients, y, weights, delta)
    damping = np.full(len(alpha), 1e-3)
    moving = np.arange(len(alpha))
    for _ in range(STEPS):
        own, w = coefficients[moving], weights[moving]
        x = columns(points, alpha[moving], beta[moving])
        local = w * _reweighted((x @ own[:, :, None])[:, :, 0], y[moving], delta)
        step = _step(points, x, own, y[moving], local, damping[moving])
        tried_alpha = np.clip(alpha[moving] + step[:, 0], LEAST, MOST)
        tried_beta = np.clip(beta[moving] + step[:, 1], LEAST, MOST)
        tried_x = columns(points, tried_alpha, tried_beta)
        tried = project(tried_x, y[moving], local)
        tried_cost = _cost(tried_x, tried, y[moving], w, delta)
        better = tried_cost <= cost[moving]
        moved = np.maximum(np.abs(tried_alpha / alpha[moving] - 1), np.abs(tried_beta / beta[moving] - 1))
        gained = 1 - tried_cost / np.maximum(cost[moving], 1e-300)
        taken = moving[better]
        alpha[taken], beta[taken] = tried_alpha[better], tried_beta[better]
        coefficients[taken], cost[taken] = tried[better], tried_cost[better]
        damping[moving] = np.clip(np.where(better, damping[moving] / 4, damping[moving] * 8), 1e-9, 1e9)
        ended = np.where(better, (moved < TOLERANCE) & (gained < 1e-9), moved < TOLERANCE / 100)
        moving = moving[~ended]
        if not len(moving):
            break
    return Solution(coefficients, alpha, beta, cost)


def jacobian(points: Points, x: Array, coefficients: Array, alpha: Array, beta: Array) -> Array:
    """[R, P, C + 2]: derivatives of the loss with respect to the coefficients, alpha and beta."""
    rows = np.arange(len(points.log_n))
    of_a, of_b = 1 + 2 * points.family, 2 + 2 * points.family
    by_alpha = -points.log_n * x[:, rows, of_a] * coefficients[:, of_a]
    by_beta = -points.log_d * x[:, rows, of_b] * coefficients[:, of_b]
    return np.concatenate([x, by_alpha[:, :, None], by_beta[:, :, None]], axis=2)


def _step(points: Points, x: Array, coefficients: Array, y: Array, weights: Array, damping: Array) -> Array:
    """Damped Gauss-Newton step of the exponents, the coefficients moving along: [R, 2]."""
    full = jacobian(points, x, coefficients, damping, damping)
    residuals = y - (x @ coefficients[:, :, None])[:, :, 0]
    # A coefficient that is held at 0 does not move along.
    full = full * np.concatenate([coefficients > 0, np.ones((len(x), 2), dtype=bool)], axis=1)[:, None, :]
    weighted = np.swapaxes(full * weights[:, :, None], 1, 2)
    normal = weighted @ full
    right = (weighted @ residuals[:, :, None])[:, :, 0]
    ridge = np.zeros(right.shape)
    ridge[:, -2:] = damping[:, None]
    return _solve(normal, right, ridge)[:, -2:]


def _cost(x: Array, coefficients: Array, y: Array, weights: Array, delta: float) -> Array:
    fitted = np.maximum((x @ coefficients[:, :, None])[:, :, 0], 1e-300)
    return (weights * huber(np.log(fitted / y), delta)).sum(1)


def _from_grid(points: Points, y: Array, weights: Array, delta: float) -> Solution:
    """The least of the minima that lie below the grid's own minima, for each weighting."""
    found = []
    for own, weight in zip(y, weights, strict=True):
        starts = grid_minima(points, own, weight, delta)
        shape = (len(starts[0]), len(own))
        many = minimise(points, np.broadcast_to(own, shape), np.broadcast_to(weight, shape), delta, starts)
        best = many.cost.argmin()
        found.append((many.coefficients[best], many.alpha[best], many.beta[best], many.cost[best]))
    return Solution(*(np.array(values) for values in zip(*found, strict=True)))


def grid_minima(points: Points, y: Array, weights: Array, delta: float) -> tuple[Array, Array]:
    """Exponents of the grid's nodes that no neighbour undercuts, the `MINIMA` lowest. `y`, `weights`: [P].

    Each node has three rounds of weights, the first without Huber's.
    """
    side = len(GRID)
    alpha, beta = (nodes.ravel() for nodes in np.meshgrid(GRID, GRID, indexing="ij"))
    x = columns(points, alpha, beta)
    target, weights = np.broadcast_to(y, x.shape[:2]), np.broadcast_to(weights, x.shape[:2])
    local = weights / target**2
    for _ in range(3):
        coefficients = project(x, target, local)
        fitted = np.maximum((x @ coefficients[:, :, None])[:, :, 0], 1e-300)
        local = weights * _reweighted(fitted, target, delta)
    cost = _cost(x, coefficients, target, weights, delta)
    padded = np.pad(cost.reshape(side, side), 1, constant_values=np.inf)
    around = np.stack([padded[i : i + side, j : j + side] for i in range(3) for j in range(3)])
    minima = np.flatnonzero(cost <= around.min(0).ravel())
    lowest = minima[np.argsort(cost[minima])][:MINIMA]
    return alpha[lowest], beta[lowest]
