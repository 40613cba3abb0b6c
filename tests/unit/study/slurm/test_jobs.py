"""Batch files, squeue's output, which rows are submitted together, and what a job does on its first node."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from altup_moe.config.locks import locked_directory
from altup_moe.study.slurm import commands, job_main
from altup_moe.study.slurm.batch_file import batch_file
from altup_moe.study.slurm.batches import Batch, BatchDirectory, Batches, BatchRow
from altup_moe.study.slurm.cluster import Cluster
from altup_moe.study.slurm.commands import QueuedTask, own_environment, parsed
from altup_moe.study.slurm.submission import Submission, alone, submissions, to_measure
from altup_moe.study.spec import MeasureSpec, RowSpec
from altup_moe.study.study_directory import RowDirectory, read_json_or_none
from tests.unit.study.test_study_spec import load

MEASURE = MeasureSpec(rounds=2)


def batch(*keys: str, kind: str = "train", nodes: int = 2, own: bool = False) -> Batch:
    return Batch("name-1", kind, nodes, 2, 3, tuple(BatchRow(key, alone=own) for key in keys), MEASURE)  # type: ignore[arg-type]


def flags(text: str) -> set[str]:
    return {line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH ")}


def test_a_batch_file_has_the_cluster_s_flags_and_a_task_for_each_row(tmp_path: Path) -> None:
    cluster = Cluster(
        ranks_per_node=2, partition="gpu", gpus_per_node=2, time="1:00:00", account="mine",
        setup=("module load cuda", "echo $UNSET"), sbatch=("--constraint=a b",),
    )  # fmt: skip
    root = tmp_path / "a 50% study" / "0001"
    found = flags(batch_file(batch("a", "b", "c"), cluster, root, ("12_3", "13_0"), 2))
    assert found == {
        "--job-name=name-1", "--nodes=2", "--gpus-per-node=2", "--cpus-per-task=6", "--partition=gpu", "--time=1:00:00",
        "--array=0-2%2", "--account=mine", "--exclusive", "--dependency=afterok:12_3:13_0", "--kill-on-invalid-dep=yes",
        f"'--output={tmp_path}/a 50%% study/0001/out-%a.txt'", "'--constraint=a b'",
        "--ntasks-per-node=1", "--requeue", "--open-mode=append", "--signal=B:USR1@120",
    }  # fmt: skip
    shared = flags(batch_file(batch("a", "b", kind="measure"), Cluster(cpus_per_task=9, exclusive=False), root))
    assert {"--array=0-0", "--cpus-per-task=9"} <= shared
    assert "--exclusive" not in shared
    assert not any("--dependency" in flag for flag in shared)


SRUN = """#!/bin/sh
echo "$@" >> "$LOG/srun"
while [ "${1#--}" != "$1" ]; do shift; done
while [ "$#" -gt 0 ] && [ "$1" != -- ] && [ "${1##*/}" != pretend ]; do shift; done
[ "$1" != -- ] || shift
exec "$@"
"""
# Does what a step does: writes what is asked for, unless a file says otherwise.
PRETEND = """#!/usr/bin/env python3
import json, os, pathlib, signal, sys, time
kind, options, roots = sys.argv[1], json.loads(sys.argv[2]), [pathlib.Path(root) for root in sys.argv[3:]]
log = pathlib.Path(os.environ["LOG"])
with (log / "did").open("a") as file:
    file.write(kind + " " + "+".join(root.name for root in roots) + " " + os.environ["OMP_NUM_THREADS"] + "\\n")
if kind == "train":
    signal.signal(signal.SIGUSR1, lambda *_: sys.exit(75))
    if (log / "waits").exists():
        (log / "ready").touch()
        time.sleep(60)
    code = int((log / "code").read_text()) if (log / "code").exists() else 0
    if code == 0:
        (roots[0] / "trained.json").write_text(json.dumps({"problem": None, "valid_loss": 2.0}))
    sys.exit(code)
