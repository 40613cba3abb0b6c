"""Draw the figures as SVG and PNG with matplotlib: loss against every cost, loss curves, loads of the experts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from altup_moe.study.report.canvas import (
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
from altup_moe.study.report.front import unbeaten_indices
from altup_moe.study.report.models import AXES, LOSS_UNITS, Axis, Model, families
from altup_moe.study.report.plot_data import curves, loads
from altup_moe.study.report.summary import Summary

_ROWS_SHOWN = 12


def pictures(found: Summary) -> Iterator[tuple[str, bytes]]:
    """Yield (file name, content) of each figure that the study has data for; the same bytes for the same rows."""
    if not found.models:
        return
    drawings: dict[str, Callable[[Summary], Any]] = {"front": _front}
    if any(row.curve for model in found.models for row in model.rows):
        drawings["curves"] = _curves
    if loads(found.models):
        drawings["load"] = _load
    with steady():
        for name, draw in drawings.items():
            yield from saved(name, draw(found))


def _front(found: Summary) -> Any:
    """A panel for each cost that some model has."""
    grouped = families(found.models)
    axes: list[Axis] = [axis for axis in AXES if any(model.along(axis) for model in found.models)]
    across, down = min(3, len(axes)) or 1, -(-len(axes) // 3) or 1
    figure = new_figure(4.2 * across, 3.4 * down + 0.4)
    for panel, axis in zip(panels(figure, len(axes)), axes, strict=True):
        _panel(panel, found, grouped, axis)
    handles = [legend_line(i, marker=mark(i)) for i in range(len(grouped))]
    legend_below(figure, handles, list(grouped))
    return figure


def _panel(panel: Any, found: Summary, grouped: dict[str, list[Model]], axis: Axis) -> None:
    costs = []
    for i, members in enumerate(grouped.values()):
        points = sorted(
            ((cost, model.quality("loss")) for model in members if (cost := model.along(axis))),
            key=lambda point: point[0].mean,
        )
        costs += [cost.mean for cost, _ in points]
        panel.errorbar(
            [cost.mean for cost, _ in points],
            [loss.mean for _, loss in points],
            xerr=[[c.mean - c.least for c, _ in points], [c.most - c.mean for c, _ in points]],
            yerr=[[q.mean - q.least for _, q in points], [q.most - q.mean for _, q in points]],
            color=colour(i),
            marker=mark(i),
            markersize=5,
            linewidth=1.4,
            elinewidth=1,
        )
    best = _points(found, unbeaten_indices(found.models, axis, "loss"), axis)
    ringed = _points(found, found.rings["loss"][axis], axis)
    if ringed:
        panel.scatter([c for c, _ in ringed], [q for _, q in ringed], s=110, facecolors="none", edgecolors="#888888")
    panel.step([c for c, _ in best], [q for _, q in best], where="post", color="#888888", linestyle=":", zorder=1)
    if min(costs) > 0 and max(costs) > 3 * min(costs):
        panel.set_xscale("log")
        logarithmic(panel.xaxis, *panel.get_xlim())
    panel.set_xlabel(AXES[axis])
    panel.set_ylabel(LOSS_UNITS["loss"])
    panel.grid(alpha=0.3)


def _points(found: Summary, indices: Sequence[int], axis: Axis) -> list[tuple[float, float]]:
    """(cost, loss) of models that have the cost."""
    models = [found.models[i] for i in indices]
    return [(cost.mean, model.quality("loss").mean) for model in models if (cost := model.along(axis))]


def _curves(found: Summary) -> Any:
    """Draw the held-out losses of models; the training losses of a model that has none."""
    from matplotlib.ticker import EngFormatter

    grouped = families(found.models)
    place = {name: i for i, name in enumerate(grouped)}
    drawn = curves(grouped)
    figure = new_figure(9, 5.2 + 0.18 * len(drawn) / 4)
    panel = figure.subplots()
    tail = []
    for curve in drawn:
        bands = curve.valid or curve.train
        style = {"color": colour(place[curve.model.family])}
        tokens = [band[0] for band in bands]
        panel.plot(tokens, [band[1] for band in bands], linestyle=DASHES[curve.dash], linewidth=1.5, **style)
        panel.fill_between(tokens, [b[2] for b in bands], [b[3] for b in bands], alpha=0.15, linewidth=0, **style)
        tail += [loss for band in bands for loss in band[1:]]
    if tail:
        # The first losses are so large that the others would be hard to tell apart.
        least, roof = min(tail), sorted(tail)[int(0.93 * (len(tail) - 1))]
        panel.set_ylim(least - 0.05 * (roof - least or 1), roof + 0.05 * (roof - least or 1))
    panel.xaxis.set_major_formatter(EngFormatter(sep=""))
    panel.set_xlabel("tokens seen")
    panel.set_ylabel("loss (nats a token), held out" if all(c.valid for c in drawn) else "loss (nats a token)")
    panel.grid(alpha=0.3)
    handles = [legend_line(place[c.model.family], linestyle=DASHES[c.dash]) for c in drawn]
    legend_below(figure, handles, [c.model.name for c in drawn])
    return figure


def _load(found: Summary) -> Any:
    """Draw the loads of the first seed of each model with experts."""
    first = {row.name: (row, layers) for row, layers in reversed(loads(found.models))}
    shown = list(first.values())[::-1][:_ROWS_SHOWN]
    heights = [0.6 + 0.22 * len(layers) for _, layers in shown]
    figure = new_figure(8, 1.0 + sum(heights))
    rows = figure.subplots(len(shown), 1, squeeze=False, gridspec_kw={"height_ratios": heights}).ravel()
    for panel, (row, layers) in zip(rows, shown, strict=True):
        most = max(len(one.load) for one in layers)
        ratios = [
            [share * len(one.load) for share in one.load] + [float("nan")] * (most - len(one.load)) for one in layers
        ]
        image = panel.imshow(ratios, cmap=_shades(), norm=_norm(), aspect="auto", interpolation="nearest")
        panel.set_yticks(range(len(layers)), [str(one.layer) for one in layers])
        panel.set_title(plain(f"{row.name}, seed {row.seed}"), loc="left", fontsize=9)
        panel.set_ylabel("layer")
        panel.xaxis.get_major_locator().set_params(integer=True)
    rows[-1].set_xlabel("expert")
    bar = figure.colorbar(
        image, ax=list(rows), ticks=[0.25, 0.5, 1, 2, 4], label="routes of the layer, times the mean", extend="both"
    )
    bar.ax.set_yticklabels(["1/4", "1/2", "1", "2", "4"])
    bar.ax.minorticks_off()
    return figure


def _shades() -> Any:
    """The colours of the page."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("load", ["#2166AC", "#F2F2F2", "#C2570C"])


def _norm() -> Any:
    from matplotlib.colors import LogNorm

    return LogNorm(0.25, 4, clip=True)
