"""The multiplier: how much more the reference family has to spend to reach a model's loss (`multiplier`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from altup_moe.study.scaling.bootstrap import LEVEL, Draws
from altup_moe.study.scaling.costs import Axis, cheapest, drawn_token_cost, token_cost
from altup_moe.study.scaling.records import Interval, interval

Verdict = Literal["cheaper", "dearer", "not decided"]


@dataclass(frozen=True)
class Multiplier:
    """What the reference needs over what the model takes, on one axis. Above 1 the model is cheaper.

    loss: the model's, from its law. cost: the model's own. n, d, reference_cost: of the reference's cheapest way to the
    loss. extrapolated: that way is outside the sizes or the costs of the reference's runs.
    ratio: infinite where the loss is below the reference's E.
    """

    family: str
    reference: str
    axis: Axis
    loss: float
    cost: float
    n: float
    d: float
    reference_cost: float
    ratio: float
    interval: Interval
    extrapolated: bool

    @property
    def verdict(self) -> Verdict:
        """Whether the model is cheaper; 'not decided' where the interval holds 1."""
        if self.interval.holds(1.0):
            return "not decided"
        return "cheaper" if self.interval.low > 1 else "dearer"


def multiplier(
    draws: Draws, family: str, reference: str, axis: Axis, *, n: float, d: float, level: float = LEVEL
) -> Multiplier:
    """Compute the multiplier of a model of `n` parameters and `d` tokens: at equal FLOPs or at equal seconds.

    The reference takes its cheapest way, a size and tokens of its own; so does the model only if `n` and `d` are such.
    `best` finds them. Losses are those of the laws; costs a token are measured, at sizes between as `TokenCost` says.

    Raises:
        UserError: an unknown family, or points without that cost.
    """
    law, own = draws.fit.family(family), token_cost(draws.fit, family, axis)
    loss, cost = law.loss(n, d), float(own.at(n)[0, 0] * d)
    rates = token_cost(draws.fit, reference, axis)
    way = cheapest(draws.fit.family(reference), rates, loss)
    i = draws.index(reference)
    drawn = cheapest(
        (draws.e[:, i], draws.a[:, i], draws.alpha[:, i], draws.b[:, i], draws.beta[:, i]),
        drawn_token_cost(draws, reference, axis),
        draws.loss(family, n, d),
    )
    ratios = drawn.cost / (drawn_token_cost(draws, family, axis).at(n)[:, 0] * d)
    size, tokens, needed = float(way.n[0]), float(way.d[0]), float(way.cost[0])
    known = [point for point in draws.fit.points if point.family == reference]
    spent = [float(getattr(point, axis)) for point in known]
    inside = min(p.n for p in known) <= size <= max(p.n for p in known) and min(spent) <= needed <= max(spent)
    return Multiplier(
        family, reference, axis, loss, cost, size, tokens, needed, needed / cost, interval(ratios, level), not inside
    )


def best(draws: Draws, family: str, axis: Axis, budget: float) -> tuple[float, float]:
    """The size and tokens at which a family's law is lowest for a budget in FLOPs or seconds.

    Raises:
        UserError: an unknown family, or points without that cost.
    """
    law, rates = draws.fit.family(family), token_cost(draws.fit, family, axis)
    sizes = rates.sizes()
    tokens = budget / rates.at(sizes)[0]
    at = int(np.argmin(law.a * sizes**-law.alpha + law.b * tokens**-law.beta))
    return float(sizes[at]), float(tokens[at])
