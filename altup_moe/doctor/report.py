"""Findings of the doctor as records, as text and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

FindingState = Literal["ok", "note", "warning", "failure"]
Section = Literal["versions", "devices", "network", "disk", "collectives"]
MARKS: dict[FindingState, str] = {"ok": "  ", "note": "  ", "warning": "! ", "failure": "X "}


@dataclass(frozen=True)
class Finding:
    """One checked item and its result.

    Attributes:
        state: ok; note (for information); warning (a run starts, but may suffer); failure (no run can start).
        value: the result in words and units.
        data: the result as numbers, for programs.
    """

    section: Section
    name: str
    value: str
    state: FindingState = "ok"
    data: Any = None


def exit_code(findings: Sequence[Finding]) -> int:
    """0 if a run could start, 1 if there is a failure."""
    return 1 if any(found.state == "failure" for found in findings) else 0


def as_text(findings: Sequence[Finding]) -> str:
    """One line for each finding, by section. `!` marks warnings, `X` failures; the last line counts both."""
    width = max((len(found.name) for found in findings), default=0)
    lines: list[str] = []
    section: Section | None = None
    for found in findings:
        if found.section != section:
            section = found.section
            lines.append(section)
        word = f"{found.state.upper()}: " if found.state in ("warning", "failure") else ""
        lines.append(f"{MARKS[found.state]}{found.name:<{width}}  {word}{found.value}")
    warnings, failures = (sum(found.state == state for found in findings) for state in ("warning", "failure"))
    verdict = "a run can start here" if not failures else "a run cannot start here"
    return "\n".join([*lines, f"{verdict}: {failures} failure(s), {warnings} warning(s)"])


def as_json(findings: Sequence[Finding]) -> str:
    """A JSON object: whether a run could start, and all findings."""
    return json.dumps({"ok": exit_code(findings) == 0, "findings": [asdict(found) for found in findings]})
