"""docs/results/faults.md: the table of promises beside what the tests saw, and back from its rows."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from docs.generate.markdown import cell, table
from tests.faults.promises import FAULTS
from tests.faults.seen import Seen

PAGE = Path(__file__).parents[2] / "docs" / "results" / "faults.md"
COMMAND = "python -m tests.faults"
HEAD = ("fault", "injected how", "promise", "seconds", "exit code", "last line")
WRITTEN = f"<!-- Written by `{COMMAND}`; edit tests/faults/promises.py, not this file. -->"


def rows(seen: Mapping[str, Seen]) -> list[list[str]]:
    """Cells of the table's rows; of a fault that no test has reported, the last three are empty."""
    found = []
    for one in FAULTS:
        held = seen.get(one.key)
        fixed = [cell(text) for text in (one.fault, one.injected, one.promise)]
        measured = [f"{held.seconds:.1f}", str(held.code), _line(held.last_line)] if held else ["", "", ""]
        found.append([*fixed, *measured])
    return found


def text(seen: Mapping[str, Seen], machine: str, commit: str) -> str:
    """The page."""
    kept = sum(one.key in seen for one in FAULTS)
    lines = [
        "# Faults",
        "",
        f"Each of these faults is injected by a test. {kept} of {len(FAULTS)} promises were kept in the run of these",
        "tests that wrote this page.",
        "",
        "<!-- not run: minutes, and some tests need root -->",
        "```bash",
        COMMAND,
        "```",
        "",
        *table(HEAD, rows(seen), right=(3, 4)),
        "",
        "Seconds are from the fault to the end of the run, or to the line that names the fault where training goes on.",
        "Tests set short timeouts (`train.hang_timeout`, `--rdzv-timeout`). Of several cases of a fault the slowest is",
        "shown. Paths are shortened to `...`.",
        "",
        f"Hardware: {machine}. Commit: {commit}.",
        "",
        "What each fault means for a user: [Faults](../guides/faults.md).",
        "",
        WRITTEN,
    ]
    return "\n".join(lines) + "\n"


def read_rows(page: str) -> list[list[str]]:
    """Cells of the rows of a page."""
    lines = [line for line in page.splitlines() if line.startswith("| ")][2:]
    return [[part.strip() for part in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def _line(last: str) -> str:
    """A line as a cell of code, without the machine's directories and too long a tail."""
    short = re.sub(r"(?<![\w.])/(?:[\w.+-]+/)+", ".../", last)
    short = short if len(short) <= 160 else short[:157] + "..."
    # A cell of code shows < as it is.
    return f"`{short.replace('`', chr(39)).replace('|', chr(92) + '|')}`" if short else ""
