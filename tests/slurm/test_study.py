"""Studies whose rows are jobs of a real SLURM of two nodes: the rows of other launchers, none lost, none done twice."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
import yaml

from altup_moe.study.records import StudyRow, read_rows
from tests.processes import wait_until
from tests.slurm.cluster import ROOT, Cluster, reason
from tests.tiny import TINY_SIZES
from tests.two_nodes import NODES

REASON = reason()
STEPS = 80
BASE = {
    "model": TINY_SIZES,
    "altup": {"width": 1},
    "optim": {"warmup_steps": 2},
    "train": {"micro_batch_size": 2, "global_batch_size": 4, "eval_samples": 8},
    "checkpoint": {"save_interval": 5},
}
STUDY: dict[str, Any] = {
    "base": BASE,
    "seeds": [1],
    "budget": {"tokens": STEPS * 128},
    "ranks": 2,
    "launcher": "slurm",
    "cluster": {"poll_seconds": 1, "setup": ["module() { echo setup $1 $UNSET; }", "module load"]},
    "rows": [
        {"name": "dense"},
        {"name": "moe", "set": {"altup.width": 2, "moe.num_experts": 4, "moe.capacity_factor": 1.0}},
        {"name": "tuned", "after": "dense", "set": {"optim.learning_rate": 1.0e-4}},
        # Alone in its layout, it is measured at the end of its own job.
        {"name": "split", "set": {"altup.width": 2, "parallel.tensor": 2}},
    ],
    "measure": {"train_steps": 2, "warmup": 1, "rounds": 1, "prompts": 1, "decode_tokens": 2, "recorded": 0},
}

pytestmark = [
    pytest.mark.skipif(REASON is not None, reason=str(REASON)),
    pytest.mark.distributed,
    pytest.mark.slow,
    pytest.mark.timeout(2400),  # a very busy machine
]


def words(cluster: Cluster, name: str, *options: str, **changes: Any) -> list[str]:
    """The command that runs the study in the directory NAME."""
    file = cluster.directory / "small.yaml"
    base = {**BASE, "data": {"cache": str(cluster.directory / "tokens")}}
    file.write_text(yaml.safe_dump({**STUDY, "base": base, **changes}, sort_keys=False))
    own = [sys.executable, "-m", "altup_moe", "study", "run", str(file)]
    return [*own, "--dir", str(cluster.directory / name), *options]


def run_here(cluster: Cluster, argv: Sequence[str]) -> str:
    """A command on this machine to its end; what it prints."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(argv, cwd=cluster.directory, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def ended(cluster: Cluster, argv: Sequence[str], code: int = 0, during: Callable[[], None] | None = None) -> str:
    """A command on the login node to its end, while something else happens; what it prints."""
    process = cluster.nodes.start(*argv, env=cluster.environment())
    try:
        if during is not None:
            during()
        said = process.communicate(timeout=1200)[0]
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == code, said
    return said


def untimed(cluster: Cluster, name: str) -> list[dict[str, Any]]:
    """Lines in order of their names, without what a clock or the choice of the launcher decides."""
    rows: list[StudyRow] = sorted(read_rows(cluster.directory / name / "rows.jsonl"), key=lambda row: row.name)
    assert [row.status for row in rows] == ["done"] * len(rows), [row.reason for row in rows]
    assert all(row.latency is not None and row.latency.train_step.count == 2 for row in rows)
    return [json.loads(replace(row, latency=None, train_seconds=None, commit="").line()) for row in rows]


