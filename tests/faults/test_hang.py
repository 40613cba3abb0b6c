"""Hangs: a rank stands still or has left its way. One report names it and its operation, and all end with 77."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from altup_moe.config.exit_codes import EXIT_HUNG
from altup_moe.launch import netlab
from tests.faults.hanging import ABSENT, STEP
from tests.faults.hangs import PATIENCE, hanging, hanging_programs, hanging_run
from tests.processes import running

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(700)]

NO_NETLAB = netlab.unavailable()
FIRST = (
    r"all-reduce of float64 \[1\], group data \(number \d+\), called at altup_moe/train/routing.py:\d+ in begin_step"
)
"""The first operation of a step of this run, as a pattern."""
STOPPED = rf"its process is stopped \(SIGSTOP or a debugger\); it has not come to {FIRST}"
Saw = Callable[[float, int, str], None]


def meet(directory: Path, fault: str, victim: int, words: str, start: Any = hanging) -> tuple[float, str]:
    """Let a rank meet a fault, and check report, exit codes and what is left.

    Args:
        words: pattern of what the line about the rank says.
    Returns:
        Seconds from the last step to the end, and all that was printed.
    """
    with start(directory, fault, victim) as ranks:
        codes = ranks.codes()
        seconds = time.time() - (Path(ranks.config.log.run_dir) / "metrics.jsonl").stat().st_mtime
        text, report = ranks.text(), ranks.hang()
    assert codes[1 - victim] == EXIT_HUNG
    # A rank whose interpreter's lock is held cannot exit; it is killed.
    assert codes[victim] == (-signal.SIGKILL if fault == "interpreter" else EXIT_HUNG)
    (line,) = [line for line in text.splitlines() if line.startswith(f"  rank {victim} on ")]
    assert re.search(words, line)
    assert text.count("altup-moe: hang") == 1
    assert f"hang after step {STEP}" in text
    assert f"rank {1 - victim}: in " in text
    assert text[text.index("altup-moe: hang") :].splitlines()[0] == report.splitlines()[0]
    assert report.count("Python stacks") == 2
    assert "hanging.py" in report.partition(f"\nrank {victim} on ")[2].partition("Python stacks")[2]
    return seconds, text


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        pytest.param("stop", STOPPED, marks=pytest.mark.fault("stop-rank")),
        pytest.param(
            "skip",
            r"skipped all-reduce of float64 .* altup_moe/train/step.py:\d+ in _label_weight, which rank 0 did",
            marks=pytest.mark.fault("skipped-collective"),
        ),
        pytest.param(
            "lock", f"in lock, called from .*; it has not come to {FIRST}", marks=pytest.mark.fault("python-deadlock")
        ),
    ],
)
def test_the_rank_and_its_operation_are_named(fault: str, words: str, tmp_path: Path, saw: Saw) -> None:
    seconds, text = meet(tmp_path, fault, 1, words)
    saw(seconds, EXIT_HUNG, text)


def test_the_rank_of_the_store_is_named(tmp_path: Path) -> None:
    meet(tmp_path, "stop", 0, STOPPED, hanging_programs)


def test_a_rank_that_keeps_the_interpreters_lock_is_named(tmp_path: Path) -> None:
    meet(tmp_path, "interpreter", 1, "its Python does not answer: a thread holds the interpreter's lock")


@pytest.mark.fault("link-down")
@pytest.mark.skipif(NO_NETLAB is not None, reason=str(NO_NETLAB))
@pytest.mark.usefixtures("signals_are_heard")
def test_a_link_that_is_down_is_told_from_a_rank_that_is_late(
    tmp_path: Path, saw: Saw, capfd: pytest.CaptureFixture[str]
) -> None:
    config = hanging_run(tmp_path)
    command = [sys.executable, "-m", "tests.faults.hanging", "link", "1", json.dumps(config.to_dict())]
    assert netlab.run_on_netlab(2, None, command, timeout=PATIENCE) == EXIT_HUNG
    seconds = time.time() - (Path(config.log.run_dir) / "metrics.jsonl").stat().st_mtime
    text = capfd.readouterr().err
    # The launcher repeats it.
    assert re.search(f"a link is down: all of ranks 0, 1 are in {FIRST}, and nothing arrives", text)
    assert not running(tmp_path)
    saw(seconds, EXIT_HUNG, text)


def test_a_rank_that_never_arrives_is_named(tmp_path: Path) -> None:
    with hanging_programs(tmp_path, ABSENT, 1, ranks=1) as ranks:
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
        waiting.join(PATIENCE)
        assert [process.exitcode for process in ranks.processes] == [-signal.SIGTERM, None]


def test_a_run_without_faults_leaves_nothing_of_its_watchdog(tmp_path: Path) -> None:
    with hanging(tmp_path, "stop", -1) as ranks:
        ranks.wait_for_steps(ranks.config.train.steps)
        deadline = time.monotonic() + PATIENCE
        while (watchers := running(tmp_path)) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not watchers
        assert not (Path(ranks.config.log.run_dir) / "watchdog").exists()
