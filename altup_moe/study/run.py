"""Run a study: train every row, then measure the rows while nothing else runs, and write their lines.

It can be stopped or killed at any moment: the same command goes on. Runs resume from their checkpoints, and what is
written is not done again.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from altup_moe.config import UserError
from altup_moe.config.exit_codes import EXIT_STOPPED
from altup_moe.parallel.machine import usable_cores
from altup_moe.parallel.start_ranks import last_line
from altup_moe.study import worker_main
from altup_moe.study.collect_row import done_row, failed_row
from altup_moe.study.job_pool import Job, JobPool, StoppedBySignal, noted_signals
from altup_moe.study.live_table import LiveTable
from altup_moe.study.progress import Snapshot, snapshot
from altup_moe.study.records import StudyRow
from altup_moe.study.spec import RowSpec, Study
from altup_moe.study.study_directory import MeasureKind, StudyDirectory, read_json_or_none
from altup_moe.study.worker_processes import check_launchers, failure_reason, worker_job


@dataclass
class StudyRun:
    """A study under way, which hears of its jobs (`JobObserver`). Mutable: rows finish."""

    study: Study
    directory: StudyDirectory
    table: LiveTable
    jobs: int
    finished: dict[str, StudyRow]
    pool: JobPool

    @property
    def pending(self) -> list[RowSpec]:
        """Rows without a line."""
        return [row for row in self.study.rows if row.config_hash not in self.finished]

    def snapshot(self) -> Snapshot:
        """The study's progress now."""
        lanes = min(usable_cores(), self.jobs * max(row.cores for row in self.study.rows))
        return snapshot(self.study, self.directory, self.finished, set(self.pool.running), lanes)

    def draw(self) -> None:
        """Draw the table, if it is time to."""
        if self.table.due:
            self.table.show(self.snapshot())

    def finish(self, row: RowSpec, line: StudyRow) -> None:
        """Write the line of a row, done or failed."""
        self.directory.add(line)
        self.finished[row.config_hash] = line

    def fail(self, row: RowSpec, reason: str) -> None:
        """Keep a row that failed, with its reason."""
        self.finish(row, failed_row(self.study, row, self.directory, reason))
        self.table.say(f"failed {row.name} seed {row.seed}: {reason}")

    def row(self, job: Job) -> RowSpec:
        """The row that a training job trains."""
        return next(row for row in self.study.rows if row.key == job.name)

    def ended(self, job: Job, code: int | None, seconds: float) -> str | None:
        """A row's training has ended, now or in an earlier call. Returns why it failed."""
        row = self.row(job)
        row_directory = self.directory.of_row(row)
        trained = read_json_or_none(row_directory.trained)
        line = self.finished.get(row.config_hash)
        if trained is not None and not trained["problem"]:
            if code is not None:
                self._say_trained(row, trained["valid_loss"])
            return None
        if line is not None:
            return line.reason
        reason: str = trained["problem"] if trained else failure_reason(code or 0, row_directory, row_directory.log)
        self.fail(row, reason)
        return reason

    def blocked(self, job: Job, failed: str, reason: str) -> None:
        """A row is not trained, since one that it comes after has failed."""
        row = self.row(job)
        if row.config_hash not in self.finished:
            self.fail(row, f"not trained: {failed} failed: {reason}")

    def _say_trained(self, row: RowSpec, valid_loss: float) -> None:
        lines = self.directory.of_row(row).metrics()
        figures = f"{len(lines)} steps in {sum(line['step_seconds'] for line in lines):.1f} s"
        self.table.say(
            f"trained {row.name} seed {row.seed}: {figures}, valid loss {valid_loss:.4f} | {self.snapshot().summary()}"
        )


def run_study(study: Study, root: Path, jobs: int | None = None, retry_failed: bool = False) -> int:
    """Run a study in a directory, or go on with it.

    Args:
        jobs: rows trained at a time, at most; never more than the cores hold. None is as many as they hold.
        retry_failed: begin rows anew that failed before.
    Returns:
        0 when every row is done, 1 when some failed, `EXIT_STOPPED` when a signal stopped it.
    Raises:
        UserError: another study runs in the directory; what rows need is missing; data that cannot be had.
    """
    directory = StudyDirectory(root)
    check_launchers(study.rows)
    with directory.locked(), noted_signals() as signals, LiveTable(study.name) as table:
        finished = directory.finished()
        if retry_failed:
            directory.forget([row for row in study.rows if _failed(finished, row)])
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
                _train_all(run)
                _measure(run)
        except StoppedBySignal:
            table.say(f"stopped by a signal: {run.snapshot().summary()}; the same command goes on")
            return EXIT_STOPPED
        end = run.snapshot()
        table.show(end)
        table.say(f"{study.name}: {end.summary()}; {directory.root / 'rows.jsonl'}")
        return 1 if end.count("failed") else 0


def _failed(finished: dict[str, StudyRow], row: RowSpec) -> bool:
    line = finished.get(row.config_hash)
    return line is not None and line.status == "failed"


def grown(study: Study, directory: StudyDirectory) -> Study:
    """The study with all rows that are known by now."""
    return study if study.grow is None else study.grow(directory.loss)


def _train_all(run: StudyRun) -> None:
    """Train all rows, those too that are known only once others are trained."""
    while True:
        _prepare(run)
        _train(run)
        more = grown(run.study, run.directory)
        if len(more.rows) == len(run.study.rows):
            return
        run.table.say(f"{len(more.rows) - len(run.study.rows)} row(s) follow from what is trained")
        run.study = more
        run.directory.lay_out(more)


def _on_one_rank(row: RowSpec) -> RowSpec:
    return replace(row, ranks=1, launcher="torchrun", rate=None)


def _prepare(run: StudyRun) -> None:
    """Prepare the tokens of rows that have not begun, once for each kind, so that rows do not race for them."""
    different = {
        json.dumps([row.config.to_dict()["data"], row.config.model.vocab_size, row.config.model.arch]): row
        for row in run.pending
        if not run.directory.of_row(row).run_dir.exists()
    }
    if not different:
        return
    log = run.directory.root / "prepare.txt"
    log.unlink(missing_ok=True)
    rows = list(different.values())
    arguments = worker_main.prepare_arguments([run.directory.of_row(row).root for row in rows])
    if code := run.pool.run_alone(worker_job("prepare", arguments, _on_one_rank(rows[0]), log)):
        raise UserError(last_line(log).removeprefix("error: ") or f"preparing the data ended with exit code {code}")


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


def measured_together(rows: list[RowSpec], kind: MeasureKind) -> list[list[RowSpec]]:
    """Groups of rows that one start of processes can measure.

    Texts are measured on one process; steps together where layout and launcher agree.
    """
    found: dict[str, list[RowSpec]] = {}
    for row in rows:
        config = row.config
        layout = (row.ranks, row.launcher, row.rate, vars(config.parallel), config.train.engine, config.altup.kernel)
        found.setdefault(json.dumps(layout if kind == "steps" else row.threads), []).append(row)
    return list(found.values())


def _measure(run: StudyRun) -> None:
    """Measure the trained rows in rounds, while nothing else runs, and write their lines."""
    for row in run.pending:
        if row.role == "tuning":
            run.finish(row, done_row(run.study, row, run.directory))
    kinds: tuple[MeasureKind, ...] = ("steps", "texts")
    for number in range(run.study.measure.rounds):
        for kind in kinds:
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
    first = rows[0] if kind == "steps" else _on_one_rank(rows[0])
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
