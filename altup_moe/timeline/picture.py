"""A picture of one step of every rank: compute, exchanges in flight, and waits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from altup_moe.timeline.chrome import offsets
from altup_moe.timeline.intervals import lanes
from altup_moe.timeline.records import Recording, Span, SpanKind

# Common names have the same colour in every picture (Okabe-Ito palette, safe for colour-blind readers).
_COLOURS = {
    "mix": "#E69F00",
    "axpy": "#B0206A",
    "attention": "#56B4E9",
    "route": "#8C6BB1",
    "experts": "#009E73",
    "dispatch": "#5B7C99",
    "combine": "#93A8BD",
}
_OTHERS = ["#C7B299", "#7A9A01", "#A6761D", "#9E9E9E", "#4C72B0", "#DDAADD", "#66C2A5"]
_WAIT = "#D62728"
_BAND = "#DCE6F0"

_WIDTH_INCHES, _DPI = 16.0, 100
_LANE = {"compute": 1.0, "flight": 0.55, "wait": 0.45}
_LABEL = {"compute": "compute", "flight": "exchanges\nin flight", "wait": "waiting"}
_KINDS: tuple[SpanKind, ...] = ("compute", "flight", "wait")


def _cut(recordings: Sequence[Recording], step: int) -> list[list[Span]]:
    """The spans of one step by rank, clipped to the step. Times are relative to the begin of the earliest rank."""
    cut, begins = [], []
    for recording, offset in zip(recordings, offsets(recordings), strict=True):
        steps = recording.whole()
        if step >= len(steps):
            raise ValueError(f"rank {recording.rank} recorded {len(steps)} steps; there is no step {step}")
        begin, end = steps[step].begin_ns, steps[step].end_ns
        begins.append(begin - offset)
        inside = [s for s in recording.spans if s.end_ns > begin and s.begin_ns < end]
        cut.append([replace(s, begin_ns=max(s.begin_ns, begin), end_ns=min(s.end_ns, end)) for s in inside])
    shifts = [offset + min(begins) for offset in offsets(recordings)]
    return [
        [replace(s, begin_ns=s.begin_ns - shift, end_ns=s.end_ns - shift) for s in spans]
        for spans, shift in zip(cut, shifts, strict=True)
    ]


def _palette(ranks: Sequence[Sequence[Span]]) -> dict[str, str]:
    """A colour for each name of a compute or flight span, in order of first appearance."""
    names = list(dict.fromkeys(s.name for kind in _KINDS[:2] for spans in ranks for s in spans if s.kind == kind))
    others = [name for name in names if name not in _COLOURS]
    return {name: _COLOURS.get(name) or _OTHERS[others.index(name) % len(_OTHERS)] for name in names}


def _bars(axes: Any, spans: Sequence[Span], bottom: float, height: float, palette: dict[str, str]) -> None:
    """Draw one row of bars: inner spans on top of outer ones, backward spans hatched, names on wide bars."""
    span_ms = axes.get_xlim()[1]
    for span in sorted(spans, key=lambda s: s.begin_ns - s.end_ns):
        begin, length = span.begin_ns / 1e6, (span.end_ns - span.begin_ns) / 1e6
        colour = _WAIT if span.kind == "wait" else palette[span.name]
        hatch = "////" if span.phase == "backward" else None
        # A white edge separates neighbours, but it would cover a bar that is only a pixel or two wide.
        edge = "white" if length > 0.004 * span_ms else colour
        bar = {"facecolor": colour, "edgecolor": edge, "hatch": hatch, "linewidth": 0.5}
        axes.broken_barh([(begin, length)], (bottom, height), **bar)
        # A character is about 0.5 % of the axis wide. Text on a hatched bar needs a plain background.
        if span.kind != "wait" and length > 0.0055 * span_ms * (len(span.name) + 1):
            ground = {"facecolor": colour, "edgecolor": "none", "pad": 1.0}
            centre = (begin + length / 2, bottom + height / 2)
            axes.text(*centre, span.name, ha="center", va="center", fontsize=8, color="black", bbox=ground)


def _rank(axes: Any, rank: int, spans: Sequence[Span], palette: dict[str, str]) -> None:
    """Draw one rank's rows from the top down."""
    y, ticks = 0.0, []
    for kind in _KINDS:
        top = y
        for lane in lanes(s for s in spans if s.kind == kind) or [[]]:
            y -= _LANE[kind]
            _bars(axes, lane, y + 0.05, _LANE[kind] - 0.1, palette)
        ticks.append(((top + y) / 2, _LABEL[kind]))
        y -= 0.1
    for flight in (s for s in spans if s.kind == "flight"):
        axes.axvspan(flight.begin_ns / 1e6, flight.end_ns / 1e6, color=_BAND, zorder=0, linewidth=0.5)
    axes.set_ylim(y, 0.15)
    axes.set_yticks([at for at, _ in ticks], [label for _, label in ticks])
    axes.set_title(f"rank {rank}", loc="left", fontsize=10, fontweight="bold")
    axes.tick_params(axis="y", length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def _heights(ranks: Sequence[Sequence[Span]]) -> list[float]:
    """Relative height of each rank: its lanes."""
    return [
        0.5 + sum(_LANE[kind] * max(1, len(lanes(s for s in spans if s.kind == kind))) for kind in _KINDS)
        for spans in ranks
    ]


def write_picture(path: Path, recordings: Sequence[Recording], step: int = 0, title: str = "") -> None:
    """Write a PNG, 1600 px wide: one step, three rows a rank (compute, exchanges in flight, waits), time in ms.

    Hatched bars are backward. Pale bands repeat the flights: computation on a band overlaps with the exchange.

    Raises:
        ValueError: there are no recordings, or a rank has no such step.
    """
    if not recordings:
        raise ValueError("there are no recordings to draw")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    ranks = _cut(recordings, step)
    palette, heights = _palette(ranks), _heights(ranks)
    figure = Figure(figsize=(_WIDTH_INCHES, 1.3 + 0.62 * sum(heights)), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    rows = figure.subplots(len(ranks), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights}).ravel()
    rows[0].set_xlim(0, max((s.end_ns for spans in ranks for s in spans), default=1) / 1e6)
    for axes, recording, spans in zip(rows, recordings, ranks, strict=True):
        _rank(axes, recording.rank, spans, palette)
    rows[-1].set_xlabel("ms since the step began")
    legend = [Patch(facecolor=colour, label=name) for name, colour in palette.items()]
    legend += [
        Patch(facecolor=_WAIT, label="waiting"),
        Patch(facecolor=_BAND, label="an exchange is in flight"),
        Patch(facecolor="#BBBBBB", edgecolor="white", hatch="////", label="backward"),
    ]
    figure.legend(handles=legend, loc="outside lower center", ncols=min(len(legend), 10), frameon=False, fontsize=9)
    if title:
        figure.suptitle(title, fontsize=12)
    figure.savefig(path)
