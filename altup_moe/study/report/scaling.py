"""What a report says of a ladder, computed once: page, pictures, tables and text only lay it out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from altup_moe.config import UserError
from altup_moe.study.ladder.coordinates import CoordinatePanel
from altup_moe.study.ladder.law import AXES, SIZE, LadderLaw, Measured, analyse, has_cost, measured
from altup_moe.study.records import StudyRow
from altup_moe.study.scaling.costs import Axis
from altup_moe.study.scaling.curves import NEAR, LawCurve, best_losses, budgets, slice_at
from altup_moe.study.scaling.held_out import Prediction
from altup_moe.study.scaling.records import Point

_OF_A_LADDER = (SIZE, "optim.decay_steps")


@dataclass(frozen=True)
class Cell:
    """The runs of a family, a size and a number of tokens: one a seed.

    largest: whether it is the largest of the family's sizes. prediction: of the law of the others.
    """

    family: str
    n: float
    d: float
    points: tuple[Point, ...]
    largest: bool
    prediction: Prediction | None

    @property
    def losses(self) -> list[float]:
        """Of the seeds, in the file's order."""
        return [point.loss for point in self.points]

    @property
    def loss(self) -> float:
        """Mean over seeds."""
        return math.fsum(self.losses) / len(self.points)

    def cost(self, axis: Axis) -> float | None:
        """Mean over seeds; None where one of them has none."""
        costs = [getattr(point, axis) for point in self.points]
        return None if None in costs else math.fsum(costs) / len(costs)


@dataclass(frozen=True)
class Slice:
    """Losses over sizes at one number of FLOPs. `near`: cells whose FLOPs are close to it."""

    budget: float
    curves: tuple[LawCurve, ...]
    near: tuple[Cell, ...]


@dataclass(frozen=True)
class Scaling:
    """All of it. `law` is None where `no_law` says why. `families`: those that were trained, then those tuned alone."""

    measured: Measured
    families: tuple[str, ...]
    cells: tuple[Cell, ...]
    law: LadderLaw | None
    no_law: str
    best: tuple[LawCurve, ...]
    slices: tuple[Slice, ...]
    coordinates: tuple[CoordinatePanel, ...]


def is_ladder(rows: Sequence[StudyRow]) -> bool:
    """Whether rows are a ladder's: each has the keys that a ladder sets."""
    return bool(rows) and all(key in row.overrides for row in rows for key in _OF_A_LADDER)


def figures(found: Scaling) -> set[str]:
    """Names of the figures that there is data for."""
    law = found.law
    known = {
        "flops": any(cell.cost("flops") is not None for cell in found.cells),
        "seconds": any(cell.cost("seconds") is not None for cell in found.cells),
        "held_out": law is not None and bool(law.predictions),
        "multipliers": law is not None and bool(law.compared),
        "isoflop": bool(found.slices),
        "tuning": bool(found.measured.tuned),
        "coordinates": bool(found.coordinates),
    }
    return {name for name, there in known.items() if there}


def scaling(
    rows: Sequence[StudyRow],
    reference: str,
    *,
    shared: bool = False,
    draws: int,
    coordinates: tuple[CoordinatePanel, ...] = (),
) -> Scaling:
    """Compute it from the rows that there are. Arguments as `analyse`, whose law this is."""
    ladder = measured(rows)
    tuned = (one.family for one in ladder.tuned)
    drawn = (panel.family for panel in coordinates)
    families = tuple(dict.fromkeys((*ladder.families, *tuned, *drawn)))
    try:
        law, why = analyse(rows, reference, shared=shared, draws=draws), ""
    except UserError as error:
        law, why = None, str(error)
    cells = _cells(ladder.points, law)
    if law is None:
        return Scaling(ladder, families, cells, None, why, (), (), coordinates)
    best = tuple(
        best_losses(law.draws, family, axis)
        for axis in AXES
        for family in law.draws.families
        if has_cost(ladder.points, axis, family)
    )
    return Scaling(ladder, families, cells, law, "", best, _slices(law, cells), coordinates)


def _cells(points: Sequence[Point], law: LadderLaw | None) -> tuple[Cell, ...]:
    """By family, size and tokens."""
    grouped: dict[tuple[str, float, float], list[Point]] = {}
    for point in points:
        grouped.setdefault((point.family, point.n, point.d), []).append(point)
    predicted = {} if law is None else {(one.family, one.n, one.d): one for one in law.predictions}
    sizes: dict[str, set[float]] = {}
    for family, n, _ in grouped:
        sizes.setdefault(family, set()).add(n)
    largest = {family: max(own) if len(own) > 1 else None for family, own in sizes.items()}
    return tuple(
        Cell(*key, tuple(own), key[1] == largest[key[0]], predicted.get(key))
        for key, own in sorted(grouped.items(), key=lambda item: (list(sizes).index(item[0][0]), *item[0][1:]))
    )


def _slices(law: LadderLaw, cells: Sequence[Cell]) -> tuple[Slice, ...]:
    points = law.draws.fit.points
    families = [name for name in law.draws.families if has_cost(points, "flops", name)]
    found = []
    for budget in budgets([point for point in points if point.family in families]):
        curves = tuple(slice_at(law.draws, family, "flops", budget) for family in families)
        near = tuple(
            cell
            for cell in cells
            if (spent := cell.cost("flops")) is not None and abs(math.log(spent / budget)) <= math.log(NEAR)
        )
        found.append(Slice(budget, curves, near))
    return tuple(found)
