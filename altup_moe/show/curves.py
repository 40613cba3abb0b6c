"""What the page draws of a run: curves in bins, and the experts' loads by layer and time. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from altup_moe.report.curves import COLOURS, DASHES, binned
from altup_moe.report.metric_groups import METRICS, Metric, task_metric
from altup_moe.show.events import resumes
from altup_moe.show.read_run import Line, RunFiles, number, numbers

BINS = 240
"""The most points of a curve."""
TIMES, RATIOS = 60, 150_000
"""The most points in time, and the most numbers, of a run's heat map."""


def drawn_metrics(runs: Sequence[RunFiles]) -> list[Metric]:
    """The metrics that some run has values of, and of which a figure says something."""
    found = []
    keys = dict.fromkeys(key for run in runs for line in run.lines for key in line if key.startswith("eval/"))
    tasks = [metric for key in keys if (metric := task_metric(key))]
    for metric in (*METRICS, *tasks):
        values = [numbers(run.lines, metric.key) for run in runs]
        # Figures of a profile: one is said in the history, several are a curve.
        least = 2 if metric.group == "overlap" else 1
        if max(map(len, values)) >= least and (metric.zeros or any(map(any, values))):
            found.append(metric)
    # Functions of what is drawn.
    losses = {metric.key for metric in found if metric.group == "loss"}
    unread = {"valid_perplexity", "consumed_samples"} | ({"loss"} if "lm_loss" in losses else set())
    return [metric for metric in found if metric.key not in unread]


def run_data(run: RunFiles, name: str, index: int, metrics: Sequence[Metric]) -> dict[str, Any]:
    """A run as the script draws it.

    ``curves``: key -> points [step, tokens, hours, mean, least, most]; the mean is None where a value was not finite.
    ``marks``: [step, tokens, hours] of each resume.
    """
    hours = list(accumulate((number(line, "step_seconds") or 0.0) / 3600 for line in run.lines))
    each = run.config.model.tokens_per_sample if run.config else 0
    at = [
        (line["step"], (number(line, "consumed_samples") or 0.0) * each, round(hour, 6))
        for line, hour in zip(run.lines, hours, strict=True)
    ]
    again = resumes(run)
    return {
        "name": name,
        "colour": index % COLOURS,
        "dash": index // COLOURS % DASHES,
        "curves": {metric.key: _points(run.lines, at, metric) for metric in metrics},
        "marks": [place for place in at if place[0] in again],
        "routing": heat_map(run.routing),
    }


def _points(lines: Sequence[Line], at: Sequence[tuple[int, float, float]], metric: Metric) -> list[list[float | None]]:
    there = [(place, number(line, metric.key)) for place, line in zip(at, lines, strict=True) if metric.key in line]
    found: list[list[float | None]] = []
    for part in binned(there, BINS):
        values = [metric.factor * value for _, value in part if value is not None]
        ends = [statistics.fmean(values), min(values), max(values)] if values else [None, None, None]
        found.append([*part[-1][0], *(None if v is None else float(f"{v:.6g}") for v in ends)])
    return found


def heat_map(lines: Sequence[Line]) -> dict[str, Any] | None:
    """Loads of the experts, in percent of their layer's mean; None if no line can be used.

    Returns:
        ``steps``: the last step of each point in time; ``layers``: for each layer with experts its number (from 0),
        and ``loads[time][expert]``.
    """
    usable = [line for line in lines if _usable(line)]
    if not usable:
        return None
    # What the last line has: a run's experts do not change.
    shape = [len(layer) for layer in usable[-1]["routes"]]
    usable = [line for line in usable if [len(layer) for layer in line["routes"]] == shape]
    times = min(TIMES, max(2, RATIOS // max(1, sum(shape))))
    parts = binned(usable, times)
    layers = []
    for index, experts in enumerate(shape):
        if experts:
            sums = [
                [sum(column) for column in zip(*(line["routes"][index] for line in part), strict=True)]
                for part in parts
            ]
            layers.append({"layer": index, "loads": [_percent(one) for one in sums]})
    return {"steps": [part[-1]["step"] for part in parts], "layers": layers} if layers else None


def _usable(line: Line) -> bool:
    routes = line.get("routes")
    return isinstance(routes, list) and all(
        isinstance(layer, list) and all(type(n) is int and n >= 0 for n in layer) for layer in routes
    )


def _percent(routes: Sequence[int]) -> list[int]:
    mean = sum(routes) / len(routes)
    return [round(100 * n / mean) if mean else 0 for n in routes]
