"""What a ladder says, as lines for a terminal and as one JSON object."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from altup_moe.report.formatting import columns, count
from altup_moe.study.ladder.law import Compared, LadderLaw, Measured, TunedModel
from altup_moe.study.ladder.transfer import Transfer, transfers
from altup_moe.study.scaling.bootstrap import LEVEL
from altup_moe.study.scaling.costs import Axis
from altup_moe.study.scaling.records import Interval

COEFFICIENTS = ("e", "a", "alpha", "b", "beta")
AXIS_NAMES: dict[Axis, str] = {"flops": "FLOPs", "seconds": "seconds"}
_HEADS = ("E", "A", "alpha", "B", "beta")


Rows = list[tuple[str, ...]]
"""A table's cells, the heads first."""


def law_lines(found: LadderLaw) -> list[str]:
    """Tuning, laws, the largest size held out, multipliers."""
    lines = [*tuning_lines(found.measured), "", LAW]
    lines += [*columns(law_rows(found)), *found.draws.fit.notes, "", held_out_note(found)]
    lines += columns(held_out_rows(found)) if found.predictions else []
    lines += ["", multiplier_note(found), *columns(multiplier_rows(found))]
    return [*lines, *failed_lines(found.measured)]


LAW = (
    f"L = E + A N^-alpha + B D^-beta, nats a token; N: active parameters without tables, D: tokens; "
    f"{LEVEL:.0%} intervals by a bootstrap over runs"
)


def tuning_lines(found: Measured) -> list[str]:
    """What was tried and taken, which families are not tuned, what the smallest size's value does at the largest."""
    lines = columns(tuning_rows(found.tuned), left=4) if found.tuned else []
    lines += [f"{family} is not tuned: {why}" for family, why in found.untuned.items()]
    moved = list(transfers(found.tuned))
    return [*lines, "", TRANSFER, *columns(transfer_rows(moved), left=4)] if moved else lines


TRANSFER = (
    "the value that was tuned at the smallest size, at the largest; losses by a parabola through the nearest tries"
)


def transfer_rows(moved: Sequence[Transfer]) -> Rows:
    """Values tuned at the smallest and at the largest size, with their losses at the largest."""
    rows: Rows = [("family", "from", "to", "key", "value", "loss", "best", "loss", "cost")]
    for one in moved:
        losses = ["not tried" if loss is None else f"{loss:.4f}" for loss in (one.loss, one.best_loss)]
        cost = "" if one.cost is None else f"{one.cost:+.4f}"
        edge = " (edge)" if one.at_edge else ""
        sizes = (str(one.smallest), str(one.largest))
        rows.append((one.family, *sizes, one.key, f"{one.value:g}", losses[0], f"{one.best:g}", losses[1], cost + edge))
    return rows


def no_law_lines(found: Measured, why: str) -> list[str]:
    """Tuning, and why there is no law."""
    return [*tuning_lines(found), "", f"no law is fitted: {why}", *failed_lines(found)]


def no_law_dict(found: Measured, why: str) -> dict[str, Any]:
    """The same for JSON."""
    return {"no_law": why, **_of_tuning(found)}


def _of_tuning(found: Measured) -> dict[str, Any]:
    tuned = ({**asdict(one), "tried": [[value, loss] for value, loss in one.tried.items()]} for one in found.tuned)
    moved = ({**asdict(one), "cost": one.cost} for one in transfers(found.tuned))
    return finite({"tuned": list(tuned), "untuned": found.untuned, "transfer": list(moved), "failed": found.failed})


def failed_lines(found: Measured) -> list[str]:
    """How many rows are left out; nothing where none is."""
    return [f"{found.failed} row(s) failed, and are left out"] if found.failed else []


