"""Draw a ladder's small panels as figures of matplotlib: forest plots, tuning, coordinate check."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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
)
from altup_moe.study.report.scaling import Scaling
from altup_moe.study.report.scaling_data import by_size

LOSS = "held-out loss (nats a token)"
LONGEST = 40
FARTHEST = 50.0
"""Ends of a multiplier are drawn as far as that."""


def family_legend(figure: Any, found: Scaling, families: Sequence[str], **style: Any) -> None:
    """A legend of families below the panels."""
    index = [found.families.index(name) for name in families]
    legend_below(figure, [legend_line(i, marker=mark(i), **style) for i in index], list(families))


def tuning(found: Scaling) -> Any:
    """Held-out loss of every try by value, a panel for each size."""
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
                panel.plot(
                    one.found.value, height, mark(i), color=colour(i), transform=panel.get_xaxis_transform(), **style
                )
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
    family_legend(figure, found, list(tuned))
    return figure


@dataclass(frozen=True)
class Row:
    """Of a forest plot: who, the value and the ends of its interval, and what stands beside it."""

    name: str
    family: str
    value: float
    low: float
    high: float
    said: str


def multipliers(found: Scaling) -> Any:
    """A forest plot of the multipliers, with the verdict beside each."""
    assert found.law is not None
    rows = []
    for one in found.law.compared:
        m = one.multiplier
        value, low, high = (min(max(v, 1 / FARTHEST), FARTHEST) for v in (m.ratio, m.interval.low, m.interval.high))
        said = f"{m.ratio:.3g} {interval_text(m.interval)}  {verdict_text(one)}"
        rows.append(Row(f"{m.family}, equal {AXIS_NAMES[m.axis]}", m.family, value, low, high, said))
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


def held_out(found: Scaling) -> Any:
    """The largest size: measured less predicted, with the interval of the prediction."""
    assert found.law is not None
    rows = []
    for one in found.law.predictions:
        value, low, high = (v - one.predicted for v in (one.measured, one.interval.low, one.interval.high))
        verdict = "inside" if one.inside else "outside"
        said = f"{one.measured:.4f} [{one.interval.low:.4f}, {one.interval.high:.4f}]  {verdict}"
        rows.append(Row(f"{one.family}, {count(one.d)} tokens", one.family, value, low, high, said))
    figure, panel = _forest(found, rows, 0.0)
    panel.set_xlabel("largest size, held out: measured less predicted (nats)")
    return figure


def _forest(found: Scaling, rows: Sequence[Row], origin: float) -> Any:
    """Intervals below each other, and a line at the origin."""
    figure = new_figure(9, 0.9 + 0.3 * len(rows))
    panel = figure.subplots()
    panel.axvline(origin, color="#888888", linestyle=(0, (4, 3)), linewidth=1)
    for place, row in enumerate(rows):
        i = found.families.index(row.family)
        panel.plot([row.low, row.high], [place, place], color=colour(i), linewidth=1.6)
        panel.plot(row.value, place, marker=mark(i), color=colour(i), markersize=5.5)
    panel.set_ylim(len(rows) - 0.5, -0.5)
    panel.set_yticks(range(len(rows)), [plain(_short(row.name)) for row in rows])
    beside = panel.secondary_yaxis("right")
    beside.set_yticks(range(len(rows)), [plain(row.said) for row in rows])
    beside.tick_params(length=0)
    panel.grid(alpha=0.3, axis="x")
    return figure, panel


def _short(name: str) -> str:
    """A name that leaves room for the figure."""
    return name if len(name) <= LONGEST else name[: LONGEST - 1] + "…"


def coordinates(found: Scaling) -> Any:
    """Root mean squares by width, a panel for each family and parametrization."""
    names = list(dict.fromkeys(name for panel in found.coordinates for name in panel.lines))
    figure = new_figure(9, 3.2 * -(-len(found.coordinates) // 2) + 0.3 + 0.05 * len(names))
    style = {
        name: {"color": colour(i), "linestyle": DASHES[i // len(COLOURS) % len(DASHES)]} for i, name in enumerate(names)
    }
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