def figures(lines: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """What rows learned."""
    return [tuple(line[key] for key in ("name", "steps", "tokens", "quality", "curve", "experts")) for line in lines]


def steps(cluster: Cluster, study: str, row: str) -> list[int]:
    """Steps in a row's metrics."""
    files = list((cluster.directory / study / "rows").glob(f"{row}-s1-*/run/metrics.jsonl"))
    return [json.loads(line)["step"] for line in files[0].read_text().splitlines()] if files else []


def log_of(cluster: Cluster, study: str, row: str) -> str:
    return next((cluster.directory / study / "rows").glob(f"{row}-s1-*/log.txt")).read_text()


def in_training(cluster: Cluster, study: str, row: str) -> str:
    """Wait until a row has saved and trains on; the task that trains it."""
    wait_until(lambda: len(steps(cluster, study, row)) >= 12, f"steps of {row}", 1200)
    assert len(steps(cluster, study, row)) < STEPS, "it was too fast"
    for file in sorted((cluster.directory / study / "slurm").glob("*/batch.json"), reverse=True):
        batch = json.loads(file.read_text())
        keys = [each["key"] for each in batch["rows"]]
        index = next((n for n, key in enumerate(keys) if key.startswith(f"{row}-s1-")), None)
        if batch["kind"] == "train" and index is not None:
            return f"{file.with_name('job.txt').read_text().strip()}_{index}"
    raise AssertionError(f"no job of {row}")


def test_rows_are_jobs_and_a_client_that_was_stopped_finds_them_again(cluster: Cluster) -> None:
    rows = [STUDY["rows"][0], STUDY["rows"][2]]
    command = words(cluster, "short", rows=rows, budget={"tokens": 10 * 128})

    def interrupt() -> None:
        wait_until(
            lambda: len(list((cluster.directory / "short" / "slurm").glob("*/job.txt"))) == 3, "three jobs", 1200
        )
        (pid,) = (int(line) for line in cluster.run("pgrep", "-f", "altup_moe study run").split())
        cluster.run("kill", "-INT", str(pid))

    said = ended(cluster, command, 75, interrupt)
    assert re.search(r"jobs go on in SLURM: \d+_0 \d+_0 \d+_0;", said)
    assert re.search(r"measures dense seed 1, tuned seed 1, on 2 nodes, after \d+_0 \d+_0\n", said)
    said = ended(cluster, command)
    assert not re.search(r"job \d+ (trains|measures)", said)
    assert [line["name"] for line in untimed(cluster, "short")] == ["dense", "tuned"]
    assert (cluster.directory / "short" / "slurm" / "0001" / "out-0.txt").read_text().startswith("setup load")
    assert "0 failed" in ended(cluster, command)
    # From anywhere: the directory alone says it, where there is no SLURM.
    assert "2 of 2 rows done" in run_here(cluster, [*command[:4], "status", str(cluster.directory / "short")])


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster) -> list[dict[str, Any]]:
    """The rows of a study that is left alone."""
    said = ended(cluster, words(cluster, "whole"))
    assert said.count(" trains ") == 2
    assert len(re.findall(r"job \d+ measures dense seed 1, moe seed 1, tuned seed 1, on 2 nodes, after", said)) == 1
    assert said.count(" measures ") == 1
    return untimed(cluster, "whole")


@pytest.mark.long
def test_one_file_gives_the_same_losses_under_three_launchers(
    cluster: Cluster, undisturbed: list[dict[str, Any]]
) -> None:
    found = {"slurm": undisturbed}
    for launcher in ("torchrun", "netlab"):
        run_here(cluster, words(cluster, launcher, "--launcher", launcher))
        found[launcher] = untimed(cluster, launcher)
    for launcher, lines in found.items():
        print(launcher, {line["name"]: line["quality"]["valid_loss"] for line in lines})
    assert figures(found["torchrun"]) == figures(found["netlab"]) == figures(undisturbed)
    reports = []
    for name in ("whole", "torchrun", "netlab"):
        directory = cluster.directory / name
        said = run_here(cluster, [sys.executable, "-m", "altup_moe", "study", "report", str(directory), "--json"])
        # In the order in which rows ended: one that is measured alone ends before the others.
        reports.append({model["name"]: model["loss"] for model in json.loads(said)["models"]})
    assert reports[0] == reports[1] == reports[2]


@pytest.mark.long
@pytest.mark.parametrize("node", NODES)
def test_a_node_that_dies_changes_no_row(cluster: Cluster, undisturbed: list[dict[str, Any]], node: str) -> None:
    """n0 runs the batch scripts too."""
    name = f"without_{node}"

    def kill() -> None:
        in_training(cluster, name, "moe")
        cluster.nodes.kill(node)
        cluster.start_node(node)

    said = ended(cluster, words(cluster, name), during=kill)
    assert said.count(" trains ") == 2
    assert untimed(cluster, name) == undisturbed
    assert steps(cluster, name, "moe") == list(range(1, STEPS + 1))
    assert "going on from step" in log_of(cluster, name, "moe")


@pytest.mark.long
def test_three_kills_lose_no_row_and_repeat_none(cluster: Cluster, undisturbed: list[dict[str, Any]]) -> None:
    """A row's job is cancelled, the daemon of a node is killed, and a job is put back into the queue by hand."""

    def disturb() -> None:
        # Another row waits for this one, and goes on waiting.
        cluster.run("scontrol", "requeue", in_training(cluster, "thrice", "dense"))
        cluster.run("scancel", in_training(cluster, "thrice", "moe"))
        in_training(cluster, "thrice", "split")
        daemon = int((cluster.directory / "slurmd-n0.pid").read_text())
        cluster.run("kill", "-KILL", str(daemon))
        cluster.start_node("n0")

    said = ended(cluster, words(cluster, "thrice"), 75, disturb)
    print(said)
    assert re.findall(r"(\w+) seed 1: job \S+ ended without a result \((.*)\)", said) == [("moe", "CANCELLED")]
    again = ended(cluster, words(cluster, "thrice"))
    print(again)
    assert re.findall(r"job \d+ trains (.*)", again) == ["moe seed 1, on 2 nodes"]
    lines = untimed(cluster, "thrice")
    assert lines == undisturbed
    for row in STUDY["rows"]:
        assert steps(cluster, "thrice", row["name"]) == list(range(1, STEPS + 1))
    assert all("going on from step" in log_of(cluster, "thrice", row) for row in ("dense", "moe"))
