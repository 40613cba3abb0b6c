"""Processes of this machine: start the ranks of a job, collect the JSON that each writes, and leave none running.

A rank is a process `python -m MODULE WORDS ... DIRECTORY`. It reads RANK and WORLD_SIZE from its environment, meets the
other ranks through a file in DIRECTORY (`store_url`), and writes its result there (`write_result`). This module imports
no torch.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from altup_moe.config.errors import UserError
from altup_moe.parallel import parent_death

ROOT = Path(__file__).parents[2]
"""The directory that holds the package `altup_moe`."""
Start = Callable[[int, list[str]], int]
"""(ranks, command) -> exit code, 0 if every rank ended with 0. It sets RANK and WORLD_SIZE, and waits for all ranks."""
RANK_POLL_SECONDS = 0.02


class RankError(UserError):
    """A rank failed, left no result, or did not end in time; `str(error)` names the rank in one line."""


class RankTimeout(RankError):
    """Ranks did not end in time."""


def on_ranks(
    ranks: int,
    module: str,
    words: Sequence[str] = (),
    *,
    start: Start | None = None,
    timeout: float | None = None,
    environment: Mapping[str, str] | None = None,
) -> list[Any]:
    """Run a module on some ranks.

    Args:
        module: what `python -m` runs; the directory of the results is appended to its words.
        start: starts the ranks instead of this function (netlab); timeout and environment are then not used.
        timeout: seconds that all ranks together may take; None is without limit.
        environment: variables beside this process's own. Each rank has one thread unless they say otherwise.
    Returns:
        The results, in the order of the ranks.
    Raises:
        RankError: a rank failed, wrote no result, or took too long. The others have been killed.
    """
    with tempfile.TemporaryDirectory(prefix="altup-moe-ranks-") as name:
        directory = Path(name)
        command = [sys.executable, "-m", module, *words, name]
        if start is None:
            _run_here(ranks, command, {"OMP_NUM_THREADS": "1", **(environment or {})}, directory, timeout)
        elif code := start(ranks, command):
            raise RankError(f"{module}: a rank ended with exit code {code}")
        return [_result(directory, module, rank) for rank in range(ranks)]


def write_result(directory: str | Path, result: object) -> None:
    """In a rank: write its result, which must be representable in JSON, whole or not at all."""
    file = Path(directory) / f"{os.environ['RANK']}.json"
    temporary = file.with_suffix(".new")
    temporary.write_text(json.dumps(result), encoding="utf-8")
    temporary.replace(file)


def store_url(directory: str | Path) -> str:
    """In a rank: the `init_method` by which `torch.distributed` meets the other ranks."""
    return f"file://{directory}/store"


def start_process(command: Sequence[str], environment: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Start a command that the kernel kills when this process ends.

    It has a session of its own, so that a terminal's Ctrl-C does not reach it, no standard input, and finds the package
    in PYTHONPATH.

    Args:
        command: a program's path and its arguments.
        environment: variables beside this process's own.
        log: file to which standard output and standard error are appended; its directory is made.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as file:
        return subprocess.Popen(
            [sys.executable, str(parent_death.__file__), str(os.getpid()), *command],
            env={**environment_with_package(), **environment},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def environment_with_package() -> dict[str, str]:
    """This process's environment, with the package in PYTHONPATH."""
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": paths}


def kill_processes(processes: Iterable[subprocess.Popen[bytes]]) -> None:
    """Kill those that still run, each with its process group, and wait for their ends."""
    running = [process for process in processes if process.poll() is None]
    for process in running:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    for process in running:
        process.wait()


def end_of(code: int, log: Path) -> str:
    """How a process ended, in one line: the signal that killed it, or its exit code and the last line of its log."""
    killed = -code if code < 0 else code - 128 if code > 128 else 0
    if killed:
        return f"killed by signal {killed}"
    line = last_line(log)
    return f"exit code {code}" + (f": {line[:500]}" if line else "")


def last_line(log: Path) -> str:
    """The last line of a file that is not blank; "" if there is none."""
    with suppress(OSError):
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        return next((line.strip() for line in reversed(lines) if line.strip()), "")
    return ""


def _run_here(
    ranks: int, command: list[str], environment: Mapping[str, str], directory: Path, timeout: float | None
) -> None:
    module, deadline = command[2], None if timeout is None else time.monotonic() + timeout
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(ranks):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
            # The working directory is the user's: its files must not hide modules.
            own["PYTHONSAFEPATH"] = "1"
            processes.append(start_process(command, {**own, **environment}, _log(directory, rank)))
        while True:
            codes = [process.poll() for process in processes]
            for rank, code in enumerate(codes):
                if code:
                    raise RankError(f"{module}: rank {rank} of {ranks}: {end_of(code, _log(directory, rank))}")
            running = [str(rank) for rank, code in enumerate(codes) if code is None]
            if not running:
                return
            if deadline is not None and time.monotonic() > deadline:
                raise RankTimeout(f"{module}: not finished in {timeout:g} s: rank {', '.join(running)} of {ranks}")
            time.sleep(RANK_POLL_SECONDS)
    finally:
        kill_processes(processes)


def _log(directory: Path, rank: int) -> Path:
    return directory / f"{rank}.txt"


def _result(directory: Path, module: str, rank: int) -> Any:
    try:
        return json.loads((directory / f"{rank}.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RankError(f"{module}: rank {rank} ended without a result") from None
