"""A section of a dry run: lines for people, and the same as figures for --json."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

INDENT = 15
"""Width of the column of names."""


@dataclass(frozen=True)
class Section:
    """``name``: printed before the first line, and the key in the JSON object unless ``key`` is another."""

    name: str
    lines: list[str]
    figures: dict[str, Any]
    key: str = ""

    def text(self) -> Iterator[str]:
        """The lines as they are printed."""
        for number, line in enumerate(self.lines):
            yield f"{'' if number else self.name:<{INDENT}}{line}".rstrip()


def spelled_duration(seconds: float) -> str:
    """A time in the unit in which it is easily read: 12 s, 3.5 min, 2.1 h, 1.5 days."""
    if seconds < 90:
        return f"{seconds:.3g} s"
    minutes = seconds / 60
    if minutes < 90:
        return f"{minutes:.1f} min"
    return f"{minutes / 60:.1f} h" if minutes < 48 * 60 else f"{minutes / 60 / 24:.1f} days"
