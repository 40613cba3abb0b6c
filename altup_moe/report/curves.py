"""Curves as they are drawn: colours, dashes, and long curves averaged in bins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

COLOURS, MARKS, DASHES = 7, 6, 6
"""Numbers of colours, marks and dashes of `drawing.js` and `page.css`."""
BINS = 150
"""The most points of a drawn curve; longer curves are averaged in bins."""

Point = TypeVar("Point")


def binned(points: Sequence[Point], bins: int = BINS) -> list[Sequence[Point]]:
    """Cut a curve in at most `bins` runs of neighbours, as equal as they can be (the last may be shorter)."""
    size = -(-len(points) // bins)
    return [points[i : i + size] for i in range(0, len(points), size)] if points else []
