"""The programs of SLURM that a study calls: sbatch, squeue, scancel. Nothing of accounting, which may not be there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from altup_moe.config import UserError
from altup_moe.parallel.start_ranks import environment_with_package

PROGRAMS = ("sbatch", "squeue", "scancel")
SECONDS = 120
"""How long one call may take."""
_FORMAT = "%F|%K|%T|%j|%r"
_FINAL = frozenset(
    ["BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "REVOKED", "TIMEOUT"]
)
_WAITING = frozenset(["PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "CONFIGURING"])
_AWAY = re.compile(
    r"[Uu]nable to contact slurm controller|[Ss]ocket timed out|[Cc]onnection (refused|reset|timed out)|Zero Bytes"
    r"|[Cc]ommunication connection failure|[Tt]emporarily un|backup mode|controller (is )?not respond|not after \d+ s"
    r"|Protocol authentication error|[Mm]unge|Transport endpoint"
)
_FULL = re.compile(r"QOS policy|SubmitJob|[Ss]ubmit.*limit|Job limit|MaxJobCount", re.IGNORECASE)


class SlurmAwayError(Exception):
    """SLURM does not answer now. What it was asked for may have been done all the same; `str(error)` is one line."""


class SlurmFullError(Exception):
    """SLURM takes no more jobs now; `str(error)` is one line."""


@dataclass(frozen=True)
class QueuedTask:
    """A task of an array as squeue shows it.

    ``task``: its name, as 12_3. ``state``: RUNNING and so on. ``job_name``: its job's. ``reason``: why it waits.
    """

    task: str
    state: str
    job_name: str
    reason: str

    @property
    def live(self) -> bool:
        """Whether it runs or will."""
        return self.state not in _FINAL

    @property
    def waits(self) -> bool:
        """Whether it has not begun, or not begun again."""
        return self.state in _WAITING

    @property
    def job(self) -> str:
        """Number of its job."""
        return self.task.partition("_")[0]


def parsed(text: str) -> list[QueuedTask]:
    """The lines of `squeue --array --format=%F|%K|%T|%j|%r`; those that are none of an array's tasks are left out."""
    found = []
    for line in text.splitlines():
        fields = [field.strip() for field in line.split("|", 4)]
        if len(fields) == 5 and fields[0].isdigit() and fields[1].isdigit():
            found.append(QueuedTask(f"{fields[0]}_{fields[1]}", *fields[2:]))
    return found


def check_programs() -> None:
    """Raise UserError unless SLURM's programs are here."""
    for program in PROGRAMS:
        if shutil.which(program) is None:
            fits = "on a login node of SLURM it is there; --launcher torchrun trains the rows on this machine"
            raise UserError(f"launcher slurm: {program}: not found; {fits}")


def queue() -> dict[str, QueuedTask]:
    """This user's tasks by their names, those that ended in the last minutes too.

    Raises:
        SlurmAwayError: squeue does not answer.
    """
    words = ["squeue", "--noheader", "--array", "--states=all", f"--user={os.getuid()}", f"--format={_FORMAT}"]
    done = _call(words)
    if done.returncode:
        raise SlurmAwayError(_said(done))
    return {task.task: task for task in parsed(done.stdout)}


def submit(script: Path) -> str:
    """Submit a batch file. Returns the job's number.

    Raises:
        SlurmAwayError: sbatch got no answer; the job may be there.
        SlurmFullError: no more jobs now.
        UserError: SLURM refuses the job.
    """
    done = _call(["sbatch", "--parsable", str(script)])
    number = done.stdout.strip().partition(";")[0]
    if done.returncode == 0 and number.isdigit():
        return number
    said = _said(done)
    if _AWAY.search(said):
        raise SlurmAwayError(said)
    if _FULL.search(said):
        raise SlurmFullError(said)
    raise UserError(f"{said}; `cluster` of the study's file says what is asked for, all of it stands in {script}")


def cancel(tasks: Sequence[str]) -> str | None:
    """Cancel tasks. Returns what scancel said if it failed."""
    try:
        done = _call(["scancel", *tasks])
    except SlurmAwayError as error:
        return str(error)
    return _said(done) if done.returncode else None


def own_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment without variables that would change what these programs do, or that belong to the job that the
    study itself runs in."""

    def kept(name: str) -> bool:
        return name == "SLURM_CONF" or not name.startswith(("SLURM", "SBATCH", "SQUEUE", "SCANCEL", "SRUN"))

    return {name: value for name, value in environment.items() if kept(name)}


def numbers(tasks: Iterable[str]) -> str:
    """Names of tasks as words, a few of them."""
    names = sorted(tasks, key=lambda task: [int(part) for part in task.split("_")])
    return " ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _call(words: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, in a session of its own, which Ctrl-C does not reach."""
    environment = own_environment(environment_with_package())
    try:
        return subprocess.run(
            words, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            start_new_session=True, timeout=SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise SlurmAwayError(f"{words[0]}: no answer, not after {SECONDS} s") from None


def _said(done: subprocess.CompletedProcess[str]) -> str:
    """What a program that failed said, in one line."""
    lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    said = lines[-1] if lines else f"exit code {done.returncode}"
    return said if said.startswith(done.args[0]) else f"{done.args[0]}: {said}"
