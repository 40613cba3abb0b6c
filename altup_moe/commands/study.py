"""`altup-moe study run|status|report`: a grid of training runs, what each one learned, and how fast it is."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from altup_moe.commands.study_plan import planned_rows
from altup_moe.config import ConfigError, UserError
from altup_moe.config.command import Command, Group
from altup_moe.config.ranges import COUNT, Range
from altup_moe.plan.cluster import load_cluster
from altup_moe.study.read_study import load_study
from altup_moe.study.report.options import ReportOptions
from altup_moe.study.spec import Launcher, Study
from altup_moe.study.study_directory import StudyDirectory, check_new_study


@dataclass(frozen=True)
class RunOptions:
    """Train every row of a study, then measure them. The same command goes on after a stop or a kill."""

    study: Path
    """A study's YAML file."""
    dir: Path | None = None
    """Directory of the study; None is runs/study/NAME."""
    jobs: int | None = None
    """Rows trained at a time, at most; None is as many as the cores hold (a rank fills `threads` of them). Take 1 on a
    GPU."""
    retry_failed: bool = False
    """Begin rows anew that failed before."""
    launcher: Launcher | None = None
    """What starts the rows, whatever the file says; None is the file's. slurm: jobs of a cluster, with the file's
    `cluster`."""
    max_running: int | None = None
    """Launcher slurm: rows in the cluster at a time, at most."""
    cancel_on_interrupt: bool = False
    """Launcher slurm: Ctrl-C cancels the jobs, which save; else they go on."""
    dry_run: bool = False
    """Print the rows, those to come too, their parameters, FLOPs and tokens, and what is done; start nothing."""
    cluster: str | None = None
    """With --dry-run: kind of node (configs/clusters), or a file that `altup-moe plan measure` wrote, for the hours."""


@dataclass(frozen=True)
class StatusOptions:
    """How far a study is; it may be running."""

    dir: Path
    """Directory of the study."""


@dataclass(frozen=True)
class LawOptions:
    """What a ladder says: tuned rates, the scaling law of each family, the largest size predicted, the multiplier."""

    directory: Path
    """Directory of a study whose file has a ladder; it may be running."""
    reference: str = "dense"
    """Family that the others' compute and seconds are compared with."""
    shared: bool = False
    """Families share E, alpha and beta of L = E + A N^-alpha + B D^-beta; without it each family has its own."""
    draws: int = 1000
    """Draws of the bootstrap over runs, for the intervals."""
    seed: int = 0
    """Of the draws."""
    json: bool = False
    """Print one JSON object."""


def law_command(o: LawOptions) -> int:
    """Fit the rows of a ladder and print what follows."""
    COUNT.check("draws", o.draws)
    Range(0, 2**32 - 1).check("seed", o.seed)
    from altup_moe.study.ladder.law import analyse, measured
    from altup_moe.study.ladder.law_text import as_json, law_lines, no_law_dict, no_law_lines
    from altup_moe.study.records import read_rows
    from altup_moe.study.study_directory import ROWS, check_study

    check_study(o.directory)
    path = o.directory / ROWS
    rows = read_rows(path) if path.is_file() else []
    try:
        found = analyse(rows, o.reference, shared=o.shared, draws=o.draws, seed=o.seed)
        content, lines = as_json(found), law_lines(found)
    except ConfigError:
        raise
    except UserError as error:
        # Too few points for a law; what was tuned is worth saying all the same.
        if not (tried := measured(rows)).tuned:
            raise
        content, lines = no_law_dict(tried, str(error)), no_law_lines(tried, str(error))
    print(json.dumps(content, allow_nan=False) if o.json else "\n".join(lines))
    return 0


def run_command(o: RunOptions) -> int:
    """Check the whole study, then run it."""
    for key in ("jobs", "max_running"):
        if (value := getattr(o, key)) is not None:
            COUNT.check(key, value)
    if o.cluster and not o.dry_run:
        raise UserError("--cluster: is of use with --dry-run alone; add --dry-run")
    cluster = load_cluster(o.cluster) if o.cluster else None
    study = load_study(o.study, o.launcher)
    _check_launcher(o, study)
    root = o.dir or Path("runs/study") / study.name
    # Jobs find it from any directory.
    root = root.absolute() if study.on_slurm else root
    check_new_study("dir", root)
    if o.dry_run:
        directory = StudyDirectory(root)
        known = study if study.grow is None else study.grow(directory.loss)
        print("\n".join(planned_rows(known, directory, cluster)))
        return 0
    from altup_moe.study.run import run_study
    from altup_moe.study.slurm.client import OnSlurm

    return run_study(study, root, o.jobs, o.retry_failed, OnSlurm(o.max_running, o.cancel_on_interrupt))


def _check_launcher(o: RunOptions, study: Study) -> None:
    """Check that options are those of the study's launcher."""
    if study.on_slurm and o.jobs is not None:
        raise ConfigError("jobs", o.jobs, "is for rows on this machine; --max-running limits those of launcher slurm")
    if not study.on_slurm:
        for key, value in (("max_running", o.max_running), ("cancel_on_interrupt", o.cancel_on_interrupt or None)):
            if value is not None:
                raise ConfigError(key, value, "is for launcher slurm; --launcher slurm would fit")


def status_command(o: StatusOptions) -> int:
    """Print the table that a running study shows."""
    directory = StudyDirectory(o.dir)
    study = directory.study()
    from rich.console import Console

    from altup_moe.parallel.machine import usable_cores
    from altup_moe.study.live_table import study_table
    from altup_moe.study.progress import RowPhase, lanes_of, snapshot
    from altup_moe.study.slurm.batches import Batches
    from altup_moe.study.slurm.phases import phases_now

    phases: dict[str, RowPhase]
    if study.on_slurm:
        phases, unknown = phases_now(Batches(directory.slurm))
        lanes = lanes_of(study, phases)
        if unknown is not None:
            print(f"note: {unknown}")
    else:
        phases, lanes = dict.fromkeys(directory.training(study), "training"), usable_cores()
    Console().print(study_table(study.name, snapshot(study, directory, directory.finished(), phases, lanes)))
    return 0


def report_command(o: ReportOptions) -> int:
    """What the rows say: a page, pictures and tables."""
    from altup_moe.study.report.command import write_report

    return write_report(o)


STUDY = Group(
    "study",
    "Which of two models learns more at equal latency? A study trains a grid of models, measures what each one learned "
    "and how fast it is, and lays it out on a page.",
    {
        "run": Command(
            "study run",
            "STUDY [options]",
            ["altup-moe study run quick_pareto --jobs 2"],
            RunOptions,
            run_command,
            positional=["study"],
            more="""It never repeats a finished row. Exit codes: 0; 1 some rows failed (they are kept with their
            reason); 2 a mistake; 75 a signal stopped it, saved, or jobs of SLURM were cancelled: the same command goes
            on.""",
        ),
        "status": Command(
            "study status",
            "DIR",
            ["altup-moe study status runs/study/paper_small"],
            StatusOptions,
            status_command,
            positional=["dir"],
        ),
        "law": Command(
            "study law",
            "DIRECTORY [options]",
            ["altup-moe study law runs/study/ladder --reference dense"],
            LawOptions,
            law_command,
            positional=["directory"],
        ),
        "report": Command(
            "study report",
            "DIR [options]",
            ["altup-moe study report runs/study/paper_small"],
            ReportOptions,
            report_command,
            positional=["directory"],
        ),
    },
)
main = STUDY.main
