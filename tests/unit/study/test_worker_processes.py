"""Processes of a study's rows: their command lines, and why one failed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml

from altup_moe.study.read_study import load_study
from altup_moe.study.study_directory import RowDirectory
from altup_moe.study.worker_processes import failure_reason, worker_command
from tests.unit.study.test_study_spec import SMALL


def test_ranks_are_started_by_the_row_s_launcher(tmp_path: Path) -> None:
    pair = {"name": "pair", "set": {"ranks": 2}}
    lab = {"name": "lab", "set": {"ranks": 2, "launcher": "netlab", "rate": "9mbit"}}
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump({**SMALL, "seeds": [1], "rows": [{"name": "alone"}, pair, lab]}))
    alone, two, network = (worker_command(["train", "{}", "x"], row) for row in load_study(file).rows)
    child = [sys.executable, "-m", "altup_moe.study.worker_main", "train", "{}", "x"]
    assert alone == child
    assert two[-9:] == ["--ranks-per-node", "2", "--", *child]
    assert network[-11:] == ["--nodes", "2", "--rate", "9mbit", "--", *child]


@pytest.mark.parametrize(
    ("code", "written", "printed", "says"),
    [
        (1, "ConfigError: too long\n", "rank 1 ended with exit code 1", "ConfigError: too long"),
        (-9, None, "step 3", "killed by signal 9"),
        (137, None, "step 3", "killed by signal 9"),
        (1, None, "Traceback\nRuntimeError: no\n\n", "RuntimeError: no"),
        (3, None, "", "exit code 3"),
    ],
)
def test_a_failure_s_reason_is_one_line(
    tmp_path: Path, code: int, written: str | None, printed: str, says: str
) -> None:
    row_directory = RowDirectory(tmp_path)
    if written:
        row_directory.failure.write_text(written)
    row_directory.log.write_text(printed)
    assert failure_reason(code, row_directory, row_directory.log) == says
