"""Jobs that checks give to ranks of their own: `python -m altup_moe.bench.gpu.jobs JOB ARGUMENT DIRECTORY` is one rank.

The ranks end with the check that started them, whatever ends it.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from altup_moe.config.library_warnings import LibraryWarnings
from altup_moe.parallel.start_ranks import on_ranks, write_result

JOBS = {
    "kernels": "altup_moe.bench.gpu.kernels:worker",
    "stepped": "altup_moe.bench.gpu.stepped:stepped_job",
}
"""Name -> function of (argument, directory); argument and result have JSON's types."""
CPU_THREADS = 8
PLACES = 8
"""Calls of an error that are told."""


def on_cpu() -> dict[str, str]:
    """Variables of a rank that shall see no GPU."""
    return {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": str(min(CPU_THREADS, os.cpu_count() or 1))}


def run_job(
    job: str,
    argument: Any,
    ranks: int = 1,
    environment: Mapping[str, str] | None = None,
    timeout: float | None = None,
) -> list[Any]:
    """Run one of `JOBS` on ranks. Returns their results in order.

    Raises:
        RankError: a rank failed, or `timeout` seconds were not enough.
    """
    return on_ranks(ranks, __name__, [job, json.dumps(argument)], environment=environment, timeout=timeout)


def in_a_line(error: BaseException) -> str:
    """An error and where it was raised, the innermost place first: of a rank's log the last line is told."""
    first = (str(error).splitlines() or [""])[0]
    frames = traceback.extract_tb(error.__traceback__)[-PLACES:]
    places = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames))
    return f"{type(error).__name__}: {first[:240]} ({places})"


def main(job: str, argument: str, directory: str) -> None:
    """Do a job as one of the ranks."""
    module, function = JOBS[job].split(":")
    try:
        with LibraryWarnings():
            write_result(directory, getattr(import_module(module), function)(json.loads(argument), directory))
    except Exception as error:
        traceback.print_exc()
        print(in_a_line(error), file=sys.stderr, flush=True)
        sys.exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