if any(root.name == "bad" for root in roots) and kind == "steps":
    print("RuntimeError: too slow")
    sys.exit(1)
for root in roots:
    (root / f"{kind}-{options['number']}.json").write_text("{}")
"""


class Job:
    """A job's programs, and what they did."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory, self.root = directory, directory / "study"
        for name, text in (("bin/srun", SRUN), ("bin/pretend", PRETEND)):
            (directory / "bin").mkdir(exist_ok=True)
            (directory / name).write_text(text)
            (directory / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{directory / 'bin'}:{os.environ['PATH']}")
        for name, value in (("LOG", directory), ("RENDEZVOUS", "n0:29000"), ("SLURM_ARRAY_JOB_ID", "7")):
            monkeypatch.setenv(name, str(value))
        pretend = str(directory / "bin" / "pretend")
        monkeypatch.setattr(job_main, "own_command", lambda words: [pretend, *words])
        self._set = monkeypatch.setenv

    def batch(self, made: Batch) -> BatchDirectory:
        directory = Batches(self.root / "slurm").new()
        directory.write(made, "")
        for row in made.rows:
            self.row(row.key).root.mkdir(parents=True, exist_ok=True)
        return directory

    def row(self, key: str) -> RowDirectory:
        return RowDirectory(self.root / "rows" / key)

    def run(self, directory: BatchDirectory, index: int = 0) -> int:
        self._set("SLURM_ARRAY_TASK_ID", str(index))
        return job_main.main([str(directory.root)])

    def did(self) -> list[str]:
        file = self.directory / "did"
        return file.read_text().splitlines() if file.exists() else []


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    return Job(tmp_path, monkeypatch)


def test_a_task_trains_its_row_and_measures_it_if_it_is_alone(job: Job) -> None:
    directory = job.batch(batch("a", "b", own=True))
    assert job.run(directory, 1) == 0
    assert job.did() == ["train b 3", "steps b 3", "texts b 3", "steps b 3", "texts b 3"]
    steps = (job.directory / "srun").read_text().splitlines()
    wide = "--nodes=2 --ntasks=2 --ntasks-per-node=1 --kill-on-bad-exit=0"
    assert [step.startswith(wide) for step in steps] == [True, True, False, True, False]
    assert "launch torchrun --nodes 2 --ranks-per-node 2 --rdzv n0:29000 -- " in steps[0]
    assert "--rdzv n0:29001 -- " in steps[1]
    assert steps[2].startswith("--nodes=1 --ntasks=1 ")
    assert read_json_or_none(directory.begun(1)) == {"job": "7", "restarts": 0, "node": os.uname().nodename}
    # Nothing is done twice, and nothing for a batch whose rows were submitted again.
    assert job.run(directory, 1) == 0
    directory.void.touch()
    assert job.run(directory, 0) == 0
    assert len(job.did()) == 5


def test_rows_are_measured_together_in_rounds_and_one_that_fails_is_named(job: Job) -> None:
    directory = job.batch(batch("a", "b", kind="measure"))
    assert job.run(directory) == 0
    assert job.did() == ["steps a+b 3", "texts a+b 3"] * 2
    later = job.batch(batch("c", "bad", "d", kind="measure"))
    assert job.run(later) == 1
    assert job.did()[4:] == ["steps c+bad+d 3", "steps c 3", "steps bad 3"]
    assert later.blamed(0) == "bad"
    assert later.log.read_text().count("too slow") == 2


@pytest.mark.parametrize("code", [1, 76, 77])
def test_the_exit_code_of_training_is_the_job_s(job: Job, code: int) -> None:
    (job.directory / "code").write_text(str(code))
    directory = job.batch(batch("a", own=True, nodes=1))
    assert job.run(directory) == code
    assert job.did() == ["train a 3"]


@pytest.mark.usefixtures("signals_are_heard")
def test_a_signal_reaches_the_ranks_as_slurm_s_warning(job: Job) -> None:
    (job.directory / "waits").touch()

    def warn() -> None:
        give_up = time.monotonic() + 60
        while not (job.directory / "ready").exists() and time.monotonic() < give_up:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=warn, daemon=True)
    thread.start()
    assert job.run(job.batch(batch("a", own=True, nodes=1))) == 75
    thread.join()
    assert job.did() == ["train a 3"]


