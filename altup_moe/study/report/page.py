"""The page of a study: one HTML file with its data, style and script inside."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from altup_moe.report.curves import COLOURS, MARKS
from altup_moe.report.formatting import count
from altup_moe.report.page import page
from altup_moe.study.report.formatting import loss_text, mean_and_deviation
from altup_moe.study.report.front import unbeaten_indices
from altup_moe.study.report.models import AXES, LATENCIES, LOSS_UNITS, Axis, Model, families, mean_of
from altup_moe.study.report.page_text import page_text, speed_cells
from altup_moe.study.report.plot_data import Band, curves, loads
from altup_moe.study.report.scaling import Scaling
from altup_moe.study.report.scaling_data import scaling_data
from altup_moe.study.report.summary import Summary


def study_page(found: Summary, ladder: Scaling | None, study: str | None, shown: Sequence[str]) -> str:
    """The HTML.

    Args:
        found: the study.
        ladder: what it says as a ladder, if it is one.
        study: text of study.yaml, if there is one.
        shown: names of the files beside the page.
    """
    content, scripts = data(found), ["page.js"]
    if ladder is not None:
        content["scaling"] = scaling_data(ladder, [*families(found.models)])
        scripts += ["scaling.js", "scaling_panels.js"]
    here = files("altup_moe.study.report")
    script = "".join((here / name).read_text(encoding="utf-8") for name in scripts)
    return page(f"{found.title}: report", page_text(found, ladder, study, shown), content, script)


def data(found: Summary) -> dict[str, Any]:
    """Data that the script draws."""
    grouped = families(found.models)
    index = {name: i for i, name in enumerate(grouped)}
    axes = {axis: label for axis, label in AXES.items() if any(model.along(axis) for model in found.models)}
    return {
        "axes": [{"key": axis, "label": label} for axis, label in axes.items()],
        "measures": [{"key": unit, "label": label} for unit, label in LOSS_UNITS.items()],
        "families": [{"name": name, "colour": i % COLOURS, "mark": i % MARKS} for name, i in index.items()],
        "models": [_model(found, model, index[model.family], list(axes)) for model in found.models],
        "fronts": {unit: {axis: unbeaten_indices(found.models, axis, unit) for axis in axes} for unit in LOSS_UNITS},
        "rings": found.rings,
        "curves": [
            {
                "name": curve.model.name,
                "family": index[curve.model.family],
                "dash": curve.dash,
                "seeds": len(curve.model.rows),
                "train": [_rounded(band) for band in curve.train],
                "valid": [_rounded(band) for band in curve.valid],
            }
            for curve in curves(grouped)
        ],
        "loads": [
            {
                "label": f"{row.name}, seed {row.seed}",
                "layers": [{"layer": one.layer, "load": [float(f"{x:.4g}") for x in one.load]} for one in layers],
            }
            for row, layers in loads(found.models)
        ],
    }


def _rounded(band: Band) -> list[float]:
    return [band[0], *(round(loss, 5) for loss in band[1:])]


def _model(found: Summary, model: Model, family: int, axes: Sequence[Axis]) -> dict[str, Any]:
    stats = {axis: model.along(axis) for axis in axes}
    qualities = {unit: model.quality(unit) for unit in LOSS_UNITS}
    texts = {axis: mean_and_deviation(s) if axis in LATENCIES else count(mean_of(s)) for axis, s in stats.items()}
    one = found.speeds.get(model.name, {}).get("train_step")
    return {
        "name": model.name,
        "family": family,
        "seeds": len(model.rows),
        "x": {axis: s and [s.mean, s.least, s.most] for axis, s in stats.items()},
        "y": {unit: [s.mean, s.least, s.most] for unit, s in qualities.items()},
        "shown": {**texts, **{unit: loss_text(model, unit) for unit in LOSS_UNITS}},
        "speed": one and " ".join(part for part in speed_cells(one) if part),
    }
