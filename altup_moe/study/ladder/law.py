"""What the rows of a ladder say: which rates were tuned, the law of each family, and the multipliers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from altup_moe.config import ConfigError, UserError
from altup_moe.study.ladder.tuning import Tuned, best_value
from altup_moe.study.records import StudyRow
from altup_moe.study.report.models import last_lines
from altup_moe.study.scaling.bootstrap import DRAWS, Draws, bootstrap
from altup_moe.study.scaling.costs import Axis
from altup_moe.study.scaling.fit import fit
from altup_moe.study.scaling.held_out import Prediction, predict_largest
from altup_moe.study.scaling.multiplier import Multiplier, best, multiplier
from altup_moe.study.scaling.records import Point

SIZE = "model.hidden_size"
AXES: tuple[Axis, ...] = ("flops", "seconds")
_TAKEN_ALONG = "optim.min_learning_rate"


@dataclass(frozen=True)
class TunedModel:
    """The tries of a family at a size. ``tried``: held-out loss by value, inf where a try has failed, ascending."""

    family: str
    size: int
    key: str
    tried: dict[float, float]
    found: Tuned | None


@dataclass(frozen=True)
class Measured:
    """What the rows of a ladder are, with a law or without.

    Attributes:
        points: of the rows that are done.
        families: of the trained rows, in order of appearance.
        untuned: family -> why its losses are not those of its best rate.
        failed: trained rows that failed.
    """

    points: tuple[Point, ...]
    families: tuple[str, ...]
    tuned: tuple[TunedModel, ...]
    untuned: dict[str, str]
    failed: int


@dataclass(frozen=True)
class Compared:
    """A family's multiplier on an axis.

    ``tuned``: whether both families are. ``extrapolated``: the best size of one of both lies outside its runs.
    """

    multiplier: Multiplier
    tuned: bool
    outside: bool

    @property
    def extrapolated(self) -> bool:
        return self.outside or self.multiplier.extrapolated

    @property
    def verdict(self) -> str:
        """cheaper, dearer, or not decided."""
        return self.multiplier.verdict if self.tuned else "not decided"


@dataclass(frozen=True)
class LadderLaw:
    """All that `altup-moe study law` prints.

    Attributes:
        predictions: of the largest size, held out; empty where `not_predicted` says why.
    """

    draws: Draws
    reference: str
    measured: Measured
    predictions: tuple[Prediction, ...]
    not_predicted: str
    compared: tuple[Compared, ...]


def analyse(
    rows: Sequence[StudyRow], reference: str, *, shared: bool = False, draws: int = DRAWS, seed: int = 0
) -> LadderLaw:
    """Fit the laws and compare every family with the reference, at the cost of the family's dearest run.

    Raises:
        UserError: no rows of a ladder, or too few of them for the law. ConfigError: no row is of the reference.
    """
    ladder = measured(rows)
    points = ladder.points
    if not ladder.families:
        raise UserError("no trained row of a ladder yet; a study whose file has a ladder writes them")
    families = [family for family in ladder.families if any(point.family == family for point in points)]
    if not families:
        raise UserError(f"all {ladder.failed} trained rows of the ladder failed")
    if reference not in families:
        raise ConfigError("reference", reference, f"one of the families {', '.join(families)} would fit")
    found = bootstrap(fit(points, shared=shared), draws=draws, seed=seed)
    try:
        predictions, not_predicted = predict_largest(points, shared=shared, draws=draws, seed=seed), ""
    except UserError as error:
        predictions, not_predicted = [], str(error)
    compared = tuple(
        _compared(found, points, family, reference, axis, not {family, reference} & ladder.untuned.keys())
        for family in families
        if family != reference
        for axis in AXES
        if has_cost(points, axis, family, reference)
    )
    return LadderLaw(found, reference, ladder, tuple(predictions), not_predicted, compared)


def measured(lines: Sequence[StudyRow]) -> Measured:
    """Sort the rows of a ladder, the last line of each counts; rows of anything else are left out."""
    rows = [row for row in last_lines(lines) if SIZE in row.overrides]
    trained = [row for row in rows if row.role == "trained"]
    families = tuple(dict.fromkeys(row.family for row in trained))
    tuned = tuple(tuned_models(rows))
    return Measured(
        points=tuple(point for row in trained if (point := point_of(row)) is not None),
        families=families,
        tuned=tuned,
        untuned={family: why for family in families if (why := _untuned(family, trained, tuned))},
        failed=sum(row.status == "failed" for row in trained),
    )


def has_cost(points: Sequence[Point], axis: Axis, *families: str) -> bool:
    """Whether all points of families have a cost on an axis."""
    return all(getattr(point, axis) is not None for point in points if point.family in families)


def point_of(row: StudyRow) -> Point | None:
    """A done row as a point of the law; None for one that failed.

    N: active parameters without tables. Seconds: measured seconds of a step times the steps. A run's numbers of tokens
    are branches of one run, so that they are one run's.
    """
    if row.status != "done" or row.quality is None or row.active_parameters is None or row.tokens is None:
        return None
    flops = None if row.flops_per_token is None else row.flops_per_token * row.tokens
    seconds = None
    if row.latency is not None and row.steps is not None:
        seconds = row.latency.train_step.median * 1e-3 * row.steps
    return Point(
        n=row.active_parameters - (row.table_parameters or 0),
        d=row.tokens,
        loss=row.quality.valid_loss,
        family=row.family,
        run=f"d{row.overrides[SIZE]}-s{row.seed}",
        flops=flops,
        seconds=seconds,
    )


def tuned_models(rows: Sequence[StudyRow]) -> Iterator[TunedModel]:
    """What was tried, by family and size."""
    grouped: dict[tuple[str, int], list[StudyRow]] = {}
    for row in rows:
        if row.role == "tuning":
            grouped.setdefault((row.family, row.overrides[SIZE]), []).append(row)
    for (family, size), tries in grouped.items():
        key = _tuned_key(tries)
        if key is None:
            continue
        losses = {
            float(row.overrides[key]): row.quality.valid_loss if row.quality is not None else math.inf for row in tries
        }
        tried = dict(sorted(losses.items()))
        yield TunedModel(family, size, key, tried, best_value(tried))


def _tuned_key(tries: Sequence[StudyRow]) -> str | None:
    """The key in which tries differ."""
    differ = [key for key in tries[0].overrides if len({row.overrides.get(key) for row in tries}) > 1]
    return next((key for key in differ if key != _TAKEN_ALONG), None)


def _untuned(family: str, trained: Sequence[StudyRow], tuned: Sequence[TunedModel]) -> str:
    """Why a family is not tuned; "" if it is at every size."""
    by_size = {one.size: one for one in tuned if one.family == family}
    for size in dict.fromkeys(row.overrides[SIZE] for row in trained if row.family == family):
        one = by_size.get(size)
        if one is None or one.found is None:
            return f"size {size} has no tries"
        if one.found.at_edge:
            return f"size {size}: the best {one.key}, {one.found.value:g}, is the last one that was tried"
    return ""


def _compared(draws: Draws, points: Sequence[Point], family: str, reference: str, axis: Axis, tuned: bool) -> Compared:
    """At the cost of the family's dearest run, each of both at its own best size: neither's shape counts against it."""
    own = [point for point in points if point.family == family]
    n, d = best(draws, family, axis, max(getattr(point, axis) for point in own))
    inside = min(point.n for point in own) <= n <= max(point.n for point in own)
    return Compared(multiplier(draws, family, reference, axis, n=n, d=d), tuned, not inside)
