"""Fit a scaling law to the points of one or more families (`fit`)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from altup_moe.config import UserError
from altup_moe.study.scaling.projection import LEAST, MOST, Points, Solution, columns, jacobian, minimise
from altup_moe.study.scaling.records import Array, Law, Point

HUBER = 1.345
"""Huber's delta in standard deviations: 95 % of least squares' efficiency under normal noise (Huber 1964)."""
LEAST_DELTA = 1e-6
ROUNDS = 3


@dataclass(frozen=True)
class Group:
    """Families that are solved together: where their points are in the list, and the solution in centred units."""

    families: tuple[str, ...]
    at: NDArray[np.int64]
    points: Points
    center_n: float
    center_d: float
    weights: Array
    solution: Solution
    delta: float

    @property
    def fitted(self) -> Array:
        """[P]: the law's losses at the group's points."""
        x = columns(self.points, self.solution.alpha, self.solution.beta)
        return (x[0] @ self.solution.coefficients[0]).astype(np.float64)

    @property
    def slopes(self) -> Array:
        """[P, coefficients]: derivatives of the logarithm of the loss by the law's coefficients."""
        found = self.solution
        x = columns(self.points, found.alpha, found.beta)
        full = jacobian(self.points, x, found.coefficients, found.alpha, found.beta)[0]
        return (full / self.fitted[:, None]).astype(np.float64)


@dataclass(frozen=True)
class Fit:
    """A fitted law for each family. `residuals` [points]: log(loss / fitted). `groups`: where the bootstrap starts."""

    points: tuple[Point, ...]
    laws: dict[str, Law]
    residuals: Array
    groups: tuple[Group, ...]

    @property
    def notes(self) -> tuple[str, ...]:
        """What the points do not tell: exponents at a bound of the search, terms that are 0."""
        return tuple(note for group in self.groups for note in _notes(group))

    def family(self, name: str) -> Law:
        """The law of a family.

        Raises:
            UserError: no such family was fitted.
        """
        if name not in self.laws:
            raise UserError(f"family {name!r} was not fitted; there are {', '.join(self.laws)}")
        return self.laws[name]


def fit(points: Sequence[Point], *, shared: bool = False, delta: float | None = None) -> Fit:
    """Fit L = E + A N^-alpha + B D^-beta by variable projection, with Huber's loss of the residuals of log L.

    Args:
        points: at least three sizes and three token counts in each fit, and more points than coefficients.
        shared: E, alpha and beta are those of all families together, A and B each family's own. Else nothing is shared.
        delta: Huber's delta; 1e-3 is Hoffmann's. None: 1.345 standard deviations of the residuals, from their median
            absolute deviation: a fixed 1e-3 is less than one of them where seeds differ by 0.003 to 0.01 nats, and then
            nearly the sum of absolute values, which is less efficient under normal noise.

    Raises:
        UserError: points that are no numbers above 0, or too few for the law.
    """
    points = tuple(points)
    _check(points)
    names = tuple(dict.fromkeys(point.family for point in points))
    groups = tuple(_solve(points, families, delta) for families in ([names] if shared else [(name,) for name in names]))
    laws: dict[str, Law] = {}
    residuals = np.zeros(len(points))
    for group in groups:
        laws |= _laws(group)
        losses = np.array([points[i].loss for i in group.at])
        residuals[group.at] = np.log(losses / group.fitted)
    return Fit(points, {name: laws[name] for name in names}, residuals, groups)


def _check(points: Sequence[Point]) -> None:
    if not points:
        raise UserError("a scaling law needs points; there are none")
    for point in points:
        for name in ("n", "d", "loss", "weight"):
            value = getattr(point, name)
            if not (math.isfinite(value) and value > 0):
                raise UserError(f"run {point.run!r}: {name} is {value}; a number above 0 fits")
    sizes: dict[tuple[str, str], float] = {}
    for point in points:
        if sizes.setdefault((point.family, point.run), point.n) != point.n:
            raise UserError(f"run {point.run!r} of {point.family!r} has several sizes; a run has one n")


def _solve(points: Sequence[Point], families: tuple[str, ...], delta: float | None) -> Group:
    at = np.array([i for i, point in enumerate(points) if point.family in families])
    own = [points[i] for i in at]
    count = 3 + 2 * len(families)
    sizes, tokens = ({getattr(point, name) for point in own} for name in ("n", "d"))
    if min(len(sizes), len(tokens)) < 3 or len(own) <= count:
        raise UserError(
            f"{', '.join(families)}: {len(own)} points of {len(sizes)} sizes and {len(tokens)} token counts; "
            f"a law needs more than {count} points, three sizes and three token counts"
        )
    log_n, log_d = (np.log([getattr(point, name) for point in own]) for name in ("n", "d"))
    family = np.array([families.index(point.family) for point in own])
    arrays = Points(log_n - log_n.mean(), log_d - log_d.mean(), family, len(families))
    losses, weights = np.array([[point.loss for point in own]]), np.array([[point.weight for point in own]])
    weights = weights / weights.mean()
    if delta is not None:
        found = minimise(arrays, losses, weights, delta)
        used = delta
    else:
        found, used = _adaptive(arrays, losses, weights, count)
    return Group(families, at, arrays, float(log_n.mean()), float(log_d.mean()), weights[0], found, used)


def _adaptive(arrays: Points, losses: Array, weights: Array, count: int) -> tuple[Solution, float]:
    """Least squares first; then Huber's loss with a delta from the residuals, each time from the grid."""
    used = math.inf
    found = minimise(arrays, losses, weights, used)
    for _ in range(ROUNDS):
        fitted = columns(arrays, found.alpha, found.beta)[0] @ found.coefficients[0]
        spread = 1.4826 * float(np.median(np.abs(np.log(losses[0] / fitted)) * np.sqrt(weights[0])))
        used = max(HUBER * spread * math.sqrt(losses.size / (losses.size - count)), LEAST_DELTA)
        found = minimise(arrays, losses, weights, used)
    return found, used


def _laws(group: Group) -> dict[str, Law]:
    found = uncentred(group, group.solution)
    return {name: Law(*(float(values[0, i]) for values in found)) for i, name in enumerate(group.families)}


def _notes(group: Group) -> Iterator[str]:
    names, found = ", ".join(group.families), group.solution
    for name, exponent in (("alpha", float(found.alpha[0])), ("beta", float(found.beta[0]))):
        if not LEAST * 1.01 < exponent < MOST / 1.01:
            yield f"{names}: {name} ends at {exponent:.3g}, a bound of the search: the points do not tell it"
    terms = (("E", found.coefficients[0, :1]), ("A", found.coefficients[0, 1::2]), ("B", found.coefficients[0, 2::2]))
    for name, values in terms:
        if (values <= 0).any():
            of = " (so alpha says nothing)" if name == "A" else " (so beta says nothing)" if name == "B" else ""
            yield f"{names}: {name} is 0{of}"


def uncentred(group: Group, solution: Solution) -> tuple[Array, Array, Array, Array, Array]:
    """E, A, alpha, B, beta of each family, [R, F], with N in parameters and D in tokens."""
    count = len(group.families)
    e, alpha, beta = (
        np.repeat(values[:, None], count, 1) for values in (solution.coefficients[:, 0], solution.alpha, solution.beta)
    )
    a = solution.coefficients[:, 1::2] * np.exp(alpha * group.center_n)
    b = solution.coefficients[:, 2::2] * np.exp(beta * group.center_d)
    return e, a, alpha, b, beta
