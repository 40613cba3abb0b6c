"""Capacity-versus-latency studies: a grid of training runs, what each one learned, and how fast it is.

    altup-moe study run configs/study/paper_small.yaml [--dir DIR] [--jobs N] [--retry-failed]
    altup-moe study status DIR        how far a study is
    altup-moe study report DIR        tables and pictures of its rows

`run` goes on where it was stopped or killed, and never repeats a finished row. Exit codes: 0; 1 some rows failed (they
are kept with their reason); 2 a mistake in one line; 75 a signal stopped it, saved.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from tyro.conf import Positional

from altup_moe.config import UserError
from altup_moe.config.command import ended
from altup_moe.config.flags import check_utf8, parse, print_help
from altup_moe.config.keys import nearest_key
from altup_moe.config.ranges import COUNT
from altup_moe.study.read_study import load_study
from altup_moe.study.study_directory import StudyDirectory


@dataclass(frozen=True)
class RunOptions:
    """Train every row of a study, then measure them. The same command goes on after a stop or a kill."""

    study: Positional[Path]
    """A study's YAML file."""
    dir: Path | None = None
    """Directory of the study; None is runs/study/NAME."""
    jobs: int | None = None
    """Rows trained at a time, at most; None is as many as the cores hold (a rank fills `threads` of them). Take 1 on a
    GPU."""
    retry_failed: bool = False
    """Begin rows anew that failed before."""


@dataclass(frozen=True)
class StatusOptions:
    """How far a study is; it may be running."""

    dir: Positional[Path]
    """Directory of the study."""


def run_command(args: Sequence[str]) -> int:
    """Check the whole study, then run it."""
    o = parse(RunOptions, args, positional="study")
    if o.jobs is not None:
        COUNT.check("jobs", o.jobs)
    study = load_study(o.study)
    from altup_moe.study.run import run_study

    return run_study(study, o.dir or Path("runs/study") / study.name, o.jobs, o.retry_failed)


def status_command(args: Sequence[str]) -> int:
    """Print the table that a running study shows."""
    o = parse(StatusOptions, args, positional="dir")
    from rich.console import Console

    from altup_moe.study.collect_row import usable_cores
    from altup_moe.study.live_table import study_table
    from altup_moe.study.progress import snapshot

    directory = StudyDirectory(o.dir)
    study = directory.study()
    finished, training = directory.finished(), directory.training(study)
    Console().print(study_table(study.name, snapshot(study, directory, finished, training, usable_cores())))
    return 0


def report_rows(args: Sequence[str]) -> int:
    """What the rows say: tables and pictures."""
    return import_module("altup_moe.study.report").report_command(args)


STUDY_COMMANDS = {
    "run": (run_command, RunOptions),
    "status": (status_command, StatusOptions),
    "report": (report_rows, None),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line (without the program's name) and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    return ended("study.py", lambda: _dispatch(words))


def _dispatch(words: list[str]) -> int:
    check_utf8(words)
    if not words or words[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if words else 2
    name, *args = words
    if name not in STUDY_COMMANDS:
        raise UserError(f"{name}: unknown command; nearest is {nearest_key(name, STUDY_COMMANDS)}")
    command, options = STUDY_COMMANDS[name]
    if options is not None and ("-h" in args or "--help" in args):
        print_help(options, f"study.py {name}")
        return 0
    return command(args)
