"""kill -9 of a whole study at three moments: the same command goes on, to the rows of a study that was left alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from altup_moe.study.records import StudyRow, read_rows
from tests.processes import running, started
from tests.tiny import TINY_SIZES

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.distributed, pytest.mark.usefixtures("signals_are_heard")]

STUDY = {
    "base": {
        "model": TINY_SIZES,
        "altup": {"width": 1},
        "optim": {"warmup_steps": 2},
        "train": {"micro_batch_size": 2, "global_batch_size": 4, "eval_interval": 20, "eval_samples": 8},
        "checkpoint": {"save_interval": 5},
    },
    "seeds": [1],
    "budget": {"tokens": 40 * 128},
    "rows": [
        {"name": "moe", "set": {"altup.width": 2, "moe.num_experts": 4, "moe.capacity_factor": 1.0}},
        # Refused by the ranks: no text is that long.
        {"name": "too-long", "set": {"model.seq_length": 10_000_000, "train.global_batch_size": 2}},
        {"name": "dense"},
    ],
    "measure": {"train_steps": 2, "warmup": 1, "rounds": 1, "prompts": 2, "decode_tokens": 2},
}


def command(directory: Path, name: str) -> list[str]:
    file = directory / "small.yaml"
    cached = {**STUDY["base"], "data": {"cache": str(directory / "tokens")}}
    file.write_text(yaml.safe_dump({**STUDY, "base": cached}, sort_keys=False))
    tool = [sys.executable, str(ROOT / "tools" / "study.py"), "run", str(file)]
    return [*tool, "--dir", str(directory / name)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def untimed(rows: list[StudyRow]) -> list[StudyRow]:
    """Rows in order of their names, without what a clock, the memory's use or an edit of the checkout decides."""
    assert all((row.latency is not None) == (row.status == "done") for row in rows)
    bare = (replace(row, latency=None, train_seconds=None, commit="") for row in rows)
    return sorted(bare, key=lambda row: row.name)


def killed_at(directory: Path, moment: Callable[[], bool]) -> None:
    """Start the study, kill it at a moment, and see that nothing of it stays."""
    with started(command(directory, "cut"), env=environment(), stdout=subprocess.DEVNULL) as study:
        deadline = time.monotonic() + 400
        while not moment():
            assert study.poll() is None, "it ended before it was killed"
            assert time.monotonic() < deadline
            time.sleep(0.002)
        os.kill(study.pid, signal.SIGKILL)
        study.wait()
        deadline = time.monotonic() + 10
        while left := running(directory / "cut"):
            assert time.monotonic() < deadline, f"processes {left} outlive the study"
            time.sleep(0.02)


def steps_of(directory: Path, row: str) -> int:
    files = list((directory / "cut" / "rows").glob(f"{row}-s1-*/run/metrics.jsonl"))
    return files[0].read_bytes().count(b"\n") if files else 0


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_study_killed_three_times_ends_as_one_left_alone(tmp_path: Path) -> None:
    whole = subprocess.run(command(tmp_path, "whole"), env=environment(), capture_output=True, text=True)
    assert whole.returncode == 1, whole.stdout + whole.stderr
    lines = tmp_path / "cut" / "rows.jsonl"
    killed_at(tmp_path, lambda: steps_of(tmp_path, "moe") >= 13)
    killed_at(tmp_path, lambda: steps_of(tmp_path, "dense") >= 22)
    # The third: while the models are measured, a line cut short by the machine's end added.
    killed_at(tmp_path, lambda: (tmp_path / "cut" / "measure.txt").exists())
    before = lines.read_text()
    lines.write_text(before + before[: len(before) // 2].rstrip("\n"))
    end = subprocess.run(command(tmp_path, "cut"), env=environment(), capture_output=True, text=True)
    assert end.returncode == 1, end.stdout + end.stderr
    alone, cut = (untimed(read_rows(tmp_path / name / "rows.jsonl")) for name in ("whole", "cut"))
    assert [json.loads(row.line()) for row in cut] == [json.loads(row.line()) for row in alone]
    assert [(row.name, row.status) for row in cut] == [("dense", "done"), ("moe", "done"), ("too-long", "failed")]
    assert "model.seq_length=10000000" in str(cut[2].reason)
    assert cut[1].experts is not None
    assert cut[1].experts.dropped_share > 0
    # Nothing is done twice: the last process of a row that was cut went on.
    assert "going on from step" in next((tmp_path / "cut" / "rows").glob("moe-*/log.txt")).read_text()
    again = subprocess.run(command(tmp_path, "cut"), env=environment(), capture_output=True, text=True)
    assert (again.returncode, lines.read_text().count("\n")) == (1, 3)
