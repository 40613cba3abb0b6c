"""Format figures as text: means with their deviation, ratios with their interval; and the report on stdout."""

from __future__ import annotations

import math
from collections.abc import Iterable

from altup_moe.report.formatting import columns, count, digits
from altup_moe.study.records import StudyRow
from altup_moe.study.report.comparisons import Comparison, own_loss
from altup_moe.study.report.intervals import MOST_SEEDS
from altup_moe.study.report.models import LATENCIES, Interval, LatencyKind, LossUnit, Model, Stat, mean_of
from altup_moe.study.report.statistics import Speed
from altup_moe.study.report.summary import Summary, hardware, hardware_text

RULES = (
    "A loss or time is the mean over seeds ± their standard deviation. In brackets: its 95 % interval by Student's t, "
    "which holds the true value in 95 of 100 studies, from two seeds on, if what seeds do is normal.",
    "Models are compared in pairs, seed by seed, where a seed gives both the same data, order and initial weights "
    '("in pairs"), others by Welch\'s t-test; ratios of latencies on the logarithm. The other model is that of the '
    "reference family whose active parameters are nearest, and trained on as many tokens if there is one.",
    "p: of all models of a column together, by Holm. No difference found: p is 0.05 or more. An interval is of one "
    "comparison alone: it may leave out 0 (a difference) or 1 (a ratio), and p, which knows of the others, may not.",
    "Seeds that would tell it: so many of each model find a difference as large as the observed one in four of five "
    "studies (spread as observed, level 0.05 over all models of the column). From few seeds that is a rough number.",
    "Speed at equal quality: how many times as long the reference family takes for the model's loss, on its curve "
    "(mean losses and latencies of its unbeaten sizes; between two of them the logarithm of the latency is linear in "
    "the loss; nothing is extrapolated). Above 1 the model is faster. Its interval is that of the logarithm by the "
    "delta method. An end is `better` or `worse` where the loss may lie off the curve on that side, or where the "
    "losses of the curve's two models are not told apart. A loss that is shown to lie off the curve gives a bound, "
    "the ratio to the latency of the curve's end, with its interval; not decided: the bound does not say which of the "
    "two is faster.",
    "Rings mark models of the Pareto front that are told apart: every other model is shown to be worse or to cost "
    "more (Holm over the front). The dotted line is the front of the means.",
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


def loss_text(model: Model, unit: LossUnit) -> str:
    """A model's own loss: mean ± standard deviation, and its interval."""
    return f"{mean_and_deviation(model.quality(unit), 4)} {interval_text(own_loss(model, unit), 4)}".rstrip()


def interval_text(found: Interval | None, decimals: int = 2, sign: str = "") -> str:
    """An interval, as in [1.20, 1.41]; an end off the curve is `better` or `worse`."""
    if found is None:
        return ""
    ends = []
    for end in (found.low, found.high):
        off = "better" if end > 0 else "worse"
        ends.append(off if math.isinf(end) else f"{end:{sign}.{decimals}f}")
    return f"[{ends[0]}, {ends[1]}]"


def speed_text(found: Speed | None, short: bool = False) -> str:
    """A speed, as in 1.31 [1.20, 1.41], p 0.02; or why there is none."""
    if found is None:
        return "-"
    if found.reached == "better":
        text = f"not reached, > {found.at_least:.2f}" if short else "not reached: better than the whole curve"
        if not short and found.at_least is not None:
            text += f" (more than {found.at_least:.2f})"
    elif found.reached == "worse":
        text = "not reached, worse" if short else "not reached: worse than the curve's fastest model"
    else:
        text = f"{found.ratio:.2f}"
    return f"{text} {interval_text(found.interval)}".rstrip() + _after_comma(verdict_text(found))


def comparison_text(found: Comparison | None, decimals: int, sign: str = "") -> str:
    """A comparison without the name of the other model, as in -0.031 [-0.040, -0.022] in pairs, p 0.004."""
    if found is None:
        return "-"
    text = f"{found.value:{sign}.{decimals}f} {interval_text(found.interval, decimals, sign)}".rstrip()
    return text + (" in pairs" if found.paired else "") + _after_comma(verdict_text(found))


def difference_text(found: Comparison | None) -> str:
    """A difference of losses and the model that it is taken from."""
    if found is None:
        return "-"
    return f"{comparison_text(found, 4, '+')}; against {found.other}"


def ratio_text(found: Comparison | None) -> str:
    """A ratio of latencies, as in 1.08 [1.02, 1.14] in pairs, p 0.03."""
    return comparison_text(found, 2)


def verdict_text(found: Speed | Comparison) -> str:
    """What a comparison found; "" if there is no interval."""
    p = found.adjusted
    if p is None:
        return ""
    shown = "p < 0.001" if p < 0.001 else f"p {p:.2g}"
    if not found.no_difference:
        return shown
    if not isinstance(found, Comparison):
        # Off the curve there is a bound and no figure that could differ from 1.
        return ("" if p == 1 else f"{shown}, ") + ("no difference found" if found.reached == "yes" else "not decided")
    text = f"{shown}, no difference found"
    if found.seeds_needed is not None:
        return f"{text} ({found.seeds_needed} seeds would tell it)"
    return text if found.p == 1 else f"{text} ({MOST_SEEDS:,} seeds would not tell it)"


def _after_comma(text: str) -> str:
    return f", {text}" if text else ""


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
    if found.has_speed and others:
        head = ["speed at equal quality", *(LATENCIES[kind] for kind in others)]
        cells = [[name, *(speed_text(speeds[kind]) for kind in others)] for name, speeds in found.speeds.items()]
        shown += ["", *columns([head, *cells], left=len(head))]
    if found.differences:
        shown += ["", "difference of losses"]
        shown += columns([["  " + name, difference_text(d)] for name, d in found.differences.items()])
        head = ["latency, times the reference's", "against", *(LATENCIES[kind] for kind in found.kinds)]
        cells = [
            ["  " + name, gap.other, *(ratio_text(found.ratios[name][kind]) for kind in found.kinds)]
            for name, gap in found.differences.items()
        ]
        shown += ["", *columns([head, *cells], left=len(head))] if found.kinds else []
    if found.failed:
        shown += ["", "failed", *(f"  {failed_text(row)}" for row in found.failed)]
    shown += ["", *(f"note: {note}" for note in found.notes)] if found.notes else []
    return [*shown, "", *RULES]
