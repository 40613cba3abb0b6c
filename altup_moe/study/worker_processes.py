"""Processes of a study's rows: the command lines that start them, and why one failed."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from altup_moe.config import UserError
from altup_moe.parallel.start_ranks import end_of
from altup_moe.study.job_pool import Job
from altup_moe.study.slurm.commands import check_programs
from altup_moe.study.spec import RowSpec
from altup_moe.study.study_directory import RowDirectory


def check_launchers(rows: Iterable[RowSpec]) -> None:
    """Raise UserError where rows cannot be started here."""
    rows = list(rows)
    if any(row.launcher == "slurm" for row in rows):
        check_programs()
    for row in rows:
        if row.launcher == "netlab" and os.geteuid() != 0:
            raise UserError(f"row {row.name}: launcher netlab needs root")


def own_command(arguments: Sequence[str]) -> list[str]:
    """The command line that runs `altup_moe.study.worker_main` with these arguments on one rank."""
    return [sys.executable, "-m", "altup_moe.study.worker_main", *arguments]


def launch_command(launcher: str) -> list[str]:
    """The words that begin the command line of a launcher."""
    return [sys.executable, "-P", "-m", "altup_moe", "launch", launcher]


def worker_environment(threads: int) -> dict[str, str]:
    """Variables of a row's ranks."""
    return {"OMP_NUM_THREADS": str(threads), "TORCH_CPP_LOG_LEVEL": "ERROR"}


def worker_command(arguments: Sequence[str], row: RowSpec) -> list[str]:
    """The command line that runs `altup_moe.study.worker_main` with these arguments on every rank of a row."""
    own = own_command(arguments)
    if row.launcher == "netlab":
        rate = ["--rate", row.rate] if row.rate else []
        return [*launch_command("netlab"), "--nodes", str(row.ranks), *rate, "--", *own]
    if row.ranks > 1:
        return [*launch_command("torchrun"), "--ranks-per-node", str(row.ranks), "--", *own]
    return own


def worker_job(
    name: str,
    arguments: Sequence[str],
    row: RowSpec,
    log: Path,
    done: Callable[[], bool] = lambda: False,
    after: tuple[str, ...] = (),
) -> Job:
    """A job that runs `altup_moe.study.worker_main` on the ranks of a row, with the row's threads."""
    command = tuple(worker_command(arguments, row))
    return Job(name, command, log, done, after, row.cores, worker_environment(row.threads))


def failure_reason(code: int, row_directory: RowDirectory, log: Path) -> str:
    """Why a worker failed, in one line: what it wrote, the signal that killed it, or the last line that it printed."""
    with suppress(OSError):
        return row_directory.failure.read_text(encoding="utf-8").strip()
    return end_of(code, log).removeprefix(f"exit code {code}: ")
