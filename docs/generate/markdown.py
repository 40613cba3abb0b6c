"""Pieces of Markdown that the generated pages share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

WRITTEN = "<!-- Written by `python -m docs.generate`; edit the code that it names, not this file. -->"
"""Last line of a generated page: the first is its title, which the site reads."""


def cell(text: str) -> str:
    """A text as a cell of a table: one line, without a character that would end the cell or open a tag."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def table(head: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[int] = ()) -> list[str]:
    """Lines of a table; cells are Markdown already. `right`: columns that are aligned to the right."""
    rule = ["---:" if number in right else "---" for number in range(len(head))]
    return [f"| {' | '.join(line)} |" for line in (head, rule, *rows)]


def text_of(lines: Iterable[str]) -> str:
    """A page: these lines, and the last."""
    return "\n".join([*lines, "", WRITTEN]) + "\n"


def docstring(text: str | None) -> str:
    """A docstring as Markdown of one paragraph: ``code`` becomes `code`."""
    return " ".join((text or "").replace("``", "`").split())
