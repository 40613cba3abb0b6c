"""Sets of time as sorted, disjoint, half-open intervals [begin, end) in ns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from altup_moe.timeline.records import Span

Intervals = list[tuple[int, int]]


def union(intervals: Iterable[tuple[int, int]]) -> Intervals:
    """The union of intervals in any order: sorted and disjoint. Touching intervals are joined, empty ones dropped."""
    joined: Intervals = []
    for begin, end in sorted(intervals):
        if begin >= end:
            continue
        if joined and begin <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((begin, end))
    return joined


def intersection(a: Sequence[tuple[int, int]], b: Sequence[tuple[int, int]]) -> Intervals:
    """The intersection of two unions, as a union."""
    shared: Intervals = []
    i = j = 0
    while i < len(a) and j < len(b):
        begin, end = max(a[i][0], b[j][0]), min(a[i][1], b[j][1])
        if begin < end:
            shared.append((begin, end))
        # The interval that ends first cannot intersect any later one.
        if a[i][1] <= b[j][1]:
            i += 1
        else:
            j += 1
    return shared


def length(intervals: Iterable[tuple[int, int]]) -> int:
    """Total ns of disjoint intervals."""
    return sum(end - begin for begin, end in intervals)


def lanes(spans: Iterable[Span]) -> list[list[Span]]:
    """Distribute spans over rows greedily, so that the spans of a row are disjoint or nested.

    Spans that cross each other (two halves of a micro-batch, two exchanges in flight) cannot be drawn in one row.
    """
    rows: list[list[Span]] = []
    open_ends: list[list[int]] = []
    for span in sorted(spans, key=lambda s: (s.begin_ns, -s.end_ns)):
        for row, ends in zip(rows, open_ends, strict=True):
            while ends and ends[-1] <= span.begin_ns:
                ends.pop()
            if not ends or span.end_ns <= ends[-1]:
                row.append(span)
                ends.append(span.end_ns)
                break
        else:
            rows.append([span])
            open_ends.append([span.end_ns])
    return rows