def test_a_row_waits_for_processes_of_its_earlier_job(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """They may outlive the daemon of their node. It is no failure of the row."""
    monkeypatch.setattr(job_main, "LOCK_SECONDS", 0.3)
    directory = job.batch(batch("a"))
    with locked_directory(job.row("a").run_dir, "training", "wait"):
        assert job.run(directory) == job_main.NOT_SAVED
    assert job.did() == []
    assert job.run(directory) == 0


def test_the_batch_file_leaves_the_exit_code_of_a_job_that_ends_for_good(job: Job, tmp_path: Path) -> None:
    (tmp_path / "bin" / "scontrol").write_text('#!/bin/sh\n[ "$2" != hostnames ] || echo n0\n')
    (tmp_path / "bin" / "squeue").write_text('#!/bin/sh\necho "${STATE-RUNNING None}"\n')
    for name in ("scontrol", "squeue"):
        (tmp_path / "bin" / name).chmod(0o755)
    directory = job.batch(batch("a", "b"))
    script = tmp_path / "job.sh"

    def run(code: int, setup: tuple[str, ...] = (), **variables: str) -> tuple[int, int | None]:
        text = batch_file(batch("a", "b"), Cluster(setup=setup), directory.root)
        stand_in = f'[ "$RENDEZVOUS" = n0:20007 ] || exit 99; exit {code}'
        command = text.splitlines()
        (set_command,) = [n for n, line in enumerate(command) if line.startswith("(($#)) || set -- ")]
        assert f"{sys.executable} -m altup_moe.study.slurm.job_main" in command[set_command]
        command[set_command] = f"set -- sh -c '{stand_in}'"
        script.write_text("\n".join(command) + "\n")
        own = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n0", "SLURM_ARRAY_TASK_ID": "1", **variables}
        directory.ended(1).unlink(missing_ok=True)
        done = subprocess.run(["bash", str(script)], env={**os.environ, **own}, capture_output=True, timeout=60)
        return done.returncode, directory.ended_with(1)

    assert run(0) == (0, None)
    assert run(76) == (76, 76)
    assert run(1) == (1, 1)
    assert run(75) == (75, None)
    assert run(77) == (77, None)
    assert run(77, SLURM_RESTART_COUNT="20") == (77, 77)
    assert run(1, STATE="COMPLETING None") == (1, None)  # cancelled
    assert run(0, ("false",)) == (1, 1)
    assert run(0, ("echo $UNSET",)) == (0, None)


def test_squeue_s_lines_are_tasks() -> None:
    text = "12|0|RUNNING|s-1|None\n12|3|PENDING|s-1|launch failed requeued held\n9|N/A|RUNNING|other|None\nslurm: x\n\n"
    found = parsed(text)
    assert found == [
        QueuedTask("12_0", "RUNNING", "s-1", "None"),
        QueuedTask("12_3", "PENDING", "s-1", "launch failed requeued held"),
    ]
    assert [(task.live, task.waits, task.job) for task in found] == [(True, False, "12"), (True, True, "12")]
    assert not QueuedTask("1_0", "NODE_FAIL", "", "").live
    assert QueuedTask("1_0", "COMPLETING", "", "").live


def test_variables_of_a_job_around_the_study_stay_away() -> None:
    around = {
        "SLURM_ARRAY_TASK_ID": "3",
        "SBATCH_JOB_NAME": "x",
        "SQUEUE_FORMAT": "%i",
        "SLURM_CONF": "/c",
        "HOME": "/h",
    }
    assert own_environment(around) == {"SLURM_CONF": "/c", "HOME": "/h"}
    assert commands.numbers(["12_10", "12_9", "2_0"]) == "2_0 12_9 12_10"


def rows(tmp_path: Path) -> list[RowSpec]:
    made = [
        {"name": "a"},
        {"name": "b", "set": {"altup.width": 2}},
        {"name": "wide", "set": {"ranks": 2}},
        {"name": "then", "after": "a", "set": {"altup.width": 4}},
    ]
    return load(tmp_path, seeds=[1], launcher="slurm", rows=made)


def test_rows_of_one_shape_are_submitted_together(tmp_path: Path) -> None:
    a, b, wide, then = rows(tmp_path)
    cluster = Cluster()

    def told(*args: object) -> list[tuple[list[str], str | None, int | None]]:
        found = submissions(*args)  # type: ignore[arg-type]
        after = [each.after[0].partition("-")[0] if each.after else None for each in found]
        return [([row.name for row in each.rows], name, each.most) for each, name in zip(found, after, strict=True)]

    everything = [a, b, wide, then]
    assert told(everything, [], [], cluster, None) == [
        (["a", "b"], None, None), (["wide"], None, None), (["then"], "a", None)]  # fmt: skip
    assert told([then], [a.key], [], cluster, None) == [(["then"], "a", None)]
    assert told([then], [], [a.key], cluster, None) == [(["then"], None, None)]
    assert told([then], [], [], cluster, None) == []  # its predecessor was cancelled
    assert told([a, b], [], [], cluster, 1) == [(["a", "b"], None, 1)]
    assert told(everything, [], [], cluster, 2) == [(["a", "b"], None, None)]
    assert told([b, wide], ["x"], [], cluster, 2) == [(["b"], None, None)]
    assert told([b, wide], ["x", "y"], [], cluster, 2) == []


def test_a_group_is_measured_once_all_of_it_is_trained(tmp_path: Path) -> None:
    a, b, wide, then = rows(tmp_path)
    groups = [[a, b, then], [wide]]
    assert alone(groups, grows=False) == {wide.key}
    assert alone(groups, grows=True) == set()
    keys = [row.key for row in (a, b, wide, then)]

    def told(trained: list[RowSpec], grows: bool = False, training: tuple[RowSpec, ...] = ()) -> list[Submission]:
        done, busy = [row.key for row in trained], [row.key for row in training]
        return to_measure(groups, keys, done, busy, grows, ahead=bool(training))

    assert told([a, b]) == []
    assert told([a, b, wide]) == [Submission((wide,), "measure")]
    assert told([a, b, wide], grows=True) == []
    assert told([a, b, wide, then], grows=True) == [Submission((a, b, then), "measure"), Submission((wide,), "measure")]
    # One that waits in the queue for the others; a row that is alone does that in its own job.
    assert told([a], training=(b, then, wide)) == [Submission((a, b, then), "measure", (b.key, then.key))]
    assert told([a], training=(b, wide)) == []
    assert told([a], grows=True, training=(b, then, wide)) == []
    keys.remove(b.key)  # it has a line, done or failed
    assert told([a, then]) == [Submission((a, then), "measure")]


def test_a_batch_reads_back_and_the_last_one_counts(tmp_path: Path) -> None:
    batches = Batches(tmp_path / "slurm")
    assert batches.places("train") == {}
    first, second, half = batches.new(), batches.new(), batches.new()
    first.write(batch("a", "b"), "#!/bin/sh\n")
    second.write(batch("b", kind="measure"), "#!/bin/sh\n")
    assert not (half.root / "batch.json").exists()  # the client was killed
    first.set_job("12")
    trained, measured = batches.places("train"), batches.places("measure")
    assert trained["a"].batch == batch("a", "b")
    assert (trained["a"].task, trained["b"].task) == ("12_0", "12_1")
    assert (list(measured), measured["b"].directory, measured["b"].task) == (["b"], second, None)
    second.void.touch()
    assert batches.places("measure") == {}
    first.ended(1).write_text("1\n")
    batches.forget(["b"])
    assert first.ended_with(1) is None
    assert json.loads((first.root / "batch.json").read_text())["kind"] == "train"
