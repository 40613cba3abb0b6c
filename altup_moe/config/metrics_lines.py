"""Read metrics.jsonl. A crash or a disk may have damaged lines of it: the others are read all the same."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class MetricsLine:
    """A line. ``number``: from 1; ``raw``: without its end; ``content``: the step's record, None if it is not one."""

    number: int
    raw: bytes
    content: dict[str, Any] | None

    @property
    def step(self) -> int | None:
        """The record's step."""
        return None if self.content is None else self.content["step"]


def split_metrics(raw: bytes) -> list[MetricsLine]:
    """The lines of a file that are not blank, in its order."""
    rows = enumerate(raw.split(b"\n"), start=1)
    return [MetricsLine(number, row, _record(row)) for number, row in rows if row.strip()]


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of steps that can be read, in the file's order; [] if there is no file."""
    try:
        raw = path.read_bytes()
    except OSError:
        return []
    return [line.content for line in split_metrics(raw) if line.content is not None]


def _record(row: bytes) -> dict[str, Any] | None:
    try:
        content = json.loads(row.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) and type(content.get("step")) is int else None
