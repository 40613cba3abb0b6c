"""What training costs: FLOPs or seconds a token by size, and the cheapest way to a loss."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from altup_moe.config import UserError
from altup_moe.study.scaling.bootstrap import Draws, members
from altup_moe.study.scaling.fit import Fit
from altup_moe.study.scaling.records import Array, Law

Axis = Literal["flops", "seconds"]
BEYOND = 10.0
"""How far sizes are looked for beyond the smallest and largest one, times."""
SIZES = 512


@dataclass(frozen=True)
class TokenCost:
    """Cost of a token by size. `log_n` [S], ascending; `log_cost` [R, S]: of R draws, or of one.

    Between two sizes the logarithm of the cost is linear in that of the size; beyond, the last line goes on.
    """

    log_n: Array
    log_cost: Array

    def at(self, n: float | Array) -> Array:
        """Cost a token at sizes [Q]: [R, Q]."""
        log = np.log(np.atleast_1d(np.asarray(n, dtype=np.float64)))
        if len(self.log_n) == 1:
            return np.exp(np.repeat(self.log_cost, len(log), 1))
        left = np.clip(np.searchsorted(self.log_n, log) - 1, 0, len(self.log_n) - 2)
        share = (log - self.log_n[left]) / (self.log_n[left + 1] - self.log_n[left])
        found: Array = np.exp(self.log_cost[:, left] * (1 - share) + self.log_cost[:, left + 1] * share)
        return found

    def sizes(self) -> Array:
        """Sizes to choose from, ascending: those measured, and many between and beyond them."""
        low, high = self.log_n[0] - math.log(BEYOND), self.log_n[-1] + math.log(BEYOND)
        found: Array = np.exp(np.union1d(np.linspace(low, high, SIZES), self.log_n))
        return found


@dataclass(frozen=True)
class Cheapest:
    """The cheapest way to a loss: size, tokens and cost, each [R]. Infinite where the loss is below the law's E."""

    n: Array
    d: Array
    cost: Array


def token_cost(fitted: Fit, family: str, axis: Axis) -> TokenCost:
    """Cost of a token of a family's sizes: the geometric mean over the runs of a size, one draw.

    Raises:
        UserError: a point of the family has no such cost.
    """
    by_size: dict[float, list[float]] = {}
    for n, log in _run_costs(fitted, family, axis).values():
        by_size.setdefault(n, []).append(log)
    sizes = sorted(by_size)
    return TokenCost(np.log(sizes), np.array([[float(np.mean(by_size[n])) for n in sizes]]))


def drawn_token_cost(draws: Draws, family: str, axis: Axis) -> TokenCost:
    """The same in every draw: a run takes the deviation of the run whose residuals it took. FLOPs have none."""
    costs = _run_costs(draws.fit, family, axis)
    mean = token_cost(draws.fit, family, axis)
    counts = {n: sum(own == n for own, _ in costs.values()) for n, _ in costs.values()}
    place = {n: s for s, n in enumerate(sorted(counts))}
    off = np.zeros(draws.noise.donors.shape[1])
    for j, (n, log) in costs.items():
        # The mean of m runs takes 1/m of the variance out of each.
        off[j] = (log - mean.log_cost[0, place[n]]) * math.sqrt(counts[n] / max(counts[n] - 1, 1))
    drawn = off[draws.noise.donors] * draws.noise.factors
    found = np.repeat(mean.log_cost, len(drawn), 0)
    for j, (n, _) in costs.items():
        found[:, place[n]] += drawn[:, j] / counts[n]
    return TokenCost(mean.log_n, found)


def _run_costs(fitted: Fit, family: str, axis: Axis) -> dict[int, tuple[float, float]]:
    """Number of a run -> (size, log of its mean cost a token)."""
    fitted.family(family)
    found: dict[int, tuple[float, float]] = {}
    for j, ((name, run), at) in enumerate(members(fitted).items()):
        if name != family:
            continue
        own = [fitted.points[i] for i in at]
        logs = []
        for point in own:
            cost = getattr(point, axis)
            if cost is None or not cost > 0:
                raise UserError(f"run {run!r} of {family!r}: {axis} is {cost}; a number above 0 fits")
            logs.append(math.log(cost / point.d))
        found[j] = (own[0].n, float(np.mean(logs)))
    return found


def cheapest(laws: Law | tuple[Array, Array, Array, Array, Array], cost: TokenCost, loss: float | Array) -> Cheapest:
    """The size and tokens that reach a loss at the least cost.

    Args:
        laws: one, or E, A, alpha, B and beta [R] of draws.
        cost: of a token, with as many draws.
        loss: to be reached, nats a token; a number or [R].
    """
    e, a, alpha, b, beta = _columns(laws)
    target = np.atleast_1d(np.asarray(loss, dtype=np.float64))[:, None]
    sizes = cost.sizes()
    left = target - e - a * sizes**-alpha
    with np.errstate(divide="ignore", invalid="ignore"):
        tokens = np.where(left > 0, (b / left) ** (1 / beta), np.inf)
    total = tokens * cost.at(sizes)
    best = total.argmin(1)
    rows: NDArray[np.int64] = np.arange(len(total))
    reached = np.isfinite(total[rows, best])
    return Cheapest(
        np.where(reached, sizes[best], np.inf),
        np.where(reached, tokens[rows, best], np.inf),
        np.where(reached, total[rows, best], np.inf),
    )


def _columns(laws: Law | tuple[Array, Array, Array, Array, Array]) -> Iterable[Array]:
    values = (laws.e, laws.a, laws.alpha, laws.b, laws.beta) if isinstance(laws, Law) else laws
    return [np.atleast_1d(np.asarray(value, dtype=np.float64))[:, None] for value in values]
