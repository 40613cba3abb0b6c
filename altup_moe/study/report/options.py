"""Options of `altup-moe study report`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from altup_moe.config import ConfigError


@dataclass(frozen=True)
class ReportOptions:
    """The page of a study: quality against cost, speed at equal quality, loss curves, experts' load, what failed.

    Exit code 0; 2 for a value that cannot be or rows that cannot be read.
    """

    directory: Path
    """A study's directory: rows.jsonl, and study.yaml if it is there."""
    out: Path | None = None
    """Directory for the files; DIRECTORY/report if not given."""
    reference: str = "dense"
    """Family whose curve gives the speed at equal quality."""
    bootstrap: int = 2000
    """Draws of an interval."""
    seed: int = 0
    """Of the draws."""
    json: bool = False
    """Print one JSON object."""


def check_options(options: ReportOptions) -> None:
    """Raise ConfigError for a number that cannot be."""
    if options.bootstrap < 100:
        raise ConfigError("bootstrap", options.bootstrap, "100 or more would fit: the ends are 2.5 % of the draws")
    if options.seed < 0:
        raise ConfigError("seed", options.seed, "0 or more would fit")
