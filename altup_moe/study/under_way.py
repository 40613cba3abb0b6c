"""A study under way: what is finished, what is shown, and what every launcher of rows does alike."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

from altup_moe.config import UserError
from altup_moe.parallel.machine import usable_cores
from altup_moe.parallel.start_ranks import last_line
from altup_moe.study import worker_main
from altup_moe.study.collect_row import failed_row
from altup_moe.study.job_pool import Job, JobPool
from altup_moe.study.live_table import LiveTable
from altup_moe.study.progress import RowPhase, Snapshot, lanes_of, snapshot
from altup_moe.study.records import StudyRow
from altup_moe.study.spec import RowSpec, Study
from altup_moe.study.study_directory import MeasureKind, StudyDirectory, read_json_or_none
from altup_moe.study.worker_processes import failure_reason, worker_job


@dataclass
class StudyRun:
    """A study under way, which hears of its jobs (`JobObserver`). Mutable: rows finish."""

    study: Study
    directory: StudyDirectory
    table: LiveTable
    jobs: int
    finished: dict[str, StudyRow]
    pool: JobPool
    phases: dict[str, RowPhase] | None = None
    """What rows do, by key, where SLURM knows it; None where the pool does."""

    @property
    def pending(self) -> list[RowSpec]:
        """Rows without a line."""
        return [row for row in self.study.rows if row.config_hash not in self.finished]

    def snapshot(self) -> Snapshot:
        """The study's progress now."""
        if self.phases is not None:
            return snapshot(self.study, self.directory, self.finished, self.phases, lanes_of(self.study, self.phases))
        lanes = min(usable_cores(), self.jobs * max(row.cores for row in self.study.rows))
        phases: dict[str, RowPhase] = dict.fromkeys(self.pool.running, "training")
        return snapshot(self.study, self.directory, self.finished, phases, lanes)

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

    def grow(self) -> bool:
        """Add the rows that follow from what is trained. Returns whether there are any."""
        more = grown(self.study, self.directory)
        new = len(more.rows) - len(self.study.rows)
        if new:
            self.table.say(f"{new} row(s) follow from what is trained")
            self.study = more
            self.directory.lay_out(more)
        return bool(new)

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
                self.say_trained(row, trained["valid_loss"])
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

    def say_trained(self, row: RowSpec, valid_loss: float) -> None:
        """Print a line of a row that is trained."""
        lines = self.directory.of_row(row).metrics()
        figures = f"{len(lines)} steps in {sum(line['step_seconds'] for line in lines):.1f} s"
        self.table.say(
            f"trained {row.name} seed {row.seed}: {figures}, valid loss {valid_loss:.4f} | {self.snapshot().summary()}"
        )


def grown(study: Study, directory: StudyDirectory) -> Study:
    """The study with all rows that are known by now."""
    return study if study.grow is None else study.grow(directory.loss)


def on_one_rank(row: RowSpec) -> RowSpec:
    return replace(row, ranks=1, launcher="torchrun", rate=None)


def prepare(run: StudyRun, rows: Sequence[RowSpec]) -> None:
    """Prepare the tokens of those rows that have not begun, once for each kind, so that rows do not race for them."""
    different = {
        json.dumps([row.config.to_dict()["data"], row.config.model.vocab_size, row.config.model.arch]): row
        for row in rows
        if not run.directory.of_row(row).run_dir.exists()
    }
    if not different:
        return
    log = run.directory.root / "prepare.txt"
    log.unlink(missing_ok=True)
    first, *_ = rows = list(different.values())
    arguments = worker_main.prepare_arguments([run.directory.of_row(row).root for row in rows])
    if code := run.pool.run_alone(worker_job("prepare", arguments, on_one_rank(first), log)):
        raise UserError(last_line(log).removeprefix("error: ") or f"preparing the data ended with exit code {code}")


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
