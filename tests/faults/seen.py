"""What fault tests saw: one JSON line each, in the file that $FAULTS_SEEN names."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.faults.promises import BY_KEY

VARIABLE = "FAULTS_SEEN"


@dataclass(frozen=True)
class Seen:
    """One fault as a test saw it: seconds from the fault to the promise kept, exit code, last line that was printed."""

    key: str
    seconds: float
    code: int
    last_line: str


def note(key: str, seconds: float, code: int, text: str) -> Seen:
    """Check an exit code against the table, and add what was seen to $FAULTS_SEEN if that is set.

    Args:
        seconds: from the fault to the end of the run, or to the line that names the fault where training goes on.
        code: exit code; a number below 0 is that of a signal, as `subprocess` gives it.
        text: all that was printed; its last line goes on the page.
    """
    shell = 128 - code if code < 0 else code
    fits = BY_KEY[key].codes
    assert shell in fits, f"{key}: exit code {shell}; {' or '.join(map(str, fits))} is promised\n{text[-2000:]}"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    seen = Seen(key, round(seconds, 1), shell, lines[-1] if lines else "")
    if file := os.environ.get(VARIABLE):
        with open(file, "a", encoding="utf-8") as out:
            out.write(json.dumps(asdict(seen)) + "\n")
    return seen


def read(file: Path) -> list[Seen]:
    """All that a run of the tests has seen."""
    return [Seen(**json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]


def slowest(all_seen: Iterable[Seen]) -> dict[str, Seen]:
    """Of each fault what took longest: several tests, or cases of one, may inject the same."""
    found: dict[str, Seen] = {}
    for one in all_seen:
        if one.key not in found or one.seconds > found[one.key].seconds:
            found[one.key] = one
    return found
