"""Options of `altup-moe study report`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

REFERENCE = "dense"


@dataclass(frozen=True)
class ReportOptions:
    """The page of a study: quality against cost, speed at equal quality, loss curves, experts' load, what failed.

    Exit code 0; 2 for a value that cannot be or rows that cannot be read.
    """

    directory: Path
    """A study's directory: rows.jsonl, and study.yaml if it is there."""
    out: Path | None = None
    """Directory for the files; DIRECTORY/report if not given."""
    reference: str = REFERENCE
    """Family that others are compared with; its curve gives the speed at equal quality."""
    json: bool = False
    """Print one JSON object."""
