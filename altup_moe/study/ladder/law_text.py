"""What a ladder says, as lines for a terminal and as one JSON object."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from altup_moe.report.formatting import columns, count
from altup_moe.study.ladder.law import LadderLaw
from altup_moe.study.scaling.bootstrap import LEVEL
from altup_moe.study.scaling.records import Interval

COEFFICIENTS = ("e", "a", "alpha", "b", "beta")
_HEADS = ("E", "A", "alpha", "B", "beta")


def law_lines(found: LadderLaw) -> list[str]:
    """Tuning, laws, the largest size held out, multipliers."""
    lines = [*_tuning(found), *_laws(found), *_held_out(found), *_multipliers(found)]
    if found.failed:
        lines.append(f"{found.failed} row(s) failed, and are left out")
    return lines


def _range(one: Interval) -> str:
    return f"[{one.low:.3g}, {one.high:.3g}]"


def _tuning(found: LadderLaw) -> Iterator[str]:
    if found.tuned:
        rows = [("family", "size", "key", "tried: held-out loss", "taken")]
        for one in found.tuned:
            tried = ", ".join(f"{value:g}: {loss:.4f}" for value, loss in one.tried.items())
            taken = (
                "all failed" if one.found is None else f"{one.found.value:g}{' (edge)' if one.found.at_edge else ''}"
            )
            rows.append((one.family, str(one.size), one.key, tried, taken))
        yield from columns(rows, left=4)
    for family, why in found.untuned.items():
        yield f"{family} is not tuned: {why}"
    yield ""


def _laws(found: LadderLaw) -> Iterator[str]:
    yield (
        f"L = E + A N^-alpha + B D^-beta, nats a token; N: active parameters without tables, D: tokens; "
        f"{LEVEL:.0%} intervals by a bootstrap over runs"
    )
    rows: list[tuple[str, ...]] = [("family", *_HEADS, "rms of residuals")]
    for family, law in found.draws.fit.laws.items():
        cells = [f"{getattr(law, name):.3g} {_range(found.draws.coefficient(family, name))}" for name in COEFFICIENTS]
        own = [
            residual
            for point, residual in zip(found.draws.fit.points, found.draws.fit.residuals, strict=True)
            if point.family == family
        ]
        rows.append((family, *cells, f"{100 * math.sqrt(sum(one * one for one in own) / len(own)):.2f} %"))
    yield from columns(rows)
    yield from found.draws.fit.notes
    yield ""


def _held_out(found: LadderLaw) -> Iterator[str]:
    if found.not_predicted:
        yield f"the largest size is not predicted: {found.not_predicted}"
    else:
        yield "the largest size, predicted by the law of the others:"
        rows = [("family", "N", "D", "measured", "predicted", "interval", "inside")]
        for one in found.predictions:
            expected = f"[{one.interval.low:.4f}, {one.interval.high:.4f}]"
            measured = (f"{one.measured:.4f}", f"{one.predicted:.4f}")
            rows.append((one.family, count(one.n), count(one.d), *measured, expected, "yes" if one.inside else "no"))
        yield from columns(rows)
    yield ""


def _multipliers(found: LadderLaw) -> Iterator[str]:
    yield (
        f"multiplier: how many times the cost of a family's dearest run {found.reference} needs for the loss that the "
        "family reaches at that cost, each at its best size"
    )
    rows = [("family", "at equal", "multiplier", "interval", "verdict")]
    for one in found.compared:
        m = one.multiplier
        name = {"flops": "FLOPs", "seconds": "seconds"}[m.axis]
        beyond = ", beyond the sizes that were trained" if one.extrapolated else ""
        rows.append((m.family, name, f"{m.ratio:.3g}", _range(m.interval), one.verdict + beyond))
    yield from columns(rows)


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
        "tuned": [
            {**asdict(one), "tried": [[value, loss] for value, loss in one.tried.items()]} for one in found.tuned
        ],
        "untuned": found.untuned,
        "predictions": [{**asdict(one), "inside": one.inside} for one in found.predictions],
        "not_predicted": found.not_predicted,
        "multipliers": [
            {**asdict(one.multiplier), "extrapolated": one.extrapolated, "verdict": one.verdict}
            for one in found.compared
        ],
        "failed": found.failed,
    }
    return _finite(content)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
