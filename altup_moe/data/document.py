"""A document: the unit that is tokenised, shuffled and held out."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Document:
    """One text and its origin.

    Args:
        source: origin of the text for error messages, e.g. ``python-docs:assert`` or ``/data/a.jsonl row 7``.
        text: the text itself, non-empty.
    """

    source: str
    text: str
