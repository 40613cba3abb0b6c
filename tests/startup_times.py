"""Print how long commands take to say their help or a mistake: `python -m tests.startup_times`.

Each command line is run five times in a new interpreter, one at a time; wall seconds and CPU seconds are medians. The
goals: the overview below 0.3 s, a mistake of any command below 1 s, on a quiet machine.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
REPEATS = 5
LINES = (
    ["--help"],
    ["train", "--help"],
    ["train", "quickstart", "--train.stepz", "3"],
    ["evaluate", "runs/none", "--sample", "3"],
    ["generate", "runs/none"],
    ["doctor", "--ports", "3"],
    ["bench", "mixin"],
    ["show", "runs/none", "--outptu", "x"],
    ["study", "run", "quick_pareto", "--job", "2"],
    ["plan", "quickstart", "--node", "2"],
    ["prepare-data", "a", "b", "--vocab", "9"],
    ["convert", "import", "a", "b", "--seq-lenght", "3"],
    ["reshard", "a", "b", "--tensors", "2"],
    ["inspect", "a", "--verfy"],
    ["grow", "a", "b", "--altup.widht", "4"],
    ["recipe", "paper_tiny", "--job", "2"],
    ["launch", "torchrun", "--rank-per-node", "2", "--", "true"],
    ["configs", "quikstart"],
)


def timed(words: Sequence[str]) -> tuple[float, float, int]:
    """(wall seconds, CPU seconds, exit code) of one command line."""
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-m", "altup_moe", *words], env=env, capture_output=True, check=False)
    wall, after = time.monotonic() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.returncode


def main() -> None:
    """Print a line for each command line."""
    for words in LINES:
        runs = [timed(words) for _ in range(REPEATS)]
        wall, cpu = (statistics.median(run[place] for run in runs) for place in (0, 1))
        print(f"{wall:6.2f} s  {cpu:6.2f} s CPU  exit code {runs[0][2]}  altup-moe {' '.join(words)}", flush=True)


if __name__ == "__main__":
    main()
