"""What the doctor finds, as records, as text and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

FindingState = Literal["ok", "note", "warning", "failure"]
MARKS: dict[FindingState, str] = {"ok": "  ", "note": "  ", "warning": "! ", "failure": "X "}


@dataclass(frozen=True)
class Finding:
    """One line: where it belongs, what was looked at, what was seen, and whether a run can live with it.

    Attributes:
        state: ok; note (optional, or only worth knowing); warning (a run starts, and may suffer); failure (it cannot).
        value: what was seen, in words and units.
        data: the same as numbers, for programs.
    """

    section: str
    name: str
    value: str
    state: FindingState = "ok"
    data: Any = None


def exit_code(findings: Sequence[Finding]) -> int:
    """0 when a run could start, 1 when something that it needs is broken."""
    return 1 if any(found.state == "failure" for found in findings) else 0


def as_text(findings: Sequence[Finding]) -> str:
    """Sections with a line a finding; `!` marks warnings and `X` failures, and the last line counts both."""
    width = max((len(found.name) for found in findings), default=0)
    lines, section = [], None
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
    """One object: whether a run could start, and every finding."""
    return json.dumps({"ok": exit_code(findings) == 0, "findings": [asdict(found) for found in findings]})
