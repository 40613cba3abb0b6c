"""Figures of hand-made spans, worked out by hand."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest

from altup_moe.timeline.overlap import (
    OverlapReport,
    mean_overlap,
    median_overlap,
    overlap,
    overlap_by_step,
    report_table,
)
from altup_moe.timeline.records import Recording
from tests.unit.timeline.spans_for_tests import ms, two_steps

FIRST = OverlapReport(
    step_ms=10.0,
    compute_ms=6.5,
    exchange_ms=4.0,
    exposed_ms=1.0,
    hidden_ms=3.0,
    mixing_ms=3.0,
    mixing_hidden_ms=2.0,
    mixing_exposed_ms=1.0,
    axpy_ms=0.5,
    bound_ms=4.0,
    attention_ms=2.0,
)
SECOND = OverlapReport(
    step_ms=10.0,
    compute_ms=6.0,
    exchange_ms=0.0,
    exposed_ms=0.0,
    hidden_ms=0.0,
    mixing_ms=3.0,
    mixing_hidden_ms=0.0,
    mixing_exposed_ms=3.0,
    axpy_ms=0.0,
    bound_ms=0.0,
    attention_ms=3.0,
)


def test_each_step_is_measured_on_its_own() -> None:
    assert overlap_by_step(two_steps(shift=7.0)) == [FIRST, SECOND]


def test_what_lies_on_top_of_each_other_counts_once() -> None:
    """Two exchanges at once, a layer around its mixing, and a wait inside the layer."""
    spans = [
        ms("layer", "compute", 0, 10),
        ms("mix", "compute", 2, 4),
        ms("mix", "compute", 3, 5),
        ms("dispatch", "flight", 1, 6),
        ms("combine", "flight", 4, 8),
        ms("combine", "wait", 7, 8),
    ]
    (report,) = overlap_by_step(Recording(0, "a", spans))
    assert report == OverlapReport(
        step_ms=10.0,
        compute_ms=9.0,
        exchange_ms=7.0,
        exposed_ms=1.0,
        hidden_ms=6.0,
        mixing_ms=3.0,
        mixing_hidden_ms=3.0,
        mixing_exposed_ms=0.0,
        axpy_ms=0.0,
        bound_ms=7.0,
        attention_ms=0.0,
    )


def test_a_wait_within_attention_is_not_attention() -> None:
    """Tensor ranks meet within it. The same pass twice at once counts once."""
    spans = [
        ms("attention", "compute", 0, 4),
        ms("attention", "compute", 3, 6),
        ms("experts", "compute", 6, 9),
        ms("gather", "wait", 2, 3),
    ]
    (report,) = overlap_by_step(Recording(0, "a", spans))
    assert (report.attention_ms, report.compute_ms) == (5.0, 8.0)


def test_a_span_across_a_boundary_is_shared_by_the_steps() -> None:
    recording = two_steps()
    recording.spans.append(ms("dispatch", "flight", 9, 11))
    assert [report.exchange_ms for report in overlap_by_step(recording)] == [5.0, 1.0]


def test_hidden_is_never_negative() -> None:
    spans = [ms("dispatch", "flight", 0, 1), ms("dispatch", "wait", 0, 3)]
    (report,) = overlap_by_step(Recording(0, "a", spans))
    assert (report.exposed_ms, report.hidden_ms) == (3.0, 0.0)


def test_ranks_and_steps_are_averaged() -> None:
    halves = {name: (value + asdict(SECOND)[name]) / 2 for name, value in asdict(FIRST).items()}
    assert overlap([two_steps(0), two_steps(1, shift=3.0)]) == OverlapReport(**halves)
    assert overlap([two_steps(0), two_steps(1)], skip=1) == SECOND


def test_one_disturbed_step_does_not_change_the_medians() -> None:
    disturbed = replace(FIRST, step_ms=30.0, mixing_ms=23.0, mixing_exposed_ms=21.0)
    assert median_overlap([FIRST, disturbed, FIRST]) == FIRST
    assert mean_overlap([FIRST, disturbed]).mixing_ms == 13.0


def test_nothing_to_average_is_refused() -> None:
    for middle in (mean_overlap, median_overlap):
        with pytest.raises(ValueError, match="no steps"):
            middle([])
    with pytest.raises(ValueError, match="no steps"):
        overlap([two_steps()], skip=2)


def test_the_table_shows_every_figure_and_its_share() -> None:
    lines = report_table({"overlap off": SECOND, "overlap on": FIRST}).splitlines()
    assert lines[0].split() == ["overlap", "off", "overlap", "on"]
    assert len({len(line) for line in lines}) == 1
    rows = {line[:26].strip(): line[26:].split() for line in lines[2:]}
    assert rows["compute thread busy"] == ["6.00", "60.0", "%", "6.50", "65.0", "%"]
    assert rows["exposed (waited for)"] == ["0.00", "0.0", "%", "1.00", "10.0", "%"]
    assert len(rows) == len(asdict(FIRST))
    assert report_table(FIRST).splitlines()[1].split() == ["step", "10.00", "100.0", "%"]
