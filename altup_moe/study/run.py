"""Run a study: train every row, then measure the rows while nothing else runs, and write their lines.

It can be stopped or killed at any moment: the same command goes on. Runs resume from their checkpoints, and what is
written is not done again.
"""

from __future__ import annotations

from pathlib import Path

from altup_moe.config.exit_codes import EXIT_STOPPED
from altup_moe.parallel.machine import usable_cores
from altup_moe.study import worker_main
from altup_moe.study.collect_row import done_row
from altup_moe.study.job_pool import JobPool, StoppedBySignal, noted_signals
from altup_moe.study.live_table import LiveTable
from altup_moe.study.records import StudyRow
from altup_moe.study.slurm.batches import Batches
from altup_moe.study.slurm.client import Client, OnSlurm
from altup_moe.study.spec import RowSpec, Study
from altup_moe.study.study_directory import KINDS, MeasureKind, StudyDirectory
from altup_moe.study.under_way import StudyRun, grown, measured_together, on_one_rank, prepare
from altup_moe.study.worker_processes import check_launchers, failure_reason, worker_job


def run_study(
    study: Study, root: Path, jobs: int | None = None, retry_failed: bool = False, on_slurm: OnSlurm | None = None
) -> int:
    """Run a study in a directory, or go on with it.

    Args:
        jobs: rows trained at a time, at most; never more than the cores hold. None is as many as they hold.
        retry_failed: begin rows anew that failed before.
        on_slurm: what is asked of launcher slurm.
    Returns:
        0 when every row is done, 1 when some failed, `EXIT_STOPPED` when a signal stopped it or jobs of SLURM ended
        without a result.
    Raises:
        UserError: another study runs in the directory; what rows need is missing; data that cannot be had; SLURM does
            not answer, or refuses a job.
    """
    directory = StudyDirectory(root)
    check_launchers(study.rows)
    with directory.locked(), noted_signals() as signals, LiveTable(study.name) as table:
        finished = directory.finished()
        if retry_failed:
            # Of a ladder, the rows too that follow from what is tuned.
            failed = [row for row in grown(study, directory).rows if _failed(finished, row)]
            directory.forget(failed)
            Batches(directory.slurm).forget([row.key for row in failed])
            finished = directory.finished()
        study = grown(study, directory)
        directory.lay_out(study)
        run = StudyRun(study, directory, table, jobs or usable_cores(), finished, JobPool(signals))
        run.pool.poll = run.draw
        for note in study.notes():
            table.say(note)
        try:
            if run.pending:
                table.say(f"{study.name}: {run.snapshot().summary()}")
                if study.on_slurm:
                    Client(run, on_slurm or OnSlurm()).work()
                else:
                    _train_all(run)
                    _measure(run)
        except StoppedBySignal:
            table.say(f"stopped by a signal: {run.snapshot().summary()}; the same command goes on")
            return EXIT_STOPPED
        end = run.snapshot()
        if run.pending:
            table.say(f"{study.name}: {end.summary()}; the same command submits again what was cancelled or lost")
            return EXIT_STOPPED
        table.show(end)
        table.say(f"{study.name}: {end.summary()}; {directory.root / 'rows.jsonl'}")
        return 1 if end.count("failed") else 0


def _failed(finished: dict[str, StudyRow], row: RowSpec) -> bool:
    line = finished.get(row.config_hash)
    return line is not None and line.status == "failed"


def _train_all(run: StudyRun) -> None:
    """Train all rows, those too that are known only once others are trained."""
    while True:
        prepare(run, run.pending)
        _train(run)
        if not run.grow():
            return


def _train(run: StudyRun) -> None:
    """Train all rows that are not trained yet, as many at a time as fit."""
    jobs = []
    for row in run.study.rows:
        row_directory = run.directory.of_row(row)
        has_line, trained = row.config_hash in run.finished, row_directory.trained
        if not has_line and not trained.exists():
            row_directory.failure.unlink(missing_ok=True)
        arguments = worker_main.train_arguments(row_directory.root, row.budget.seconds)
        after = () if row.before is None else (row.before.key,)
        done = trained.exists if not has_line else lambda: True
        jobs.append(worker_job(row.key, arguments, row, row_directory.log, done, after))
    run.pool.run(jobs, run.jobs, usable_cores(), run)


# ----------------------------------------------------------------------------------------------------------- measuring


def _measure(run: StudyRun) -> None:
    """Measure the trained rows in rounds, while nothing else runs, and write their lines."""
    for row in run.pending:
        if row.role == "tuning":
            run.finish(row, done_row(run.study, row, run.directory))
    for number in range(run.study.measure.rounds):
        for kind in KINDS:
            for group in measured_together(run.pending, kind):
                todo = [row for row in group if not run.directory.of_row(row).measured(kind, number).exists()]
                if todo:
                    _measure_group(run, kind, number, todo)
        run.table.say(f"measured round {number + 1} of {run.study.measure.rounds}")
    for row in run.pending:
        run.finish(row, done_row(run.study, row, run.directory))


def _measure_group(run: StudyRun, kind: MeasureKind, number: int, rows: list[RowSpec]) -> None:
    directories = {row.key: run.directory.of_row(row) for row in rows}
    for one in directories.values():
        one.failure.unlink(missing_ok=True)
    log = run.directory.root / "measure.txt"
    log.unlink(missing_ok=True)
    arguments = worker_main.measure_arguments(
        kind, number, run.study.measure, [one.root for one in directories.values()]
    )
    first = rows[0] if kind == "steps" else on_one_rank(rows[0])
    code = run.pool.run_alone(worker_job("measure", arguments, first, log))
    missing = [row for row in rows if not directories[row.key].measured(kind, number).exists()]
    if not missing:
        return
    reason = failure_reason(code, directories[rows[0].key], log)
    if len(rows) == 1:
        run.fail(rows[0], f"measuring: {reason}")
        return
    run.table.say(f"measuring {len(rows)} rows together failed ({reason}); each alone")
    for row in missing:
        _measure_group(run, kind, number, [row])
