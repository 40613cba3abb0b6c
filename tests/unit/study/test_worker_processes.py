"""Processes of a study: they die with it, and say why they failed."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
import yaml

from altup_moe.parallel import parent_death
from altup_moe.study.folder import Place
from altup_moe.study.spec import load_study
from altup_moe.study.worker_processes import command, reason
from launch.cluster import start_time
from tests.processes import started
from tests.unit.study.test_study_spec import SMALL

# Starts a sleeper as a study starts its children, writes its pid down and sleeps too.
PARENT = """
import os, pathlib, subprocess, sys, time
child = subprocess.Popen([sys.executable, sys.argv[1], str(os.getpid()), sys.executable, "-c", sys.argv[3]],
                         start_new_session=True)
file = pathlib.Path(sys.argv[2])
file.with_suffix(".new").write_text(str(child.pid))
file.with_suffix(".new").rename(file)
time.sleep(60)
"""
SLEEPER = "import pathlib, time; pathlib.Path({ready!r}).touch(); time.sleep(60)"


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_child_is_killed_when_its_study_is(tmp_path: Path) -> None:
    file, ready = tmp_path / "pid", tmp_path / "ready"
    words = [str(parent_death.__file__), str(file), SLEEPER.format(ready=str(ready))]
    with started([sys.executable, "-c", PARENT, *words]) as parent:
        wait_for(file)
        wait_for(ready)
        child = int(file.read_text())
        assert start_time(child) is not None
        parent.kill()
        parent.wait()
        deadline = time.monotonic() + 10
        while start_time(child) is not None:
            assert time.monotonic() < deadline, "it lives on"
            time.sleep(0.005)


def test_ranks_are_started_by_the_row_s_launcher(tmp_path: Path) -> None:
    pair = {"name": "pair", "set": {"ranks": 2}}
    lab = {"name": "lab", "set": {"ranks": 2, "launcher": "netlab", "rate": "9mbit"}}
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump({**SMALL, "seeds": [1], "rows": [{"name": "alone"}, pair, lab]}))
    alone, two, network = (command(["train", "{}", "x"], row) for row in load_study(file).rows)
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
    place = Place(tmp_path)
    if written:
        place.failure.write_text(written)
    place.log.write_text(printed)
    assert reason(code, place, place.log) == says
