"""slurm.sbatch under a pretended SLURM, quickly; tests/slurm/ has a real one."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from altup_moe.cli import main
from tests.processes import started

SBATCH = Path(__file__).parents[3] / "launch" / "slurm.sbatch"

pytestmark = pytest.mark.usefixtures("signals_are_heard")

# One node here: flags are passed over, and signals reach the program as srun passes them on.
SRUN = """#!/bin/sh
echo "cpus=${SRUN_CPUS_PER_TASK-}" "$@" | head -n 1 >> "$LOG/srun"
while [ "${1#--}" != "$1" ]; do shift; done
exec "$@"
"""
SCONTROL = """#!/bin/sh
echo "$*" >> "$LOG/scontrol"
[ "$2" = hostnames ] && printf 'node7\\nnode8\\n'
[ "$2" = node ] && echo "NodeName=node8 $NODE"
exit 0
"""
SQUEUE = """#!/bin/sh
echo "${STATE-RUNNING None}"
"""
TORCHRUN = """#!/bin/sh
for word in "$@"; do printf '%s\\0' "$word"; done > "$LOG/argv"
trap 'exit 75' USR1
touch "$LOG/ready"
[ -n "$CODE" ] && exit "$CODE"
while :; do sleep 0.1; done
"""


@pytest.fixture
def job(tmp_path: Path) -> dict[str, str]:
    """Environment of a job whose programs write what they were told to `tmp_path`."""
    programs = {"bin/srun": SRUN, "bin/scontrol": SCONTROL, "bin/squeue": SQUEUE, "launch/torchrun.sh": TORCHRUN}
    for name, text in programs.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    return {
        "PATH": f"{tmp_path}/bin:{os.environ['PATH']}",
        "LOG": str(tmp_path),
        "SLURM_JOB_ID": "4242",
        "SLURM_JOB_NODELIST": "node[7-8]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "CODE": "",
    }


def run(env: dict[str, str], *argv: str) -> subprocess.CompletedProcess[str]:
    """The script to its end."""
    return subprocess.run(
        [str(shutil.which("bash")), str(SBATCH), *argv], env=env, capture_output=True, text=True, timeout=60
    )


def test_it_is_bash_and_its_help_needs_no_slurm() -> None:
    assert subprocess.run(["bash", "-n", str(SBATCH)]).returncode == 0
    done = run({"PATH": os.environ["PATH"]}, "--help")
    assert done.returncode == 0
    assert "RANKS_PER_NODE" in done.stdout


def test_nodes_meet_on_the_first_and_words_stay_words(job: dict[str, str], tmp_path: Path) -> None:
    words = ["altup-moe", "a b", "it's", '"', "$(touch pwned)", "line\nline", "", "--", "*"]
    done = run(job | {"CODE": "0", "SLURM_CPUS_PER_TASK": "16"}, *words)
    assert (done.returncode, done.stderr) == (0, "")
    argv = (tmp_path / "argv").read_text().split("\0")[:-1]
    assert argv == ["--nodes", "2", "--rdzv", "node7:24242", "--", *words]
    assert "cpus=16 --nodes=2 --ntasks=2 --ntasks-per-node=1" in (tmp_path / "srun").read_text()
    assert (tmp_path / "scontrol").read_text() == "show hostnames node[7-8]\n"


ARRAY = {"SLURM_ARRAY_JOB_ID": "4240", "SLURM_ARRAY_TASK_ID": "3"}


@pytest.mark.parametrize(("array", "name"), [({}, "4242"), (ARRAY, "4240_3")])
def test_the_task_of_an_array_is_queued_again_alone(
    array: dict[str, str], name: str, job: dict[str, str], tmp_path: Path
) -> None:
    """`scontrol requeue 4242` of the last task, whose number is the array's, would repeat the finished ones too."""
    assert run(job | array | {"CODE": "75"}, "true").returncode == 75
    assert (tmp_path / "scontrol").read_text().splitlines()[1:] == [f"requeue {name}"]


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_warning_lets_ranks_save_and_the_job_is_queued_again(
    number: int, job: dict[str, str], tmp_path: Path
) -> None:
    with started(["bash", str(SBATCH), "true"], env=job, stderr=subprocess.PIPE, text=True) as process:
        give_up = time.monotonic() + 60
        while not (tmp_path / "ready").exists() and time.monotonic() < give_up:
            time.sleep(0.05)
        process.send_signal(number)
        err = process.communicate(timeout=60)[1]
    assert process.returncode == 75
    assert (tmp_path / "scontrol").read_text().splitlines()[1:] == ["requeue 4242"]
    assert "job 4242 goes back into the queue" in err


