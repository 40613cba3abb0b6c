"""A node of a netlab that is slow, and one whose link is: both are named by a run that trains on."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from altup_moe.bench.faults import inject as faults
from altup_moe.bench.faults.available import left_out
from altup_moe.bench.faults.commands import train_command
from altup_moe.bench.faults.schedule import Planned
from altup_moe.bench.options import FaultKind, FaultsBench
from altup_moe.launch import netlab
from tests.processes import running, started

Saw = Callable[[float, int, str], None]
NO_NETLAB = netlab.unavailable()
NO_CGROUP = left_out(nodes=True).get("slow-rank")
PATIENCE = 110.0
"""Seconds after which a test fails; not a figure."""

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.slow,
    pytest.mark.usefixtures("signals_are_heard"),
    pytest.mark.skipif(NO_NETLAB is not None, reason=str(NO_NETLAB)),
]


def records(run_dir: Path) -> list[dict[str, Any]]:
    """Whole lines of metrics so far."""
    file = run_dir / "metrics.jsonl"
    lines = file.read_bytes().split(b"\n")[:-1] if file.is_file() else []
    return [json.loads(line) for line in lines]


def wait_for(run_dir: Path, key: str, console: Path) -> list[dict[str, Any]]:
    """Records that have a key, once there is one."""
    deadline = time.monotonic() + PATIENCE
    while not (found := [one for one in records(run_dir) if key in one]):
        assert time.monotonic() < deadline, f"no {key}: {records(run_dir)[-3:]} {console.read_text()[-2000:]}"
        time.sleep(0.05)
    return found


@pytest.mark.parametrize(
    ("kind", "names", "score", "says"),
    [
        pytest.param(
            "slow-rank",
            {"slow_rank": 1},
            "slowest_score",
            "slow rank 1 (",
            id="slow-rank",
            marks=[pytest.mark.fault("slow-rank"), pytest.mark.skipif(NO_CGROUP is not None, reason=str(NO_CGROUP))],
        ),
        pytest.param(
            "slow-link",
            {"slow_link_sender": 1, "slow_link_receiver": 0},
            "slowest_link_score",
            "slow link from rank 1 to rank 0 (",
            id="slow-link",
            marks=pytest.mark.fault("slow-link"),
        ),
    ],
)
def test_the_slow_one_is_named_and_training_goes_on(
    kind: FaultKind,
    names: dict[str, int],
    score: str,
    says: str,
    tmp_path: Path,
    saw: Saw,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(faults, "SLOW_LINK", "40mbit")  # a step's own exchanges pass it too
    run_dir, console = tmp_path / "run", tmp_path / "console.txt"
    options = replace(FaultsBench(), nodes=True, ranks=2, save_interval=1000)
    words = [*train_command(options, run_dir, tmp_path / "tokens"), "--log.straggler_interval", "5"]
    with open(console, "wb") as output, started(words, stdout=output, stderr=output) as launcher:
        wait_for(run_dir, score, console)
        injected = faults.inject(Planned(0.0, kind, 0.9, 0.0), faults.Target(launcher.pid, run_dir, tmp_path))
        assert injected is not None
        assert injected.undo is not None
        began = time.monotonic()
        try:
            named = wait_for(run_dir, next(iter(names)), console)[-1]
            seconds = time.monotonic() - began
        finally:
            injected.undo()
        assert {key: named.get(key) for key in names} == names
        assert named[score] > 1.5
        launcher.send_signal(signal.SIGTERM)
        code = launcher.wait(PATIENCE)
    assert not running(run_dir)
    text = console.read_text()
    assert says in text
    saw(seconds, code, next(line for line in text.splitlines() if says in line))
