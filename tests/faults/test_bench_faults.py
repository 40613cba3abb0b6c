"""`bench faults` for half a minute: killed ranks and launchers cost time and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from altup_moe.bench.faults.processes import of_run

ROOT = Path(__file__).parents[2]
KINDS = ["kill-rank", "kill-launcher"]

pytestmark = [pytest.mark.distributed, pytest.mark.slow, pytest.mark.usefixtures("signals_are_heard")]


def test_two_kills_cost_time_and_nothing_else(tmp_path: Path) -> None:
    words = ["--minutes", "0.3", "--every", "6", "--kinds", *KINDS, "--save-interval", "5", "--json"]
    argv = [sys.executable, "-m", "altup_moe", "bench", "faults", *words, "--directory", str(tmp_path / "bench")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    run, quiet = found["run"], found["quiet"]
    assert len(run["faults"]) == 2
    assert {one.partition(" of ")[0] for one in run["faults"]} == set(KINDS)
    assert (run["records"]["lost"], run["records"]["repeated"], run["orphans"]) == (0, 0, 0)
    assert run["records"]["differing"] == 0
    assert found["first_difference"] is None
    assert quiet["records"]["steps"] == run["records"]["steps"] > 10
    # What was done again is what the outages say was lost; a line that the kill has cut is in neither.
    assert abs(run["lost_steps"] - run["records"]["redone"]) <= len(run["outages"])
    assert all(outage["ended"] and outage["seconds"]["restart"] > 0 for outage in run["outages"])
    assert 0 < run["goodput"] < quiet["goodput"]
    assert of_run(tmp_path / "bench" / "disk" / "run") == of_run(tmp_path / "bench" / "quiet") == []
