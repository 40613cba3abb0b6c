"""What pictures share: the page's colours and marks, figures of matplotlib, legends, axes, SVG and PNG."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#B04A8B", "#2F2F2F", "#B97A00", "#2F96D0")
MARKS = ("o", "s", "^", "D", "v", "P")
DASHES: tuple[Any, ...] = ("-", (0, (5, 3)), (0, (1.5, 2)), (0, (6, 2, 1.5, 2)), (0, (9, 2)), (0, (3, 1.5, 1, 1.5)))


def steady() -> Any:
    """Context in which the same figures give the same bytes. Text stays text in the SVG."""
    import matplotlib

    return matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "altup_moe", "font.size": 9})


def saved(name: str, figure: Any) -> Iterator[tuple[str, bytes]]:
    """(file name, content) of a figure as SVG and as PNG."""
    for kind, metadata in (("svg", {"Date": None}), ("png", {})):
        content = io.BytesIO()
        figure.savefig(content, format=kind, metadata=metadata)
        yield f"{name}.{kind}", content.getvalue()


def new_figure(width: float, height: float) -> Any:
    """A figure of so many inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def panels(figure: Any, count: int, across: int = 3) -> list[Any]:
    """Panels of a figure in rows; places that are left over stay empty."""
    across = min(across, count) or 1
    found = list(figure.subplots(-(-count // across) or 1, across, squeeze=False).ravel())
    for panel in found[count:]:
        panel.set_visible(False)
    return found[:count]


def plain(text: str) -> str:
    """Escape a name for matplotlib: $ would begin mathematics, a leading _ would hide it from a legend."""
    return ("" if not text.startswith("_") else " ") + text.replace("$", r"\$")


def colour(index: int) -> str:
    """The colour of a family."""
    return COLOURS[index % len(COLOURS)]


def mark(index: int) -> str:
    """The mark of a family."""
    return MARKS[index % len(MARKS)]


def legend_line(index: int, **style: Any) -> Any:
    """A legend's line in a family's colour."""
    from matplotlib.lines import Line2D

    return Line2D([], [], color=colour(index), **style)


def legend_below(figure: Any, handles: list[Any], names: list[str]) -> None:
    """A legend below the panels, as many entries in a row as fit."""
    widest = max((len(name) for name in names), default=0)
    columns = max(1, min(len(names), int(figure.get_size_inches()[0] / max(1.6, 0.075 * widest + 0.5))))
    figure.legend(handles, [plain(n) for n in names], loc="outside lower center", ncols=columns, frameon=False)


def logarithmic(axis: Any, low: float, high: float) -> None:
    """Few ticks on a logarithmic axis, so that labels do not overlap. `low`, `high`: of the axis."""
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    subs = (1, 2, 5) if high < 20 * low else (1, 3) if high < 200 * low else (1,)
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(EngFormatter(sep="") if low > 1e4 else lambda value, _: f"{value:g}")
    axis.set_minor_formatter(NullFormatter())
