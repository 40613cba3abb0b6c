"""Format figures as text: means with their deviation, ratios with their interval; and the report on stdout."""

from __future__ import annotations

import math
from collections.abc import Iterable

from altup_moe.report.formatting import columns, count, digits
from altup_moe.study.records import StudyRow
from altup_moe.study.report.models import LATENCIES, LatencyKind, Model, Stat, mean_of
from altup_moe.study.report.statistics import BootstrapInterval, LossDifference, Speed
from altup_moe.study.report.summary import Summary, hardware, hardware_text

RULES = (
    "A loss or time is the mean over seeds ± their standard deviation.",
    "Speed at equal quality: how many times as long the reference family takes for the model's loss, on its curve "
    "(mean losses and latencies of its unbeaten sizes; between two of them the logarithm of the latency is linear in "
    "the loss; nothing is extrapolated). Above 1 the model is faster.",
    "In brackets: 95 % percentile bootstrap intervals over seeds. From few seeds they are too narrow: with three an "
    "interval is about the seeds' range, which holds the true median three times in four.",
    "No difference found: the interval holds 1 (speed) or 0 (difference of losses, against the model of the reference "
    "family whose active parameters are nearest).",
)


def mean_and_deviation(found: Stat | None, decimals: int | None = None) -> str:
    """Mean ± standard deviation."""
    if found is None:
        return "-"
    shown = digits(found.mean) if decimals is None else f"{found.mean:.{decimals}f}"
    if found.std is None:
        return shown
    places = len(shown.partition(".")[2]) if decimals is None else decimals
    if found.std:
        # A deviation above 0 is never shown as 0.
        places = max(places, min(places + 2, -math.floor(math.log10(found.std))))
    return f"{found.mean:,.{places}f} ± {found.std:,.{places}f}"


def interval_text(found: BootstrapInterval | None, decimals: int = 2, sign: str = "") -> str:
    """An interval, as in [1.20, 1.41]; an end off the curve is `better` or `worse`."""
    if found is None:
        return ""
    ends = []
    for end in (found.low, found.high):
        off = "better" if end > 0 else "worse"
        ends.append(off if math.isinf(end) else f"{end:{sign}.{decimals}f}")
    return f"[{ends[0]}, {ends[1]}]"


def speed_text(found: Speed | None, short: bool = False) -> str:
    """A speed, as in 1.31 [1.20, 1.41]; or why there is none."""
    if found is None:
        return "-"
    if found.reached == "better":
        text = f"not reached, > {found.at_least:.2f}" if short else "not reached: better than the whole curve"
        if not short and found.at_least is not None:
            text += f" (more than {found.at_least:.2f})"
    elif found.reached == "worse":
        text = "not reached, worse" if short else "not reached: worse than the curve's fastest model"
    else:
        text = f"{found.ratio:.2f} {interval_text(found.interval)}".rstrip()
        if found.no_difference:
            text += ", no difference found"
    if not short and (off := draws_text(found.interval)):
        text += f"; {off}"
    return text


def draws_text(found: BootstrapInterval | None) -> str:
    """How many bootstrap draws fell off the curve; "" if none did."""
    if found is None or not found.better + found.worse:
        return ""
    if found.draws in (found.better, found.worse):
        return f"so are all {found.draws} draws"
    parts = [f"{n} {what}" for n, what in ((found.better, "better"), (found.worse, "worse")) if n]
    return f"of {found.draws} draws off the curve: {', '.join(parts)}"


def difference_text(found: LossDifference | None) -> str:
    """A difference of losses, as in -0.031 [-0.040, -0.022] against dense-s."""
    if found is None:
        return "-"
    text = f"{found.loss:+.4f} {interval_text(found.interval, 4, '+')}".rstrip()
    return f"{text} against {found.other}" + (", no difference found" if found.no_difference else "")


def failed_text(row: StudyRow) -> str:
    """Name, seed and reason of a failed row, in one line."""
    reason = " ".join((row.reason or "no reason was kept").split())
    return f"{row.name}, seed {row.seed}: {reason}"


def headline(found: Summary, kind: LatencyKind) -> Iterable[list[str]]:
    """Rows of the table on stdout: a head, then one row per model."""
    yield [
        "model",
        "family",
        "seeds",
        "parameters",
        "active",
        "loss",
        "bits/byte",
        f"{LATENCIES[kind]} ms",
        f"speed at equal quality ({LATENCIES[kind]})",
    ]
    for model in found.models:
        yield [
            model.name,
            model.family,
            str(len(model.rows)),
            *sizes(model),
            mean_and_deviation(model.quality("loss"), 4),
            mean_and_deviation(model.quality("bits"), 4),
            mean_and_deviation(model.along(kind)),
            "" if model.family == found.reference else speed_text(found.speeds[model.name][kind]),
        ]


def sizes(model: Model) -> tuple[str, str]:
    """Formatted numbers of parameters and of active parameters."""
    return count(mean_of(model.along("parameters"))), count(mean_of(model.along("active_parameters")))


def report_lines(found: Summary) -> list[str]:
    """Lines of the report on stdout, before the list of files."""
    rows = f"{len(found.rows)} rows, {len(found.models)} models, {len(found.failed)} failed"
    shown = [f"{found.title}: {rows}; reference family: {found.reference}"]
    shown += [f"  {n} on {hardware_text(one)}" for one, n in hardware(found.rows)]
    if found.models:
        shown += ["", *columns(list(headline(found, "train_step")))]
    others: list[LatencyKind] = [kind for kind in found.kinds if kind != "train_step"]
    if found.speeds and others:
        head = ["speed at equal quality", *(LATENCIES[kind] for kind in others)]
        cells = [[name, *(speed_text(speeds[kind]) for kind in others)] for name, speeds in found.speeds.items()]
        shown += ["", *columns([head, *cells], left=len(head))]
    if found.differences:
        shown += ["", "difference of losses"]
        shown += columns([["  " + name, difference_text(d)] for name, d in found.differences.items()])
    if found.failed:
        shown += ["", "failed", *(f"  {failed_text(row)}" for row in found.failed)]
    shown += ["", *(f"note: {note}" for note in found.notes)] if found.notes else []
    return [*shown, "", *RULES]
