"""Numbers and columns as text."""

from __future__ import annotations

import math
from collections.abc import Sequence


def count(number: float | None) -> str:
    """A number with three digits and a unit, as in 12.3M."""
    if number is None:
        return "-"
    rounded = float(f"{number:.3g}")
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if rounded >= size:
            return f"{rounded / size:g}{unit}"
    return f"{rounded:g}"


def digits(number: float) -> str:
    """Three significant digits, without an exponent."""
    if number == 0:
        return "0"
    return f"{number:,.{max(0, 2 - math.floor(math.log10(abs(number))))}f}"


def columns(rows: Sequence[Sequence[str]], left: int = 2) -> list[str]:
    """Align the cells of rows: the first `left` columns and the last to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    found = []
    for row in rows:
        cells = [
            cell.ljust(width) if i < left or i == len(row) - 1 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        found.append("  ".join(cells).rstrip())
    return found


def duration(seconds: float) -> str:
    """A time in its two largest units, as in 3 h 12 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{digits(seconds)} s"
    for unit, size, smaller, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size:
            rest = whole % size // part
            return f"{whole // size} {unit}" + (f" {rest} {smaller}" if rest else "")
    raise AssertionError("a minute is the smallest")
