"""How much of the exchange a step hides, and what mixing costs, computed from recorded spans."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields

from altup_moe.timeline.intervals import Intervals, intersection, length, union
from altup_moe.timeline.records import Recording, Span, SpanKind, Step

MIX = "mix"
"""Name of the spans of the mixing pass over the wide stream."""
AXPY = "axpy"
"""Name of the spans of the axpy, the part of AltUp on the critical path."""
ATTENTION = "attention"
"""Name of the spans of attention."""


@dataclass(frozen=True)
class OverlapReport:
    """One step of one rank, or the mean or median of several; ms.

    `mixing_hidden_ms` is the time that mixing ran while an exchange was in flight. It does not say that mixing hid the
    exchange: `hidden_ms` says how much was hidden, and attention and experts contribute to it too.
    """

    step_ms: float
    """The whole step."""
    compute_ms: float
    """The compute thread was busy: the union of its spans minus its waits."""
    exchange_ms: float
    """Some exchange was in flight: the union of the flights."""
    exposed_ms: float
    """The compute thread was blocked: the union of the waits."""
    hidden_ms: float
    """Exchange that did not block: exchange - exposed, at least 0."""
    mixing_ms: float
    """Union of the spans named `mix`."""
    mixing_hidden_ms: float
    """The part of the mixing during which an exchange was in flight."""
    mixing_exposed_ms: float
    """The rest of the mixing."""
    axpy_ms: float
    """Union of the spans named `axpy`."""
    bound_ms: float
    """Upper bound of `hidden_ms` for any schedule of this step: min(compute, exchange)."""
    attention_ms: float
    """The compute thread was busy with attention: the union of its spans minus the waits."""


def _clip(spans: Iterable[Span], step: Step) -> Intervals:
    """The union of the parts of the spans that lie within the step."""
    return intersection(union((s.begin_ns, s.end_ns) for s in spans), [(step.begin_ns, step.end_ns)])


def _report(spans: Sequence[Span], step: Step) -> OverlapReport:
    def during(kind: SpanKind, name: str | None = None) -> Intervals:
        return _clip((s for s in spans if s.kind == kind and name in (None, s.name)), step)

    compute, flights, waits = during("compute"), during("flight"), during("wait")
    mixing, attention = during("compute", MIX), during("compute", ATTENTION)
    mixing_hidden = length(intersection(mixing, flights))
    busy = length(compute) - length(intersection(compute, waits))
    ns = OverlapReport(
        step_ms=step.end_ns - step.begin_ns,
        compute_ms=busy,
        exchange_ms=length(flights),
        exposed_ms=length(waits),
        hidden_ms=max(0, length(flights) - length(waits)),
        mixing_ms=length(mixing),
        mixing_hidden_ms=mixing_hidden,
        mixing_exposed_ms=length(mixing) - mixing_hidden,
        axpy_ms=length(during("compute", AXPY)),
        bound_ms=min(busy, length(flights)),
        attention_ms=length(attention) - length(intersection(attention, waits)),
    )
    return OverlapReport(**{name: value / 1e6 for name, value in asdict(ns).items()})


def overlap_by_step(recording: Recording) -> list[OverlapReport]:
    """One report for each step. A recording without marked steps counts as one step."""
    return [_report(recording.spans, step) for step in recording.whole()]


def mean_overlap(reports: Sequence[OverlapReport]) -> OverlapReport:
    """The mean of each figure. Means still add up: hidden and exposed mixing are the mixing.

    Raises:
        ValueError: there are no reports.
    """
    return _each(reports, statistics.fmean)


def median_overlap(reports: Sequence[OverlapReport]) -> OverlapReport:
    """The median of each figure, which a single disturbed step does not change.

    Raises:
        ValueError: there are no reports.
    """
    return _each(reports, statistics.median)


def _each(reports: Sequence[OverlapReport], middle: Callable[[list[float]], float]) -> OverlapReport:
    if not reports:
        raise ValueError("no steps were recorded")
    names = [f.name for f in fields(OverlapReport)]
    return OverlapReport(**{name: middle([getattr(report, name) for report in reports]) for name in names})


def overlap(recordings: Iterable[Recording], skip: int = 0) -> OverlapReport:
    """The mean over all steps of all ranks, without the first `skip` steps of each.

    Not the maximum: a wait includes waiting for slower ranks, so the maxima of different figures would come from
    different ranks and not describe any step.

    Raises:
        ValueError: no step is left.
    """
    return mean_overlap([report for recording in recordings for report in overlap_by_step(recording)[skip:]])


_ROWS = {
    "step_ms": "step",
    "compute_ms": "compute thread busy",
    "exchange_ms": "exchange in flight",
    "hidden_ms": "  hidden",
    "exposed_ms": "  exposed (waited for)",
    "bound_ms": "  could be hidden at most",
    "mixing_ms": "mixing",
    "mixing_hidden_ms": "  while an exchange flies",
    "mixing_exposed_ms": "  on its own",
    "axpy_ms": "axpy (critical path)",
    "attention_ms": "attention",
}


def report_table(reports: OverlapReport | Mapping[str, OverlapReport]) -> str:
    """A table: a row for each figure, a column (ms, share of the step) for each report; keys are the headings."""
    columns = {"": reports} if isinstance(reports, OverlapReport) else dict(reports)
    width = max([18, *map(len, columns)])
    lines = [" " * 26 + "".join(f"{heading:>{width}}" for heading in columns)] if any(columns) else []
    lines.append(" " * 26 + "".join(f"{'ms   of step':>{width}}" for _ in columns))
    for name, label in _ROWS.items():
        cells = ""
        for report in columns.values():
            value = getattr(report, name)
            share = 100 * value / report.step_ms if report.step_ms else 0.0
            cells += f"{f'{value:.2f}   {share:5.1f} %':>{width}}"
        lines.append(f"{label:<26}{cells}")
    return "\n".join(lines)
