"""Hangs: a rank stands still or has left its way. One report names it and its operation, and all end with 77."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from altup_moe.config.exit_codes import EXIT_HUNG
from tests.faults.hanging import STEP
from tests.faults.hangs import PATIENCE, hanging

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(400)]

LABELS = "all-reduce of float64 [1], group data (number 7), called at altup_moe/train/routing.py"
"""The first operation of a step of this run."""
FAULTS = {
    "stopped": ("stop", 1, "its process is stopped (SIGSTOP or a debugger); it has not come to " + LABELS),
    "the store's rank stopped": (
        "stop",
        0,
        "its process is stopped (SIGSTOP or a debugger); it has not come to " + LABELS,
    ),
    "skipped": (
        "skip",
        1,
        "skipped all-reduce of float64 [], group data (number 8), called at altup_moe/train/step.py",
    ),
    "a lock": ("lock", 1, "it has not come to " + LABELS),
    "the interpreter's lock": ("interpreter", 1, "its Python does not answer: a thread holds the interpreter's lock"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_the_rank_and_its_operation_are_named(name: str, tmp_path: Path) -> None:
    fault, victim, words = FAULTS[name]
    with hanging(tmp_path, fault, victim) as ranks:
        codes = ranks.codes()
        text, report = ranks.text(), ranks.hang()
    # A rank whose interpreter's lock is held cannot exit; it is killed.
    assert codes[1 - victim] == EXIT_HUNG
    assert codes[victim] == (-signal.SIGKILL if fault == "interpreter" else EXIT_HUNG)
    (line,) = [line for line in text.splitlines() if line.startswith(f"  rank {victim} on ")]
    assert words in line
    assert text.count("altup-moe: hang") == 1
    assert f"hang after step {STEP}" in text
    assert f"rank {1 - victim}: in " in text
    assert report.startswith(text[text.index("altup-moe: hang") :].splitlines()[0])
    assert report.count("Python stacks") == 2
    assert "hanging.py" in report.partition(f"rank {victim} on ")[2].partition("Python stacks")[2]


def test_a_rank_that_never_arrives_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with hanging(tmp_path, "stop", 1, ranks=1) as ranks:
        assert ranks.codes() == [EXIT_HUNG]
        text = ranks.text()
        assert "hang before the first step" in text
        assert "  rank 1: has not arrived" in text
        assert not ranks.left()


def test_a_second_signal_ends_a_rank_that_waits_in_gloo(tmp_path: Path) -> None:
    with hanging(tmp_path, "stop", 1, timeout=None) as ranks:
        ranks.wait_for_steps(STEP)
        waiting = ranks.processes[0]
        time.sleep(1)
        for _ in range(2):
            os.kill(waiting.pid, signal.SIGTERM)
            time.sleep(2.5)
        assert waiting.wait(PATIENCE) == -signal.SIGTERM
        assert ranks.processes[1].poll() is None


def test_a_run_without_faults_leaves_nothing_of_its_watchdog(tmp_path: Path) -> None:
    with hanging(tmp_path, "stop", -1) as ranks:
        assert ranks.codes() == [0, 0]
        assert not ranks.left()
        assert not (Path(ranks.config.log.run_dir) / "watchdog").exists()