@pytest.mark.parametrize("code", [0, 1, 2, 76, 137])
def test_any_other_end_is_the_jobs_end(code: int, job: dict[str, str], tmp_path: Path) -> None:
    done = run(job | {"CODE": str(code), "NODE": "State=MIXED BootTime=2001-01-01T00:00:00"}, "true")
    assert (done.returncode, done.stderr.count("\n")) == (code, int(code > 0))
    assert "requeue " not in (tmp_path / "scontrol").read_text()


ENDS = [
    ("77", {}, "hung"),
    ("77", {"SLURM_RESTART_COUNT": "20"}, None),
    ("77", {"SLURM_RESTART_COUNT": "20", "MAX_REQUEUES": "21"}, "hung"),
    ("75", {"SLURM_RESTART_COUNT": "20"}, "saved and stopped"),
    ("75", {"STATE": "COMPLETING None"}, None),  # scancel, or preemption
    ("75", {"STATE": "COMPLETING TimeLimit"}, "saved and stopped"),
    ("138", {}, "anything to save"),
    ("1", {"NODE": "State=DOWN*"}, "a node was lost"),
    ("1", {"NODE": "State=ALLOCATED*"}, "a node was lost"),
    ("134", {"NODE": "State=MIXED SlurmdStartTime=2999-01-01T00:00:00"}, "a node was lost"),
    ("2", {"NODE": "State=DOWN*"}, None),
    ("76", {"NODE": "State=DOWN*"}, None),
]


@pytest.mark.parametrize(("code", "env", "why"), ENDS)
def test_what_a_job_is_put_back_for(
    code: str, env: dict[str, str], why: str | None, job: dict[str, str], tmp_path: Path
) -> None:
    done = run(job | {"CODE": code} | env, "true")
    assert (done.returncode, done.stderr.count("\n")) == (int(code), 1)
    assert ("requeue 4242\n" in (tmp_path / "scontrol").read_text()) == (why is not None)
    assert (why or "slurm.sbatch: ") in done.stderr


def test_mistakes_are_one_line_and_exit_code_2(job: dict[str, str], tmp_path: Path) -> None:
    bare = f"{tmp_path}/bin:/usr/bin:/bin"  # without altup-moe
    without = {key: value for key, value in job.items() if key != "SLURM_JOB_ID"}
    cases = [
        (run(job), "command: none given"),
        (run(without, "true"), "SLURM_JOB_ID: not set"),
        (run(job | {"SLURM_SUBMIT_DIR": "/", "PATH": bare}, "true"), "set ALTUP_MOE_ROOT"),
        (run(job | {"PATH": str(tmp_path)}, "true"), "srun: not found"),
    ]
    for done, says in cases:
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert says in done.stderr
    assert not (tmp_path / "srun").exists()


def test_the_command_and_flags_are_written_into_the_batch_file(
    job: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [
        "--nodes",
        "2",
        "--partition",
        "gpu",
        "--ranks-per-node",
        "3",
        "--sbatch=--account=mine --signal=B:TERM@60",
    ]
    words = ["altup-moe", "a b", "$(touch pwned)", "--"]
    assert main(["launch", "slurm", "--print", *flags, "--", *words]) == 0
    text = capsys.readouterr().out
    wanted = ("--nodes=2", "--partition=gpu", "--account=mine", "--job-name=altup-moe", "--signal=B:TERM@60")
    assert [text.count(f"#SBATCH {flag}\n") for flag in wanted] == [1] * len(wanted)
    assert (text.count("#SBATCH --nodes"), text.count("#SBATCH --signal")) == (1, 1)
    file = tmp_path / "run.sbatch"
    file.write_text(text)
    done = subprocess.run(["bash", str(file)], env=job | {"CODE": "0"}, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "argv").read_text().split("\0")[:-1][-4:] == words


def test_submitting_needs_sbatch_and_a_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["launch", "slurm", "--", "true"]) == 2
    assert "sbatch: not found" in capsys.readouterr().err
    assert main(["launch", "slurm"]) == 2
    assert "put it behind --" in capsys.readouterr().err
    (tmp_path / "sbatch").write_text(f"#!/bin/sh\n/bin/cat $1 > {tmp_path}/submitted\nexit 7\n")
    (tmp_path / "sbatch").chmod(0o755)
    assert main(["launch", "slurm", "--", "true"]) == 7
    assert "set -- true" in (tmp_path / "submitted").read_text()
