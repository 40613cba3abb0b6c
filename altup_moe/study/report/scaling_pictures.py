"""Draw a ladder's figures as SVG and PNG: those of the page, for pages of documentation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from altup_moe.study.ladder.law_text import AXIS_NAMES
from altup_moe.study.report.canvas import (
    colour,
    logarithmic,
    mark,
    new_figure,
    panels,
    saved,
    steady,
)
from altup_moe.study.report.scaling import Cell, Scaling, figures
from altup_moe.study.report.scaling_panels import LOSS, coordinates, family_legend, held_out, multipliers, tuning
from altup_moe.study.scaling.costs import Axis
from altup_moe.study.scaling.curves import LawCurve


def scaling_pictures(found: Scaling) -> Iterator[tuple[str, bytes]]:
    """Yield (file name, content) of each figure that there is data for; the same bytes for the same rows."""
    with steady():
        for name, draw in DRAWINGS.items():
            if name in figures(found):
                yield from saved(f"scaling_{name}", draw(found))


def _curve(panel: Any, curve: LawCurve, x: Any, index: int) -> None:
    """The line, dashed beyond what was trained, and the band."""
    panel.fill_between(x, curve.low, curve.high, color=colour(index), alpha=0.15, linewidth=0)
    panel.plot(x, curve.loss, color=colour(index), linewidth=1.2, linestyle=(0, (3, 2)))
    panel.plot(x, np.where(curve.inside, curve.loss, np.nan), color=colour(index), linewidth=1.6)


def _cell(panel: Any, cell: Cell, x: float, index: int, predicted: bool) -> None:
    panel.scatter([x] * len(cell.losses), cell.losses, s=5, color=colour(index), alpha=0.5, linewidths=0, zorder=2)
    face = "white" if cell.largest else colour(index)
    panel.plot(x, cell.loss, marker=mark(index), color=colour(index), markerfacecolor=face, markersize=5.5, zorder=3)
    if predicted and cell.prediction is not None:
        one = cell.prediction
        ends = [one.interval.low, one.interval.high]
        panel.plot([x * 1.07] * 2, ends, color=colour(index), marker="_", markersize=5, linewidth=1.2)
        panel.plot(x * 1.07, one.predicted, color=colour(index), marker="_", markersize=8)


def _flops(found: Scaling) -> Any:
    return _losses(found, "flops")


def _seconds(found: Scaling) -> Any:
    return _losses(found, "seconds")


def _losses(found: Scaling, axis: Axis) -> Any:
    figure = new_figure(8, 5)
    panel = figure.subplots()
    for curve in found.best:
        if curve.axis == axis:
            _curve(panel, curve, curve.cost, found.families.index(curve.family))
    for cell in found.cells:
        if (cost := cell.cost(axis)) is not None:
            _cell(panel, cell, cost, found.families.index(cell.family), predicted=True)
    _powers(panel)
    panel.set_xlabel(f"training {AXIS_NAMES[axis]}")
    panel.set_ylabel(LOSS)
    panel.grid(alpha=0.3)
    family_legend(figure, found, list(dict.fromkeys(cell.family for cell in found.cells)))
    return figure


def _powers(panel: Any) -> None:
    """A logarithmic axis whose ticks are powers of ten where there are enough of them."""
    panel.set_xscale("log")
    low, high = panel.get_xlim()
    if high < 200 * low or high < 1e6:
        logarithmic(panel.xaxis, low, high)


def _slices(found: Scaling) -> Any:
    figure = new_figure(9, 3.3 * -(-len(found.slices) // 2) + 0.4)
    for panel, one in zip(panels(figure, len(found.slices), across=2), found.slices, strict=True):
        for curve in one.curves:
            _curve(panel, curve, curve.n, found.families.index(curve.family))
        for cell in one.near:
            _cell(panel, cell, cell.n, found.families.index(cell.family), predicted=False)
        panel.set_xscale("log")
        logarithmic(panel.xaxis, *panel.get_xlim())
        panel.set_title(f"{_power(one.budget)} FLOPs", loc="left", fontsize=9)
        panel.set_xlabel("active parameters without tables")
        panel.set_ylabel(LOSS)
        panel.grid(alpha=0.3)
    family_legend(figure, found, [curve.family for curve in found.slices[0].curves])
    return figure


def _power(value: float) -> str:
    digits, _, exponent = f"{value:.1e}".partition("e")
    return rf"${digits.removesuffix('.0')}\times 10^{{{int(exponent)}}}$"


DRAWINGS: dict[str, Callable[[Scaling], Any]] = {
    "flops": _flops,
    "held_out": held_out,
    "seconds": _seconds,
    "multipliers": multipliers,
    "isoflop": _slices,
    "tuning": tuning,
    "coordinates": coordinates,
}
"""Figure -> what draws it."""
