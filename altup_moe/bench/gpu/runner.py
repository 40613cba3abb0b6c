"""Run checks one after another, each in a process of its own, and keep what each has found."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from altup_moe.bench.gpu.checks import CHECKS
from altup_moe.bench.gpu.options import GpuBench
from altup_moe.bench.gpu.page import page, result_lines
from altup_moe.bench.gpu.planned import Planner, cluster_text, compared
from altup_moe.bench.gpu.results import BAD, Found, Result, ResultFile, State, found_from, state_of
from altup_moe.bench.gpu.sizes import SIZES
from altup_moe.config import ConfigError
from altup_moe.config.files import write_text
from altup_moe.parallel.start_ranks import RankError, RankTimeout, on_ranks

Say = Callable[[str], None]
CHILD = "altup_moe.bench.gpu.child"
ERROR_LINES = 40
"""Of a failed check's end, how many are kept."""


@dataclass(frozen=True)
class Ended:
    """How a check's process ended."""

    state: State | None
    """None: it has found something, which is still to be judged."""
    found: Found
    error: str = ""


def open_results(directory: Path, rehearsal: bool, machine: dict[str, Any]) -> ResultFile:
    """The file to go on with, or a new one. Raises ConfigError: it is of another card, or a rehearsal's."""
    file = ResultFile.read(directory / "gpu.json")
    if file is None:
        return ResultFile(directory / "gpu.json", rehearsal, machine)
    if (file.rehearsal, file.machine.get("card")) != (rehearsal, machine["card"]):
        whose = "a rehearsal" if file.rehearsal else file.machine.get("card")
        raise ConfigError("directory", str(directory), f"has results of {whose}; another directory would fit")
    file.machine = machine
    return file


def run_checks(options: GpuBench, file: ResultFile, planner: Planner, say: Say) -> list[str]:
    """Run what is wanted and missing, as far as the time reaches. Returns the names that are left for another call."""
    deadline = time.monotonic() + 60 * options.minutes
    left = []
    for name in pending(options, file):
        check = CHECKS[name]
        seconds = check.seconds * SIZES[_sizes(options.rehearse)].patience
        if seconds > deadline - time.monotonic():
            left.append(name)
            continue
        say(f"{time.strftime('%H:%M:%S')} {name}: {check.shows} (at most {seconds:g} s)")
        result = run_check(name, seconds, options.rehearse, str(file.machine["commit"]), planner)
        file.add(name, result)
        write_pages(file, planner, say)
        for line in result_lines(name, result, file.rehearsal):
            say(line)
    return left


def pending(options: GpuBench, file: ResultFile) -> list[str]:
    """Checks that this call should run, in the table's order."""
    wanted = set(options.only or CHECKS) | set(options.again)
    return [name for name in CHECKS if name in wanted and (name in options.again or name not in file.results)]


def run_check(name: str, seconds: float, rehearse: bool, commit: str, planner: Planner) -> Result:
    """Run one check for so many seconds at most. Whatever happens to its process is its result."""
    began, when = time.monotonic(), time.strftime("%Y-%m-%dT%H:%M:%S%z")
    ended = _run(name, seconds, _sizes(rehearse))
    found, state, error = ended.found, ended.state, ended.error
    if state is None:
        try:
            compared(name, found, planner)
            state = state_of(found, rehearse)
        except Exception as problem:
            state, error = "failed", f"compared with the planner: {type(problem).__name__}: {problem}"
    return Result(state, round(time.monotonic() - began, 1), when, commit, found, _end_of(error))


def _sizes(rehearse: bool) -> str:
    return "rehearsal" if rehearse else "full"


def _run(name: str, seconds: float, sizes: str) -> Ended:
    words = [name, sizes, str(seconds), str(time.monotonic() + seconds)]
    try:
        told = on_ranks(1, CHILD, words, timeout=seconds, environment=SIZES[sizes].environment)[0]
    except RankTimeout as error:
        return Ended("timed out", Found(), str(error))
    except RankError as error:
        return Ended("failed", Found(), str(error))
    if "found" in told:
        return Ended(None, found_from(told["found"]))
    state: State = "failed" if "failed" in told else "timed out"
    return Ended(state, Found(), told[state])


def _end_of(error: str) -> str:
    return "\n".join(error.strip().splitlines()[-ERROR_LINES:])


def write_pages(file: ResultFile, planner: Planner, say: Say) -> None:
    """gpu.md, and cluster.yaml if what it needs was measured."""
    write_text(file.path.with_name("gpu.md"), page(file))
    try:
        text = cluster_text(file, planner)
    except Exception as problem:
        # Figures that no cluster can have: the other checks run all the same.
        say(f"cluster.yaml was not written: {type(problem).__name__}: {problem}")
        return
    if text is not None:
        write_text(file.path.with_name("cluster.yaml"), text)


def any_bad(file: ResultFile) -> bool:
    """Whether a check failed, took too long, or found something wrong."""
    return any(result.state in BAD for result in file.results.values())
