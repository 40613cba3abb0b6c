"""A ladder's figures as files, as one JSON object and as lines for a terminal."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from altup_moe.study.ladder.law_text import as_json, law_lines, no_law_dict, no_law_lines
from altup_moe.study.report.scaling import Scaling
from altup_moe.study.report.tables import csv_text
from altup_moe.study.scaling.curves import LawCurve


def scaling_tables(found: Scaling) -> dict[str, str]:
    """law.json has what `altup-moe study law --json` prints, law_curves.csv the drawn curves; none without a law."""
    if found.law is None:
        return {}
    curves = [("best", one) for one in found.best]
    curves += [("slice", one) for part in found.slices for one in part.curves]
    lines = [line for name, curve in curves for line in _stops(name, curve)]
    return {"law.json": json.dumps(as_json(found.law), allow_nan=False) + "\n", "law_curves.csv": csv_text(lines)}


def _stops(name: str, curve: LawCurve) -> Iterator[dict[str, Any]]:
    columns = ("cost", "n", "d", "loss", "low", "high", "inside")
    for values in zip(*(getattr(curve, column).tolist() for column in columns), strict=True):
        yield {"curve": name, "family": curve.family, "axis": curve.axis, **dict(zip(columns, values, strict=True))}


def scaling_dict(found: Scaling) -> dict[str, Any]:
    """What `study law --json` prints; without a law, why, and what was tuned."""
    return no_law_dict(found.measured, found.no_law) if found.law is None else as_json(found.law)


def scaling_lines(found: Scaling) -> list[str]:
    """What `study law` prints; without a law, the tuning, and why."""
    return no_law_lines(found.measured, found.no_law) if found.law is None else law_lines(found.law)
