"""A picture of scaling: tokens a second, and efficiency, over the number of ranks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from altup_moe.bench.scaling.points import Scaling


def write_scaling_picture(file: Path, found: Sequence[Scaling]) -> None:
    """Write it as PNG or SVG, by the file's ending."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    speed, efficiency = figure.subplots(1, 2)
    for mode, where in dict.fromkeys((one.mode, one.where) for one in found):
        line = [one for one in found if (one.mode, one.where) == (mode, where)]
        ranks = [one.ranks for one in line]
        (drawn,) = speed.plot(ranks, [one.tokens_per_second for one in line], "o-", label=f"{mode}, {where}")
        colour = drawn.get_color()
        ideal = [line[0].tokens_per_second * n / ranks[0] for n in ranks]
        speed.plot(ranks, ideal, ":", color=colour, linewidth=0.8)
        efficiency.plot(ranks, [one.efficiency for one in line], "o-", color=colour)
        if all(one.planned is not None for one in line):
            planned = [one.planned for one in line if one.planned is not None]
            gain = [planned[0] / here for here in planned]
            if mode == "strong":
                gain = [one * ranks[0] / n for one, n in zip(gain, ranks, strict=True)]
            efficiency.plot(ranks, gain, "x--", color=colour, linewidth=0.8, label=f"{mode}, planned")
    for axes, label in ((speed, "tokens a second"), (efficiency, "efficiency")):
        axes.set_xlabel("ranks")
        axes.set_ylabel(label)
        axes.set_xticks(sorted({one.ranks for one in found}))
        axes.set_ylim(bottom=0)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8)
    figure.savefig(file)