def tuning_rows(tuned: Sequence[TunedModel]) -> Rows:
    """Every try with its held-out loss, and the value that was taken."""
    rows: Rows = [("family", "size", "key", "tried: held-out loss", "taken")]
    for one in tuned:
        tried = ", ".join(f"{value:g}: {loss:.4f}" for value, loss in one.tried.items())
        rows.append((one.family, str(one.size), one.key, tried, taken_text(one)))
    return rows


def taken_text(one: TunedModel) -> str:
    """The value that was taken, and whether it lies at an edge."""
    return "all failed" if one.found is None else f"{one.found.value:g}{' (edge)' if one.found.at_edge else ''}"


def law_rows(found: LadderLaw) -> Rows:
    """Coefficients of each family with their intervals."""
    rows: Rows = [("family", *_HEADS, "rms of residuals")]
    for family, law in found.draws.fit.laws.items():
        cells = [
            f"{getattr(law, name):.3g} {interval_text(found.draws.coefficient(family, name))}" for name in COEFFICIENTS
        ]
        own = [
            residual
            for point, residual in zip(found.draws.fit.points, found.draws.fit.residuals, strict=True)
            if point.family == family
        ]
        rows.append((family, *cells, f"{100 * math.sqrt(sum(one * one for one in own) / len(own)):.2f} %"))
    return rows


def interval_text(one: Interval) -> str:
    """An interval with three digits."""
    return f"[{one.low:.3g}, {one.high:.3g}]"


def held_out_note(found: LadderLaw) -> str:
    """What the predictions are, or why there are none."""
    if found.not_predicted:
        return f"the largest size is not predicted: {found.not_predicted}"
    return "the largest size, predicted by the law of the others:"


def held_out_rows(found: LadderLaw) -> Rows:
    """A row for each number of tokens of each family's largest size."""
    rows: Rows = [("family", "N", "D", "measured", "predicted", "interval", "inside")]
    for one in found.predictions:
        expected = f"[{one.interval.low:.4f}, {one.interval.high:.4f}]"
        figures = (f"{one.measured:.4f}", f"{one.predicted:.4f}")
        rows.append((one.family, count(one.n), count(one.d), *figures, expected, "yes" if one.inside else "no"))
    return rows


def multiplier_note(found: LadderLaw) -> str:
    """What a multiplier is."""
    return (
        f"multiplier: how many times the cost of a family's dearest run {found.reference} needs for the loss that the "
        "family reaches at that cost, each at its best size"
    )


def multiplier_rows(found: LadderLaw) -> Rows:
    """Each family at equal FLOPs and at equal seconds, with its interval and the verdict."""
    rows: Rows = [("family", "at equal", "multiplier", "interval", "verdict")]
    for one in found.compared:
        m = one.multiplier
        rows.append((m.family, AXIS_NAMES[m.axis], f"{m.ratio:.3g}", interval_text(m.interval), verdict_text(one)))
    return rows


def verdict_text(one: Compared) -> str:
    """Cheaper, dearer or not decided, and whether that lies beyond what was trained."""
    return one.verdict + (", beyond the sizes that were trained" if one.extrapolated else "")


def as_json(found: LadderLaw) -> dict[str, Any]:
    """The same figures; what is infinite is null."""
    fitted = found.draws.fit
    laws = {
        family: {
            name: {"value": getattr(law, name), "interval": asdict(found.draws.coefficient(family, name))}
            for name in COEFFICIENTS
        }
        for family, law in fitted.laws.items()
    }
    content = {
        "reference": found.reference,
        "points": [asdict(point) for point in fitted.points],
        "residuals": fitted.residuals.tolist(),
        "laws": laws,
        "notes": list(fitted.notes),
        "predictions": [{**asdict(one), "inside": one.inside} for one in found.predictions],
        "not_predicted": found.not_predicted,
        "multipliers": [
            {**asdict(one.multiplier), "extrapolated": one.extrapolated, "verdict": one.verdict}
            for one in found.compared
        ],
    }
    return finite({**content, **_of_tuning(found.measured)})


def finite(value: Any) -> Any:
    """A value for JSON: what is not finite is None."""
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
