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
from altup_moe.study.spec import RowSpec
from altup_moe.study.study_directory import RowDirectory


def check_launchers(rows: Iterable[RowSpec]) -> None:
    """Raise UserError where rows cannot be started here."""
    for row in rows:
        if row.launcher == "netlab" and os.geteuid() != 0:
            raise UserError(f"row {row.name}: launcher netlab needs root")


def worker_command(arguments: Sequence[str], row: RowSpec) -> list[str]:
    """The command line that runs `altup_moe.study.worker_main` with these arguments on every rank of a row."""
    own = [sys.executable, "-m", "altup_moe.study.worker_main", *arguments]
    launch = [sys.executable, "-P", "-m", "altup_moe", "launch"]
    if row.launcher == "netlab":
        rate = ["--rate", row.rate] if row.rate else []
        return [*launch, "netlab", "--nodes", str(row.ranks), *rate, "--", *own]
    if row.ranks > 1:
        return [*launch, "torchrun", "--ranks-per-node", str(row.ranks), "--", *own]
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
    environment = {
        "OMP_NUM_THREADS": str(row.threads),
        "TORCH_CPP_LOG_LEVEL": "ERROR",
    }
    return Job(name, tuple(worker_command(arguments, row)), log, done, after, row.cores, environment)


def failure_reason(code: int, row_directory: RowDirectory, log: Path) -> str:
    """Why a worker failed, in one line: what it wrote, the signal that killed it, or the last line that it printed."""
    with suppress(OSError):
        return row_directory.failure.read_text(encoding="utf-8").strip()
    return end_of(code, log).removeprefix(f"exit code {code}: ")
