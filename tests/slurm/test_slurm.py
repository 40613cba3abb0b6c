"""launch/slurm.sbatch on a real SLURM of two nodes: no job is lost, and none comes back that should not."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.distributed.test_launchers import SMALL
from tests.processes import wait_until
from tests.slurm.cluster import ROOT, Cluster, reason
from tests.two_nodes import NODES

Saw = Callable[[float, int, str], None]
REASON = reason()
STEPS = 60

pytestmark = [
    pytest.mark.skipif(REASON is not None, reason=str(REASON)),
    pytest.mark.distributed,
    pytest.mark.slow,
    pytest.mark.timeout(600),  # a busy machine; each is done in seconds
]


def training(cluster: Cluster, name: str, **changes: object) -> list[str]:
    """A run on one rank of each node, with slow steps while the file `NAME.slow` is there."""
    directory = cluster.directory
    values = {**SMALL, "train.steps": STEPS, "log.run_dir": directory / name, "data.cache": directory / "cache"}
    words = [word for key, value in {**values, **changes}.items() for word in (f"--{key}", str(value))]
    paced = [sys.executable, str(Path(__file__).with_name("paced.py")), str(directory / f"{name}.slow")]
    return [*paced, "train", str(ROOT / "configs" / "quickstart.yaml"), *words]


def losses(cluster: Cluster, name: str) -> list[float]:
    """Loss of every step."""
    file = cluster.directory / name / "metrics.jsonl"
    return [json.loads(line)["loss"] for line in file.read_text().splitlines()] if file.exists() else []


def starts(cluster: Cluster, name: str) -> int:
    """How often a script of `stand_in` has run."""
    file = cluster.directory / name
    return file.read_text().count("start") if file.exists() else 0


def stand_in(name: str, first: str, later: str = "exit 0") -> list[str]:
    """A script in place of training: what it does at its first start, and later; it counts them in the file `name`."""
    return ["sh", "-c", f'{SAVES}; echo start >> {name}; [ "$(wc -l < {name})" = 1 ] || {{ {later}; }}; {first}']


SAVES = "trap 'touch saved; exit 75' TERM USR1"
"""What such a script does first: whoever has seen that it started may send a signal at once."""
UNTIL_TOLD = "while :; do sleep 0.1; done"


@pytest.fixture(scope="module")
def whole(cluster: Cluster) -> list[float]:
    """The losses of a job that is left alone."""
    job = cluster.submit(training(cluster, "whole"), "--nodes", "2")
    assert cluster.wait_for(job, "COMPLETED", "FAILED") == "COMPLETED", cluster.output(job)
    assert len(losses(cluster, "whole")) == STEPS
    return losses(cluster, "whole")


def interrupted(cluster: Cluster, name: str, **changes: object) -> str:
    """A job of two nodes that has taken some slow steps."""
    (cluster.directory / f"{name}.slow").touch()
    job = cluster.submit(training(cluster, name, **changes), "--nodes", "2")
    wait_until(lambda: len(losses(cluster, name)) > 4, f"steps of job {job}")
    return job


def requeued(cluster: Cluster, job: str, name: str, times: int = 1) -> int:
    """Wait until a job was put back so often. Returns the step of its newest checkpoint, which is also its last."""
    # One that is preempted counts as put back at once, while its ranks still save.
    put_back = lambda: cluster.restarts(job) == times and cluster.state(job) != "COMPLETING"  # noqa: E731
    wait_until(put_back, f"requeue {times} of job {job}")
    step = len(losses(cluster, name))
    assert (cluster.directory / name / "checkpoints" / f"step_{step:08d}").is_dir(), cluster.output(job)
    return step


def goes_on(cluster: Cluster, job: str, name: str, whole: list[float]) -> None:
    """The job ends, at full speed, with the losses of one that was left alone."""
    (cluster.directory / f"{name}.slow").unlink()
    assert cluster.wait_for(job, "COMPLETED", "FAILED") == "COMPLETED", cluster.output(job)
    assert losses(cluster, name) == whole


# A TERM that puts a job back is also the one that comes before there is anything to save, below.
EVENTS = ("USR1", "time limit")
EVENTS_LONG = ("USR1", "TERM", "time limit")


@pytest.mark.fault("slurm-time-limit")
@pytest.mark.parametrize("events", [EVENTS, pytest.param(EVENTS_LONG, marks=pytest.mark.long)], ids=len)
def test_signals_and_the_time_limit_save_and_the_job_goes_on_to_the_same_losses(
    events: tuple[str, ...], cluster: Cluster, whole: list[float], saw: Saw
) -> None:
    """One job, interrupted again and again: scancel tells each process of the step, the time limit the batch script."""
    name = f"signals{len(events)}"
    job = interrupted(cluster, name)
    for done, event in enumerate(events, start=1):
        before, told_at = len(losses(cluster, name)), time.monotonic()
        if event == "time limit":
            cluster.end_soon(job)
        else:
            cluster.run("scancel", f"--signal={event}", job)
        step = requeued(cluster, job, name, done)
        assert before <= step < STEPS, event
        if event == "time limit":
            cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=UNLIMITED")
        else:
            wait_until(lambda step=step: len(losses(cluster, name)) > step, f"steps after {event}")
    goes_on(cluster, job, name, whole)
    assert (cluster.restarts(job), cluster.output(job).count("going on from step")) == (len(events),) * 2
    saw(time.monotonic() - told_at, cluster.exit_code(job), cluster.output(job))


def test_a_cancelled_job_saves_and_stays_away(cluster: Cluster) -> None:
    script = f"{SAVES}; echo start >> cancelled; {UNTIL_TOLD}"
    job = cluster.submit(["sh", "-c", script], "--nodes", "2", "--job-name", "cancelled")
    wait_until(lambda: starts(cluster, "cancelled") == 2, "both ranks")
    cluster.run("scancel", job)
    assert cluster.wait_for(job, "CANCELLED", "PENDING", "COMPLETED", "FAILED") == "CANCELLED"
    assert (cluster.directory / "saved").exists()
    assert cluster.restarts(job) == 0
    assert f"SLURM ends job {job} itself" in cluster.output(job)


def test_one_task_of_an_array_is_requeued_and_finished_ones_do_not_run_again(cluster: Cluster) -> None:
    """The last task has the number of the whole array."""
    script = (
        "if [ $SLURM_ARRAY_TASK_ID = 0 ]; then echo start >> task0; exit 0; fi; " + stand_in("task1", UNTIL_TOLD)[2]
    )
    array = cluster.submit(["sh", "-c", script], "--sbatch=--array=0-1")
    wait_until(lambda: starts(cluster, "task1") == 1, "task 1")
    assert cluster.wait_for(f"{array}_0", "COMPLETED", "FAILED") == "COMPLETED", cluster.output(array)
    cluster.run("scancel", "--batch", "--signal=USR1", f"{array}_1")
    wait_until(lambda: starts(cluster, "task1") == 2, "task 1 again")
    assert cluster.wait_for(f"{array}_1", "COMPLETED", "FAILED") == "COMPLETED", cluster.output(array)
    assert (starts(cluster, "task0"), starts(cluster, "task1")) == (1, 2)
    assert [cluster.restarts(f"{array}_{task}") for task in (0, 1)] == [0, 1]


def test_which_ends_of_a_job_are_followed_by_another_start(cluster: Cluster) -> None:
    """Four jobs at once: a hang, twice; divergence; a mistake; and one told to stop before it could save."""
    hung = cluster.submit(stand_in("hung", "exit 77", "exit 77"), MAX_REQUEUES="1")
    diverged, mistaken = (cluster.submit(stand_in(f"code{code}", f"exit {code}")) for code in (76, 2))
    early = cluster.submit(stand_in("early", "exec sleep 1000"))
    wait_until(lambda: starts(cluster, "early") == 1, "a start")
    cluster.run("scancel", "--signal=TERM", early)
    for job, state in ((hung, "FAILED"), (diverged, "FAILED"), (mistaken, "FAILED"), (early, "COMPLETED")):
        wait_until(lambda job=job: cluster.state(job) in ("FAILED", "COMPLETED"), f"end of job {job}")
        assert cluster.state(job) == state, cluster.output(job)
    assert [starts(cluster, name) for name in ("hung", "code76", "code2", "early")] == [2, 1, 1, 2]
    assert cluster.output(hung).count("exit code 77, a rank or link hung; job") == 2
    assert "requeued 1 times already (MAX_REQUEUES is 1)" in cluster.output(hung)
    assert "the training has diverged: not started again" in cluster.output(diverged)
    assert "a mistake: not started again" in cluster.output(mistaken)
    # On a busy machine the signal may come before the launcher has any handler: then srun itself names the code.
    reasons = ("before there was anything to save (exit code 143)", "when it was told to stop (exit code ")
    assert any(reason in cluster.output(early) for reason in reasons), cluster.output(early)


@pytest.mark.long
@pytest.mark.fault("slurm-preemption")
def test_a_preempted_job_saves_and_goes_on_when_there_is_room(cluster: Cluster, whole: list[float], saw: Saw) -> None:
    job = interrupted(cluster, "preempted")
    taken_at = time.monotonic()
    size = ["--nodes=2", "--ntasks-per-node=2", "--partition=urgent", "--output=/dev/null"]
    urgent = cluster.run("sbatch", *size, "--wrap", "sleep 1").split()[-1]
    assert requeued(cluster, job, "preempted") >= 5
    assert cluster.wait_for(urgent, "COMPLETED", "FAILED") == "COMPLETED"
    goes_on(cluster, job, "preempted", whole)
    assert cluster.restarts(job) == 1
    saw(time.monotonic() - taken_at, cluster.exit_code(job), cluster.output(job))


@pytest.mark.long
@pytest.mark.parametrize("node", NODES)
def test_a_node_that_dies_costs_the_steps_since_the_last_save(cluster: Cluster, whole: list[float], node: str) -> None:
    """n0 runs the batch script too. The daemon comes back before SLURM calls the node down."""
    name = f"without_{node}"
    job = interrupted(cluster, name, **{"checkpoint.save_interval": 3})
    cluster.nodes.kill(node)
    cluster.start_node(node)
    wait_until(lambda: cluster.restarts(job) == 1, f"requeue of job {job}")
    goes_on(cluster, job, name, whole)
    assert "going on from step" in cluster.output(job)


@pytest.mark.long
def test_a_shaped_link_changes_no_loss(cluster: Cluster, whole: list[float]) -> None:
    cluster.nodes.shape("20mbit")
    try:
        job = cluster.submit(training(cluster, "shaped"), "--nodes", "2")
        assert cluster.wait_for(job, "COMPLETED", "FAILED") == "COMPLETED", cluster.output(job)
        for node in NODES:
            counts = cluster.run("tc", "-s", "qdisc", "show", "dev", "eth0", node=node)
            assert "tbf" in counts
            assert int(counts.partition("overlimits ")[2].split()[0]) > 0, counts
    finally:
        cluster.nodes.shape(None)
    assert losses(cluster, "shaped") == whole
