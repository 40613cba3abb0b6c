"""Interval sets against arrays of booleans, one element a ns."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from altup_moe.timeline.intervals import intersection, lanes, length, union
from altup_moe.timeline.records import Span

SIZE = 40
PAIRS = st.lists(st.tuples(st.integers(0, SIZE), st.integers(0, SIZE)).map(lambda p: (min(p), max(p))), max_size=8)


def covered(intervals: list[tuple[int, int]]) -> np.ndarray:
    line = np.zeros(SIZE, dtype=bool)
    for begin, end in intervals:
        line[begin:end] = True
    return line


def assert_canonical(intervals: list[tuple[int, int]], gaps: bool) -> None:
    flat = [moment for interval in intervals for moment in interval]
    assert flat == sorted(flat)
    assert all(begin < end for begin, end in intervals)
    if gaps:
        assert len(set(flat)) == len(flat)


@given(PAIRS)
def test_union_covers_the_same_moments(intervals: list[tuple[int, int]]) -> None:
    joined = union(intervals)
    assert_canonical(joined, gaps=True)
    np.testing.assert_array_equal(covered(joined), covered(intervals))
    assert length(joined) == covered(intervals).sum()


@given(PAIRS, PAIRS)
def test_intersection_is_the_common_moments(a: list[tuple[int, int]], b: list[tuple[int, int]]) -> None:
    shared = intersection(union(a), union(b))
    assert_canonical(shared, gaps=False)
    np.testing.assert_array_equal(covered(shared), covered(a) & covered(b))
    assert length(shared) == (covered(a) & covered(b)).sum()


@given(PAIRS)
def test_lanes_hold_every_span_once_and_no_crossing(intervals: list[tuple[int, int]]) -> None:
    spans = [Span(str(i), "compute", begin, end) for i, (begin, end) in enumerate(intervals)]
    rows = lanes(spans)
    assert sorted((s for row in rows for s in row), key=lambda s: int(s.name)) == spans
    for row in rows:
        for a in row:
            for b in row:
                assert not a.begin_ns < b.begin_ns < a.end_ns < b.end_ns


def test_crossing_spans_take_two_lanes_and_nested_ones_one() -> None:
    crossing = [Span("a", "compute", 0, 10), Span("b", "compute", 5, 15)]
    assert lanes(crossing) == [[crossing[0]], [crossing[1]]]
    nested = [Span("a", "compute", 0, 10), Span("b", "compute", 5, 10), Span("c", "compute", 10, 12)]
    assert lanes(nested) == [nested]
