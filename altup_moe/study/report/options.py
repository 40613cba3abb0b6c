"""Options of `altup-moe study report`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

REFERENCE = "dense"
DRAWS = 1000


@dataclass(frozen=True)
class ReportOptions:
    """The page of a study: quality against cost, speed at equal quality, loss curves, experts' load, what failed; of a
    ladder also its law, tuning and multipliers.

    Exit code 0; 2 for a value that cannot be or rows that cannot be read.
    """

    directory: Path
    """A study's directory: rows.jsonl, and study.yaml if it is there."""
    out: Path | None = None
    """Directory for the files; DIRECTORY/report if not given."""
    reference: str = REFERENCE
    """Family that others are compared with; its curve gives the speed at equal quality."""
    shared: bool = False
    """Of a ladder: families share E, alpha and beta of its law, as in `altup-moe study law`."""
    draws: int = DRAWS
    """Of a ladder: draws of the bootstrap over runs, for the intervals of its law."""
    json: bool = False
    """Print one JSON object."""
