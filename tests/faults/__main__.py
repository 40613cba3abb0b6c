"""`python -m tests.faults [pytest options]`: inject every fault of the table, and write docs/results/faults.md."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from altup_moe.parallel.machine import processor, usable_cores
from tests.faults.marks import marked_tests
from tests.faults.page import PAGE, text
from tests.faults.promises import FAULTS
from tests.faults.seen import VARIABLE, read, slowest


def main(options: list[str]) -> int:
    """Run the tests of all faults and write the page. Returns pytest's exit code; the page is written only after 0."""
    root = PAGE.parents[2]
    tests = sorted({one.test for one in marked_tests()})
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "seen.jsonl"
        file.touch()
        argv = [sys.executable, "-m", "pytest", "-m", "fault", *options, *tests]
        code = subprocess.run(argv, cwd=root, env={**os.environ, VARIABLE: str(file)}).returncode
        seen = slowest(read(file))
    missing = [one.key for one in FAULTS if one.key not in seen]
    if missing:
        print(f"no test reported {', '.join(missing)}", file=sys.stderr)
    if code == 0:
        commit = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=root, capture_output=True, text=True)
        machine = f"{processor()}, {usable_cores()} cores"
        PAGE.write_text(text(seen, machine, commit.stdout.strip() or "unknown"), encoding="utf-8")
        print(f"wrote {PAGE.relative_to(root)}: {len(FAULTS) - len(missing)} of {len(FAULTS)} faults")
    return code


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
