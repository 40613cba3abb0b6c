"""What the page's script draws of a ladder, as JSON: figures are those of `Scaling`, curves to six digits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from altup_moe.report.curves import COLOURS, DASHES, MARKS
from altup_moe.study.ladder.coordinates import exponent
from altup_moe.study.ladder.law import AXES, Compared, TunedModel
from altup_moe.study.ladder.law_text import AXIS_NAMES, finite, interval_text, verdict_text
from altup_moe.study.report.scaling import Cell, Scaling
from altup_moe.study.scaling.curves import LawCurve


def scaling_data(found: Scaling, known: Sequence[str]) -> dict[str, Any]:
    """The data. `known`: families of the page's other figures, whose colours and marks they keep."""
    names = list(dict.fromkeys((*known, *found.families)))
    index = {name: i for i, name in enumerate(names)}
    cells = [_cell(cell, index) for cell in found.cells]
    return {
        "families": [{"name": name, "colour": i % COLOURS, "mark": i % MARKS} for name, i in index.items()],
        "shown": [index[name] for name in found.families],
        "cells": cells,
        "best": {axis: [_curve(one, index) for one in found.best if one.axis == axis] for axis in AXES},
        "tuning": [
            {"size": size, "key": own[0].key, "lines": [_tuned(one, index) for one in own]}
            for size, own in by_size(found).items()
        ],
        "multipliers": [_multiplier(one, index) for one in (found.law.compared if found.law else ())],
        "slices": [
            {
                "budget": one.budget,
                "curves": [_curve(curve, index) for curve in one.curves],
                "cells": [found.cells.index(cell) for cell in one.near],
            }
            for one in found.slices
        ],
        "coordinates": _coordinates(found),
    }


def by_size(found: Scaling) -> dict[int, list[TunedModel]]:
    """What was tuned, by size."""
    sizes: dict[int, list[TunedModel]] = {}
    for one in found.measured.tuned:
        sizes.setdefault(one.size, []).append(one)
    return dict(sorted(sizes.items()))


def _cell(cell: Cell, index: Mapping[str, int]) -> dict[str, Any]:
    one = cell.prediction
    expected = one and [one.predicted, one.interval.low, one.interval.high]
    return {
        "family": index[cell.family],
        "n": cell.n,
        "d": cell.d,
        **{axis: cell.cost(axis) for axis in AXES},
        "loss": cell.loss,
        "losses": cell.losses,
        "largest": cell.largest,
        "predicted": expected,
        "inside": one and one.inside,
    }


def _curve(curve: LawCurve, index: Mapping[str, int]) -> dict[str, Any]:
    columns = (curve.cost, curve.n, curve.d, curve.loss, curve.low, curve.high)
    stops = [[float(f"{value:.6g}") for value in stop] for stop in zip(*columns, strict=True)]
    return {"family": index[curve.family], "stops": stops, "inside": curve.inside.tolist()}


def _tuned(one: TunedModel, index: Mapping[str, int]) -> dict[str, Any]:
    return {
        "family": index[one.family],
        "tried": [[value, finite(loss)] for value, loss in one.tried.items()],
        "taken": one.found and one.found.value,
        "edge": one.found is not None and one.found.at_edge,
    }


def _multiplier(one: Compared, index: Mapping[str, int]) -> dict[str, Any]:
    m = one.multiplier
    return {
        "family": index[m.family],
        "axis": AXIS_NAMES[m.axis],
        "ratio": finite(m.ratio),
        "low": finite(m.interval.low),
        "high": finite(m.interval.high),
        "text": f"{m.ratio:.3g} {interval_text(m.interval)}",
        "verdict": verdict_text(one),
    }


def _coordinates(found: Scaling) -> dict[str, Any]:
    names = list(dict.fromkeys(name for panel in found.coordinates for name in panel.lines))
    return {
        "names": [{"name": name, "colour": i % COLOURS, "dash": i // COLOURS % DASHES} for i, name in enumerate(names)],
        "panels": [
            [
                {"name": names.index(name), "points": line, "exponent": exponent(line)}
                for name, line in panel.lines.items()
            ]
            for panel in found.coordinates
        ],
    }
