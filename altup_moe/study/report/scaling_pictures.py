"""Draw a ladder's figures as SVG and PNG: those of the page, for pages of documentation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from altup_moe.report.formatting import count
from altup_moe.study.ladder.law_text import AXIS_NAMES, interval_text, verdict_text
from altup_moe.study.report.canvas import (
    COLOURS,
    DASHES,
    colour,
    legend_below,
    legend_line,
    logarithmic,
    mark,
    new_figure,
    panels,
    plain,
    saved,
    steady,
)
from altup_moe.study.report.scaling import Cell, Scaling, figures
from altup_moe.study.report.scaling_data import by_size
from altup_moe.study.scaling.costs import Axis
from altup_moe.study.scaling.curves import LawCurve

LOSS = "held-out loss (nats a token)"
LONGEST = 40
FARTHEST = 50.0
"""Ends of a multiplier are drawn as far as that."""


def scaling_pictures(found: Scaling) -> Iterator[tuple[str, bytes]]:
    """Yield (file name, content) of each figure that there is data for; the same bytes for the same rows."""
    with steady():
        for name, draw in DRAWINGS.items():
            if name in figures(found):
                yield from saved(f"scaling_{name}", draw(found))


def _legend(figure: Any, found: Scaling, families: Sequence[str], **style: Any) -> None:
    index = [found.families.index(name) for name in families]
    legend_below(figure, [legend_line(i, marker=mark(i), **style) for i in index], list(families))


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
        ends = [[one.predicted - one.interval.low], [one.interval.high - one.predicted]]
        panel.errorbar(x * 1.07, one.predicted, yerr=ends, color=colour(index), marker="_", capsize=2.5, linewidth=1.2)


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
    _legend(figure, found, list(dict.fromkeys(cell.family for cell in found.cells)))
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
    _legend(figure, found, [curve.family for curve in found.slices[0].curves])
    return figure


def _power(value: float) -> str:
    digits, _, exponent = f"{value:.1e}".partition("e")
    return rf"${digits.removesuffix('.0')}\times 10^{{{int(exponent)}}}$"


def _tuning(found: Scaling) -> Any:
    sizes = by_size(found)
    figure = new_figure(9, 3.0 * -(-len(sizes) // 3) + 0.4)
    for panel, (size, own) in zip(panels(figure, len(sizes)), sizes.items(), strict=True):
        finite = [loss for one in own for loss in one.tried.values() if math.isfinite(loss)]
        roof = 1.3 * min(finite, default=1.0)
        for order, one in enumerate(own):
            i = found.families.index(one.family)
            shown = {value: loss for value, loss in one.tried.items() if loss <= roof}
            panel.plot(list(shown), list(shown.values()), color=colour(i), marker=mark(i), markersize=4, linewidth=1.2)
            for value in one.tried.keys() - shown.keys():
                panel.plot(value, 0.96, "x", color=colour(i), transform=panel.get_xaxis_transform())
            if one.found is not None:
                face = "white" if one.found.at_edge else colour(i)
                height = 0.05 + 0.07 * (len(own) - 1 - order)
                style: dict[str, Any] = {"markersize": 5.5, "markerfacecolor": face, "zorder": 4}
                panel.axvline(one.found.value, color=colour(i), linewidth=0.8, linestyle=(0, (1.5, 2)), zorder=1)
                panel.plot(one.found.value, height, mark(i), color=colour(i), transform=panel.get_xaxis_transform(), **style)
        # The strip at the bottom has what was taken.
        low, high = panel.get_ylim()
        panel.set_ylim(low - (high - low) * 0.09 * len(own), high)
        panel.text(0.01, 0.02, "taken", transform=panel.transAxes, color="#666666", fontsize=7)
        panel.set_xscale("log")
        logarithmic(panel.xaxis, *panel.get_xlim())
        panel.set_title(f"size {size}", loc="left", fontsize=9)
        panel.set_xlabel(plain(own[0].key))
        panel.set_ylabel(LOSS)
        panel.grid(alpha=0.3)
    tuned = dict.fromkeys(one.family for one in found.measured.tuned)
    _legend(figure, found, list(tuned))
    return figure


def _multipliers(found: Scaling) -> Any:
    assert found.law is not None
    rows = []
    for one in found.law.compared:
        m = one.multiplier
        ends = [min(max(value, 1 / FARTHEST), FARTHEST) for value in (m.ratio, m.interval.low, m.interval.high)]
        name = f"{m.family}, equal {AXIS_NAMES[m.axis]}"
        rows.append((name, m.family, *ends, f"{m.ratio:.3g} {interval_text(m.interval)}  {verdict_text(one)}"))
    figure, panel = _forest(found, rows, 1.0)
    panel.set_xscale("log")
    low, high = panel.get_xlim()
    if high < 3 * low:
        from matplotlib.ticker import MaxNLocator, NullLocator

        panel.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    else:
        logarithmic(panel.xaxis, low, high)
    panel.set_xlabel(plain(f"multiplier: cost that {found.law.reference} needs, times the family's"))
    return figure


def _held_out(found: Scaling) -> Any:
    assert found.law is not None
    rows = []
    for one in found.law.predictions:
        offsets = [value - one.predicted for value in (one.measured, one.interval.low, one.interval.high)]
        said = f"{one.measured:.4f} [{one.interval.low:.4f}, {one.interval.high:.4f}]  "
        said += "inside" if one.inside else "outside"
        rows.append((f"{one.family}, {count(one.d)} tokens", one.family, *offsets, said))
    figure, panel = _forest(found, rows, 0.0)
    panel.set_xlabel("largest size, held out: measured less predicted (nats)")
    return figure


def _forest(found: Scaling, rows: Sequence[tuple[str, str, float, float, float, str]], origin: float) -> Any:
    """Intervals below each other. Rows: name, family, value, ends of the interval, what stands beside it."""
    figure = new_figure(9, 0.9 + 0.3 * len(rows))
    panel = figure.subplots()
    panel.axvline(origin, color="#888888", linestyle=(0, (4, 3)), linewidth=1)
    for place, (_, family, value, low, high, _) in enumerate(rows):
        i = found.families.index(family)
        panel.plot([low, high], [place, place], color=colour(i), linewidth=1.6)
        panel.plot(value, place, marker=mark(i), color=colour(i), markersize=5.5)
    panel.set_ylim(len(rows) - 0.5, -0.5)
    panel.set_yticks(range(len(rows)), [plain(_short(row[0])) for row in rows])
    beside = panel.secondary_yaxis("right")
    beside.set_yticks(range(len(rows)), [plain(row[5]) for row in rows])
    beside.tick_params(length=0)
    panel.grid(alpha=0.3, axis="x")
    return figure, panel


def _short(name: str) -> str:
    """A name that leaves room for the figure."""
    return name if len(name) <= LONGEST else name[: LONGEST - 1] + "…"


def _coordinates(found: Scaling) -> Any:
    names = list(dict.fromkeys(name for panel in found.coordinates for name in panel.lines))
    figure = new_figure(9, 3.2 * -(-len(found.coordinates) // 2) + 0.3 + 0.05 * len(names))
    style = {name: {"color": colour(i), "linestyle": DASHES[i // len(COLOURS) % len(DASHES)]} for i, name in enumerate(names)}
    for panel, one in zip(panels(figure, len(found.coordinates), across=2), found.coordinates, strict=True):
        for name, line in one.lines.items():
            panel.plot([w for w, _ in line], [rms for _, rms in line], marker="o", markersize=3.5, **style[name])
        panel.set_xscale("log")
        panel.set_yscale("log")
        logarithmic(panel.xaxis, *panel.get_xlim())
        logarithmic(panel.yaxis, *panel.get_ylim())
        panel.set_title(plain(f"{one.family}, {one.parametrization}, step {count(one.step)}"), loc="left", fontsize=9)
        panel.set_xlabel("width")
        panel.set_ylabel("root mean square")
        panel.grid(alpha=0.3)
    handles = [legend_line(i, linestyle=style[name]["linestyle"]) for i, name in enumerate(names)]
    legend_below(figure, handles, names)
    return figure


DRAWINGS: dict[str, Callable[[Scaling], Any]] = {
    "flops": _flops,
    "held_out": _held_out,
    "seconds": _seconds,
    "multipliers": _multipliers,
    "isoflop": _slices,
    "tuning": _tuning,
    "coordinates": _coordinates,
}
"""Figure -> what draws it."""
